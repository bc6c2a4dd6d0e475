"""One module per `hf-failfast` command; what only one of them needs is imported inside of its function."""
