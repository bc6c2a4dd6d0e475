"""What the files of a repository on the Hub are called."""

CARD = "README.md"
DRAFTER_CARD = "DRAFTER.md"
