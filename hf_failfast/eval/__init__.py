"""Accuracy and speed in one run, through lm-eval.

`python -m hf_failfast.eval` (the command `hf-failfast-eval`) is lm-eval's own command with the model `hf_failfast` and
the tasks of the repository's `eval/` folder. Importing this package imports nothing, so that the `evaluate` modules
and the bootstrap work without lm-eval.
"""
