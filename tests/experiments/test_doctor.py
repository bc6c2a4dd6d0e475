"""The doctor finds what is wrong with a pair, and says the likeliest cause in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import prompt, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
)

from hf_failfast import BUNDLED_DRAFTER
from hf_failfast.decoding import acceptance, round_costs
from hf_failfast.decoding.stats import RoundRecord, SpecDecodingStats
from hf_failfast.drafters.checkpoints.target_fit import fingerprint
from hf_failfast.drafters.masked.session import MaskedSession
from hf_failfast.engine.cuda.eligibility import obstacle
from hf_failfast.experiments.doctor import examination
from hf_failfast.experiments.doctor.acceptance import accepted_shares
from hf_failfast.experiments.doctor.checkup import Checkup
from hf_failfast.experiments.doctor.costs import RelativeCosts
from hf_failfast.experiments.doctor.diagnosis import advice, is_exact
from hf_failfast.experiments.doctor.exactness import parting
from hf_failfast.experiments.doctor.promise import promise
from hf_failfast.policies.base import RoundCosts

WORDS = ["<mask>", "<end>", *"abcdefghijklmnopqrstuvwxyz"]
PROMPTS = ("a b c", "x y z q")
TOKENS = 20


@pytest.fixture(autouse=True)
def few_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_costs, "GENERATIONS", 1)
    monkeypatch.setattr(round_costs, "SWEEPS", 1)


def save_tokenizer(folder: Path, words: list[str] = WORDS) -> Path:
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>").save_pretrained(folder)
    return folder


def save_target(folder: Path, kind: str = "llama", **options: Any) -> Path:
    """A target whose logits are well apart, with a tokenizer."""
    tiny_model(kind, **({"vocab_size": len(WORDS)} | options)).save_pretrained(folder)
    return save_tokenizer(folder)


def save_drafter(folder: Path, kind: str = "llama", seed: int = 0, **section: Any) -> Path:
    """A drafter with the weights of the target of the same seed, whose first draft token is then the target's own."""
    tiny_model(kind, seed, vocab_size=len(WORDS)).save_pretrained(folder)
    spec = {"attention": "causal_canvas", "shift": 1, "mask_token_id": 0, "chunk_length": 3, "max_draft_length": 3}
    return change(folder, failfast=spec | section)


def change(folder: Path, name: str = "config.json", **values: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))
    return folder


def keep_promise(folder: Path, *accepted: float) -> Path:
    return change(folder, "training.json", held_out={"acceptance_by_position": accepted})


def examined(target: Path, drafter: Path | None = None, **options: Any) -> dict[str, Any]:
    asked = {"prompts": PROMPTS, "max_new_tokens": TOKENS} | options
    found = examination.examine(Checkup(str(target), None if drafter is None else str(drafter), **asked))
    json.dumps(found, allow_nan=False)
    assert "\n" not in found["advice"]
    return found


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("target"))


# Pairs that draft


def test_a_good_pair(target: Path, tmp_path: Path) -> None:
    found = examined(target, keep_promise(save_drafter(tmp_path), 1.0, 0.02))
    assert found["exact"]
    assert found["exactness"] == {"float32": {"answers": 2, "tokens": 2 * TOKENS, "identical": 2, "partings": []}}
    assert found["fit"]["misfit"] is None
    assert found["fit"]["vocabulary"] == [len(WORDS), len(WORDS)]
    measured = found["acceptance"]
    assert measured["by_position"][0] == 1.0, "with the target's weights and shift 1 the first token is its own"
    assert measured["teacher_forced"][0] == 1.0
    assert len(measured["by_position"]) == 8
    assert measured["promised"]["mean_acceptance_length"] == pytest.approx(2.02)
    assert measured["mean_acceptance_length"] >= 1.9
    assert found["costs"]["verification_by_rows"]["1"] == 1.0
    assert set(found["speed"]["limits"]) == {"free drafting", "free verification", "promised acceptance"}
    for placed in found["placement"].values():
        assert "NVIDIA GPU" in placed["eager_because"]
        assert placed["attention"] == "sdpa"
    assert set(found["placement"]) == {"target", "drafter"}


def test_its_own_dtype_and_float32(target: Path, tmp_path: Path) -> None:
    """In bfloat16 rounding may part the texts; in float32 nothing does."""
    found = examined(target, save_drafter(tmp_path), dtype=torch.bfloat16)
    assert list(found["exactness"]) == ["bfloat16", "float32"]
    assert found["exactness"]["float32"]["identical"] == 2
    assert all(each["kind"] == "near tie" for each in found["exactness"]["bfloat16"]["partings"])
    assert found["exact"]


def test_exact_forwards(target: Path, tmp_path: Path) -> None:
    """With `exact` drafted texts are held against the same forwards without drafts: in bfloat16 none parts."""
    asked = {"dtype": torch.bfloat16, "options": {"exact": True}}
    for drafter in (save_drafter(tmp_path), None):
        found = examined(target, drafter, **asked)
        assert [each["identical"] for each in found["exactness"].values()] == [2, 2]


def test_packed_weights_are_seen(target: Path, tmp_path: Path) -> None:
    drafter = save_drafter(tmp_path)
    for packs in (False, True):
        placed = examined(target, drafter, packs=packs)["placement"]
        assert [(each["packed"], each["packable"]) for each in placed.values()] == [(packs, not packs)] * 2


def test_what_a_target_has_saved_for_sampling_plays_no_part(target: Path, tmp_path: Path) -> None:
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 3, "top_p": 0.9, "max_new_tokens": 500}
    other = change(shutil.copytree(target, tmp_path / "target"), "generation_config.json", **sampling)
    found = examined(other, save_drafter(tmp_path / "drafter"))
    assert found["exact"]
    assert found["exactness"] == examined(target, tmp_path / "drafter")["exactness"]


def test_a_target_alone(target: Path) -> None:
    """Without a drafter its own answers with mistakes are drafted: every number of accepted tokens is met."""
    found = examined(target)
    assert found["exact"]
    assert found["exactness"]["float32"]["identical"] == 2
    assert "49152" in found["fit"]["bundled_misfit"]
    assert "hf-failfast train" in found["advice"]
    assert found["costs"]["verification_by_rows"]["1"] == 1.0
    assert found["acceptance"] is None


def test_a_quantised_target(tmp_path: Path) -> None:
    """It is not moved to float32; nothing but rounding parts its texts."""
    pytest.importorskip("bitsandbytes")
    whole = save_target(tmp_path / "whole", hidden_size=64, intermediate_size=128)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(whole, quantization_config=config, device_map="cpu").save_pretrained(
        tmp_path / "quantised"
    )
    found = examined(save_tokenizer(tmp_path / "quantised"), dtype=torch.bfloat16)
    assert found["float32_not_checked"] == "the target is quantised"
    assert found["exact"]


# Pairs that are broken


def test_a_verifier_that_takes_the_second_best_token_is_found(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_best(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (logits.topk(2).indices[..., 1],)

    monkeypatch.setattr(acceptance, "best_tokens", second_best)
    for drafter in (None, save_drafter(tmp_path)):
        found = examined(target, drafter)
        assert not found["exact"]
        assert found["exactness"]["float32"]["identical"] == 0
        first = found["exactness"]["float32"]["partings"][0]
        assert first["kind"] == "fault"
        assert first["gap"] == pytest.approx(first["margin"])
        assert first["target_is_consistent"]
        assert "answer 1 leaves plain `generate` at new token 1" in found["advice"]
        assert "this is a fault" in found["advice"]


def test_a_drafter_of_other_weights_than_its_record(target: Path, tmp_path: Path) -> None:
    """It fits by all that the files say, and breaks its promise from the first position on."""
    found = examined(target, keep_promise(save_drafter(tmp_path, seed=9), 1.0, 0.02))
    assert found["exact"]
    assert found["advice"].startswith("The drafter gets 1.")
    assert "its weights and its config do not belong together" in found["advice"]
    assert "training.json promises 2.02" in found["advice"]


def test_a_drafter_of_another_model(target: Path, tmp_path: Path) -> None:
    other = tiny_model("llama", 5, vocab_size=len(WORDS))
    section = {
        "target": "user/another",
        "target_fingerprint": fingerprint(other.get_input_embeddings().weight),
    }
    found = examined(target, save_drafter(tmp_path, seed=5, **section))
    assert found["exact"]
    assert found["fit"]["is_made_for_this_target"] is False
    assert found["fit"]["made_for"] == "user/another"
    assert "made for user/another, another model" in found["advice"]
    assert any("user/another" in text for text in found["warnings"])


def test_a_drafter_that_fails(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = save_drafter(tmp_path)
    draft_chunk = MaskedSession.draft_chunk

    def breaks(session: MaskedSession, known: Any, length: int) -> Any:
        if known.lengths[0] > 8:
            raise RuntimeError("out of ink")
        return draft_chunk(session, known, length)

    monkeypatch.setattr(MaskedSession, "draft_chunk", breaks)
    found = examined(target, drafter)
    assert found["drafter_error"] == "RuntimeError: out of ink"
    assert "RuntimeError: out of ink" in found["advice"]
    assert not found["exact"]
    assert found["exactness"]["float32"]["identical"] == 2, "the rest is decoded plainly"


DFLASH = Path(__file__).parents[1] / "data" / "families" / "dflash" / "case_1"


@pytest.mark.parametrize(
    ("layer_ids", "made_for", "message"),
    [
        ([1, 3], 6, None),
        ([1, 9], None, "reads the target's layer 9"),
        ([1, 3], 4, "made for a target of 4 layers (it reads at [1, 3]), but the target has 6"),
    ],
)
def test_layer_ids(layer_ids: list[int], made_for: int | None, message: str | None, tmp_path: Path) -> None:
    words = [f"w{index}" for index in range(95)] + ["<end>"]
    target = save_tokenizer(shutil.copytree(DFLASH / "target", tmp_path / "target"), words)
    drafter = shutil.copytree(DFLASH / "checkpoint", tmp_path / "drafter")
    asked = {"dflash_config": {"mask_token_id": 94, "target_layer_ids": layer_ids}, "num_target_layers": made_for}
    change(drafter, **asked)
    found = examined(target, drafter, prompts=["w1 w2 w3", "w7 w5"], dtype=torch.float32)
    assert found["fit"]["reads_layers"] == layer_ids
    assert found["fit"]["made_for_layers"] == made_for
    assert found["fit"]["layers"] == 6
    assert found["exactness"]["float32"]["identical"] == 2
    if message is None:
        assert found["exact"]
        assert found["acceptance"]["teacher_forced"] is None, "it drafts from hidden states"
        assert "they need an NVIDIA GPU" in found["placement"]["drafter"]["eager_because"]
    else:
        assert message in found["fit"]["misfit"]
        assert message in found["advice"]
        assert not found["exact"]


# Tokenizers


def test_a_drafter_of_another_tokenizer_is_translated(target: Path, tmp_path: Path) -> None:
    drafter = save_tokenizer(save_drafter(tmp_path, seed=3), [WORDS[0], WORDS[1], *reversed(WORDS[2:])])
    found = examined(target, drafter)
    pair = found["fit"]["tokenizers"]
    assert pair["needs_translation"]
    assert pair["prompts_alike"] == 0
    assert pair["other_ids"] == 26
    assert pair["only_target"] == pair["only_drafter"] == 0
    assert found["fit"]["is_translated"]
    assert found["exact"]
    assert "another tokenizer" in found["advice"]


def test_a_borrower_of_another_tokenizer_is_refused(target: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(BUNDLED_DRAFTER, tmp_path / "drafter")
    found = examined(target, save_tokenizer(folder, ["<mask>", "<end>", *reversed(WORDS[2:])]))
    assert "needs its tokenizer" in found["fit"]["misfit"]
    assert found["advice"].startswith("The drafter does not fit the target")
    assert not found["exact"]
    assert found["exactness"]["float32"]["identical"] == 2, "the target alone is right"


def test_the_same_tokenizer_with_a_mask_more(target: Path, tmp_path: Path) -> None:
    drafter = save_tokenizer(save_drafter(tmp_path), [*WORDS[:-1], "<other>"])
    found = examined(target, drafter, prompts=["a b c", "d e"])
    pair = found["fit"]["tokenizers"]
    assert (pair["only_target"], pair["only_drafter"], pair["other_ids"]) == (1, 1, 0)
    assert pair["chat_template"] == "none"
    assert not found["fit"]["is_translated"]


def test_a_tokenizer_that_cannot_be_read_is_said(target: Path, tmp_path: Path) -> None:
    drafter = save_drafter(tmp_path)
    (drafter / "tokenizer.json").write_text("{")
    found = examined(target, drafter)
    assert found["fit"]["unread_tokenizer"]
    assert found["fit"]["tokenizers"] is None
    assert found["exact"]


# Targets that the loop refuses


def test_saved_beams_are_refused(target: Path, tmp_path: Path) -> None:
    other = change(shutil.copytree(target, tmp_path / "target"), "generation_config.json", num_beams=2)
    found = examined(other, save_drafter(tmp_path / "drafter"))
    assert "`num_beams`=2 is not supported" in found["refusal"]
    assert found["refusal"] in found["advice"]
    assert not found["exact"]
    assert found["exactness"] == {}


def test_a_recurrent_target_is_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    config = AutoConfig.for_model("mamba", **sizes, pad_token_id=1, eos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    found = examined(save_tokenizer(tmp_path))
    assert "recurrent state" in found["refusal"]
    assert not found["exact"]


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": len(WORDS)}
    config = AutoConfig.for_model("t5", **sizes, decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    found = examined(save_tokenizer(tmp_path))
    assert "assisted_generate" in found["refusal"]
    assert found["refusal"] in found["advice"]


# Input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": ()}, "`prompts` must hold at least one"),
        ({"options": {"chunk_length": 0}}, "`chunk_length` must be an integer >= 1"),
        ({"target": "/no/such/folder"}, "'/no/such/folder' cannot be read"),
        ({"drafter": "/no/such/drafter"}, "/no/such/drafter"),
    ],
)
def test_wrong_input_is_named_before_a_model_is_loaded(target: Path, options: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"target": str(target), "drafter": None, "prompts": PROMPTS} | options
    with pytest.raises((ValueError, OSError), match=message):
        Checkup(**asked)


def test_what_is_no_language_model_is_named(tmp_path: Path) -> None:
    AutoConfig.for_model("vit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a `vit`, which is no language model"):
        Checkup(str(tmp_path), None, PROMPTS)


# Where texts part


def test_a_tie_is_told_from_a_fault() -> None:
    """Two tokens with one row of the head: either is right."""
    model = tiny_model("llama")
    ids = prompt(6)
    answer = model.generate(ids, do_sample=False, max_new_tokens=4)[0, 6:].tolist()
    with torch.no_grad():
        twin = max(set(range(120)) - set(answer))
        model.lm_head.weight[twin] = model.lm_head.weight[answer[2]]
    tie = parting(model, 0, ids, answer, [*answer[:2], twin, 0])
    assert (tie.position, tie.plain_id, tie.drafted_id) == (2, answer[2], twin)
    assert tie.gap == tie.margin == 0
    assert tie.is_near_tie
    fault = parting(model, 0, ids, answer, [*answer[:2], (answer[2] + 1) % 119, 0])
    assert not fault.is_near_tie
    assert fault.gap is not None
    assert fault.gap > 100 * fault.rounding
    short = parting(model, 0, ids, answer, answer[:3])
    assert (short.position, short.plain_id, short.drafted_id) == (3, answer[3], None)
    assert not short.is_near_tie


def test_a_target_that_depends_on_the_length_of_a_forward_is_recognised() -> None:
    model = tiny_model("llama")
    hook = model.lm_head.register_forward_hook(lambda _, given, out: out * (1 + 0.2 * (given[0].shape[1] > 1)))
    ids = prompt(6)
    answer = model.generate(ids, do_sample=False, max_new_tokens=4)[0, 6:].tolist()
    found = parting(model, 0, ids, answer, [*answer[:3], (answer[3] + 1) % 120])
    hook.remove()
    assert found.is_of_the_target
    document = sound() | {"exactness": {"float32": {"partings": [found.as_dict()]}}}
    assert "no speculative decoding is exact with it" in advice(document)


# What a checkpoint promises


def test_promises_are_read_from_record_and_card(tmp_path: Path) -> None:
    bundled = promise(str(BUNDLED_DRAFTER))
    assert bundled is not None
    assert bundled.source == "training.json"
    assert bundled.as_dict()["mean_acceptance_length"] == pytest.approx(3.224, abs=0.01)
    shutil.copy(BUNDLED_DRAFTER / "README.md", tmp_path)
    card = promise(str(tmp_path))
    assert card is not None
    assert card.source == "README.md"
    assert card.accepted == pytest.approx(bundled.accepted, abs=1e-3)
    (tmp_path / "training.json").write_text('{"held_out": ["something else"]}')
    assert promise(str(tmp_path)) == card
    (tmp_path / "README.md").write_text("# A card\n\n| layer | size |\n|---|---|\n| 1 | 0.5 |\n")
    assert promise(str(tmp_path)) is None


# Numbers


def test_accepted_shares_count_rounds_that_drafted_that_far() -> None:
    stats = SpecDecodingStats()
    for drafted, accepted in ((3, 3), (3, 1), (1, 1), (0, 0), (3, 0)):
        stats.observe(RoundRecord(drafted, accepted, accepted + 1, 1))
    assert accepted_shares(stats) == [3 / 4, 1 / 3, 1 / 3]


def test_costs_and_acceptance_allow_a_speedup() -> None:
    costs = RelativeCosts.of(RoundCosts(((1, 0.2), (11, 0.2)), ((0, 1.0), (10, 2.0))))
    assert costs is not None
    assert costs.forward_ms == 1000
    assert costs.of_length([1.0, 1.0], 2) == pytest.approx(3 / (0.2 + 1.2))
    assert costs.best([1.0, 1.0, 0.0]) == (2, pytest.approx(3 / 1.4))
    stats = SpecDecodingStats()
    stats.observe(RoundRecord(4, 3, 4, 2))
    stats.observe(RoundRecord(0, 0, 1, 0))
    assert costs.of_rounds(stats) == pytest.approx(5 / (2 * 0.2 + 1.4 + 1.0))
    limits = costs.limits([1.0, 0.0], [1.0, 1.0])
    assert limits["free drafting"] == pytest.approx(2 / 1.1)
    assert limits["free verification"] == pytest.approx(2 / 1.2)
    assert limits["promised acceptance"] == pytest.approx(3 / 1.4)
    assert RelativeCosts.of(RoundCosts(((1, 0.2),), ((0, 1.0), (10, 2.0)))) is None


# The sentence


def placed(**changed: Any) -> dict[str, Any]:
    usual = {
        "device": "cpu",
        "dtype": "bfloat16",
        "attention": "sdpa",
        "eager_because": None,
        "packed": True,
        "packable": False,
        "is_native": True,
    }
    return usual | changed


def sound() -> dict[str, Any]:
    """What is found of a pair without a fault."""
    return {
        "target": "target",
        "drafter": "drafter",
        "refusal": None,
        "drafter_error": None,
        "exactness": {"bfloat16": {"partings": []}, "float32": {"partings": []}},
        "fit": {
            "misfit": None,
            "is_made_for_this_target": True,
            "is_translated": False,
            "attention": "causal_canvas",
            "reads_layers": [],
        },
        "acceptance": {
            "mean_acceptance_length": 2.4,
            "acceptance_rate": 0.5,
            "tokens": 400,
            "by_position": [0.7, 0.5],
            "teacher_forced": [0.75, 0.55],
            "promised": {"source": "training.json", "accepted": [0.8, 0.6]},
        },
        "speed": {
            "speedup": 1.6,
            "allowed": 1.7,
            "best": 1.75,
            "best_length": 2,
            "time_share": {"draft": 0.2, "verify": 0.75, "host": 0.05},
            "options": {"confidence_threshold": 0.5, "chunk_length": 3, "max_draft_length": 9},
            "limits": {"free drafting": 1.85, "free verification": 1.9},
        },
        "costs": {"pass_by_tokens_read": {"2": 0.2, "4": 0.3}, "verification_by_rows": {"1": 1.0, "3": 1.2}},
        "placement": {"target": placed(), "drafter": placed()},
    }


GPU = {"device": "cuda:0", "packed": False, "eager_because": "the attention implementation 'flash' takes no mask"}
DEAR_DRAFTER = {"speed": {"limits": {"free drafting": 3.0, "free verification": 1.9}}}
DEAR_VERIFICATION = {"speed": {"limits": {"free drafting": 1.8, "free verification": 3.0}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["All is well: 1.60x measured, 1.75x allowed"]),
        ({"speed": {"speedup": 0.7, "allowed": 0.8, "best": 0.85, "limits": {}}}, ["0.70x here", "allow 0.85x"]),
        ({"acceptance": {"tokens": 12}}, ["12 tokens are too few"]),
        (
            {"acceptance": {"teacher_forced": [0.5, 0.2]}},
            ["1.70 tokens a pass", "promises 2.40", "kind of text"],
        ),
        ({"acceptance": {"teacher_forced": [0.1, 0.0]}, "fit": {"reads_layers": [1, 5]}}, ["layers [1, 5]", "config"]),
        ({"acceptance": {"teacher_forced": None, "by_position": [0.1, 0.0]}}, ["fails from the first position on"]),
        ({"acceptance": {"promised": None, "by_position": [0.2, 0.1]}}, ["accepted in 20% of the rounds"]),
        ({"speed": {"best": 2.2}}, ["`chunk_length=2, max_draft_length=2` allows 2.20x", "allow 1.70x"]),
        ({"speed": {"best": 2.2, "options": {"chunk_length": 2, "max_draft_length": 2}}}, ["All is well"]),
        ({"speed": {"time_share": {"host": 0.5}}}, ["50% of the time is neither"]),
        (DEAR_DRAFTER, ["A drafter pass over 2 tokens costs 0.20", "(without that cost 3.00x)", "smaller drafter"]),
        (DEAR_VERIFICATION, ["A verification of 3 rows costs 1.20", "draft less"]),
        (DEAR_VERIFICATION | {"placement": {"target": placed(dtype="float32")}}, ["use bfloat16, or a GPU"]),
        (DEAR_VERIFICATION | {"placement": {"target": placed(packable=True)}}, ["pack the weights"]),
        (DEAR_VERIFICATION | {"placement": {"target": placed(is_native=False)}}, ["`--dtype float32 --prepack`"]),
        (DEAR_VERIFICATION | {"placement": {"target": placed(**GPU)}}, ["'flash'", '`attn_implementation="sdpa"`']),
        ({"fit": {"is_made_for_this_target": False, "made_for": "a/b"}}, ["made for a/b, another model"]),
    ],
)
def test_the_sentence_names_cause_and_remedy(changes: dict[str, Any], words: list[str]) -> None:
    found = sound()
    for part, values in changes.items():
        found[part] = found[part] | {
            name: found[part][name] | value if isinstance(value, dict) and name in ("time_share", "options") else value
            for name, value in values.items()
        }
    sentence = advice(found)
    assert all(word in sentence for word in words), sentence
    assert is_exact(found)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda model: model.config.__setattr__("_attn_implementation", "flex_attention"), "attn_implementation"),
        (lambda model: model.model.norm.train(), "`eval()`"),
        (lambda model: model.model.norm.register_forward_hook(lambda *_: None), "remove its forward hooks"),
        (lambda model: model.compile(), "do not compile it"),
        (lambda model: model.model.norm.to("meta"), "put it on one device"),
    ],
)
def test_every_obstacle_to_graphs_has_its_remedy(change: Callable[[Any], None], remedy: str) -> None:
    model = tiny_model("llama")
    change(model)
    found = sound() | {"placement": {"target": placed(device="cuda:0", eager_because=obstacle(model))}}
    found["speed"] |= DEAR_VERIFICATION["speed"]
    assert remedy in advice(found)


def test_a_tie_in_float32_is_named_and_still_a_difference() -> None:
    tie = {"prompt": 1, "position": 6, "kind": "near tie", "margin": 1e-6, "gap": 1e-6, "rounding": 1e-6}
    found = sound()
    found["exactness"]["float32"]["partings"] = [tie | {"target_is_consistent": True}]
    assert not is_exact(found)
    assert "answer 2 leaves plain `generate` at new token 7" in advice(found)
    assert "a tie, no fault" in advice(found)
    found = sound()
    found["exactness"]["bfloat16"]["partings"] = [tie | {"target_is_consistent": True}]
    assert is_exact(found)
    assert advice(found).startswith("All is well")
