"""Publishing: a self-contained repository for the Hub, and the upload of it or of a drafter."""
