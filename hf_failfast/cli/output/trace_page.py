"""One generation as one HTML page that needs nothing else: how each token came to be."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from transformers import PreTrainedTokenizerBase

from ...decoding.written import TextPieces
from ...measure.tracing import Trace, TracedRound

TEMPLATE = Path(__file__).with_name("trace_page.html")
_STRIP_HEIGHT = 150  # CSS pixels of the longest draft
_CELL_HEIGHT = 9  # CSS pixels of a draft token, at most
_FENCE = "```"  # begins and ends code in a model's Markdown


@dataclass(frozen=True)
class _Token:
    """A token of the text. kind: see `_kind`; tip: what hovering shows, as JSON; is_code: whether it stands between
    fences."""

    text: str
    kind: str
    round: int
    tip: str
    is_special: bool
    is_code: bool


def trace_page(
    trace: Trace,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str,
    names: dict[str, str],  # of target and drafter
    facts: dict[str, Any],  # what else the numbers depend on
) -> str:
    """The page's HTML. All text is escaped, whatever the models wrote; nothing is fetched."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text("utf-8"))
    tokens = list(_tokens(trace, tokenizer))
    rounds = [_column(index, traced, tokenizer) for index, traced in enumerate(trace.rounds)]
    longest = max((len(each["cells"]) for each in rounds if each["cells"] != ["plain"]), default=0)
    return template.render(
        title=f"hf_failfast trace: {prompt[:60]}",
        prompt=prompt,
        target=names["target"],
        drafter=names["drafter"],
        figures=_figures(trace),
        tokens=tokens,
        has_plain=any(token.kind == "plain" for token in tokens),
        has_suggested=any(token.kind == "suggested" for token in tokens),
        rounds=rounds,
        longest=longest,
        cell_height=min(_CELL_HEIGHT, _STRIP_HEIGHT // max(longest, 1)) or 1,
        times=_times(trace),
        facts=[(name.replace("_", " "), _plain(value)) for name, value in (_counts(trace) | facts).items()],
    )


def _tokens(trace: Trace, tokenizer: PreTrainedTokenizerBase) -> Iterator[_Token]:
    pieces = TextPieces(tokenizer)
    special = set(tokenizer.all_special_ids)
    for number, traced in enumerate(trace.rounds):
        own = traced.accepted_own
        for index, (token_id, probability) in enumerate(zip(traced.emitted_ids, traced.probability, strict=True)):
            kind = _kind(traced, own, index)
            lines = [f"{kind}, round {number + 1}", f"target's probability {probability:.1%}"]
            if index < own:
                lines.append(f"drafter's confidence {traced.confidence[index]:.1%}")
            elif index == own and traced.judged[own:]:
                refused = tokenizer.decode([traced.draft_ids[index]])
                lines.append(f"drafted instead: {refused!r}, confidence {traced.confidence[index]:.1%}")
            is_special = token_id in special
            name = tokenizer.decode([token_id])
            was_code = _ends_in_code(pieces.text)
            text = name if is_special else pieces.add(token_id)
            is_code = was_code or _ends_in_code(pieces.text)
            yield _Token(text, kind, number, json.dumps([repr(name), *lines]), is_special, is_code)


def _kind(traced: TracedRound, own: int, index: int) -> str:
    """How an emitted token came: accepted, suggested (by a strategy, unlike the draft), bonus or plain.

    own: the round's `accepted_own`.
    """
    if index < traced.accepted:
        return "accepted" if index < own else "suggested"
    return "bonus" if traced.draft_ids or traced.accepted else "plain"


def _ends_in_code(text: str) -> bool:
    return text.count(_FENCE) % 2 == 1


def _column(number: int, traced: TracedRound, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """One round of the strip, its cells from the bottom up."""
    verdicts = [verdict for _, verdict in traced.judged]
    judged = ["accepted" if verdict else "rejected" for verdict in verdicts]
    cells = judged + ["unjudged"] * (len(traced.draft_ids) - len(verdicts))
    suggested = traced.accepted - traced.accepted_own
    drafted = [
        f"{tokenizer.decode([token_id])!r} {confidence:.0%} {kind}"
        for token_id, confidence, kind in zip(traced.draft_ids, traced.confidence, cells, strict=True)
    ]
    title = f"round {number + 1}: {len(traced.draft_ids)} drafted, {traced.accepted_own} accepted"
    if suggested:
        title += f", {suggested} suggested and accepted"
    times = f"draft {1000 * traced.draft_seconds:.1f} ms, verify {1000 * traced.verify_seconds:.1f} ms"
    cells += ["suggested"] * suggested
    return {"cells": cells or ["plain"], "tip": json.dumps([title, times, *drafted])}


def _seconds(trace: Trace) -> float:
    return trace.stats.draft_seconds + trace.stats.verify_seconds + trace.stats.other_seconds


def _figures(trace: Trace) -> Sequence[tuple[str, str]]:
    stats = trace.stats
    return (
        ("new tokens", str(stats.emitted)),
        ("target forwards", str(stats.rounds)),
        ("tokens per target forward", f"{stats.mean_acceptance_length:.2f}"),
        ("acceptance rate, of draft tokens", f"{stats.acceptance_rate:.0%}"),
        ("tokens per second", f"{stats.emitted / _seconds(trace):.1f}"),
    )


def _times(trace: Trace) -> list[dict[str, Any]]:
    stats, total = trace.stats, _seconds(trace)
    parts = (
        ("draft", "drafting", stats.draft_seconds),
        ("verify", "verifying", stats.verify_seconds),
        ("other", "other", stats.other_seconds),
    )
    return [
        {
            "name": name,
            "label": label,
            "seconds": f"{part:.2f} s",
            "share": f"{part / total:.0%}",
            "weight": part / total,
        }
        for name, label, part in parts
    ]


def _counts(trace: Trace) -> dict[str, Any]:
    return {"prompt_tokens": len(trace.prompt_ids)} | trace.stats.as_dict()


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)
