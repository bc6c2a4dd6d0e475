"""Drafters of another tokenizer: their text becomes the target's tokens, and the output stays the target's."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_support import DATA, tiny_model
from safetensors.torch import save_file
from sessions import draft_of, session_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import hf_failfast
from hf_failfast import DiffusionDrafter, FailFastConfig, load_drafter
from hf_failfast.drafters import Draft, DraftRequest, DraftSession
from hf_failfast.drafters.checkpoints.target_fit import fingerprint
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


def beginning_with(tokenizer: PreTrainedTokenizerFast, token: str) -> PreTrainedTokenizerFast:
    """The same tokenizer, which puts a token before every text."""
    raw = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    raw.add_special_tokens([token])
    raw.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, raw.token_to_id(token))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=token)


@pytest.mark.parametrize("begins", [("ours", "theirs"), ("ours",), ("theirs",)])
def test_the_drafter_s_text_begins_as_its_texts_do(
    ours: PreTrainedTokenizerFast, theirs: PreTrainedTokenizerFast, begins: tuple[str, ...]
) -> None:
    """A token of the target's that begins every text is no text to the drafter, which gets its own, if it has one."""
    ours = beginning_with(ours, "<s>") if "ours" in begins else ours
    theirs = beginning_with(theirs, "<begin>") if "theirs" in begins else theirs
    target = tiny_model("llama", len(ours))
    drafter = CrossTokenizerDrafter(Recorded(tiny_model("qwen2", len(theirs) + 1), theirs, TEXT), ours, theirs)
    session = session_of(drafter, target, 400)
    seen: list[list[int]] = []
    session.inner.draft_chunk = lambda known, length: (
        seen.append(known.ids[0].tolist()) or Chunk(torch.zeros(1, length, dtype=torch.long), torch.ones(1, length), 1)
    )
    draft_of(session, torch.tensor([ours(TEXT[:30]).input_ids]), FixedLength(4), 50)
    assert seen == [theirs(TEXT[:30]).input_ids]
    assert (theirs.bos_token_id in seen[0]) == ("theirs" in begins)
    if begins == ("ours",):  # nothing to go on from
        assert len(draft_of(session, torch.tensor([ours("").input_ids]), FixedLength(4), 50)) == 0


def test_the_same_tokenizer_needs_no_detour(ours: PreTrainedTokenizerFast) -> None:
    target = tiny_model("llama", len(ours))
    drafter = drafter_with(ours, attention="causal_canvas", shift=1)
    prompt = ours("the quick", return_tensors="pt").input_ids
    settings: dict[str, Any] = {"assistant_model": drafter, "max_new_tokens": 8, "do_sample": False}
    direct = hf_failfast.generate(target, prompt, return_dict_in_generate=True, **settings)
    tokenizers = {"tokenizer": ours, "assistant_tokenizer": ours}
    same = hf_failfast.generate(target, prompt, return_dict_in_generate=True, **tokenizers, **settings)
    assert same.speculation.records == direct.speculation.records


@pytest.mark.parametrize("window", [0, 16])
def test_layers_that_borrow_an_embedding_take_it_from_the_model_they_were_made_for(
    ours: PreTrainedTokenizerFast, theirs: PreTrainedTokenizerFast, window: int, tmp_path: Path
) -> None:
    """They draft what the same layers draft that have the embedding of their own; with a window too, longer texts."""
    lender, target = tiny_model("llama", len(theirs), seed=7), tiny_model("qwen2", len(ours))
    drafter = borrowing_drafter(lender, tmp_path, window)
    lent = drafter.borrowing_from(lender)
    assert lent.own_model is lender and drafter.own_model is None
    prompt = ours(TEXT[:90], return_tensors="pt").input_ids
    settings: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    plain = target.generate(prompt, **settings)
    settings |= {"assistant_model": lent, "tokenizer": ours, "assistant_tokenizer": theirs}
    settings |= {"return_dict_in_generate": True, "drafter_errors": "raise"}
    output = target.generate(prompt, custom_generate="hf_failfast", **settings)
    assert output.sequences.tolist() == plain.tolist()
    assert output.speculation.drafted > 0
    # The inner session drafts as for its own target.
    text, policy = torch.tensor([theirs(TEXT[:40]).input_ids]), FixedLength(4)
    drafts = [draft_of(session_of(each, lender, 100), text, policy, 50).token_ids for each in (drafter, lent)]
    assert torch.equal(*drafts)


def borrowing_drafter(lender: PreTrainedModel, folder: Path, window: int) -> DiffusionDrafter:
    """The first layer of `lender`, as our trainer exports it."""
    section = {"shared_embeddings": True, "mask_token_id": lender.config.vocab_size, "target": "the lender"}
    section |= {"attention": "causal_canvas", "shift": 1, "chunk_length": 4, "max_draft_length": 12}
    section |= {"target_fingerprint": fingerprint(lender.get_input_embeddings().weight), "drafter_window": window}
    config = copy.deepcopy(lender.config)
    config.num_hidden_layers = 1
    content = config.to_dict() | {"failfast": section}
    (folder / "config.json").write_text(json.dumps(content))
    weights = {f"model.layers.0.{name}": value for name, value in lender.model.layers[0].state_dict().items()}
    weights["model.norm.weight"] = lender.model.norm.weight.data
    save_file(weights | {"mask_embedding": torch.ones(config.hidden_size)}, folder / "model.safetensors")
    return load_drafter(folder)


def test_a_lender_must_be_the_model_they_were_made_for(theirs: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    lender = tiny_model("llama", len(theirs), seed=7)
    drafter = borrowing_drafter(lender, tmp_path, 0)
    with pytest.raises(ValueError, match="entries"):
        drafter.borrowing_from(tiny_model("llama", 2 * len(theirs)))
    with pytest.warns(UserWarning, match="made for 'the lender'"):
        drafter.borrowing_from(tiny_model("llama", len(theirs), seed=8))
    whole = drafter_with(theirs, attention="causal_canvas", shift=1)
    assert whole.borrowing_from(lender) is whole
    dflash = load_drafter(DATA / "dflash" / "case_1" / "checkpoint")
    with pytest.raises(ValueError, match="reads the target's hidden states"):
        dflash.borrowing_from(lender)


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
