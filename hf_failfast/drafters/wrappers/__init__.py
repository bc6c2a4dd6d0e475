"""Drafters around another drafter."""
