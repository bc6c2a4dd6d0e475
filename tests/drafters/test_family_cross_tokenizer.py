"""Drafters of another tokenizer: their text becomes the target's tokens, and the output stays the target's."""

from typing import Any

import pytest
import torch
from family_support import DATA, tiny_model
from sessions import draft_of, session_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import hf_failfast
from hf_failfast import DiffusionDrafter, FailFastConfig, load_drafter
from hf_failfast.drafters import Draft, DraftRequest, DraftSession
from hf_failfast.drafters.chunks import Chunk, ChunkedSession
from hf_failfast.drafters.masked.session import DraftingOptions, MaskedDrafter
from hf_failfast.drafters.wrappers.cross_tokenizer import CrossTokenizerDrafter, CrossTokenizerSession
from hf_failfast.engine.ragged import RaggedIds
from hf_failfast.policies.confidence import FixedLength

TEXT = "the quick brown fox jumps over the lazy dog and naïve cafés serve quick lunches to the lazy foxes, " * 3


def tokenizer(vocab_size: int, seed: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose merges depend on the seed text."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([TEXT, seed * 50], trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=None)


@pytest.fixture(scope="module")
def ours() -> PreTrainedTokenizerFast:
    return tokenizer(300, "the quick ")


@pytest.fixture(scope="module")
def theirs() -> PreTrainedTokenizerFast:
    return tokenizer(330, "lazy dogs jump ")


def drafter_with(theirs: PreTrainedTokenizerFast, **spec: Any) -> MaskedDrafter:
    model = tiny_model("qwen2", len(theirs) + 1, seed=5)
    return MaskedDrafter(model, hf_failfast.DrafterSpec(mask_token_id=len(theirs), **spec), FailFastConfig())


SPECS: list[dict[str, Any]] = [
    {"attention": "bidirectional", "shift": 1},
    {"attention": "block_causal", "shift": 0, "block_size": 8},
    {"attention": "causal_canvas", "shift": 1},
]


@pytest.mark.parametrize("spec", SPECS)
def test_both_loops_write_what_the_target_writes(
    ours: PreTrainedTokenizerFast, theirs: PreTrainedTokenizerFast, spec: dict[str, Any]
) -> None:
    target = tiny_model("llama", len(ours))
    drafter = drafter_with(theirs, **spec)
    prompt = ours("the quick naïve fox", return_tensors="pt").input_ids
    settings: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    plain = target.generate(prompt, **settings)
    settings |= {"assistant_model": drafter, "tokenizer": ours, "assistant_tokenizer": theirs}
    settings["return_dict_in_generate"] = True
    output = target.generate(prompt, custom_generate="hf_failfast", **settings)
    assert output.sequences.tolist() == plain.tolist()
    assert output.speculation.drafted > 0
    assert hf_failfast.assisted_generate(target, prompt, **settings).sequences.tolist() == plain.tolist()


class Recorded(MaskedDrafter):
    """Drafts the continuation of a known text in its own tokens."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
        super().__init__(model, hf_failfast.DrafterSpec("causal_canvas", 1, len(tokenizer)), FailFastConfig())
        self.tokenizer, self.text = tokenizer, text

    def start(self, request: DraftRequest) -> DraftSession:
        return _Recorded(self.tokenizer, self.text)


class _Recorded(ChunkedSession):
    def __init__(self, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
        super().__init__(None)
        self.tokenizer, self.text = tokenizer, text

    def draft_chunk(self, known: RaggedIds, length: int) -> Chunk:
        text = self.tokenizer.decode(known.ids[0])
        assert self.text.startswith(text)
        ids = self.tokenizer(self.text[len(text) :]).input_ids[:length]
        ids += [0] * (length - len(ids))
        return Chunk(torch.tensor([ids]), torch.ones(1, length), 1)

    def accept(self, counts: list[int]) -> None:
        pass

    def max_draft_length(self, num_tokens: int) -> int:
        return 100


def test_a_drafter_that_knows_the_text_is_accepted(
    ours: PreTrainedTokenizerFast, theirs: PreTrainedTokenizerFast
) -> None:
    """Over 85 % of the tokens drafted from the true text are the true tokens, at any cut."""
    text = TEXT[:200]
    ids = ours(text).input_ids
    model = tiny_model("qwen2", len(theirs) + 1)
    target = tiny_model("llama", len(ours))
    session = session_of(CrossTokenizerDrafter(Recorded(model, theirs, text), ours, theirs), target, 400)
    assert isinstance(session, CrossTokenizerSession)
    accepted = total = 0
    for cut in range(3, 40):
        if "\N{REPLACEMENT CHARACTER}" in ours.decode(ids[:cut]):
            continue
        draft: Draft = draft_of(session, torch.tensor([ids[:cut]]), FixedLength(8), 50)
        wanted = ids[cut : cut + len(draft)]
        drafted = draft.token_ids[0].tolist()
        while drafted and drafted != wanted[: len(drafted)]:
            drafted.pop()
        accepted, total = accepted + len(drafted), total + len(draft)
    assert accepted > 0.85 * total


def test_the_same_tokenizer_needs_no_detour(ours: PreTrainedTokenizerFast) -> None:
    target = tiny_model("llama", len(ours))
    drafter = drafter_with(ours, attention="causal_canvas", shift=1)
    prompt = ours("the quick", return_tensors="pt").input_ids
    settings: dict[str, Any] = {"assistant_model": drafter, "max_new_tokens": 8, "do_sample": False}
    direct = hf_failfast.generate(target, prompt, return_dict_in_generate=True, **settings)
    tokenizers = {"tokenizer": ours, "assistant_tokenizer": ours}
    same = hf_failfast.generate(target, prompt, return_dict_in_generate=True, **tokenizers, **settings)
    assert same.speculation.records == direct.speculation.records


def test_what_is_refused(ours: PreTrainedTokenizerFast, theirs: PreTrainedTokenizerFast) -> None:
    target = tiny_model("llama", len(ours))
    prompt = ours("the quick", return_tensors="pt").input_ids
    drafter: DiffusionDrafter = drafter_with(theirs, attention="causal_canvas", shift=1)
    with pytest.raises(ValueError, match="`assistant_tokenizer` needs `tokenizer`"):
        hf_failfast.generate(target, prompt, assistant_model=drafter, assistant_tokenizer=theirs)
    dflash = load_drafter(DATA / "dflash" / "case_1" / "checkpoint")
    with pytest.raises(ValueError, match="so it needs its tokenizer"):
        CrossTokenizerDrafter(dflash, ours, theirs)
    reference = MaskedDrafter(
        tiny_model("qwen2", len(theirs) + 1),
        hf_failfast.DrafterSpec("block_causal", 1, len(theirs), 8),
        FailFastConfig(),
        DraftingOptions(mode="reference"),
    )
    with pytest.raises(ValueError, match="own tokenizer only"):
        CrossTokenizerDrafter(reference, ours, theirs)
