"""One module per `hf-failfast` command; heavy imports are inside of the functions, so that `--help` is quick."""
