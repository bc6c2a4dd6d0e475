"""The same drafters inside a server of another project."""
