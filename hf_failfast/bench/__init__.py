"""Decoding methods timed on real prompts, and where their time goes: `hf-failfast bench`."""
