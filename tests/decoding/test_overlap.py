"""Drafting while the target verifies: the same texts, whatever is guessed; threads that end; and what is refused."""

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from conftest import DRAFTERS, VOCAB_SIZE, drafter, failfast, plain, prompt, quick_first, shared_drafter, target
from generated_calls import canvas, dflash
from sampling_support import VERIFIERS, WARPING, Pair, kolmogorov_smirnov, sample, small_pair
from scripted import ScriptedDrafter
from test_architectures import ARCHITECTURES, NEW, model_of
from test_batch import LENGTHS, alone, batch, padded, reference_of
from test_parity import STATELESS

import hf_failfast
from hf_failfast.drafters import DiffusionDrafter, DraftRequest, DraftSession, PerRow
from hf_failfast.drafters.chunks import Chunk, ChunkedSession
from hf_failfast.drafters.masked.session import DraftingOptions, MaskedDrafter
from hf_failfast.drafters.wrappers import overlap
from hf_failfast.engine.ragged import RaggedIds
from hf_failfast.policies.confidence import FixedLength

RECORD = {"return_dict_in_generate": True}
OPTIONS: dict[str, Any] = {"overlap": True, "chunk_length": 4, "max_draft_length": 8}
NAME = "hf_failfast drafter"  # of the threads


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Every test ends without a thread of the drafter's, once an abandoned one has come to its end."""
    yield
    until = time.monotonic() + 20
    while time.monotonic() < until and any(thread.name == NAME for thread in threading.enumerate()):
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name == NAME]


class Knowing(DiffusionDrafter):
    """Knows the texts of its rows but for the tokens at some places.

    wrong: whether the token at a place of the text is drafted wrongly.
    """

    def __init__(self, texts: Sequence[torch.Tensor], wrong: Any = lambda place: False) -> None:
        self.config = hf_failfast.FailFastConfig()
        self.texts = texts
        self.wrong = wrong
        self.threads: list[str] = []  # in which chunks were drafted
        self.fails_in = -1  # the chunk that raises an error

    def start(self, request: DraftRequest) -> DraftSession:
        rows = iter(self.texts)
        return PerRow.of(request, lambda one: KnowingSession(self, next(rows), one))


class KnowingSession(ChunkedSession):
    """Checks that it is told what became of the text it drafted after."""

    takes_back = True

    def __init__(self, owner: Knowing, text: torch.Tensor, request: DraftRequest) -> None:
        super().__init__(request.eos_token_ids)
        self.owner, self.text, self.capacity = owner, text, request.capacity
        self.memory: list[int] = []  # tokens that it takes for final

    def draft_chunk(self, known: RaggedIds, length: int) -> Chunk:
        (start,) = known.lengths
        ids = known.ids[0, :start].tolist()
        assert ids[: len(self.memory)] == self.memory, "what it took for final has changed"
        self.memory = ids[: self.lengths[0]]
        assert start + length <= self.capacity, "asked to draft more than the sequence can hold"
        self.owner.threads.append(threading.current_thread().name)
        if len(self.owner.threads) - 1 == self.owner.fails_in:
            raise RuntimeError("the drafter fails")
        own = self.text[0, start : start + length].tolist() + [0] * length
        drafted = [(own[n] + self.owner.wrong(start + n)) % VOCAB_SIZE for n in range(length)]
        return Chunk(torch.tensor([drafted]), torch.full((1, length), 0.9), 1)

    def accept(self, counts: Sequence[int]) -> None:
        del self.memory[max(self.lengths[0] + counts[0], 0) :]

    def max_draft_length(self, num_tokens: int) -> int:
        return 10**9


def often(place: int) -> bool:
    """Two tokens in a row are wrong now and then."""
    return place % 23 in (1, 2)


# Exactness


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("family", quick_first(["llama", "mistral", "gemma2"]))
def test_identical_to_plain(family: str, kind: str) -> None:
    """Every kind of drafter gives the target's own text."""
    model = target(family)
    for seed in range(3):
        for shape in (OPTIONS, {"overlap": True, "chunk_length": 1, "max_draft_length": 1}):
            ids = prompt(33, seed)
            output = failfast(model, ids, drafter(kind, family), max_new_tokens=40, **shape)
            assert torch.equal(output, plain(model, ids, max_new_tokens=40))


def test_a_right_guess_is_used() -> None:
    """If all is right, every round but the first and the last has its draft before it begins."""
    model = target("llama")
    reference = plain(model, prompt(9), max_new_tokens=60)
    proposer = Knowing([reference])
    stats = failfast(model, prompt(9), proposer, max_new_tokens=60, **OPTIONS, **RECORD).speculation
    assert stats.overlap_hits == stats.as_dict()["overlap_hits"] >= stats.rounds - 2 > 3
    assert stats.mean_acceptance_length > 8
    assert proposer.threads.count(NAME) >= stats.overlap_hits


def test_a_wrong_guess_is_taken_back() -> None:
    """Where guesses are right and wrong in turn, drafts are as long and as right as without overlap."""
    model = target("llama")
    reference = plain(model, prompt(9), max_new_tokens=90)
    output = failfast(model, prompt(9), Knowing([reference], often), max_new_tokens=90, **OPTIONS, **RECORD)
    assert torch.equal(output.sequences, reference)
    assert 0 < output.speculation.overlap_hits < output.speculation.rounds - 4
    alone = failfast(
        model, prompt(9), Knowing([reference], often), max_new_tokens=90, **OPTIONS | {"overlap": False}, **RECORD
    ).speculation
    assert output.speculation.rounds <= alone.rounds + 1
    assert output.speculation.drafter_passes > alone.drafter_passes  # those in vain are counted


def test_both_work_at_the_same_time() -> None:
    """While the target reads a draft, the thread drafts: the target waits here until it has begun to."""
    model = target("llama")
    reference = plain(model, prompt(9), max_new_tokens=30)
    proposer, waited = Knowing([reference]), []
    begun = threading.Event()
    original = KnowingSession.draft_chunk

    def chunk(self: Any, known: RaggedIds, length: int) -> Chunk:
        if threading.current_thread().name == NAME:
            begun.set()
        return original(self, known, length)

    def wait(*_: Any) -> None:
        if proposer.threads and not waited:
            waited.append(begun.wait(20))

    handle = model.register_forward_pre_hook(wait)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KnowingSession, "draft_chunk", chunk)
            failfast(model, prompt(9), proposer, max_new_tokens=30, **OPTIONS)
    finally:
        handle.remove()
    assert waited == [True]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str) -> None:
    """Overlap changes no architecture's text, alone and in a batch."""
    model, options = model_of(name), {"max_new_tokens": NEW} | OPTIONS
    references = [plain(model, prompt(length), max_new_tokens=NEW) for length in LENGTHS]
    for wrong in (often, lambda place: False):
        output = failfast(model, prompt(LENGTHS[0]), Knowing(references[:1], wrong), **options)
        assert torch.equal(output, references[0])
        ids, mask = batch()
        output = failfast(model, ids, Knowing(references, wrong), attention_mask=mask, **options)
        expected = [reference[0, length:].tolist() for reference, length in zip(references, LENGTHS, strict=True)]
        assert output[:, ids.shape[1] :].tolist() == expected


@pytest.mark.parametrize("kind", ["canvas_shift", "block", "bidirectional"])
def test_batches(kind: str) -> None:
    """Rows of a batch get the tokens they get alone, from a drafter that drafts for all of them at once."""
    ids, mask = batch()
    output = failfast(target("llama"), ids, drafter(kind, "llama"), attention_mask=mask, max_new_tokens=24, **OPTIONS)
    assert output[:, ids.shape[1] :].tolist() == alone(target("llama"), max_new_tokens=24)


def test_a_batch_that_guesses_right() -> None:
    """All rows must be guessed; then none waits for a draft."""
    model, (ids, mask) = target("llama"), batch()
    references = reference_of(model)
    for wrong, least in ((lambda place: False, 3), (often, 0)):
        output = failfast(
            model, ids, Knowing(references, wrong), attention_mask=mask, max_new_tokens=50, **OPTIONS, **RECORD
        )
        assert output.sequences[:, ids.shape[1] :].tolist() == alone(model, max_new_tokens=50)
        assert output.speculation.overlap_hits >= least


def test_rows_that_end_early() -> None:
    """Rows end on their own and leave the batch, with a draft in the making."""
    model, (ids, mask) = target("llama"), batch()
    references = reference_of(model)
    stop = int(references[0][0, LENGTHS[0] + 7])
    options: dict[str, Any] = {"max_new_tokens": 24, "eos_token_id": stop, "pad_token_id": 0}
    output = failfast(model, ids, Knowing(references, often), attention_mask=mask, **options, **OPTIONS)
    assert output[:, ids.shape[1] :].tolist() == padded(alone(model, **options))


@pytest.mark.parametrize("name", STATELESS)
def test_processors(name: str) -> None:
    """Processors see the true prefix of every token."""
    model, options = target("qwen3"), {"max_new_tokens": 30} | STATELESS[name]
    reference = plain(model, prompt(20), **options)
    assert torch.equal(failfast(model, prompt(20), Knowing([reference], often), **options, **OPTIONS), reference)


@pytest.mark.parametrize("kind", ["canvas_shift", "block_shift", "bidirectional"])
def test_turns_of_a_conversation(kind: str) -> None:
    """A conversation's drafter remembers the right text after drafts that were made ahead."""
    model, session, text = target("llama"), hf_failfast.Conversation(drafter(kind, "llama")), prompt(21)
    for turn in range(3):
        expected = plain(model, text, max_new_tokens=18)
        assert torch.equal(failfast(model, text, session, max_new_tokens=18, **OPTIONS), expected)
        text = torch.cat([expected, prompt(7, seed=turn)], dim=1)


@pytest.mark.parametrize("others", [{"draft_tree": 16}, {"draft_lookup": 4}, {"draft_reuse": True, "draft_tree": 24}])
def test_with_other_strategies(others: dict[str, Any]) -> None:
    """Trees, tails and reused drafts stay exact beside it."""
    model, ids = target("llama"), torch.cat([prompt(12)] * 3, dim=1)
    for kind in ("canvas_shift", "block_shift"):
        output = failfast(model, ids, drafter(kind, "llama"), max_new_tokens=60, **OPTIONS, **others)
        assert torch.equal(output, plain(model, ids, max_new_tokens=60))


# Sampling

NUM_TOKENS = 6  # so few that guesses are often right, and wrong drafts show in a text of some thousand tokens


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return small_pair(str(tmp_path_factory.mktemp("drafter")), vocab_size=NUM_TOKENS)


def fit(pair: Pair, num_tokens: int, **options: Any) -> tuple[float, float]:
    """p value of a long text whose drafts are one token long, and the share of rounds that had theirs before."""
    torch.manual_seed(3)
    start = torch.randint(NUM_TOKENS - 1, (1, 12))
    shape = {"chunk_length": 1, "max_draft_length": 1, "overlap": True, "max_new_tokens": num_tokens}
    output = sample(pair, pair.drafter(), start, **WARPING, **shape, **RECORD, **options)
    stats = output.speculation
    return kolmogorov_smirnov(pair.target, output.sequences, 12, **WARPING), stats.overlap_hits / stats.rounds


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_samples_follow_the_targets_distribution(pair: Pair, verifier: str) -> None:
    """A long sampled text fits the target's distribution, with drafts that were made ahead in many rounds."""
    p_value, share = fit(pair, 800, **VERIFIERS[verifier])
    assert p_value > 1e-3
    assert share > 0.1


def test_a_seed_reproduces_samples_that_are_matched(pair: Pair) -> None:
    """Where drafts draw nothing, `torch.manual_seed` makes the text repeatable."""
    texts = []
    for _ in range(2):
        torch.manual_seed(5)
        options = {"overlap": True, "chunk_length": 2, "max_new_tokens": 80, "verifier": "sample_and_match"}
        texts.append(sample(pair, pair.drafter(), prompt(5) % (NUM_TOKENS - 1), **WARPING, **options))
    assert torch.equal(*texts)


@pytest.mark.exhaustive
def test_the_proof_rejects_another_q(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects drafts that come with the distributions of the tokens before them."""
    without_guess = overlap._without_guess

    def shifted(draft: Any, room: Sequence[int]) -> Any:
        found = without_guess(draft, room)
        return dataclasses.replace(found, probs=draft.probs[:, : len(found)])

    monkeypatch.setattr(overlap, "_without_guess", shifted)
    assert fit(pair, 2000, **VERIFIERS["rejection"])[0] < 1e-6


@pytest.mark.parametrize("peeks", [False, True])
def test_use_depends_on_the_guess_alone(pair: Pair, peeks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft is used exactly if its guess is right: other tokens of it would make what is used no draw from q.

    peeks: a choice that looks at them is found out.
    """
    session = overlap.OverlapSession
    is_guessed, made_for, seen = session._is_guessed, session._made_for, []

    def peek(text: RaggedIds, ahead: Any, made: Any) -> bool:
        return is_guessed(text, ahead, made) and bool(made.token_ids[0, 1] < 3)

    def spy(own: Any, text: RaggedIds) -> Any:
        ahead = own._ahead
        made = None if ahead is None else ahead.work.result(None)
        used = made_for(own, text)
        if made is not None and len(made) > 1:
            is_right = text.lengths == [ahead.text.lengths[0] + 1] and made.token_ids[0, 0] == text.ids[0, -1]
            seen.append((bool(is_right), used is not None))
        return used

    if peeks:
        monkeypatch.setattr(session, "_is_guessed", staticmethod(peek))
    monkeypatch.setattr(session, "_made_for", spy)
    fit(pair, 200, **VERIFIERS["rejection"])
    assert {True, False} == {is_right for is_right, _ in seen}
    assert all(is_right == is_used for is_right, is_used in seen) is not peeks


# Errors


def failing(number: int) -> tuple[Knowing, torch.Tensor]:
    """A drafter whose chunk of that number fails, and the right text."""
    reference = plain(target("llama"), prompt(9), max_new_tokens=40)
    proposer = Knowing([reference])
    proposer.fails_in = number
    return proposer, reference


@pytest.mark.parametrize("number", [2, 3])  # the first two make the first draft
def test_an_error_of_the_thread_ends_in_the_caller(number: int) -> None:
    """An error in the thread is raised, or counted and the rest decoded plainly, as the request asks."""
    proposer, _ = failing(number)
    with pytest.raises(RuntimeError, match="the drafter fails"):
        failfast(target("llama"), prompt(9), proposer, max_new_tokens=40, drafter_errors="raise", **OPTIONS)
    assert proposer.threads[number] == NAME
    proposer, reference = failing(number)
    output = failfast(target("llama"), prompt(9), proposer, max_new_tokens=40, **OPTIONS, **RECORD)
    assert torch.equal(output.sequences, reference)
    assert output.speculation.drafter_errors == 1


def test_a_thread_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """`drafter_timeout` bounds the wait for the thread, too; the text is decoded on."""
    go_on = threading.Event()
    original = KnowingSession.draft_chunk

    def hang(self: Any, known: RaggedIds, length: int) -> Chunk:
        if len(self.owner.threads) == 1:
            go_on.wait(20)
        return original(self, known, length)

    proposer, reference = failing(-1)
    monkeypatch.setattr(KnowingSession, "draft_chunk", hang)
    options = {"max_new_tokens": 40, "drafter_timeout": 0.3}
    output = failfast(target("llama"), prompt(9), proposer, **options, **OPTIONS, **RECORD)
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == NAME:
            thread.join()
    assert torch.equal(output.sequences, reference)
    assert output.speculation.drafter_errors == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_of_the_target(error: type[BaseException]) -> None:
    """Ctrl-C, or an error of the target, leaves no thread, and the next call gives the right text."""
    model, forwards = target("llama"), []
    proposer, reference = failing(-1)

    def interrupt(*_: Any) -> None:
        forwards.append(1)
        if len(forwards) == 3:
            raise error

    handle = model.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(error):
            failfast(model, prompt(9), proposer, max_new_tokens=40, **OPTIONS)
    finally:
        handle.remove()
    assert not [thread for thread in threading.enumerate() if thread.name == NAME]
    assert torch.equal(failfast(model, prompt(9), proposer, max_new_tokens=40, **OPTIONS), reference)


# Refusals


@pytest.mark.parametrize("value", [1, "yes"])
def test_out_of_range(value: Any) -> None:
    """Values other than True and False are refused by name."""
    with pytest.raises(ValueError, match="`overlap` must be True or False"):
        failfast(target("llama"), prompt(9), drafter("canvas"), overlap=value)


def test_what_cannot_overlap() -> None:
    """Refuses other length policies, drafters with rules of their own, that read hidden states, that learn or cannot
    take back what they read, and transformers' own loop, by name and before a token is written."""
    model, proposer = target("llama"), drafter("canvas_shift", "llama")
    block = drafter("block_shift", "llama")
    reference = MaskedDrafter(block.model, block.spec, block.config, DraftingOptions(mode="reference"))
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (proposer, {"length_policy": "goodput"}, "needs `length_policy`='confidence', but that is 'goodput'"),
        (proposer, {"length_policy": FixedLength(3)}, "`length_policy` is a FixedLength"),
        (proposer, {"exact": True}, "needs `exact`=False, but that is True"),
        (reference, {}, "a MaskedDrafter decides on lengths itself"),
        (dflash(), {}, "a DFlashDrafter reads the target's hidden states"),
        (canvas(), {}, "a ConditionedDrafter reads the target's hidden states"),
        (ScriptedDrafter(prompt(9)), {}, "a ScriptedDrafter cannot take back"),
        (hf_failfast.Learning(shared_drafter()), {}, "a Learning learns from each round"),
    ]
    for of_case, options, reason in cases:
        with pytest.raises(ValueError, match=f"`overlap`=True .*{reason}"):
            failfast(model, prompt(9), of_case, overlap=True, max_new_tokens=5, **options)
    with pytest.raises(ValueError, match="`overlap`=True is not possible with `assisted_generate`"):
        hf_failfast.assisted_generate(model, prompt(9), assistant_model=proposer, overlap=True)
