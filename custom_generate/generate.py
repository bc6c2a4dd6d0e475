"""Hub entry: `custom_generate="<this repository>", trust_remote_code=True`."""

import hf_failfast


def generate(model, *args, **kwargs):
    """Every argument of `model.generate`, with a diffusion drafter (or its folder or Hub id) as `assistant_model`."""
    return hf_failfast.generate(model, *args, **kwargs)
