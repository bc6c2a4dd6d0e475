"""The proposer under a scripted caller: rows that come, move, wait, end and read their prompts in parts."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import drafter, plain, prompt, save_shared_drafter, saved_drafter, target, tiny_model
from counters import record_feeds
from serving_support import MAX_LEN, Engine, served, vllm_config
from sessions import draft_of, session_of

import hf_failfast
from hf_failfast.policies.confidence import ConfidenceThreshold
from hf_failfast.serving import vllm as module
from hf_failfast.serving.vllm import DiffusionProposer

KINDS = ("canvas_shift", "canvas", "block_shift", "bidirectional")


def proposer_of(kind: str = "canvas_shift", **options: Any) -> DiffusionProposer:
    model = target("qwen2")
    made = DiffusionProposer(vllm_config(model, saved_drafter(kind), **options))
    made.load_model(served(model))
    return made


def fresh_draft(kind: str, text: list[int], room: int) -> list[int]:
    """What a session drafts that knows nothing but the text."""
    proposer = drafter(kind)
    config = hf_failfast.FailFastConfig(confidence_threshold=0.3, chunk_length=6, max_draft_length=12)
    session = session_of(proposer, target("qwen2"), MAX_LEN + 12)
    with torch.inference_mode():
        return draft_of(session, torch.tensor([text]), ConfidenceThreshold(config), room).token_ids[0].tolist()


def check_rounds(engine: Engine, kind: str) -> None:
    """Every draft is that of a session that has read the text anew."""
    num_drafts = 0
    for texts, drafts in engine.rounds:
        for text, draft in zip(texts, drafts, strict=True):
            room = MAX_LEN - len(text) - 1
            if draft:
                num_drafts += 1
                assert draft == fresh_draft(kind, text, min(room, 12))[: len(draft)]
                assert len(draft) <= 12
    assert num_drafts > 10


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_come_move_wait_and_end(kind: str) -> None:
    """Requests are added, moved, preempted, resumed and aborted at random; drafts stay those of a fresh reading."""
    draw = random.Random(3)
    engine = Engine(proposer_of(kind), target("qwen2"), num_new=24)
    preempted = []
    for seed in range(5):
        engine.add(draw.randint(5, 40), seed, is_reading=seed % 2 == 0)
        for _ in range(4):
            engine.step()
            draw.shuffle(engine.rows)
            if len(engine.rows) > 1 and draw.random() < 0.4:
                preempted.append(engine.rows.pop())
            if preempted and draw.random() < 0.5:
                engine.rows.append(preempted.pop(0))
            if len(engine.rows) > 2 and draw.random() < 0.2:
                engine.rows.pop(0)  # aborted by its client
    engine.rows += preempted
    engine.finish()
    check_rounds(engine, kind)


def test_two_requests_of_one_text() -> None:
    """Equal texts are two sequences, each with a draft of its own."""
    engine = Engine(proposer_of(), target("qwen2"))
    engine.add(9)
    engine.add(9)
    engine.finish()
    check_rounds(engine, "canvas_shift")
    for _, drafts in engine.rounds:
        assert len(drafts) < 2 or drafts[0] == drafts[1]


def test_no_token_is_read_twice() -> None:
    """Rows that move, wait and resume: the drafter reads each token once, and what it had drafted wrongly."""
    proposer = proposer_of()
    engine = Engine(proposer, target("qwen2"))
    first = engine.add(40)
    engine.step()
    engine.add(30, seed=1)
    engine.step()
    engine.rows.remove(first)
    engine.step()
    engine.rows.insert(0, first)
    with record_feeds(proposer.drafter.model) as feeds:  # type: ignore[attr-defined]
        engine.step()
    assert len(feeds) >= 1
    assert min(feeds[0].positions) >= 40, "the prompt of the resumed row was read again"


def test_the_next_turn_goes_on_from_the_last() -> None:
    """The K/V of an ended request serve a text that begins like it."""
    proposer = proposer_of()
    engine = Engine(proposer, target("qwen2"))
    ended = engine.add(40)
    engine.finish()
    engine.add(8, seed=5)
    engine.step()  # the ended sequence waits from here on
    engine.add(12, seed=2, start=ended.text)
    with record_feeds(proposer.drafter.model) as feeds:  # type: ignore[attr-defined]
        engine.step()
    assert len(feeds[0].token_ids) < 60
    engine.finish()
    check_rounds(engine, "canvas_shift")


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_memory_is_bounded(kept: int) -> None:
    """Of many ended requests only the newest are kept; none with 0."""
    proposer = proposer_of(kept_sequences=kept)
    engine = Engine(proposer, target("qwen2"), num_new=6)
    for seed in range(8):
        engine.add(20, seed)
        engine.step()
        engine.step()
        if len(engine.rows) > 1:
            engine.rows.pop(0)
    assert proposer._sequences is not None and proposer._sequences.num_waiting == kept
    engine.finish()
    check_memory = proposer._sequences
    check_memory.forget()
    assert check_memory.num_waiting == 0


def test_borrowed_embedding_and_head() -> None:
    """A drafter that borrows gets the server's own weights, rows of padding apart, and drafts as in our loop."""
    model = target("llama")
    made = DiffusionProposer(vllm_config(model, str(save_shared_drafter())))
    layers = served(model)
    made.load_model(layers)
    assert made.target.get_input_embeddings().weight.data_ptr() == layers[0].weight.data_ptr()
    assert made.target.get_output_embeddings().weight.data_ptr() == layers[1].weight.data_ptr()
    engine = Engine(made, model)
    engine.add(20)
    engine.add(11, seed=1)
    engine.finish()
    assert engine.num_accepted > 5
    assert made.statistics.accepted_tokens == engine.num_accepted
    assert made.statistics.drafted_tokens == sum(len(draft) for _, drafts in engine.rounds for draft in drafts)
    assert 0 < made.statistics.mean_confidence <= 1 and made.statistics.drafting_seconds > 0


def test_goodput_takes_the_servers_own_times() -> None:
    """Costs are learned from the steps; then the measured rule drafts."""
    proposer = proposer_of(length_policy="goodput")
    engine = Engine(proposer, target("qwen2"), num_new=120)
    engine.add(20)
    engine.finish()
    assert proposer.costs.is_known(1)
    costs = proposer.costs.measure(1, 100)
    assert all(seconds > 0 for points in (costs.draft, costs.verify) for _, seconds in points)
    assert not proposer.is_given_up
    assert proposer._policies._is_started


def test_a_failing_drafter_is_given_up(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, empty drafts from then on, no memory, and the requests end."""
    proposer = proposer_of()
    engine = Engine(proposer, target("qwen2"), num_new=30)
    engine.add(9)
    engine.add(12, seed=1)
    engine.step()

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(proposer.drafter.model), "forward", fail)  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING):
        engine.finish()
    assert [record.message.count("out of memory") for record in caplog.records] == [1]
    assert not any(draft for _, drafts in engine.rounds[1:] for draft in drafts)


def test_a_text_at_the_models_limit() -> None:
    """No draft beyond `max_model_len`."""
    proposer = proposer_of()
    ids = np.full((1, MAX_LEN), 7, dtype=np.int32)
    for length in (MAX_LEN - 3, MAX_LEN - 1, MAX_LEN):
        (draft,) = proposer.propose([[7]], np.array([length]), ids)
        assert len(draft) <= max(MAX_LEN - length - 1, 0)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown option": ({"drafter_windw": 3}, "Unknown option .'drafter_windw'.*drafter_window"),
    "bad rule": ({"confidence_threshold": 7}, "`confidence_threshold` must be a number in .0, 1., but is 7"),
    "kept": ({"kept_sequences": -1}, "`kept_sequences` must be an integer >= 0, but is -1"),
    "few tokens": ({"num_tokens": 3}, "`num_speculative_tokens` must be >= 6, the drafter's `chunk_length`, but is 3"),
    "no policy": ({"length_policy": "godput"}, "`length_policy` must be one of"),
    "a policy of ours alone": ({"length_policy": "diffuspec"}, "`length_policy` must be one of .* in vLLM"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_named(case: str) -> None:
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        DiffusionProposer(vllm_config(target("qwen2"), saved_drafter("canvas_shift"), **options))


def test_another_tokenizer_is_refused() -> None:
    """Before a weight of the target is loaded."""
    other = tiny_model("qwen2", vocab_size=90)
    with pytest.raises(ValueError, match="vocabulary has 128 entries and the target's 90"):
        DiffusionProposer(vllm_config(other, saved_drafter("canvas_shift")))


def test_drafters_that_read_hidden_states_are_refused() -> None:
    from family_support import DATA

    with pytest.raises(ValueError, match="reads the target's hidden states.*export-vllm"):
        DiffusionProposer(vllm_config(target("qwen2"), str(DATA / "dflash" / "case_1" / "checkpoint")))


@pytest.mark.parametrize("name", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_a_split_model_is_refused(name: str) -> None:
    config = vllm_config(target("qwen2"), saved_drafter("canvas_shift"))
    setattr(config.parallel_config, name, 2)
    with pytest.raises(ValueError, match=f"`{name}` must be 1 with hf_failfast's drafters, but is 2"):
        DiffusionProposer(config)


@pytest.mark.parametrize(("found", "is_known"), [("0.32.0", True), ("0.32", True), ("0.33.1", False), ("1.32", False)])
def test_untested_versions_are_refused(monkeypatch: pytest.MonkeyPatch, found: str, is_known: bool) -> None:
    monkeypatch.setattr(module, "version", lambda package: found)
    if is_known:
        proposer_of()
    else:
        with pytest.raises(ValueError, match=f"tested with vLLM.*but this is {found}"):
            proposer_of()


def test_options_from_a_file(tmp_path: Path) -> None:
    """A JSON file, named in either place; what stands in the configuration itself wins."""
    file = tmp_path / "options.json"
    file.write_text(json.dumps({"drafter": saved_drafter("canvas_shift"), "chunk_length": 5, "kept_sequences": 2}))
    config = vllm_config(target("qwen2"), None, chunk_length=4)
    config.speculative_config.revision = str(file)
    made = DiffusionProposer(config)
    assert made.options.rule == {"chunk_length": 4} and made.options.kept_sequences == 2
    config = vllm_config(target("qwen2"), None)
    config.additional_config = {"hf_failfast": str(file)}
    assert DiffusionProposer(config).options.rule == {"chunk_length": 5}
    config.additional_config = {"hf_failfast": str(tmp_path / "none.json")}
    with pytest.raises(ValueError, match="must name a JSON file of options, but .*none.json"):
        DiffusionProposer(config)
    file.write_text("[1]")
    config.additional_config = {"hf_failfast": str(file)}
    with pytest.raises(ValueError, match=r"holds an object, but .* holds \[1\]"):
        DiffusionProposer(config)


def test_a_quantised_embedding_cannot_be_borrowed() -> None:
    model = target("llama")
    made = DiffusionProposer(vllm_config(model, str(save_shared_drafter())))
    layers = served(model)
    layers[0].weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="borrows the target's embedding, which vLLM keeps in a form"):
        made.load_model(layers)


def test_the_callers_text_is_the_plain_one() -> None:
    """The scripted caller itself: its texts are the target's."""
    engine = Engine(proposer_of(), target("qwen2"), num_new=20)
    request = engine.add(9)
    assert request.text == plain(target("qwen2"), prompt(9), max_new_tokens=20)[0].tolist()
