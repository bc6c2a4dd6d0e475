"""The loop: draft, verify, accept; and all that it decides."""
