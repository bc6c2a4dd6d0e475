"""Stacks of drafters: levels that confirm and repair each other, chosen by measured times, and exact whichever."""

from collections.abc import Callable, Sequence
from itertools import count, cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    VOCAB_SIZE,
    character_tokenizer,
    drafter,
    failfast,
    plain,
    prompt,
    quick_first,
    shared_drafter,
    target,
)
from generated_calls import canvas, dflash
from sampling_support import WARPING, Pair, chi_square, draw, enumerate_distribution, small_pair, suggest_likely
from scripted import ScriptedDrafter
from test_architectures import ARCHITECTURES, NEW, model_of
from test_batch import LENGTHS, alone, batch, padded, reference_of
from test_lookup import Circle
from test_parity import STATELESS, BanByCall

import hf_failfast
from hf_failfast import Conversation, Hierarchy
from hf_failfast.decoding import hierarchy
from hf_failfast.decoding.hierarchy import RETRY, Plans
from hf_failfast.drafters import DraftRequest
from hf_failfast.engine.ragged import RaggedIds
from hf_failfast.policies.confidence import FixedLength

RECORD = {"return_dict_in_generate": True}
RULE: dict[str, Any] = {"chunk_length": 3, "max_draft_length": 8}
STACKS: dict[str, Callable[[str], Hierarchy]] = {
    "lookup": lambda family: Hierarchy(["lookup"]),
    "one": lambda family: Hierarchy([drafter("block", family)]),
    "lookup, autoregressive": lambda family: Hierarchy(["lookup", drafter("canvas_shift", family)]),
    "lookup, block": lambda family: Hierarchy(["lookup", drafter("block_shift", family)]),
    "two": lambda family: Hierarchy([drafter("bidirectional", family), drafter("canvas_shift", family)]),
    "three": lambda family: Hierarchy(
        ["lookup", drafter("canvas_shift", family, seed=1), drafter("canvas_shift", family)]
    ),
}
REPEATED = torch.cat([prompt(12)] * 3, dim=1)


@pytest.fixture
def every_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds ask every set of levels in turn."""
    turns: dict[Plans, Any] = {}

    def choose(self: Plans, match: int) -> tuple[int, ...]:
        return next(turns.setdefault(self, cycle(self._all)))  # type: ignore[no-any-return]

    monkeypatch.setattr(Plans, "choose", choose)


# The choice


def used(plans: Plans, match: int, tokens: dict[tuple[int, ...], int], seconds: dict[tuple[int, ...], float]) -> Any:
    """A round with the plan of its choice, which makes and takes what is given."""
    plan = plans.choose(match)
    plans.made(plan, match, tokens[plan])
    plans.took(plan, seconds[plan])
    return plan


def test_the_fastest_plan_is_chosen() -> None:
    """Each plan is tried once; then follows the one of the most tokens a second, for each kind of match its own; one
    that has not been used for long is tried again."""
    plans = Plans(2, has_lookup=True)
    seconds = {(0,): 1.0, (1,): 1.5, (0, 1): 1.6}
    matched, alone = {(0,): 6, (1,): 3, (0, 1): 7}, {(0,): 1, (1,): 3}
    assert {used(plans, 5, matched, seconds) for _ in range(3)} == set(matched)
    assert {used(plans, 0, alone, seconds) for _ in range(2)} == set(alone)
    assert [used(plans, 5, matched, seconds) for _ in range(8)] == [(0,)] * 8
    assert [used(plans, 0, alone, seconds) for _ in range(8)] == [(1,)] * 8
    later = [used(plans, 5, matched, seconds) for _ in range(RETRY)]
    assert set(later) == set(matched) and later.count((0,)) >= RETRY - 2


def test_a_dear_drafter_gives_way_to_plain_rounds() -> None:
    """Without a match the plan of the lookup alone is a plain round, which makes one token and is taken where the
    drafter does not pay."""
    plans = Plans(2, has_lookup=True)
    seconds = {(0,): 1.0, (1,): 5.0}
    found = [used(plans, 0, {(0,): 1, (1,): 2}, seconds) for _ in range(20)]
    assert found[4:] == [(0,)] * 16


def test_one_drafter_is_always_asked() -> None:
    """A hierarchy of one level has nothing to choose."""
    plans = Plans(1, has_lookup=False)
    assert [used(plans, 0, {(0,): 1}, {(0,): 9.0}) for _ in range(5)] == [(0,)] * 5


# A level's judgement


def test_a_guess_is_confirmed_and_repaired() -> None:
    """The drafter with the target's weights keeps what the target would write and puts the target's token at the first
    wrong place; after a right guess it drafts on as from the text with the guess. The bound on a draft holds."""
    text = prompt(20)
    right = plain(target("llama"), text, max_new_tokens=8)[0, 20:].tolist()
    after = torch.cat([text, torch.tensor([right[:5]])], dim=1)
    session = drafter("canvas_shift", "llama").start(DraftRequest(target("llama"), 200))
    own = session.draft(RaggedIds.full(after), FixedLength(4), [30]).token_ids[0].tolist()
    policy = FixedLength(4)
    policy.max_draft_length = 12

    def draft(guess: list[int], room: int = 30) -> tuple[list[int], int]:
        session = drafter("canvas_shift", "llama").start(DraftRequest(target("llama"), 200))
        assert session.judges
        session.guess(guess)
        found = session.draft(RaggedIds.full(text), policy, [room])
        return found.token_ids[0].tolist(), found.passes

    for wrong in range(5):
        guess = [token if place != wrong else (token + 1) % VOCAB_SIZE for place, token in enumerate(right[:5])]
        assert draft(guess) == (right[: wrong + 1], 1)
    assert draft(right[:5]) == (right[:5] + own, 1)
    assert draft(right[:5], room=7) == (right[:5] + own[:2], 1)


def test_what_was_judged_is_remembered() -> None:
    """K/V of confirmed tokens stay, those of others go: later drafts are those of a session that never guessed."""
    text = prompt(20)
    right = plain(target("llama"), text, max_new_tokens=30)
    for wrong in (0, 3, 5):
        sessions = [drafter("canvas_shift", "llama").start(DraftRequest(target("llama"), 200)) for _ in range(2)]
        guess = right[0, 20:25].tolist()
        guess[wrong:] = [0] * (5 - wrong)
        sessions[0].guess(guess)
        for session in sessions:
            count = len(session.draft(RaggedIds.full(text), FixedLength(4), [30]))
            session.accept([min(count, 1)])
        longer = RaggedIds.full(right[:, :22])
        drafts = [session.draft(longer, FixedLength(4), [30]) for session in sessions]
        assert torch.equal(drafts[0].token_ids, drafts[1].token_ids)
        torch.testing.assert_close(drafts[0].confidence, drafts[1].confidence, atol=1e-5, rtol=1e-4)


def test_who_judges() -> None:
    """Drafters that are autoregressive on known tokens, for one sequence and in one pass."""
    model = target("llama")

    def judges(made: Any, **request: Any) -> bool:
        return bool(made.start(DraftRequest(model, 100, **request)).judges)

    assert judges(drafter("canvas_shift", "llama")) and judges(shared_drafter())
    assert not any(judges(drafter(kind, "llama")) for kind in ("canvas", "block_shift", "bidirectional_shift"))
    assert not judges(drafter("canvas_shift", "llama"), num_rows=2)


# Exactness


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("family", quick_first(["llama", "mistral", "gpt2"]))
def test_identical_to_plain(family: str, stack: str) -> None:
    """A text of any stack is the target's own, with tails and reuse beside it."""
    model = target(family)
    for ids in (REPEATED, prompt(33)):
        reference = plain(model, ids, max_new_tokens=40)
        for more in ({}, {"draft_lookup": 4, "draft_reuse": True}):
            output = failfast(model, ids, STACKS[stack](family), max_new_tokens=40, **RULE, **more)
            assert torch.equal(output, reference)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.usefixtures("every_plan")
def test_every_plan(stack: str) -> None:
    """Whichever levels the rounds ask, in texts that repeat themselves and with processors that look back."""
    model = target("llama")
    for options in ({"logits_processor": [Circle()]}, STATELESS["repetition_penalty"], {}):
        reference = plain(model, REPEATED, max_new_tokens=60, **options)
        output = failfast(model, REPEATED, STACKS[stack]("llama"), max_new_tokens=60, **options, **RULE)
        assert torch.equal(output, reference)


def levels_of(references: Sequence[torch.Tensor]) -> Hierarchy:
    """Two scripted levels per text, which check what they are told."""

    class Rows(ScriptedDrafter):
        def __init__(self, *lengths: Any) -> None:
            super().__init__(references[0])
            rows = zip(references, cycle(lengths), strict=False)
            self.rows = [ScriptedDrafter(reference, accepted) for reference, accepted in rows]
            self.begun = 0

        def start_one(self, request: Any) -> Any:
            self.begun += 1
            return self.rows[(self.begun - 1) % len(self.rows)].start_one(request)

    return Hierarchy(["lookup", Rows([1, 0, 2], [0, 3]), Rows([3, 0, 8, 1], [5, 1])])


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.usefixtures("every_plan")
def test_every_architecture(name: str) -> None:
    """No architecture's text changes, alone and in a batch; each level's text is the true one and grows as told."""
    model, options = model_of(name), {"max_new_tokens": NEW}
    references = [plain(model, prompt(length), **options) for length in LENGTHS]
    found = failfast(model, prompt(LENGTHS[0]), levels_of(references[:1]), **options, **RULE)
    assert torch.equal(found, references[0])
    ids, mask = batch()
    output = failfast(model, ids, levels_of(references), attention_mask=mask, **options, **RULE)
    expected = [reference[0, length:].tolist() for reference, length in zip(references, LENGTHS, strict=True)]
    assert output[:, ids.shape[1] :].tolist() == expected


@pytest.mark.parametrize("stack", ["lookup, autoregressive", "two"])
def test_rows_that_end_early(stack: str) -> None:
    """Rows of a batch have stacks of their own, end on their own and leave it."""
    model, (ids, mask) = target("llama"), batch()
    stop = int(reference_of(model)[0][0, LENGTHS[0] + 7])
    options: dict[str, Any] = {"max_new_tokens": 24, "eos_token_id": stop, "pad_token_id": 0}
    output = failfast(model, ids, STACKS[stack]("llama"), attention_mask=mask, **options, **RULE)
    assert output[:, ids.shape[1] :].tolist() == padded(alone(model, **options))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.usefixtures("every_plan")
def test_turns_of_a_conversation(stack: str) -> None:
    """A conversation's levels remember the right text, whichever of them were asked."""
    model, session, text = target("llama"), Conversation(STACKS[stack]("llama")), REPEATED
    for turn in range(3):
        expected = plain(model, text, max_new_tokens=18)
        assert torch.equal(failfast(model, text, session, max_new_tokens=18, **RULE), expected)
        text = torch.cat([expected, prompt(7, seed=turn)], dim=1)


def test_a_stateful_processor_is_called_once_per_token() -> None:
    """Processors with a state see each true prefix once."""
    model, ids = target("llama"), prompt(15)
    expected, actual = BanByCall(), BanByCall()
    reference = plain(model, ids, max_new_tokens=30, logits_processor=[expected])
    output = failfast(model, ids, STACKS["three"]("llama"), max_new_tokens=30, logits_processor=[actual], **RULE)
    assert torch.equal(output, reference)
    assert actual.calls == expected.calls


def test_a_lookup_spares_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the text goes round and rounds take the same time, most of them need no pass of the drafter, and make more
    than one token."""
    monkeypatch.setattr(hierarchy, "perf_counter", count().__next__)
    model, ids = target("llama"), prompt(24)
    options: dict[str, Any] = {"max_new_tokens": 200, "logits_processor": [Circle()]}
    reference = plain(model, ids, **options)
    made = Hierarchy(["lookup", ScriptedDrafter(reference, (0,))])
    stats = failfast(model, ids, made, **options, **RULE, **RECORD).speculation
    assert stats.plain_rounds > 0.6 * stats.rounds
    assert stats.emitted > 3 * stats.rounds


def test_a_level_that_fails() -> None:
    """An error of a level ends the drafting, or is raised, as a drafter's is."""
    model, ids = target("llama"), prompt(15)

    class Failing(ScriptedDrafter):
        def start_one(self, request: Any) -> Any:
            session = super().start_one(request)
            session.draft_chunk = None  # type: ignore[method-assign, assignment]
            return session

    reference = plain(model, ids, max_new_tokens=20)
    made = Hierarchy(["lookup", Failing(reference)])
    output = failfast(model, ids, made, max_new_tokens=20, **RULE, **RECORD)
    assert torch.equal(output.sequences, reference)
    assert output.speculation.drafter_errors == 1
    with pytest.raises(TypeError):
        failfast(model, ids, made, max_new_tokens=20, drafter_errors="raise", **RULE)


def test_transformers_own_loop() -> None:
    """The same text in transformers' assisted loop."""
    model = target("llama")
    output = hf_failfast.assisted_generate(
        model, REPEATED, do_sample=False, assistant_model=STACKS["three"]("llama"), max_new_tokens=30, **RULE
    )
    assert torch.equal(output, plain(model, REPEATED, max_new_tokens=30))


# Sampling


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return small_pair(str(tmp_path_factory.mktemp("drafter")))


@pytest.fixture
def suggestive(monkeypatch: pytest.MonkeyPatch, every_plan: None) -> None:
    """Every text suggests some of the likely tokens, which depend on all of it; the rounds ask every set of levels."""
    suggest_likely(monkeypatch)


def fit(pair: Pair, samples: int = 1500, **options: Any) -> float:
    """p value of a stack of a lookup and two drafters."""
    made = Hierarchy(["lookup", pair.drafter(shift=0), pair.drafter()])
    counts = draw(pair, made, samples, **WARPING, max_draft_length=3, **options)
    return chi_square(counts, enumerate_distribution(pair, **WARPING))


@pytest.mark.parametrize("verifier", quick_first(["rejection", "sample_and_match"]))
@pytest.mark.usefixtures("suggestive")
def test_samples_follow_the_targets_distribution(pair: Pair, verifier: str) -> None:
    """Samples fit the enumerated distribution: what a stack proposes is verified as certain."""
    assert fit(pair, verifier=verifier) > 1e-3


@pytest.mark.usefixtures("suggestive")
def test_the_proof_rejects_proposals_that_count_as_drawn(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects proposals that come with a distribution which they were not drawn from."""
    make = hierarchy.Draft

    def drawn(token_ids: torch.Tensor, *others: Any) -> Any:
        size = pair.target.config.vocab_size
        return make(token_ids, *others, probs=torch.full((*token_ids.shape, size), 1 / size))

    monkeypatch.setattr(hierarchy, "Draft", drawn)
    assert fit(pair, verifier="rejection") < 1e-6


# Refusals


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "`levels` must be a list of 1 to 3 levels, but is of 0"),
        (["lookup"] * 4, "`levels` must be a list of 1 to 3 levels, but is of 4"),
        ("lookup", "`levels` must be a list of 1 to 3 levels, but is a str"),
        (["a/checkpoint"], r"`levels\[0\]` must be 'lookup' or a drafter of `load_drafter`, but is 'a/checkpoint'"),
        ([3], r"`levels\[0\]` must be 'lookup' or a drafter"),
        ([drafter("canvas"), "lookup"], r"`levels\[1\]`='lookup' must come first"),
        (
            [Conversation(drafter("canvas"))],
            r"`levels\[0\]` must be a drafter of `load_drafter`, but is a Conversation",
        ),
        ([Hierarchy(["lookup"])], r"`levels\[0\]` must be a drafter of `load_drafter`, but is a Hierarchy"),
    ],
)
def test_levels_that_are_none(levels: Any, message: str) -> None:
    """Refused by name when the stack is made."""
    with pytest.raises(ValueError, match=message):
        Hierarchy(levels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_tree": 16}, "`draft_tree`=16 is not possible, only `draft_tree`=0: a Hierarchy proposes one token"),
        ({"self_selection": 2}, "`self_selection`=2 is not possible"),
        ({"length_policy": "goodput"}, "`length_policy='goodput'` is for one drafter: a Hierarchy"),
        ({"length_policy": "diffuspec"}, "`length_policy='diffuspec'` is for one drafter: a Hierarchy"),
        (
            {"tokenizer": character_tokenizer(), "assistant_tokenizer": character_tokenizer(1)},
            "A Hierarchy cannot be combined with `assistant_tokenizer`",
        ),
    ],
)
def test_options_that_do_not_go_with_it(options: dict[str, Any], message: str) -> None:
    """Refused by name before the first token, in a conversation too."""
    made = STACKS["lookup, autoregressive"]("qwen2")
    for wrapped in (made, Conversation(made)):
        message = message if wrapped is made else message.replace("a Hierarchy proposes", "a Conversation proposes")
        message = message if wrapped is made else message.replace("A Hierarchy cannot", "A Conversation cannot")
        with pytest.raises(ValueError, match=message):
            failfast(target("qwen2"), prompt(9), wrapped, **options)


def test_levels_that_do_not_fit(tmp_path: Path) -> None:
    """Two readers of hidden states, and a drafter of another vocabulary."""
    with pytest.raises(ValueError, match="Only one level of a Hierarchy can read the target's hidden states"):
        failfast(target("llama"), prompt(9), Hierarchy([canvas(), dflash()]))
    with pytest.raises(ValueError, match="vocabulary"):
        failfast(target("llama"), prompt(9), Hierarchy(["lookup", small_pair(str(tmp_path)).drafter()]))


@pytest.mark.parametrize("place", [0, 1])
def test_a_level_that_reads_hidden_states(place: int) -> None:
    """It gets the target's hidden states in every round, asked or not, above or below another drafter."""
    model = target("llama")
    levels: list[Any] = [drafter("canvas_shift", "llama")]
    levels.insert(place, canvas())
    reference = plain(model, prompt(20), max_new_tokens=40)
    output = failfast(model, prompt(20), Hierarchy(levels), max_new_tokens=40, **RULE, **RECORD)
    assert torch.equal(output.sequences, reference)
    assert output.speculation.accepted > 0
