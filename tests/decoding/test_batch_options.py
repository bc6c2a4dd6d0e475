"""Processors, criteria, outputs and streamers work in a batch as in plain `generate`."""

from typing import Any

import pytest
import torch
from conftest import drafter, failfast, plain, prompt, target
from test_batch import LENGTHS, batch, reference_of, scripts
from test_parity import BanByCall
from test_stopping import StopAt
from transformers import PreTrainedTokenizerFast, StoppingCriteria, TextStreamer, WatermarkingConfig
from transformers.generation import BaseStreamer

from hf_failfast.decoding.sequences import Record

PROCESSORS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[i] for i in range(0, 120, 4)]},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "guidance_scale": {"guidance_scale": 3.0},
    "watermark": {"watermarking_config": WatermarkingConfig()},
    "prefix": {"prefix_allowed_tokens_fn": lambda row, ids: [i for i in range(120) if i % 3 == row]},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors(name: str) -> None:
    """Every processor changes a batch as it does in plain `generate`."""
    model, (ids, mask) = target("qwen3"), batch()
    options = {"attention_mask": mask, "max_new_tokens": 20} | PROCESSORS[name]
    reference = plain(model, ids, **options)
    assert not torch.equal(reference, plain(model, ids, attention_mask=mask, max_new_tokens=20))
    output = failfast(model, ids, drafter("canvas_shift", "qwen3"), chunk_length=3, **options)
    assert torch.equal(output, reference)


def test_a_stateful_processor_is_called_as_plain_generation_calls_it() -> None:
    """A stateful processor is called once per step with the whole batch, and gives plain `generate`'s text."""
    model, (ids, mask) = target("qwen3"), batch()
    expected, actual = BanByCall(), BanByCall()
    options = {"attention_mask": mask, "max_new_tokens": 20}
    reference = plain(model, ids, logits_processor=[expected], **options)
    output = failfast(
        model, ids, drafter("canvas_shift", "qwen3"), chunk_length=3, logits_processor=[actual], **options
    )
    assert torch.equal(output, reference)
    assert actual.calls == expected.calls


class EndsWith(StoppingCriteria):
    """lm-eval's `MultiTokenEOSCriteria`: remembers which rows are done, and stops when all are."""

    def __init__(self, tokens: list[int], start: int, num_rows: int) -> None:
        self.tokens, self.start = tokens, start
        self.done = [False] * num_rows
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> bool:
        self.seen.append(tuple(input_ids.shape))
        for row, ids in enumerate(input_ids[:, self.start :].tolist()):
            self.done[row] = self.done[row] or bool(set(ids[-2:]) & set(self.tokens))
        return False not in self.done


@pytest.mark.parametrize("eos", [{}, {"eos_token_id": 119, "pad_token_id": 7}])
def test_criteria_with_a_memory_of_rows(eos: dict[str, int]) -> None:
    """A criterion that remembers rows is shown the same shapes as in plain `generate`, and ends the batch there."""
    model, (ids, mask) = target("llama"), batch()
    stops = [int(text[0, n + 8]) for text, n in zip(reference_of(model), LENGTHS, strict=True)]
    options = {"attention_mask": mask, "max_new_tokens": 40} | eos
    expected, actual = EndsWith(stops, 23, 3), EndsWith(stops, 23, 3)
    reference = plain(model, ids, stopping_criteria=[expected], **options)
    proposer = scripts(reference_of(model), [10, 0, 3], [0], [5, 10, 1, 2])
    output = failfast(model, ids, proposer, stopping_criteria=[actual], **options)
    assert torch.equal(output, reference)
    assert actual.seen == expected.seen


def test_a_user_criterion_of_each_row() -> None:
    """A criterion with a verdict per row sees and ends what it does in plain `generate`."""
    model, (ids, mask) = target("olmo"), batch()
    expected, actual = StopAt(23 + 9), StopAt(23 + 9)
    options = {"attention_mask": mask, "max_new_tokens": 30}
    reference = plain(model, ids, stopping_criteria=[expected], **options)
    output = failfast(model, ids, drafter("canvas_shift", "olmo"), stopping_criteria=[actual], **options)
    assert torch.equal(output, reference)
    assert actual.seen == expected.seen


@pytest.mark.parametrize("eos", [{}, {"eos_token_id": 119, "pad_token_id": 7}])
def test_stop_strings(eos: dict[str, int], tokenizer: PreTrainedTokenizerFast) -> None:
    """Each row ends at the stop string it reaches first, as in plain `generate`."""
    model, (ids, mask) = target("phi"), batch()
    texts = reference_of(model)
    starts = [n + 4 * index for index, n in enumerate(LENGTHS)]
    stops = [tokenizer.decode(text[0, at : at + 2]) for text, at in zip(texts, starts, strict=True)]
    options = {"attention_mask": mask, "max_new_tokens": 40, "stop_strings": stops, "tokenizer": tokenizer} | eos
    reference = plain(model, ids, **options)
    proposer = scripts(texts, [10, 0, 3], [0], [5, 10, 1, 2])
    if not eos:  # plain generation pads no row then, so rows go on after their stops
        assert reference.shape[1] < 23 + 40
    assert torch.equal(failfast(model, ids, proposer, **options), reference)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_scores_and_logits(penalty: float) -> None:
    """Scores and logits of live rows equal plain `generate`'s; those of ended rows choose the padding token."""
    model, (ids, mask) = target("gemma2"), batch()
    eos = [int(text[0, n + 6]) for text, n in zip(reference_of(model), LENGTHS, strict=True)][:2]
    options = {"attention_mask": mask, "max_new_tokens": 25, "eos_token_id": eos, "pad_token_id": 7}
    options |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    options |= {"repetition_penalty": penalty}
    reference = plain(model, ids, **options)
    output = failfast(model, ids, drafter("canvas_shift", "gemma2"), chunk_length=3, **options)
    assert torch.equal(output.sequences, reference.sequences)
    new = reference.sequences[:, 23:]
    ended = torch.isin(new, torch.tensor(eos)).cumsum(dim=1) - torch.isin(new, torch.tensor(eos)).long() > 0
    for name in ("scores", "logits"):
        assert len(output[name]) == len(reference[name]) == new.shape[1]
        for step, (ours, theirs) in enumerate(zip(output[name], reference[name], strict=True)):
            assert ours.shape == theirs.shape == (3, 120)
            alive = ~ended[:, step]
            torch.testing.assert_close(ours[alive], theirs[alive], atol=1e-4, rtol=1e-4)
            assert (ours[~alive].log_softmax(dim=-1)[:, 7] == 0).all()


def test_num_return_sequences() -> None:
    """Each prompt gets the number of samples asked for, in order and all different."""
    torch.manual_seed(0)
    output = target("llama").generate(
        torch.cat([prompt(9), prompt(9, seed=1)]),
        do_sample=True,
        assistant_model=drafter("canvas_shift", "llama"),
        custom_generate="hf_failfast",
        num_return_sequences=3,
        max_new_tokens=12,
    )
    assert output.shape == (6, 9 + 12)
    assert torch.equal(output[:, :9], torch.cat([prompt(9)] * 3 + [prompt(9, seed=1)] * 3))
    assert len({tuple(row) for row in output.tolist()}) == 6


class LooksAtLayout(StoppingCriteria):
    """Never stops; remembers the dtypes, sizes in memory and contiguity of what it and a processor are shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.seen.append((input_ids.dtype, input_ids.shape, input_ids.is_contiguous()))
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def process(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self(input_ids, scores)
        return scores


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("lengths", [(9,), (23, 9, 16), (9, 9)])
@pytest.mark.parametrize("joint", [False, True])
def test_the_layout_of_ids(joint: bool, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    """Criteria, processors and the caller get ids of plain `generate`'s dtype and layout, without spare columns."""
    model, (ids, mask) = target("llama"), batch(lengths)
    options = {"attention_mask": mask, "max_new_tokens": 20, "eos_token_id": 119, "pad_token_id": 7}
    expected, actual = LooksAtLayout(), LooksAtLayout()

    def watched(layout: LooksAtLayout) -> dict[str, Any]:
        return {"stopping_criteria": [layout], "logits_processor": [layout.process]} if joint else {}

    reference = plain(model, ids.to(dtype), **options, **watched(expected))
    texts = [plain(model, prompt(length), max_new_tokens=40) for length in lengths]
    proposer = scripts(texts, *[[10, 0, 3]] * len(lengths))
    output = failfast(model, ids.to(dtype), proposer, **options, **watched(actual))
    assert torch.equal(output, reference)
    assert output.dtype == reference.dtype == torch.int64
    assert output.is_contiguous()
    assert output.untyped_storage().nbytes() == reference.untyped_storage().nbytes()
    assert actual.seen == expected.seen


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_scores_after_an_end_have_a_dtype_of_their_own(default: torch.dtype) -> None:
    """Whatever torch's default dtype is, the scores of ended rows are finite."""
    record = Record(2)
    record.add(0, torch.zeros(2, 5))
    record.add(1, torch.zeros(1, 5))
    torch.set_default_dtype(default)
    try:
        steps = record.steps(None, torch.tensor(3))
    finally:
        torch.set_default_dtype(torch.float32)
    lowest = torch.finfo(torch.float32).min
    assert steps[1][1].tolist() == [lowest, lowest, lowest, 0, lowest]


class Columns(BaseStreamer):
    """Remembers the values it is given."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []
        self.is_ended = False

    def put(self, value: torch.Tensor) -> None:
        assert value.is_contiguous()
        self.values.append(value)

    def end(self) -> None:
        self.is_ended = True


def test_a_streamer_of_a_batch_gets_columns() -> None:
    """A streamer of a batch gets the same columns as from plain `generate`, and is ended."""
    model, (ids, mask) = target("llama"), batch()
    stops = [int(text[0, n + 8]) for text, n in zip(reference_of(model), LENGTHS, strict=True)]
    options = {"attention_mask": mask, "max_new_tokens": 40, "eos_token_id": stops, "pad_token_id": 7}
    expected, actual = Columns(), Columns()
    plain(model, ids, streamer=expected, **options)
    proposer = scripts(reference_of(model), [10, 0, 3], [0], [5, 10, 1, 2])
    failfast(model, ids, proposer, streamer=actual, **options)
    assert [value.tolist() for value in actual.values] == [value.tolist() for value in expected.values]
    assert actual.is_ended


def test_a_text_streamer_takes_one_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuses a `TextStreamer` for a batch with transformers' own error."""
    ids, mask = batch()
    with pytest.raises(ValueError, match="TextStreamer only supports batch size 1"):
        failfast(
            target("llama"),
            ids,
            drafter("canvas"),
            attention_mask=mask,
            streamer=TextStreamer(tokenizer),
            max_length=30,
        )


@pytest.mark.parametrize("kind", ["canvas", "block_shift", "bidirectional"])
def test_rejection_sampling_of_a_batch(kind: str) -> None:
    """Rejection sampling of a batch emits no token outside its row's top-k."""
    model, (ids, mask) = target("qwen2"), batch()
    torch.manual_seed(0)
    options = {"do_sample": True, "verifier": "rejection", "top_k": 20, "max_new_tokens": 30}
    output = model.generate(
        ids,
        attention_mask=mask,
        assistant_model=drafter(kind),
        custom_generate="hf_failfast",
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    new = output.sequences[:, 23:]
    assert new.shape == (3, 30)
    chosen = torch.stack(output.scores, dim=1).gather(-1, new[..., None])
    assert chosen.isfinite().all(), "a token outside of the top-k"


def test_drafts_of_rows_are_those_of_each_alone() -> None:
    """Rows that share a drafter pass get the drafts they get alone."""
    model, (ids, mask) = target("qwen2"), batch()
    proposer = drafter("canvas_shift")
    options = {"max_new_tokens": 24, "return_dict_in_generate": True, "chunk_length": 4, "confidence_threshold": 0.05}
    together = failfast(model, ids, proposer, attention_mask=mask, **options).speculation
    single = [failfast(model, prompt(n), proposer, **options).speculation for n in LENGTHS]
    assert together.drafted == sum(stats.drafted for stats in single)
    assert together.accepted == sum(stats.accepted for stats in single)
    assert together.rounds == max(stats.rounds for stats in single)
