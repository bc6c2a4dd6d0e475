"""The papers' experiments, on any pair: `hf-failfast experiment NAME`."""
