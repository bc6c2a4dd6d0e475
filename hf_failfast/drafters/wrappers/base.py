"""A drafter around another one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..base import DiffusionDrafter


class Wrapper(DiffusionDrafter):
    """Another drafter with something added; all attributes of the contract are the inner drafter's."""

    def __init__(self, drafter: DiffusionDrafter) -> None:
        self.drafter = drafter
        self.config = drafter.config
        self.made_for = drafter.made_for
        self.drafts_by_chunks = drafter.drafts_by_chunks
        self.own_model = drafter.own_model
        self.window = drafter.window
        self.source = drafter.source
        self.has_alternatives = drafter.has_alternatives
        self.runners = drafter.runners

    def modules(self) -> Iterator[nn.Module]:
        return self.drafter.modules()
