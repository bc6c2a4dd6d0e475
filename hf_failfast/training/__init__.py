"""From a target to a drafter: the target's own text, layers copied from it, training, a checkpoint."""
