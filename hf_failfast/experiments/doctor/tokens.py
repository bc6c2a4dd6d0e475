"""Whether the tokenizers of target and drafter agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from ...drafters.checkpoints.reading import find_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
SPECIAL = ("bos", "eos", "pad", "unk")


@dataclass(frozen=True)
class TokenizerFit:
    """Two tokenizers beside each other.

    sizes: (target's, drafter's). other_ids: tokens that both have, under different ids. only_target, only_drafter:
        tokens that the other lacks.
    special: special tokens that differ, by name: [the target's, the drafter's].
    chat_template: `same`, `different`, `target only`, `drafter only` or `none`.
    prompts_alike, prompts: how many of the prompts both encode to the same ids.
    """

    sizes: tuple[int, int]
    other_ids: int
    only_target: int
    only_drafter: int
    special: dict[str, list[str | None]]
    chat_template: str
    prompts_alike: int
    prompts: int

    @property
    def needs_translation(self) -> bool:
        """Whether the drafter would take the target's ids for other text."""
        return self.prompts_alike < self.prompts

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"needs_translation": self.needs_translation}


def own_tokenizer(drafter: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a drafter's checkpoint; None if it has none: then it reads and writes the target's ids.

    A checkpoint's own code is not run: one that needs it raises ValueError.
    """
    if all(find_file(drafter, name, {}) is None for name in FILES):
        return None
    return AutoTokenizer.from_pretrained(drafter, trust_remote_code=False)


def compare(target: PreTrainedTokenizerBase, drafter: PreTrainedTokenizerBase, prompts: Sequence[str]) -> TokenizerFit:
    ours, theirs = target.get_vocab(), drafter.get_vocab()
    common = ours.keys() & theirs.keys()
    named = {name: [getattr(each, f"{name}_token", None) for each in (target, drafter)] for name in SPECIAL}
    encoded = [[each(text, add_special_tokens=False).input_ids for each in (target, drafter)] for text in prompts]
    return TokenizerFit(
        sizes=(len(ours), len(theirs)),
        other_ids=sum(ours[token] != theirs[token] for token in common),
        only_target=len(ours) - len(common),
        only_drafter=len(theirs) - len(common),
        special={name: pair for name, pair in named.items() if pair[0] != pair[1]},
        chat_template=_templates(target.chat_template, drafter.chat_template),
        prompts_alike=sum(ids == own for ids, own in encoded),
        prompts=len(prompts),
    )


def _templates(target: str | None, drafter: str | None) -> str:
    if target is None or drafter is None:
        return "target only" if target else "drafter only" if drafter else "none"
    return "same" if target == drafter else "different"
