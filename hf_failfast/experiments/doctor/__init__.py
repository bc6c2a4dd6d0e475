"""`hf-failfast doctor`: what holds of a pair of target and drafter, and what keeps it from being fast."""
