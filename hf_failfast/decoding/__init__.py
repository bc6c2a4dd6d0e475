"""The loop (draft, verify, accept) and all its decisions."""
