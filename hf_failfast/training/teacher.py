"""The target as a teacher: its hidden states of a batch, computed when they are needed."""

import dataclasses
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from .batches import Batch


class Teacher:
    """Adds to a batch the states that enter the target's `layers` (none for a standalone drafter), and, where the
    data holds none, the final states."""

    def __init__(self, target: PreTrainedModel, layers: Sequence[int]) -> None:
        self.decoder = target.get_decoder()
        self.layers = layers

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        """One forward over the clean tokens; its result in the target's own dtype."""
        output = self.decoder(batch.canvases.tokens, use_cache=False, output_hidden_states=True)
        features = None
        if self.layers:
            features = torch.stack([output.hidden_states[layer] for layer in self.layers], dim=2)
        wanted = batch.wanted
        if wanted is None:
            beyond = batch.canvases.canvas_length
            wanted = torch.nn.functional.pad(output.last_hidden_state, (0, 0, 0, beyond))
            wanted = wanted * batch.answer[..., None]
        return dataclasses.replace(batch, features=features, wanted=wanted)
