"""The decoding methods by name, and their timed answers."""

import copy
from functools import partial

import pytest
import torch
from conftest import drafter, plain, prompt, target
from graph_support import Recorder

from hf_failfast import FailFastConfig
from hf_failfast.experiments.bench import fastest_plain
from hf_failfast.measure import methods
from hf_failfast.measure.methods import PLAIN, TITLES, Method, all_methods, drafted, fixed, hf_methods, prompt_lookup
from hf_failfast.measure.metrics import summarise
from hf_failfast.measure.records import SpeedRecord, difference_margin
from hf_failfast.measure.timing import Prompts, time_answers


def test_every_method_is_there_once_and_plain_decoding_first() -> None:
    """Every name has a method; a compiled one stands beside the method that it is made of."""
    compiled = Method("plain", static_slots=64)
    every = all_methods(drafter("canvas_shift"), {}, assistant=target("qwen2"), compiled=[compiled])
    assert [method.name for method in every] == ["plain", *TITLES]
    assert [method.title for method in every[:2]] == ["plain generate", "plain generate, compiled"]
    assert hf_methods(None) == [PLAIN, prompt_lookup()]


def test_fixed_drafts_are_capped_at_one_chunk() -> None:
    """`fixed` caps the draft at the chunk and leaves no other policy in charge."""
    config = FailFastConfig(chunk_length=4, max_draft_length=16, length_policy="goodput")
    found = fixed(drafter("canvas_shift"), config).arguments["failfast_config"]
    assert (found.chunk_length, found.max_draft_length, found.length_policy) == (4, 4, "confidence")


def test_answers_are_timed_beside_plain_decoding_s() -> None:
    """Each arm has one record per prompt, paired with the plain record of the same prompt; the counts agree."""
    model, ours = target("qwen2"), drafter("canvas_shift")
    prompts = [Prompts.greedy(prompt(length), 12) for length in (5, 9)]
    done: list[float] = []
    every = (PLAIN, prompt_lookup(), drafted(ours, ours.config))
    arms = {method.name: partial(method.run, model) for method in every}
    records = time_answers(arms, model, prompts, repeats=2, on_progress=done.append)
    assert list(records) == ["plain", "prompt_lookup", "failfast"]
    assert done == sorted(done) and done[-1] == 1 and len(done) == 2 * 2 * 3
    for of_arm in records.values():
        for each, base, asked in zip(of_arm, records["plain"], prompts, strict=True):
            expected = plain(model, asked.ids, max_new_tokens=12)[0, asked.ids.shape[1] :]
            assert each.identical and list(each.token_ids) == expected.tolist()
            assert (each.plain_seconds, each.plain_tokens) == (base.seconds, base.new_tokens)
    stats = [record.stats for record in records["failfast"]]
    length = sum(each.emitted for each in stats) / sum(len(each.records) for each in stats)
    assert summarise(records["failfast"])["mean_acceptance_length"] == pytest.approx(length)
    assert summarise(records["prompt_lookup"])["mean_acceptance_length"] >= 1
    assert "mean_acceptance_length" not in summarise(records["plain"])


def test_a_limit_that_the_target_has_saved_does_not_count() -> None:
    """Answers are as long as asked for, whatever the target's own `generation_config` says."""
    model = copy.deepcopy(target("qwen2"))
    model.generation_config.max_new_tokens = 30
    ours = drafter("canvas_shift")
    for method in (PLAIN, prompt_lookup(), drafted(ours, ours.config)):
        [record] = method.run(model, Prompts.greedy(prompt(5), 12))
        assert record.new_tokens == 12


@pytest.mark.parametrize(("seconds", "kept"), [([3.0, 1.0, 2.0], 2.0), ([4.0, 3.0], 3.0)])
def test_the_record_kept_is_that_of_median_time(seconds: list[float], kept: float) -> None:
    """Of three runs the middle one counts, of two the faster one; the first call only warms up."""
    runs = iter([9.0, *seconds])

    def arm(_: Prompts) -> list[SpeedRecord]:
        return [SpeedRecord("plain", next(runs), 1, 0.0, token_ids=(1,))]

    found = time_answers({"plain": arm}, target("qwen2"), [Prompts.greedy(prompt(3), 4)], len(seconds))
    assert [record.seconds for record in found["plain"]] == [kept]


def test_a_batch_of_unequal_prompts_is_answered_row_by_row() -> None:
    """Each row loses its padding and keeps its own room for new tokens."""
    model, ids = target("qwen2"), torch.cat([prompt(6), prompt(6)])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    first, second = prompt_lookup().run(model, Prompts(ids, mask, 16, None, {"do_sample": False}))
    assert list(first.token_ids) == plain(model, ids[:1, 2:], max_new_tokens=10)[0, 4:].tolist()
    assert list(second.token_ids) == plain(model, ids[1:], max_new_tokens=10)[0, 6:].tolist()


def test_written_records_hold_no_tokens() -> None:
    """`as_dict` has the known numbers alone, and a record can be made from it again."""
    record = SpeedRecord("failfast", 1.0, 2, 3.0, identical=True, token_ids=(4, 5))
    assert record.as_dict() == {
        "method": "failfast", "seconds": 1.0, "new_tokens": 2, "peak_memory_mib": 3.0, "identical": True,
    }  # fmt: skip
    assert SpeedRecord(**record.as_dict()).new_tokens == 2


def test_the_margin_of_answers_that_differ_at_once() -> None:
    """The margin of two answers without a common token is the one after the prompt."""
    model = target("qwen2")
    best, second = model(prompt(5)).logits[0, -1].float().topk(2).values.tolist()
    assert difference_margin(model, prompt(5), (1,), (2, 3)) == pytest.approx(best - second, abs=1e-5)


def test_plain_decoding_from_graphs() -> None:
    """Plain decoding by name of the runner: `generate` itself, or replays that write the same text, batches too."""
    assert methods.plain() is PLAIN and methods.plain("eager") is PLAIN
    recorder = Recorder()
    captured = methods.plain("cuda_graphs", recorder)
    assert (captured.name, captured.title) == ("plain", "plain generate, CUDA graphs")
    model, asked = target("qwen2"), Prompts.greedy(torch.cat([prompt(9), prompt(9, seed=1)]), 12)
    expected = PLAIN.run(model, asked)
    found = captured.run(model, asked)
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]
    assert recorder.captures == 1
    assert [each.token_ids for each in captured.run(model, asked)] == [each.token_ids for each in expected]
    assert recorder.captures == 1
    assert all(each.stats is None and each.rounds is None for each in found)  # it is no speculation
    assert methods.plain_forms(torch.device("cpu")) == []
    if torch.version.hip is None:
        assert [each.title for each in methods.plain_forms(torch.device("cuda"))] == [captured.title]


def test_the_fastest_plain_decoding() -> None:
    """Speedups are held against the fastest form of plain decoding, and against no other method."""
    rows = [
        {"method": "plain generate", "speedup": 1.0},
        {"method": "plain generate, compiled", "speedup": 2.0},
        {"method": "plain generate, CUDA graphs", "speedup": 3.0},
        {"method": "HF prompt lookup", "speedup": 9.0},
    ]
    assert fastest_plain(rows) is rows[2]
    assert fastest_plain(rows[:2]) is rows[1]
    assert fastest_plain([rows[0], rows[3]]) is rows[0]
