"""An exponential moving average of trained weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """w <- decay * w + (1 - decay) * trained weight at every `update`. With decay 0 it is the trained weights."""

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        self.parameters = parameters
        self.values = [p.detach().clone() for p in parameters] if decay else None
        self._average = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        if self.values is not None:
            self._average(self.values, [p.detach() for p in self.parameters], None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """In this context the parameters hold the average."""
        if self.values is None:
            yield
            return
        trained = [p.detach().clone() for p in self.parameters]
        copy_tensors(self.values, self.parameters)
        try:
            yield
        finally:
            copy_tensors(trained, self.parameters)


@torch.no_grad()
def copy_tensors(source: Sequence[torch.Tensor], destination: Sequence[torch.Tensor]) -> None:
    for old, new in zip(source, destination, strict=True):
        new.copy_(old)
