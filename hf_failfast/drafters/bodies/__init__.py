"""Model code of drafters that are no causal LM of transformers."""
