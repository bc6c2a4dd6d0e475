"""Counts and times of a generation, named and defined as in vLLM, so that numbers compare."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from .advice import Doing, advise
from .written import Written, as_html

# Counts of what a round may propose besides drafts (docs/strategies.md), in words.
OF_STRATEGIES = {
    "nodes_verified": "nodes of trees verified",
    "accepted_depth": "accepted in trees",
    "lookup_accepted": "suggested by the text",
    "reused": "proposed again",
    "reuse_accepted": "of these accepted",
    "overlap_hits": "drafts made ahead",
}


class RoundRecord(NamedTuple):
    """One sequence's share of a round: a draft, one target forward, the accepted tokens."""

    drafted: int  # draft tokens proposed
    accepted: int  # draft tokens emitted
    emitted: int  # tokens emitted, bonus token included
    drafter_passes: int  # drafter forwards, of all sequences together


@dataclass
class SpecDecodingStats:
    """Counts and wall-clock seconds of one `generate` call. A round is one target forward; tokens add up over rows.

    plain_rounds: rounds without a pass of the drafter.
    drafter_errors: drafters given up in mid-generation, after which the rest was decoded plainly.
    learned_steps: steps that a drafter which learns (`Learning`) took during the call.
    nodes_verified, accepted_depth: of the rounds whose draft was a tree (`draft_tree`), the nodes that the target
        verified and how deep the accepted paths went; both add up, and the second is part of `accepted`.
    lookup_accepted: accepted tokens that the text suggested (`draft_lookup`); they are part of `accepted`.
    reused, reuse_accepted: tokens of rejected drafts that were proposed again (`draft_reuse`), and those of them that
        were accepted.
    overlap_hits: rounds whose draft was made while the target verified the one before (`overlap`).
    host_reads: transfers from device to host on the decision path (draft length, accepted tokens).
    other_seconds: the time between the first draft and the last token that is neither drafting nor verifying.
    runner: how the target's forwards ran: `eager`, or `cuda_graphs` or `compiled_graphs` and what was captured.
    written: the new tokens of a call with one prompt, which a notebook shows in colour.
    """

    rounds: int = 0
    plain_rounds: int = 0
    drafter_passes: int = 0
    drafted: int = 0
    accepted: int = 0
    emitted: int = 0
    nodes_verified: int = 0
    accepted_depth: int = 0
    lookup_accepted: int = 0
    reused: int = 0
    reuse_accepted: int = 0
    overlap_hits: int = 0
    host_reads: int = 0
    drafter_errors: int = 0
    learned_steps: int = 0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    other_seconds: float = 0.0
    runner: str = "eager"
    records: list[RoundRecord] = field(default_factory=list, repr=False)
    written: Written | None = field(default=None, repr=False, compare=False)

    @classmethod
    def total(cls, parts: Sequence["SpecDecodingStats"]) -> "SpecDecodingStats":
        """Counts, seconds and rounds of several calls together; their runners, each named once."""
        whole = cls(runner="; ".join(dict.fromkeys(part.runner for part in parts)))
        for each in fields(cls):
            if each.name in ("runner", "written"):
                continue
            setattr(whole, each.name, sum((getattr(part, each.name) for part in parts), getattr(whole, each.name)))
        return whole

    def observe(self, *rows: RoundRecord) -> None:
        """Adds one finished round of a batch, one record per sequence."""
        self.rounds += 1
        self.plain_rounds += rows[0].drafter_passes == 0
        self.drafter_passes += rows[0].drafter_passes
        self.records += rows
        for row in rows:
            self.drafted += row.drafted
            self.accepted += row.accepted
            self.emitted += row.emitted

    def observe_trees(self, nodes: Sequence[int], depths: Sequence[int]) -> None:
        """Adds the trees of a round."""
        self.nodes_verified += sum(nodes)
        self.accepted_depth += sum(depths)

    def __str__(self) -> str:
        """In words, for people; `as_dict` is for programs."""
        tokens = f"{self.emitted} tokens in {self.rounds} rounds, {self.mean_acceptance_length:.2f} a round"
        drafts = f"{self.accepted} of {self.drafted} drafted tokens accepted ({self.acceptance_rate:.0%})"
        seconds = {"drafting": self.draft_seconds, "verifying": self.verify_seconds, "else": self.other_seconds}
        total = sum(seconds.values())
        shares = ", ".join(f"{name} {value / total:.0%}" for name, value in seconds.items()) if total else "not timed"
        errors = f"; {self.drafter_errors} drafters given up" if self.drafter_errors else ""
        counts = [f"{value} {text}" for name, text in OF_STRATEGIES.items() if (value := getattr(self, name))]
        strategies = f"; {', '.join(counts)}" if counts else ""
        return f"{tokens}; {drafts}{strategies}; {shares}{errors}"

    def _repr_html_(self) -> str:
        """For notebooks: the counts, and the text, coloured by who wrote it, if `generate` was given `tokenizer=`."""
        return as_html(self)

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens; 0 if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens emitted per sequence and round, bonus token included; plain decoding has 1."""
        return self.emitted / len(self.records) if self.records else 0.0

    @property
    def accepted_per_position(self) -> list[int]:
        """How many rounds accepted the draft token at position 0, 1, ...; as long as the longest draft."""
        longest = max((record.drafted for record in self.records), default=0)
        return [sum(record.accepted > position for record in self.records) for position in range(longest)]

    def as_dict(self) -> dict[str, int | float | str | list[int]]:
        """Every count, ratio and time without the per-round records, ready for JSON; those of strategies that were
        used."""
        return {
            "rounds": self.rounds,
            "plain_rounds": self.plain_rounds,
            "drafter_passes": self.drafter_passes,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "emitted": self.emitted,
            "acceptance_rate": self.acceptance_rate,
            "mean_acceptance_length": self.mean_acceptance_length,
            "accepted_per_position": self.accepted_per_position,
            "draft_seconds": self.draft_seconds,
            "verify_seconds": self.verify_seconds,
            "other_seconds": self.other_seconds,
            "host_reads": self.host_reads,
            "drafter_errors": self.drafter_errors,
            "learned_steps": self.learned_steps,
            "runner": self.runner,
            **{name: getattr(self, name) for name in OF_STRATEGIES if getattr(self, name)},
        }

    def advice(
        self,
        speedup: float | None = None,
        other_speedup: float | None = None,
        *,
        dtype: str = "",
        device: str = "",
        is_tuned: bool = False,
    ) -> list[str]:
        """What keeps drafting from paying, and what to do about it, one sentence each; empty if no sign is seen.

        speedup: measured, over plain `generate`. other_speedup: that of another method, such as an autoregressive
        draft model or prompt lookup.
        dtype, device, is_tuned: what the call did, where it is known ("bfloat16", "cpu"; whether the chunk rule's
        numbers were tuned for the pair), so that the advice does not name it again.
        """
        return advise(self, speedup, other_speedup, Doing(dtype, device, is_tuned))
