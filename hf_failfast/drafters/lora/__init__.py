"""The target as its own drafter: a LoRA that is active on the positions to be filled and nowhere else."""
