"""Every entry point passes on everything that a caller can give."""

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DOORS, DRAFTERS, MASK_ID, drafter, failfast, plain, prompt, saved_drafter, target, tiny_model
from scripted import ScriptedDrafter
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerFast, StoppingCriteriaList
from transformers.generation import BaseStreamer

import hf_failfast
from hf_failfast import FailFastConfig
from hf_failfast.drafters import DiffusionDrafter, DraftRequest, DraftSession


class Collect(BaseStreamer):
    """Remembers the tokens it was given, and the end."""

    def __init__(self) -> None:
        self.parts: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        assert self.ended == 0, "tokens after the end"
        self.parts.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("door", DOORS)
def test_drafter_and_streamer(door: str) -> None:
    """Drafter and streamer arrive, although transformers drops both arguments for functions."""
    model, input_ids = target("llama"), prompt(12)
    reference = plain(model, input_ids, max_new_tokens=30)
    streamer = Collect()
    output = model.generate(
        input_ids,
        assistant_model=ScriptedDrafter(reference, [3, 10, 0]),
        streamer=streamer,
        max_new_tokens=30,
        return_dict_in_generate=True,
        **DOORS[door],
    )
    assert torch.equal(output.sequences, reference)
    assert output.speculation.accepted > 15
    assert streamer.parts[0] == input_ids[0].tolist()
    assert sum(streamer.parts[1:], []) == reference[0, 12:].tolist()
    assert [len(part) for part in streamer.parts[1:]] == [record.emitted for record in output.speculation.records]
    assert streamer.ended == 1


def test_a_streamer_gets_nothing_after_a_stop() -> None:
    """A streamer gets no accepted token after the end of sequence."""
    model, input_ids = target("llama"), prompt(12)
    reference = plain(model, input_ids, max_new_tokens=30)
    continuation = reference[0, 12:].tolist()
    index = next(i for i in range(3, 10) if continuation[i] not in continuation[:i])
    streamer = Collect()
    script = ScriptedDrafter(reference, sees_eos=False)
    failfast(model, input_ids, script, streamer=streamer, max_new_tokens=30, eos_token_id=continuation[index])
    assert sum(streamer.parts[1:], []) == continuation[: index + 1]
    assert streamer.ended == 1


@pytest.mark.parametrize("door", DOORS)
def test_tokenizer_criteria_and_processors(door: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Stop strings, the user's criteria and processors all act, each criterion and processor once per token."""
    model, input_ids = target("llama"), prompt(12)
    calls: list[str] = []

    def process(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        calls.append("process")
        return scores.masked_fill(torch.arange(scores.shape[1]) % 2 == ids[:, -1:] % 2, -torch.inf)

    def stop(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        calls.append("stop")
        return torch.tensor([ids.shape[1] == limit])

    options: dict[str, Any] = {
        "max_new_tokens": 30,
        "logits_processor": LogitsProcessorList([process]),
        "stopping_criteria": StoppingCriteriaList([stop]),
    }
    limit = 100
    reference = plain(model, input_ids, **options)
    script = ScriptedDrafter(reference)
    stop_string = tokenizer.decode(reference[0, 12 + 14 : 12 + 17])
    for limit in (100, 12 + 8):
        expected = plain(model, input_ids, stop_strings=stop_string, tokenizer=tokenizer, **options)
        assert expected.shape[1] == min(limit, 12 + 17)
        calls.clear()
        output = model.generate(
            input_ids, assistant_model=script, stop_strings=stop_string, tokenizer=tokenizer, **options, **DOORS[door]
        )
        assert torch.equal(output, expected)
        assert calls == ["process", "stop"] * (expected.shape[1] - 12)


@pytest.mark.parametrize("door", DOORS)
def test_generation_config_object(door: str) -> None:
    """The fields of a `generation_config` object are honoured."""
    model, input_ids = target("llama"), prompt(12)
    reference = plain(model, input_ids, max_new_tokens=30, repetition_penalty=1.4)
    config = GenerationConfig(
        max_new_tokens=17, repetition_penalty=1.4, do_sample=False, return_dict_in_generate=True, output_scores=True
    )
    output = model.generate(
        input_ids, generation_config=config, assistant_model=ScriptedDrafter(reference), **DOORS[door]
    )
    assert torch.equal(output.sequences, reference[:, : 12 + 17])
    assert len(output.scores) == 17


@pytest.mark.parametrize("door", DOORS)
def test_options(door: str) -> None:
    """Options of the chunk rule act: keywords first, then `failfast_config`, then the drafter's config."""
    model, input_ids = target("llama"), prompt(12)
    script = ScriptedDrafter(plain(model, input_ids, max_new_tokens=60), confidence=lambda _: 0.6)

    def longest(**options: Any) -> int:
        output = model.generate(
            input_ids,
            assistant_model=script,
            max_new_tokens=60,
            return_dict_in_generate=True,
            **options,
            **DOORS[door],
        )
        return max(record.drafted for record in output.speculation.records)

    assert longest() == 59  # the drafter's own config: N_max 60, and one token is the target's
    assert longest(max_draft_length=25) == 25
    assert longest(chunk_length=7, confidence_threshold=0.61) == 7
    assert longest(failfast_config=FailFastConfig(0.61, 8)) == 8
    assert longest(failfast_config=FailFastConfig(0.61, 8), confidence_threshold=0.5, max_draft_length=20) == 20
    script.config = FailFastConfig(0.7, 5)
    assert longest() == 5
    assert longest(failfast_config=FailFastConfig()) == 59


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence_threshold": 1.5}, r"`confidence_threshold` must be a number in \[0, 1\], but is 1.5"),
        ({"confidence_threshold": "high"}, "`confidence_threshold` must be a number"),
        ({"confidence_threshold": float("nan")}, "`confidence_threshold` must be a number .* but is nan"),
        ({"chunk_length": 0}, "`chunk_length` must be an integer >= 1, but is 0"),
        ({"chunk_length": 2.5}, "`chunk_length` must be an integer >= 1, but is 2.5"),
        ({"max_draft_length": -3}, "`max_draft_length` must be an integer >= 1, but is -3"),
        ({"max_draft_length": True}, "`max_draft_length` must be an integer >= 1, but is True"),
        ({"confidence_treshold": 0.5}, "confidence_treshold"),
        ({"failfast_config": {"chunk_length": 3}}, "`failfast_config` must be a FailFastConfig"),
    ],
)
@pytest.mark.parametrize("door", DOORS)
def test_bad_options(door: str, options: dict[str, Any], message: str) -> None:
    """Refuses mistyped options and values out of range, and names the option."""
    model = target("llama")
    with pytest.raises(ValueError, match=message):
        model.generate(prompt(5), assistant_model=drafter("canvas"), max_new_tokens=3, **options, **DOORS[door])


@pytest.mark.parametrize("door", DOORS)
def test_drafter_given_by_path(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drafter given by path is loaded once, in the target's dtype, and drafts."""
    loads = []
    load = hf_failfast.load_drafter

    def counted(name: str, **options: Any) -> DiffusionDrafter:
        loads.append(options)
        return load(name, **options)

    monkeypatch.setattr(sys.modules["hf_failfast.generate"], "_load_drafter_once", functools.lru_cache(counted))
    model, input_ids = target("qwen2"), prompt(12)
    path = saved_drafter("canvas_shift")
    for assistant in (path, Path(path), path):
        output = model.generate(
            input_ids,
            assistant_model=assistant,
            max_new_tokens=20,
            return_dict_in_generate=True,
            **DOORS[door],
        )
        assert torch.equal(output.sequences, plain(model, input_ids, max_new_tokens=20))
        assert output.speculation.accepted > 0
    assert [options["dtype"] for options in loads] == [torch.float32]


@pytest.mark.parametrize("door", DOORS)
def test_input_ids_by_keyword_and_model_defaults(door: str) -> None:
    """Takes `input_ids` and mask as keywords, and keeps the model's own generation defaults."""
    model, input_ids = tiny_model("qwen2"), prompt(12)
    model.generation_config = GenerationConfig(max_new_tokens=23, repetition_penalty=1.5, do_sample=False)
    reference = plain(model, input_ids)
    assert not torch.equal(reference, plain(model, input_ids, repetition_penalty=1.0))
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        assistant_model=ScriptedDrafter(reference, [4]),
        **DOORS[door],
    )
    assert torch.equal(output, reference)


def test_called_directly() -> None:
    """`hf_failfast.generate(model, ...)` called directly takes the same arguments."""
    model, input_ids = target("llama"), prompt(12)
    reference = plain(model, input_ids, max_new_tokens=10)
    output = hf_failfast.generate(model, input_ids, assistant_model=ScriptedDrafter(reference), max_new_tokens=10)
    assert torch.equal(output, reference)


class ForeignDrafter(DiffusionDrafter):
    """Somebody else's drafter, with a config and the abstract method only."""

    config = FailFastConfig()

    def start(self, request: DraftRequest) -> DraftSession:
        return drafter("canvas_shift", "qwen2").start(request)


def test_a_drafter_of_somebody_else() -> None:
    """The entry points take drafters that `load_drafter` did not make."""
    model, input_ids = target("qwen2"), prompt(12)
    output = failfast(model, input_ids, ForeignDrafter(), max_new_tokens=12)
    assert torch.equal(output, plain(model, input_ids, max_new_tokens=12))


def test_saved_drafters_carry_their_spec() -> None:
    """A checkpoint's own config gives spec and chunk rule; no keyword is needed."""
    loaded = hf_failfast.load_drafter(saved_drafter("canvas_shift"))
    assert (loaded.spec.attention, loaded.spec.shift) == ("causal_canvas", DRAFTERS["canvas_shift"]["shift"])
    assert loaded.spec.mask_token_id == MASK_ID
    assert loaded.config == FailFastConfig(0.3, 6, 30)
