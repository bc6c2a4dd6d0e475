"""The target's hidden states in the input of drafting rows."""

import torch
from torch import nn
from torch.nn.functional import rms_norm

INITIAL_DEVIATION = 0.3


class StateFusion(nn.Module):
    """Two projections from the normalised states of one position to what is added to an input embedding: to the one of
    the token after it, and to those of the masks and drafted tokens that follow.

    The states are scaled by 1 / sqrt(their number): a step of an optimizer like Adam then moves the input by about its
    learning rate, whatever the width.
    """

    def __init__(self, num_states: int, hidden_size: int) -> None:
        super().__init__()
        self.token = nn.Linear(num_states * hidden_size, hidden_size, bias=False)
        self.canvas = nn.Linear(num_states * hidden_size, hidden_size, bias=False)
        for projection in (self.token, self.canvas):
            nn.init.normal_(projection.weight, std=INITIAL_DEVIATION)

    def prepared(self, states: torch.Tensor) -> torch.Tensor:
        """(..., layers, hidden) -> (..., layers * hidden), what the projections read, in their dtype."""
        whole = rms_norm(states.float(), (states.shape[-1],)).flatten(-2)
        return (whole / whole.shape[-1] ** 0.5).to(self.token.weight.dtype)
