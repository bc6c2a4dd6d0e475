"""Signs that drafting does not pay, read off the counts and times of a generation, and what to do about each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .stats import SpecDecodingStats

# Fewer tokens say more about the first words of an answer than about the pair.
ENOUGH_TOKENS = 32


@dataclass(frozen=True)
class Doing:
    """What the user does already, so that nothing of it is advised: a dtype and a device by torch's names (empty where
    they are not known), and whether the chunk rule's numbers were tuned for the pair."""

    dtype: str = ""
    device: str = ""
    is_tuned: bool = False

    @property
    def is_half(self) -> bool:
        return self.dtype in ("bfloat16", "float16")

    @property
    def is_accelerated(self) -> bool:
        return bool(self.device) and not self.device.startswith("cpu")


@dataclass(frozen=True)
class Remedy:
    """text: what to do. is_done: whether somebody does it already."""

    text: str
    is_done: Callable[[Doing], bool] = lambda doing: False


@dataclass(frozen=True)
class Sign:
    """One way to fail.

    seen: whether the numbers show it. measured: the number, in words. meaning: the bound it broke, in words.
    remedies: what may help, each unless it is done already.
    """

    seen: Callable[[SpecDecodingStats], bool]
    measured: Callable[[SpecDecodingStats], str]
    meaning: str
    remedies: tuple[Remedy, ...]

    @property
    def remedy(self) -> str:
        """All that may help, for somebody who does none of it."""
        return "; ".join(remedy.text for remedy in self.remedies) + "."

    def advice(self, stats: SpecDecodingStats, doing: Doing) -> str:
        left = "; ".join(remedy.text for remedy in self.remedies if not remedy.is_done(doing))
        return f"{self.measured(stats)}: {left or 'for this pair here nothing is left to change'}."


def _tuned(doing: Doing) -> bool:
    return doing.is_tuned


SIGNS = (
    Sign(
        lambda stats: stats.drafted == 0,
        lambda stats: f"nothing was drafted in {stats.rounds} rounds",
        "no draft at all",
        (
            Remedy(
                "the drafter's positions may be used up by the prompt, or the length policy expects nothing of this "
                "drafter"
            ),
        ),
    ),
    Sign(
        lambda stats: stats.drafted > 0 and 2 * _plain_rounds(stats) > len(stats.records),
        lambda stats: f"{_plain_rounds(stats)} of {len(stats.records)} rounds did without the drafter",
        "most rounds are plain",
        (Remedy("the length policy expects little of drafting here: use a drafter trained for this kind of text"),),
    ),
    Sign(
        lambda stats: _chain_acceptance(stats) < 0.2,
        lambda stats: f"{_chain_acceptance(stats):.0%} of the drafted tokens were accepted",
        "acceptance under 20 %",
        (
            Remedy("ask `hf-failfast inspect` whether the drafter is made for this target", _tuned),
            Remedy("draft less (lower `chunk_length`, higher `confidence_threshold`)", _tuned),
            Remedy("train a drafter on your kind of text"),
        ),
    ),
    Sign(
        lambda stats: stats.draft_seconds > stats.verify_seconds > 0,
        lambda stats: f"drafting took {_share(stats, stats.draft_seconds):.0%} of the time, more than verifying",
        "drafting dominates",
        (
            Remedy("use a smaller drafter or fewer denoising steps"),
            Remedy("use fewer passes per draft (higher `chunk_length`, higher `confidence_threshold`)", _tuned),
        ),
    ),
    Sign(
        lambda stats: _share(stats, stats.verify_seconds) > 0.8 and stats.mean_acceptance_length < 2,
        lambda stats: (
            f"verifying took {_share(stats, stats.verify_seconds):.0%} of the time for "
            f"{stats.mean_acceptance_length:.1f} tokens per round"
        ),
        "verifying dominates and brings few tokens",
        (
            Remedy(
                "verify less in vain (lower `chunk_length` and `max_draft_length`, higher `confidence_threshold`)",
                _tuned,
            ),
            Remedy(
                "if a forward of several rows is far dearer than one of one row here, use bfloat16",
                lambda doing: doing.is_half,
            ),
            Remedy("a GPU verifies several rows at the price of one", lambda doing: doing.is_accelerated),
            Remedy("a drafter trained longer, or on your kind of text, has more of its tokens accepted"),
        ),
    ),
    Sign(
        lambda stats: _share(stats, stats.verify_seconds) > 0.8 and stats.acceptance_rate > 0.8,
        lambda stats: (
            f"verifying took {_share(stats, stats.verify_seconds):.0%} of the time and {stats.acceptance_rate:.0%} of "
            "the drafted tokens were accepted"
        ),
        "verifying dominates and nearly all is accepted",
        (
            Remedy(
                "there is room for longer drafts: raise `chunk_length` and `max_draft_length`, lower "
                "`confidence_threshold`",
                _tuned,
            ),
        ),
    ),
    Sign(
        lambda stats: _share(stats, stats.other_seconds) > 0.3,
        lambda stats: f"{_share(stats, stats.other_seconds):.0%} of the time was neither drafting nor verifying",
        "the host dominates",
        (
            Remedy(
                "look for costly logits processors, stopping criteria or streamers; a very small target leaves little "
                "to gain"
            ),
        ),
    ),
)


def advise(stats: SpecDecodingStats, speedup: float | None, other_speedup: float | None, doing: Doing) -> list[str]:
    """See `SpecDecodingStats.advice`."""
    if stats.emitted < ENOUGH_TOKENS:
        return [f"{stats.emitted} tokens are too few to tell: measure {ENOUGH_TOKENS} or more."]
    found = [sign.advice(stats, doing) for sign in SIGNS if sign.seen(stats)]
    return [*_compared(speedup, other_speedup), *found]


def _compared(speedup: float | None, other_speedup: float | None) -> list[str]:
    if speedup is None:
        return []
    if other_speedup is not None and speedup < other_speedup and other_speedup > 1:
        return [f"{speedup:.2f}x is less than the {other_speedup:.2f}x of the best other way: use that one here."]
    if speedup < 1:
        return [f"{speedup:.2f}x is slower than plain generate: see below, or do without a drafter here."]
    return []


def _plain_rounds(stats: SpecDecodingStats) -> int:
    """Rounds without a pass of the drafter, in which nothing else proposed tokens."""
    return sum(record.drafter_passes == 0 and record.drafted == 0 for record in stats.records)


def _chain_acceptance(stats: SpecDecodingStats) -> float:
    """Accepted over drafted tokens of the drafts that were no trees, most of whose tokens exclude each other; 1 if
    there were none."""
    drafted = stats.drafted - stats.nodes_verified
    return (stats.accepted - stats.accepted_depth) / drafted if drafted else 1.0


def _share(stats: SpecDecodingStats, seconds: float) -> float:
    total = stats.draft_seconds + stats.verify_seconds + stats.other_seconds
    return seconds / total if total else 0.0
