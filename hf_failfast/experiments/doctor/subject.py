"""The models of a checkup in memory, and whether they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...config import FailFastConfig
from ...drafters import DiffusionDrafter, DraftRequest, load_drafter
from ...drafters.wrappers.cross_tokenizer import CrossTokenizerDrafter
from ...engine.causal_lm import execution_device
from ...engine.cpu.packed_weights import prepack
from ...measure.timing import Prompts
from ...pairs import encode_prompt, load_target
from .checkup import Checkup
from .tokens import TokenizerFit, compare, own_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Subject:
    """drafter: as it can draft for this target, between two tokenizers where it must; None if there is none that can.
    misfit: why the drafter that was named cannot. tokenizers: None unless the drafter has one of its own.
    unread_tokenizer: why that one cannot be read; the drafter is then taken to have the target's ids.
    """

    checkup: Checkup
    target: PreTrainedModel
    prompts: Sequence[Prompts]  # one each
    drafter: DiffusionDrafter | None
    misfit: str | None
    tokenizers: TokenizerFit | None
    unread_tokenizer: str | None

    @classmethod
    def load(cls, checkup: Checkup) -> Subject:
        target, tokenizer = load_target(checkup.target, checkup.dtype, checkup.device)
        ids = [encode_prompt(tokenizer, text).to(target.device) for text in checkup.prompts]
        prompts = [Prompts.greedy(each, checkup.max_new_tokens) for each in ids]
        theirs, unread = _own_tokenizer(checkup.drafter_name)
        tokenizers = None if theirs is None else compare(tokenizer, theirs, checkup.prompts)
        between = (tokenizer, theirs) if tokenizers is not None and tokenizers.needs_translation else None
        drafter, misfit = _fitting(checkup.drafter_name, target, between)
        if checkup.packs:
            prepack(target, *([] if drafter is None else [drafter]))
        return cls(checkup, target, prompts, drafter, misfit, tokenizers, unread)

    @property
    def config(self) -> FailFastConfig:
        """FailFast's options as they are asked for."""
        own = FailFastConfig() if self.drafter is None else self.drafter.config
        return own.with_options(self.checkup.options)

    @property
    def is_translated(self) -> bool:
        return isinstance(self.drafter, CrossTokenizerDrafter)

    def fit(self) -> dict[str, Any]:
        """What the files say of both models and what became of it, ready for JSON; pairs: [the target's, the
        drafter's]."""
        inspection, config = self.checkup.inspection, self.target.config.get_text_config(decoder=True)
        found: dict[str, Any] = {"misfit": self.misfit}
        if inspection is None:
            return found | {"bundled_misfit": self.checkup.bundled_misfit}
        made_for = None if self.drafter is None else self.drafter.made_for
        return found | {
            "family": inspection.family,
            "attention": inspection.spec.attention,
            "vocabulary": [config.vocab_size, inspection.vocab_size],
            "hidden_size": [getattr(config, "hidden_size", None), inspection.hidden_size],
            "layers": getattr(config, "num_hidden_layers", None),
            "reads_layers": list(inspection.target_layers),
            "made_for_layers": inspection.made_for_layers,
            "made_for": inspection.made_for,
            "is_made_for_this_target": None if made_for is None else not made_for.differs(self.target),
            "tokenizers": self.tokenizers and self.tokenizers.as_dict(),
            "unread_tokenizer": self.unread_tokenizer,
            "is_translated": self.is_translated,
        }


def _own_tokenizer(drafter: str | None) -> tuple[PreTrainedTokenizerBase | None, str | None]:
    """The tokenizer of a drafter that has one, or why it cannot be read."""
    try:
        return None if drafter is None else own_tokenizer(drafter), None
    except Exception as error:  # whatever its file, or its need of the checkpoint's own code, leads to
        return None, " ".join(str(error).split())


def _fitting(
    name: str | None, target: PreTrainedModel, between: tuple[Any, Any] | None
) -> tuple[DiffusionDrafter | None, str | None]:
    """The drafter of that name as it can draft for the target, or why it cannot.

    between: the target's and the drafter's tokenizer, if it has to be translated.
    """
    if name is None:
        return None, None
    try:
        drafter = load_drafter(name, dtype=target.dtype, device_map=execution_device(target))
        if between is not None:
            drafter = CrossTokenizerDrafter(drafter, *between)
        drafter.start(DraftRequest(target, capacity=1))
    except ValueError as error:
        return None, str(error)
    return drafter, None
