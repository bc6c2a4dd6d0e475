"""Prompts, the target's answers to them, and the shards they are kept in."""
