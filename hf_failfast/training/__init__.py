"""Training of a causal-canvas diffusion drafter from the target itself."""
