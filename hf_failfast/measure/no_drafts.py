"""Plain decoding by this package's loop: the target alone, its forwards replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import FailFastConfig
from ..drafters import DiffusionDrafter, Draft, DraftRequest, DraftSession
from ..engine.ragged import RaggedIds
from ..engine.runner_pool import RunnerPool
from ..policies.base import LengthPolicy


class NoDrafts(DiffusionDrafter):
    """Every round is one forward of the target over its last token."""

    config = FailFastConfig(length_policy="confidence")

    def __init__(self, runners: RunnerPool) -> None:
        self.runners = runners

    def start(self, request: DraftRequest) -> DraftSession:
        return _NoDraft()


class _NoDraft(DraftSession):
    def draft(self, text: RaggedIds, policy: LengthPolicy, room: Sequence[int]) -> Draft:
        policy.start_draft(len(text.lengths), max(text.lengths), 0)
        return Draft.empty(text)

    def accept(self, counts: Sequence[int]) -> None:
        """Nothing was drafted."""

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing is remembered."""
