"""The target that a drafter was made for, recognised by its embedding; drafts for another are seldom accepted."""

from __future__ import annotations

import warnings
from pathlib import PurePath
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch

from ..spec import DrafterSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The signs of this many entries of this many rows tell a vocabulary: two unrelated ones agree in half of them, a model
# and what was fine-tuned or quantised from it in nearly all.
ROWS, ENTRIES = 32, 32
LEAST_AGREEMENT = 0.9


def fingerprint(embedding: torch.Tensor) -> str:
    """Vocabulary size and signs of some entries of an embedding [vocabulary, hidden], as "49152:5f3a..."."""
    bits = _signs(embedding, embedding.shape[0]).tolist()
    return f"{embedding.shape[0]}:{int(''.join(str(int(bit)) for bit in bits), 2):0{len(bits) // 4}x}"


class MadeFor:
    """What a checkpoint's config says about its target: a name, and the fingerprint of its embedding if recorded."""

    def __init__(self, name: str, fingerprint: str | None) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self._seen: WeakSet[PreTrainedModel] = WeakSet()

    @classmethod
    def of(cls, section: DrafterSection) -> MadeFor | None:
        """None if the section names no target."""
        return cls(section.target, section.target_fingerprint) if section.target else None

    def check(self, target: PreTrainedModel) -> None:
        """Warns, once per target, of one that the drafter was not made for."""
        if target in self._seen:
            return
        self._seen.add(target)
        name = target.config._name_or_path
        if self.fingerprint is None:
            differs = bool(name) and PurePath(name).name != PurePath(self.name).name
        else:
            differs = not _agrees(self.fingerprint, target)
        if differs:
            warnings.warn(
                f"The drafter was made for {self.name!r} and drafts for {name or type(target).__name__!r}, another "
                "model: the text stays right, but few drafts may be accepted. Train one for this target with "
                "`hf-failfast train`.",
                UserWarning,
                stacklevel=2,
            )


def _agrees(recorded: str, target: PreTrainedModel) -> bool:
    size, _, digits = recorded.partition(":")
    weight = target.get_input_embeddings().weight
    if weight.is_meta or not weight.is_floating_point():  # offloaded or packed: nothing to compare
        return True
    if weight.shape[0] < int(size):
        return False
    signs = _signs(weight, int(size)).tolist()
    expected = bin(int(digits, 16))[2:].zfill(4 * len(digits))
    same = sum(bit == (digit == "1") for bit, digit in zip(signs, expected, strict=True))
    return same >= LEAST_AGREEMENT * len(signs)


def _signs(embedding: torch.Tensor, size: int) -> torch.Tensor:
    """bool [rows x entries], of rows spread over the first `size`; a multiple of four entries per row."""
    rows = torch.linspace(0, size - 1, ROWS, device=embedding.device).long()
    return (embedding.detach()[rows, : min(ENTRIES, embedding.shape[1] // 4 * 4)] > 0).flatten()
