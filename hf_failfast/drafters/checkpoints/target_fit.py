"""Whether a drafter fits a target: what it cannot do without is checked, the target it was made for is recognised."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from safetensors import safe_open

from ..spec import DrafterSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

# Checkpoints pad one tokenizer's vocabulary to different sizes (151,936 and 152,064 for Qwen2.5).
MAX_VOCABULARY_PADDING = 512

# The signs of this many entries of this many rows tell a vocabulary: two unrelated ones agree in half of them, a model
# and what was fine-tuned or quantised from it in nearly all.
ROWS, ENTRIES = 32, 32
LEAST_AGREEMENT = 0.9
# What checkpoints call the input embedding, at the end of its name.
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)


def check_vocabulary(drafter_size: int, target_size: int) -> None:
    """Raises ValueError if the two sizes differ by more than padding."""
    padding = abs(drafter_size - target_size)
    if padding > min(MAX_VOCABULARY_PADDING, max(drafter_size, target_size) // 8):
        raise ValueError(
            f"The drafter's vocabulary has {drafter_size} entries and the target's {target_size}: they cannot come "
            "from the same tokenizer. Use a drafter made for the target's tokenizer, or pass both tokenizers "
            "(`tokenizer=`, `assistant_tokenizer=`)."
        )


def check_mask_token(mask_token_id: int, rows: int) -> None:
    """Raises ValueError if a mask token has no row in the target's embedding, which the drafter borrows."""
    if mask_token_id >= rows:
        raise ValueError(
            f"The drafter's `mask_token_id` is {mask_token_id}, but the target's embedding, which it borrows, has "
            f"{rows} rows."
        )


def check_width(width: int, target_width: int, num_states: int = 0) -> None:
    """Raises ValueError if a drafter that borrows the target's embedding, and reads `num_states` of its hidden states
    per token, has another width."""
    if width == target_width:
        return
    if num_states:
        raise ValueError(
            f"The drafter reads {num_states} hidden states of width {width} and borrows the target's embedding, but "
            f"the target's are {target_width} wide."
        )
    raise ValueError(
        f"The drafter borrows the target's embedding of width {width}, but the target's is {target_width} wide."
    )


def check_states(config: PreTrainedConfig) -> None:
    """Raises ValueError if a target of this config has no single hidden state per layer and token to read."""
    from ...engine.causal_lm import has_several_states  # imports torch

    if has_several_states(config):
        raise ValueError(
            f"The drafter reads the target's hidden states, but those of `{config.model_type}` are several per layer."
        )


def check_layers(layers: Sequence[int], num_layers: int, made_for: int | None = None) -> None:
    """Raises ValueError if the target, of `num_layers`, lacks one of the layers that the drafter reads at.

    layers: counted from 0. made_for: how many the drafter's target has; None if its checkpoint does not say.
    """
    if made_for is not None and made_for != num_layers:
        raise ValueError(
            f"The drafter was made for a target of {made_for} layers (it reads at {list(layers)}), but the target has "
            f"{num_layers}."
        )
    if layers and max(layers) >= num_layers:
        raise ValueError(
            f"The drafter reads the target's layer {max(layers)}, counted from 0 (it reads the hidden states "
            f"{list(layers)}, but the target has {num_layers} layers)."
        )


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

    def __reduce__(self) -> tuple[type[MadeFor], tuple[str, str | None]]:
        """A copy or pickle carries no targets."""
        return MadeFor, (self.name, self.fingerprint)

    @classmethod
    def of(cls, section: DrafterSection) -> MadeFor | None:
        """None if the section names no target."""
        return cls(section.target, section.target_fingerprint) if section.target else None

    def differs(self, target: PreTrainedModel) -> bool:
        """Whether this is another model: by the fingerprint, or where there is none by the name."""
        if self.fingerprint is not None:
            return not _agrees(self.fingerprint, target)
        name = target.config._name_or_path
        return bool(name) and PurePath(name).name != PurePath(self.name).name

    def check(self, target: PreTrainedModel) -> None:
        """Warns, once per target, of one that the drafter was not made for."""
        if target in self._seen:
            return
        self._seen.add(target)
        if self.differs(target):
            name = target.config._name_or_path
            warnings.warn(
                f"The drafter was made for {self.name!r} and drafts for {name or type(target).__name__!r}, another "
                "model: the text stays right, but few drafts may be accepted. Train one for this target with "
                "`hf-failfast train`.",
                UserWarning,
                stacklevel=2,
            )


def _agrees(recorded: str, target: PreTrainedModel) -> bool:
    weight = target.get_input_embeddings().weight
    if weight.is_meta or not weight.is_floating_point():  # offloaded or packed: nothing to compare
        return True
    size = int(recorded.partition(":")[0])
    return weight.shape[0] >= size and _same(recorded, _signs(weight, size))


def made_for_folder(section: DrafterSection, folder: Path) -> bool | None:
    """Whether the target that a drafter's config records is the one in a folder: by a few rows of its embedding, or
    by its name where no fingerprint is recorded. None where there is nothing to compare."""
    if section.target is None:
        return None
    if section.target_fingerprint is None:
        return PurePath(section.target).name == folder.name or None
    size = int(section.target_fingerprint.partition(":")[0])
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if name.endswith(EMBEDDINGS):
                    return _same_rows(section.target_fingerprint, file.get_slice(name), size)
    return None


def _same_rows(recorded: str, weight: Any, size: int) -> bool | None:
    """The comparison on a slice of a weight file [vocabulary, hidden]; None if it is packed."""
    import torch

    if weight.get_shape()[0] < size:
        return False
    rows = torch.stack([weight[row] for row in torch.linspace(0, size - 1, ROWS).long().tolist()])
    return _same(recorded, _signs(rows, ROWS)) if rows.is_floating_point() else None


def _same(recorded: str, found: torch.Tensor) -> bool:
    """Whether nearly all signs are those of a recorded fingerprint."""
    digits = recorded.partition(":")[2]
    signs = found.tolist()
    expected = bin(int(digits, 16))[2:].zfill(4 * len(digits))
    same = sum(bit == (digit == "1") for bit, digit in zip(signs, expected, strict=True))
    return same >= LEAST_AGREEMENT * len(signs)


def _signs(embedding: torch.Tensor, size: int) -> torch.Tensor:
    """bool [rows x entries], of rows spread over the first `size`; a multiple of four entries per row."""
    import torch

    rows = torch.linspace(0, size - 1, ROWS, device=embedding.device).long()
    return (embedding.detach()[rows, : min(ENTRIES, embedding.shape[1] // 4 * 4)] > 0).flatten()
