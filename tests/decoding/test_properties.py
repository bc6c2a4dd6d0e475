"""Properties of every draft, acceptance and block, on inputs that hypothesis chooses.

`test_slot_cache.py` has those of the slots' roll-back, `test_draft_slots.py` those of whole sessions.
"""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_failfast.decoding.advice import SIGNS
from hf_failfast.decoding.stats import RoundRecord, SpecDecodingStats
from hf_failfast.drafters import DrafterSpec
from hf_failfast.drafters.masked.attention_patterns import AttentionPattern, attention_pattern
from hf_failfast.engine import kernels

tokens = st.integers(0, 3)  # few, so that drafts agree with the target often


@st.composite
def patterns(draw: st.DrawFn) -> AttentionPattern:
    kind = draw(st.sampled_from(["causal_canvas", "bidirectional", "prefix", "absolute", "free"]))
    shift = draw(st.integers(0, 1))
    block = draw(st.sampled_from([1, 4, 8, 32]))
    if kind in ("absolute", "free"):
        shift = 0 if kind == "free" else shift
        spec = DrafterSpec(attention="block_causal", shift=shift, mask_token_id=9, block_size=block, alignment=kind)
        return attention_pattern(spec)
    attention = "bidirectional" if kind == "prefix" else kind
    spec = DrafterSpec(attention=attention, shift=shift, mask_token_id=9)
    return attention_pattern(spec, prefix_block=block if kind == "prefix" else None)


@given(
    st.lists(
        st.tuples(st.lists(tokens, min_size=5, max_size=5), st.lists(tokens, min_size=6, max_size=6)),
        min_size=1,
        max_size=4,
    )
)
def test_accepted_is_the_longest_common_prefix(rows: list[tuple[list[int], list[int]]]) -> None:
    """Accepts the longest common prefix of the draft and the target's own tokens."""
    draft, own = (torch.tensor(part) for part in zip(*rows, strict=True))
    count = len(rows)
    accepted = kernels.accept(draft, draft.float(), own, [5] * count, [9] * count, [False] * count, 99, None)
    for (drafted, chosen), (count, *_) in zip(rows, accepted, strict=True):
        assert drafted[:count] == chosen[:count]
        assert count == len(drafted) or drafted[count] != chosen[count]


@given(patterns(), st.integers(1, 200), st.integers(1, 70))
def test_a_pass_makes_progress_and_not_too_much(pattern: AttentionPattern, clean_end: int, wanted: int) -> None:
    """A pass drafts at least one token and no more than wanted."""
    fed, read = pattern.plan(clean_end, wanted)
    assert 1 <= read <= wanted
    assert read <= fed + pattern.shift, "every token read has a row: the noise ones, and with shift the last known one"


@given(patterns(), st.integers(1, 200), st.integers(1, 70))
def test_rows_see_themselves_and_stay_in_the_window(pattern: AttentionPattern, clean_end: int, wanted: int) -> None:
    window_end = clean_end + pattern.plan(clean_end, wanted)[0]
    positions = torch.arange(window_end)
    limit = pattern.limit(positions, clean_end, window_end)
    assert (limit > positions).all()
    assert (limit <= window_end).all()
    assert (limit.diff() >= 0).all(), "a later row sees no less"


@given(patterns(), st.integers(1, 200), st.integers(0, 8))
def test_a_pass_without_limits_is_causal(pattern: AttentionPattern, clean_end: int, num_noise: int) -> None:
    """Where a pass gets no limits, its attention pattern is the causal one."""
    if pattern.is_causal(num_noise):
        positions = torch.arange(clean_end + num_noise)
        assert torch.equal(pattern.limit(positions, clean_end, clean_end + num_noise), positions + 1)


@given(patterns(), st.integers(1, 200), st.integers(1, 70))
def test_what_is_final_never_saw_noise(pattern: AttentionPattern, clean_end: int, wanted: int) -> None:
    """Positions whose K/V are kept see no noise, and stay final once the text grows."""
    final = pattern.final_length(clean_end)
    assert 0 <= final <= clean_end
    assert pattern.final_length(clean_end + 1) >= final, "what was final stays so"
    if type(pattern).__name__ == "CachedPrefix":  # an approximation by design
        return
    window_end = clean_end + pattern.plan(clean_end, wanted)[0]
    assert (pattern.limit(torch.arange(final), clean_end, window_end) <= clean_end).all()


rounds = st.lists(
    st.tuples(st.integers(0, 20), st.floats(0, 1), st.integers(0, 4)).map(
        lambda drawn: RoundRecord(drawn[0], round(drawn[1] * drawn[0]), round(drawn[1] * drawn[0]) + 1, drawn[2])
    ),
    max_size=60,
)
seconds = st.floats(0, 100)


@given(rounds, seconds, seconds, seconds)
def test_statistics_and_advice_hold_for_any_rounds(
    records: list[RoundRecord], draft: float, verifying: float, other: float
) -> None:
    """The acceptance rate stays within [0, 1], counts add up and advice is text, for any rounds and times."""
    stats = SpecDecodingStats(draft_seconds=draft, verify_seconds=verifying, other_seconds=other)
    for record in records:
        stats.observe(record)
    assert 0 <= stats.acceptance_rate <= 1
    assert stats.emitted == stats.accepted + len(records)
    assert sum(stats.accepted_per_position) == stats.accepted
    assert len(stats.advice()) <= len(SIGNS)
    assert all(isinstance(line, str) for line in stats.advice(speedup=0.5, other_speedup=2.0))
