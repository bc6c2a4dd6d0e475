"""How long a draft gets: policies see confidences, never tokens."""
