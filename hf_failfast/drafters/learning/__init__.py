"""Learning from the text that is drafted: what is collected, one step on an adapter, and when it is undone."""
