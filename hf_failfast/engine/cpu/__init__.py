"""Faster attention and weights for a CPU."""
