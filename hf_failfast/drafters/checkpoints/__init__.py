"""What a checkpoint says about its drafter, and whether it fits the target."""
