"""`Learning` changes what a drafter drafts, and nothing else."""

import copy
import gc
import logging
import math
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    DRAFTERS,
    VOCAB_SIZE,
    assisted,
    character_tokenizer,
    drafter,
    failfast,
    plain,
    prompt,
    quick_first,
    save_shared_drafter,
    saved_drafter,
    shared_drafter,
    target,
    tiny_model,
)
from graph_support import Recorder
from sampling_support import SIZE, WARPING, chi_square, draw, enumerate_distribution, small_pair
from test_family_dflash import load as load_dflash

from hf_failfast import Conversation, Learning, load_drafter
from hf_failfast.drafters import Draft
from hf_failfast.drafters.adapter import FILE
from hf_failfast.drafters.conditioned.canvas import ConditionedDrafter
from hf_failfast.drafters.learning import learner as learning
from hf_failfast.drafters.learning.passes import logits, passes
from hf_failfast.drafters.learning.texts import LENGTH
from hf_failfast.drafters.masked.session import MaskedSession
from hf_failfast.drafters.wrappers import learning as wrapper
from hf_failfast.drafters.wrappers.learning import LearningSession
from hf_failfast.engine.runner import TopLogits
from hf_failfast.engine.runner_pool import RunnerPool
from hf_failfast.policies.confidence import ConfidenceThreshold

KINDS = [*DRAFTERS, "shared", "reduced", "conditioned"]
NEW = 60


def conditioned() -> ConditionedDrafter:
    """The layers of the Llama target, reading its own hidden states of the context."""
    shared: Any = copy.deepcopy(shared_drafter())
    return ConditionedDrafter(shared.model, shared.spec, (0, 1), 8, shared.config)


def make(kind: str) -> Any:
    """A drafter of its own, since what it learns stays in it."""
    made = {"shared": shared_drafter, "reduced": lambda: shared_drafter(2), "conditioned": conditioned}
    return copy.deepcopy(made[kind]() if kind in made else drafter(kind, "llama"))


def answer(learner: Any, seed: int = 0, **options: Any) -> Any:
    """A drafted answer, which is the target's own."""
    model, ids = target("llama"), prompt(30, seed)
    options = {"max_new_tokens": NEW, "chunk_length": 4, "return_dict_in_generate": True} | options
    output = failfast(model, ids, learner, **options)
    assert torch.equal(output.sequences, plain(model, ids, max_new_tokens=options["max_new_tokens"]))
    return output


def adapter_of(learner: Learning) -> dict[str, torch.Tensor]:
    assert learner._learner is not None
    return learner._learner.adapter.tensors()


class Eager(LearningSession):
    """Steps after every round, whatever it costs."""

    def _step_seconds(self) -> float:
        return -torch.inf


# What is exact


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_the_targets_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy text is plain `generate`'s, whatever was learned between its rounds; and something was."""
    monkeypatch.setattr(wrapper, "LearningSession", Eager)
    learner = Learning(make(kind), learning_share=1.0, learning_rate=0.02)
    reports = [answer(learner, seed).speculation for seed in range(2)]
    assert learner.statistics.ended is None
    assert learner.learned_steps == sum(report.learned_steps for report in reports) > 0
    assert any(bool(weight.any()) for name, weight in adapter_of(learner).items() if name.endswith(".up"))


@pytest.mark.parametrize("kind", ["canvas_shift", "conditioned"])
def test_a_batch_learns_from_every_row(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a batch of different lengths get their own text, and each leaves text to learn from."""
    monkeypatch.setattr(wrapper, "LearningSession", Eager)
    model, learner = target("llama"), Learning(make(kind), learning_share=1.0)
    ids = torch.cat([prompt(30), prompt(30, 1), prompt(30, 2)])
    mask = torch.ones_like(ids)
    mask[1, :11] = 0
    options = {"attention_mask": mask, "max_new_tokens": NEW, "pad_token_id": 0}
    assert torch.equal(failfast(model, ids, learner, **options), plain(model, ids, **options))
    assert learner._learner is not None and learner.learned_steps
    texts = {tuple(piece.ids[: piece.end].tolist()) for piece in learner._learner.texts.snapshot()}
    assert len(texts) == 3
    output = plain(model, ids, **options)
    assert (*ids[1, 11:].tolist(), *output[1, 30:].tolist()) in texts


class TrainsOnItsDraft(Eager):
    """A mutant: it learns from the tokens that it is about to propose, and gives the q that it has then."""

    def draft(self, *arguments: Any) -> Draft:
        text, policy, room = arguments
        self.learner.reset()
        draft = super().draft(text, policy, room)
        if draft.probs is None or not len(draft):
            return draft
        values = torch.full((*draft.token_ids.shape, 2), -20.0)
        values[..., 0] = 20
        other = (draft.token_ids + 1) % (SIZE - 1)
        wrapper.record(
            self.recorders,
            text.append(draft.token_ids),
            [len(draft)] * len(text.lengths),
            TopLogits(values, torch.stack([draft.token_ids, other], dim=-1)),
        )
        self.learner.study(max_steps=8)
        assert isinstance(self.session, MaskedSession)
        self.session._forget([length - 1 for length in text.lengths])
        after = super().draft(text, policy, room)
        return replace(draft, probs=None if after.probs is None else after.probs[:, : len(draft)])


def samples_fit(
    monkeypatch: pytest.MonkeyPatch, folder: Path, session: type[LearningSession], verifier: str, samples: int = 1500
) -> float:
    """p value of the enumerated distribution, with a step after every round."""
    monkeypatch.setattr(learning, "LEAST_NEW", 1)
    monkeypatch.setattr(learning, "MOST_USES", 10**6)
    monkeypatch.setattr(learning, "DIVERGED", torch.inf)  # the drafter is to change as much as it can
    monkeypatch.setattr(learning, "MEASURED_EVERY", 10**6)
    monkeypatch.setattr(wrapper, "LearningSession", session)
    pair = small_pair(str(folder))
    learner = Learning(pair.drafter(), learning_share=1.0, learning_rate=0.05)
    counts = draw(pair, learner, samples, **WARPING, verifier=verifier, max_draft_length=2)
    assert learner.learned_steps > 20 and learner.statistics.ended is None
    return chi_square(counts, enumerate_distribution(pair, **WARPING))


@pytest.mark.parametrize("verifier", ["sample_and_match", "rejection"])
def test_samples_follow_the_targets_distribution(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verifier: str
) -> None:
    """Samples fit the target's distribution while the drafter changes between their tokens."""
    assert samples_fit(monkeypatch, tmp_path, Eager, verifier) > 1e-3


def test_the_proof_rejects_learning_from_the_draft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same test rejects a q that was learned from the drawn token."""
    assert samples_fit(monkeypatch, tmp_path, TrainsOnItsDraft, "rejection", samples=3000) < 1e-6


# What is learned


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_sees_what_the_drafter_saw(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass that a step makes at a round's place drafts what the round drafted."""
    drafts: dict[int, list[int]] = {}

    class Remembering(LearningSession):
        def draft(self, *arguments: Any) -> Draft:
            draft = super().draft(*arguments)
            drafts[arguments[0].lengths[0]] = draft.token_ids[0].tolist()
            return draft

    monkeypatch.setattr(wrapper, "LearningSession", Remembering)
    learner = Learning(make(kind), learning_share="between requests")
    length = learner._pupil.canvas_length
    answer(learner, chunk_length=length, max_draft_length=length, confidence_threshold=0.0)
    own = learner._learner
    assert own is not None
    piece = own.texts.snapshot()[0]
    assert piece.first == 30 and piece.ids[:30].tolist() == prompt(30)[0].tolist()
    anchors = [place for place in drafts if piece.first <= place < piece.end and len(drafts[place]) == length]
    assert len(anchors) > 3
    noise = learner._pupil.noise(length + learner._pupil.block, own.vocab_size, torch.Generator())
    found: list[list[int]] = []
    with torch.no_grad():
        for each in passes(learner._pupil, piece.ids[: piece.end], anchors, noise):
            scores = own._without_mask(logits(own.runner, learner._pupil, each, piece.states))[..., :VOCAB_SIZE]
            ids = scores.argmax(dim=-1)
            found += (ids if own.vocabulary is None else own.vocabulary[ids]).tolist()
    for anchor, ids in zip(anchors, found, strict=True):
        count = min(len(ids), len(drafts[anchor]))
        assert ids[:count] == drafts[anchor][:count], anchor


@pytest.mark.parametrize("kind", ["canvas_shift", "block_shift", "reduced", "conditioned"])
def test_more_is_accepted_after_learning(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drafter that reads one text again and again has more of its draft tokens accepted."""
    monkeypatch.setattr(learning, "MOST_USES", 100)
    learner = Learning(make(kind), learning_share="between requests", learning_rate=0.02)
    before = answer(learner).speculation
    learner.learn(max_steps=60)
    after = answer(learner).speculation
    assert after.mean_acceptance_length > before.mean_acceptance_length


@pytest.mark.parametrize("options", [{}, {"draft_tree": 16}, {"draft_lookup": 4}], ids=str)
def test_the_kept_text_is_the_targets(options: dict[str, Any]) -> None:
    """Long texts are kept in pieces, each with the target's most likely tokens in the places of its own."""
    model, learner = target("llama"), Learning(make("canvas_shift"), learning_share="between requests")
    output = answer(learner, max_new_tokens=200, **options).sequences
    assert learner._learner is not None
    pieces = learner._learner.texts.snapshot()
    assert [piece.count for piece in pieces] == [LENGTH] * 3 + [200 - 3 * LENGTH]
    with torch.no_grad():
        scores = model(output).logits[0]
    place = 30
    for piece in pieces:
        assert piece.ids[: piece.end].tolist() == output[0, place - piece.first : place + piece.count].tolist()
        top = scores[place - 1 : place + piece.count - 1].topk(piece.values.shape[1])
        torch.testing.assert_close(piece.values[: piece.count], top.values, rtol=1e-3, atol=1e-3)
        assert torch.equal(piece.token_ids[: piece.count, 0], piece.ids[piece.first : piece.end])
        place += piece.count


# What it may cost


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Time that passes by a hundredth of a second with every look at it."""
    now = iter(range(10**9))
    for module in (learning, wrapper):
        monkeypatch.setattr(module, "perf_counter", lambda: next(now) / 100)
    yield


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("share", quick_first([0.1, 0.05, 0.5]))
def test_learning_stays_within_its_share(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take at most their share of the time of decoding."""
    monkeypatch.setattr(wrapper, "FORWARDS", 0.1)
    learner = Learning(make("canvas_shift"), learning_share=share)
    for seed in range(8):
        answer(learner, seed)
    stats = learner.statistics
    assert 0 < stats.learning_seconds <= share * stats.decoding_seconds


def test_lessons_are_no_cost_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow step does not make drafting look dear: the rule that stops drafts is not billed for it."""

    class Billed(ConfidenceThreshold):
        def spent(self, drafting: float, rest: float, num_emitted: Any) -> None:
            bills.append(rest)

    bills: list[float] = []
    monkeypatch.setattr(wrapper, "LearningSession", Eager)
    monkeypatch.setattr(learning.Learner, "study", lambda self, max_steps=1: time.sleep(0.25) or 1)
    learner = Learning(make("canvas_shift"), learning_share=1.0)
    options = {"max_new_tokens": 6, "return_dict_in_generate": True}
    output = failfast(target("llama"), prompt(30), learner, length_policy=Billed(learner.config), **options)
    assert output.speculation.learned_steps == len(bills) > 0
    assert max(bills) < 0.25 < output.speculation.other_seconds


def test_between_requests_no_round_waits() -> None:
    """`"between requests"`: no step during the first request, all steps before the second one's first draft."""
    learner = Learning(make("canvas_shift"), learning_share="between requests")
    assert answer(learner).speculation.learned_steps == 0
    steps = answer(learner, 1).speculation.learned_steps
    assert steps == wrapper.STEPS_BETWEEN
    assert learner.learn() > 0
    assert learner.learned_steps > steps


def captured(used: Any) -> dict[Any, Any]:
    """What is captured, by role, slots and shape."""
    kept = [(role, graphs) for roles in used.runners._kept.values() for role, graphs in roles.items()]
    return {
        (role, slots.num_slots, shape): forward
        for role, graphs in kept
        for slots in graphs.idle
        for shape, forward in slots.forwards.items()
    }


def test_a_step_needs_no_new_graph() -> None:
    """What is learned reaches the drafts of captured graphs without another capture."""
    model, inner = target("llama"), make("canvas_shift")
    recorder = Recorder()
    inner.runners = RunnerPool("cuda_graphs", recorder)
    learner = Learning(inner, learning_share="between requests", learning_rate=0.05)
    fixed = {"max_draft_length": 4, "confidence_threshold": 0.0}  # every round needs the same shapes
    for _ in range(2):
        answer(learner, **fixed)
    before, captures = captured(inner), recorder.captures
    assert captures > 0
    assert learner.learn(max_steps=10) == 2 or learner.learned_steps > 2
    replayed = answer(learner, **fixed)
    after = captured(inner)
    assert {key: after[key] for key in before} == before, "captured again"
    assert recorder.captures - captures == len(after) - len(before), "only other shapes are new"
    inner.runners = RunnerPool("eager")
    options = {"max_new_tokens": NEW, "chunk_length": 4, "return_dict_in_generate": True, **fixed}
    eager = failfast(model, prompt(30), inner, **options)
    assert replayed.speculation.records == eager.speculation.records


def held_bytes() -> int:
    """Memory of all tensors that something refers to."""
    gc.collect()
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage() for each in gc.get_objects() if is_tensor(each)
    }
    return sum(storage.nbytes() for storage in storages.values())


def is_tensor(value: object) -> bool:
    return type(value) in (torch.Tensor, torch.nn.Parameter)


def test_memory_stays_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation of 20 turns holds no more memory with learning than without, but for a fixed amount."""
    monkeypatch.setattr(wrapper, "PIECES", 4)
    model = target("llama")

    def turns(learns: bool) -> list[int]:
        inner = make("canvas_shift")
        used = Conversation(Learning(inner, learning_share=1.0) if learns else inner)
        text, sizes = prompt(10), []
        for turn in range(20):
            text = failfast(model, text, used, max_new_tokens=24)
            text = torch.cat([text, prompt(4, turn)], dim=1)
            if turn % 4 == 3:
                sizes.append(held_bytes())
        return sizes

    more = [with_it - without for with_it, without in zip(turns(True), turns(False), strict=True)]
    assert max(more[2:]) - min(more[2:]) < 20_000  # from the twelfth turn on


# What ends it


def lost(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "Learning ended" in record.getMessage()]


def poison(learner: Learning, value: float) -> None:
    """Spoils what was learned."""
    assert learner._learner is not None
    for weights in learner._learner._learnable().values():
        for weight in weights:
            weight.data.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * value)
    if math.isfinite(value):  # a step that makes no numbers reaches no draft
        learner._learner.adapter.publish(learner._learner._learnable())


def test_an_adapter_that_does_not_help_is_reset() -> None:
    """Fewer accepted tokens of unseen text with the adapter than without: it is undone, and the text stays exact."""
    learner = Learning(make("canvas_shift"), learning_share="between requests", learning_rate=1e-4)
    for seed in range(20):
        answer(learner, seed)
        if not learner.statistics.resets:
            poison(learner, 1.0)
    assert learner.statistics.resets == 1
    assert learner.statistics.ended is None
    assert max(float(weight.abs().max()) for name, weight in adapter_of(learner).items() if name.endswith("up")) < 0.1


@pytest.mark.parametrize("reason", ["not a number", "divergence", "out of memory"])
def test_a_failed_step_ends_learning_with_one_warning(
    reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After the error drafting goes on, with a warning once, and without text that nobody needs."""
    learner = Learning(make("canvas_shift"), learning_share="between requests")
    answer(learner)
    learner.learn()
    assert learner._learner is not None
    if reason == "out of memory":

        def fail(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(learner._learner, "_descend", fail)
    elif reason == "divergence":
        learner._learner._usual_loss = 1e-3
        poison(learner, 3.0)
    else:
        poison(learner, torch.nan)
    with caplog.at_level(logging.WARNING):
        for seed in range(3):
            output = answer(learner, seed)
    assert len(lost(caplog)) == 1
    assert learner.statistics.ended is not None
    assert not learner._learner.texts.snapshot()
    assert output.speculation.drafted > 0 and output.speculation.drafter_errors == 0
    assert all(bool(weight.isfinite().all()) for weight in adapter_of(learner).values())
    if reason != "out of memory":
        assert output.speculation.records == answer(make("canvas_shift"), 2).speculation.records


def test_requests_of_several_threads_share_a_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests at the same time get their own text; one learner takes the steps."""
    monkeypatch.setattr(wrapper, "LearningSession", Eager)
    learner = Learning(make("conditioned"), learning_share=1.0)
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for seed in range(first, first + 3):
                answer(learner, seed)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(4 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert learner.learned_steps > 0 and learner.statistics.ended is None


def test_in_inference_mode() -> None:
    """A caller's inference mode does not keep it from learning."""
    learner = Learning(make("canvas_shift"), learning_share=1.0)
    with torch.inference_mode():
        answer(learner)
        learner.learn()
    within = learner.learned_steps
    answer(learner, 1)
    learner.learn()
    assert 0 < within < learner.learned_steps and learner.statistics.ended is None


def test_random_numbers_are_the_requests_own() -> None:
    """Learning takes no number of torch's generator."""
    learner = Learning(make("canvas_shift"), learning_share=1.0)
    torch.manual_seed(0)
    answer(learner)
    learner.learn()
    answer(learner)
    assert learner.learned_steps and float(torch.rand(1)) == float(torch.rand(1, generator=torch.manual_seed(0)))


# What stays


def learned(inner: Any) -> Learning:
    learner = Learning(inner, learning_share="between requests", learning_rate=0.05)
    answer(learner)
    learner.learn(max_steps=4)
    return learner


def records(used: Any) -> Any:
    return answer(used, 3).speculation.records


@pytest.mark.parametrize("place", ["apart", "beside", "merged"])
@pytest.mark.parametrize("kind", ["shared", "reduced", "native"])
def test_what_was_learned_is_saved(kind: str, place: str, tmp_path: Path) -> None:
    """A loaded drafter drafts as the one that learned, and learns on."""
    origin = (
        saved_drafter("canvas_shift", "llama")
        if kind == "native"
        else save_shared_drafter({"shared": None}.get(kind, 2))
    )
    own = tmp_path / "own"
    own.mkdir()
    for path in Path(origin).iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    learner = learned(load_drafter(own))
    fresh = records(load_drafter(own))
    folder = own if place == "beside" else tmp_path / "learned"
    learner.save(folder, merged=place == "merged")
    assert (folder / FILE).is_file()
    assert (folder / "config.json").is_file() is (place != "apart")
    loaded = load_drafter(folder)
    assert records(loaded) == records(learner.drafter) != fresh
    more = Learning(loaded, learning_share="between requests")
    answer(more)
    assert more.learn() > 0 and more.statistics.ended is None


def test_a_wrong_adapter_is_refused(tmp_path: Path) -> None:
    """Damaged files and those of another drafter raise ValueError by name."""
    learner = learned(load_drafter(save_shared_drafter()))
    with pytest.raises(ValueError, match="nothing to save"):
        Learning(make("shared")).save(tmp_path)
    learner.save(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for path in Path(saved_drafter("canvas_shift", "llama")).iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / FILE).write_bytes((tmp_path / FILE).read_bytes())
    with pytest.raises(ValueError, match="does not fit the drafter"):
        load_drafter(other)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        load_drafter(tmp_path)


def test_a_copy_keeps_what_was_learned() -> None:
    """Copies and pickles draft the same, and begin with no text."""
    learner = learned(make("canvas_shift"))
    expected = records(learner.drafter)
    for copied in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        assert copied.learned_steps == 0
        assert records(copied) == expected


def test_reset() -> None:
    """`reset` takes back what was learned."""
    learner = learned(make("canvas_shift"))
    fresh = records(make("canvas_shift"))
    assert records(learner.drafter) != fresh
    learner.reset()
    assert records(learner.drafter) == fresh


def test_statistics_are_bounded() -> None:
    """Acceptance over time keeps its last point and at most 512."""
    acceptance = learning.Acceptance()
    for _ in range(100_000):
        acceptance.add(1, 2, 3)
    assert len(acceptance.points) <= 512
    assert acceptance.points[-1][0] > 290_000
    assert {value for _, value in acceptance.points} == {2.0}
    learner = Learning(make("canvas_shift"), learning_share="between requests")
    answer(learner, max_new_tokens=120)
    assert len(learner.statistics.as_dict()["acceptance"]) > 0
    assert learner.statistics.as_dict()["learned_steps"] == 0


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_share": 0}, "`learning_share`"),
        ({"learning_share": 1.5}, "`learning_share`"),
        ({"learning_share": "sometimes"}, "`learning_share`"),
        ({"learning_share": True}, "`learning_share`"),
        ({"rank": 0}, "`rank`"),
        ({"learning_rate": 0}, "`learning_rate`"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    """Raises ValueError naming the option and its value."""
    with pytest.raises(ValueError, match=f"{message}.*{next(iter(options.values()))!r}"):
        Learning(make("canvas_shift"), **options)


def test_drafters_that_cannot_learn() -> None:
    """Raises ValueError naming the drafter, or what to write instead."""
    with pytest.raises(ValueError, match="DFlashDrafter"):
        Learning(load_dflash())
    with pytest.raises(ValueError, match=r"Conversation\(Learning"):
        Learning(Conversation(make("canvas")))
    with pytest.raises(ValueError, match="Learning"):
        Learning(Learning(make("canvas")))
    with pytest.raises(ValueError, match="int"):
        Learning(3)  # type: ignore[arg-type]


def test_calls_that_cannot_learn() -> None:
    """Another target, transformers' loop and another tokenizer raise ValueError before the first token."""
    learner = Learning(make("canvas_shift"))
    answer(learner)
    with pytest.raises(ValueError, match="another target"):
        failfast(tiny_model("llama", seed=5), prompt(9), learner, max_new_tokens=4)
    with pytest.raises(ValueError, match="assisted loop"):
        assisted(target("llama"), prompt(9), learner, max_new_tokens=4)
    tokenizers = {"tokenizer": character_tokenizer(), "assistant_tokenizer": character_tokenizer(3)}
    with pytest.raises(ValueError, match="assistant_tokenizer"):
        failfast(target("llama"), prompt(9), learner, max_new_tokens=4, **tokenizers)
