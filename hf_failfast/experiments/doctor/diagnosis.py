"""One sentence out of all that was found: the likeliest cause of the worst finding, and what to do about it.

The first rule that applies speaks, so the rules stand in the order of what matters: whether drafting works at all,
whether the text is right, whether the drafter is the right one, and what would make it faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...decoding.advice import ENOUGH_TOKENS
from .promise import mean_length

Found = dict[str, Any]
Rule = Callable[[Found], str | None]

KEPT = 0.6  # share of the promised draft tokens that counts as a promise kept
BROKEN = 0.25  # below this share at the first position the drafter is fed or read wrongly
FEW_FIRST = 0.3  # of rounds that accept their first draft token
WORTHWHILE = 1.1  # a change is worth naming if it allows this many times the speedup
MUCH_HOST = 0.3  # of the time

# Why no graphs replay a model's forwards, in the words of the engine -> what its user can do.
REMEDIES = {
    "attention implementation": 'load it with `attn_implementation="sdpa"`',
    "training mode": "call its `eval()`",
    "is compiled": "do not compile it: hf_failfast captures graphs by itself",
    "forward hooks": "remove its forward hooks",
    "outlier columns": "quantise it with `llm_int8_threshold=0.0`",
    "spread over": "put it on one device",
    "`runner='eager'`": "leave out `runner`",
}


def is_exact(found: Found) -> bool:
    """Whether float32 texts are plain `generate`'s, and rounding explains what differs in the target's own dtype."""
    checks: dict[str, Found] = found["exactness"]
    is_run = bool(checks) and not found["refusal"] and not found["fit"]["misfit"] and not found["drafter_error"]
    has_fault = any(each["kind"] == "fault" for check in checks.values() for each in check["partings"])
    return is_run and not has_fault and not checks.get("float32", {}).get("partings")


def advice(found: Found) -> str:
    """The sentence."""
    return next(sentence for rule in RULES if (sentence := rule(found)) is not None)


def _refused(found: Found) -> str | None:
    return found["refusal"] and f"The target cannot be drafted for: {found['refusal']}"


def _unequal(found: Found) -> str | None:
    """Texts that differ in float32, or anywhere by more than rounding."""
    checks: dict[str, Found] = found["exactness"]
    partings = [(dtype, each) for dtype, check in checks.items() for each in check["partings"]]
    faults = [(dtype, each) for dtype, each in partings if each["kind"] == "fault"]
    ties = [(dtype, each) for dtype, each in partings if dtype == "float32"]
    # In float32 first: less of it can be rounding.
    for dtype, parting in sorted(faults, key=lambda pair: pair[0] != "float32") or ties:
        return _of_parting(dtype, parting)
    return None


def _of_parting(dtype: str, parting: Found) -> str:
    where = f"In {dtype} answer {parting['prompt'] + 1} leaves plain `generate` at new token {parting['position'] + 1}"
    if not parting["target_is_consistent"] and dtype == "float32":
        return (
            f"{where}, but the target itself, without a drafter, gives other logits ({parting['rounding']:.2g} apart) "
            "when it reads several tokens at once than one by one, so that no speculative decoding is exact with it: "
            "use plain `generate`, or a target without layers that depend on the length of a forward (8-bit outliers, "
            "experts of bounded capacity)."
        )
    if parting["kind"] == "near tie":
        return (
            f"{where}, where the two best logits are {parting['margin']:.2g} apart and rounding moves them by "
            f"{parting['rounding']:.2g}: a tie, no fault, and nothing has to be done."
        )
    gap = "by any measure" if parting["gap"] is None else f"by {parting['gap']:.2g}"
    return (
        f"{where}, although the target prefers its own token there {gap} and rounding explains "
        f"{parting['rounding']:.2g}: this is a fault, so use plain `generate` for this target and report it with this "
        "document."
    )


def _misfit(found: Found) -> str | None:
    misfit = found["fit"]["misfit"]
    return misfit and f"The drafter does not fit the target: {misfit}"


def _no_drafter(found: Found) -> str | None:
    if found["drafter"] is not None:
        return None
    if found["fit"]["bundled_misfit"] is None:
        return (
            "The target can be drafted for and the bundled drafter has its shape: name a drafter made for it to see "
            "what it gains, or train one with `hf-failfast train`."
        )
    return (
        "The target can be drafted for: look for a drafter of its tokenizer in docs/drafters.md, or train one with "
        "`hf-failfast train`; the bundled one does not fit."
    )


def _failing(found: Found) -> str | None:
    error = found["drafter_error"]
    return error and (
        f"The drafter fails in the middle of an answer, and the rest is decoded plainly: {error}; mend or replace it."
    )


def _of_another_target(found: Found) -> str | None:
    if found["fit"]["is_made_for_this_target"] is not False:
        return None
    return (
        f"The drafter was made for {found['fit']['made_for']}, another model, and gets "
        f"{found['acceptance']['mean_acceptance_length']:.2f} tokens a round: use a drafter made for this target, or "
        "train one with `hf-failfast train`."
    )


def _translated(found: Found) -> str | None:
    if not found["fit"]["is_translated"]:
        return None
    return (
        "The drafter has another tokenizer, so that each draft goes through text, and "
        f"{found['acceptance']['acceptance_rate']:.0%} of the drafted tokens are accepted: a drafter of the target's "
        "own tokenizer would get more."
    )


def _too_short(found: Found) -> str | None:
    tokens = found["acceptance"]["tokens"]
    if tokens >= ENOUGH_TOKENS:
        return None
    return f"{tokens} tokens are too few to tell: ask for more (`--max-new-tokens`, more prompts)."


def _under_promise(found: Found) -> str | None:
    """A drafter that accepts far less than its checkpoint promises, counted alike where that is possible."""
    acceptance, fit = found["acceptance"], found["fit"]
    promised, measured = acceptance["promised"], acceptance["teacher_forced"] or acceptance["by_position"]
    if promised is None or not measured:
        return None
    shares = promised["accepted"][: len(measured)]
    if sum(measured[: len(shares)]) >= KEPT * sum(shares):
        return None
    beside = (
        f"{mean_length(measured[: len(shares)]):.2f} tokens a pass on these prompts, where {promised['source']} "
        f"promises {mean_length(shares):.2f}"
    )
    if measured[0] < BROKEN * shares[0]:
        layers = f", layers {fit['reads_layers']}" if fit["reads_layers"] else ""
        return (
            f"The drafter gets {beside}, and fails from the first position on: its weights and its config do not "
            f"belong together (attention {fit['attention']}, token shift, mask id{layers}); compare them with "
            "those it was trained with."
        )
    return (
        f"The drafter gets {beside}: the prompts are another kind of text than it learned from (or lack its chat "
        "template), so train it on yours with `hf-failfast train --source`."
    )


def _rarely_right(found: Found) -> str | None:
    shares = found["acceptance"]["by_position"]
    if shares and shares[0] >= FEW_FIRST:
        return None
    rate = f"in {shares[0]:.0%} of the rounds" if shares else "in no round"
    return (
        f"The drafter's first token is accepted {rate}: it knows this target or this kind of text too little, so use "
        "one made for the target, or train one on your text with `hf-failfast train`."
    )


def _other_lengths(found: Found) -> str | None:
    speed = found["speed"]
    best, options = speed.get("best"), speed["options"]
    is_fixed = options["chunk_length"] == options["max_draft_length"] == speed.get("best_length")
    if best is None or is_fixed or best < max(WORTHWHILE * speed["allowed"], 1):
        return None
    length = speed["best_length"]
    return (
        f"The draft lengths do not suit this machine: `chunk_length={length}, max_draft_length={length}` allows "
        f"{best:.2f}x where the present ones allow {speed['allowed']:.2f}x; `hf-failfast calibrate` finds the best."
    )


def _busy_host(found: Found) -> str | None:
    share = found["speed"]["time_share"]["host"]
    if share <= MUCH_HOST:
        return None
    return (
        f"{share:.0%} of the time is neither drafting nor verifying: the target is too small for drafting to pay, or "
        "processors, criteria or hooks are costly."
    )


def _dear(found: Found) -> str | None:
    """The part of a round whose cost keeps most from being gained."""
    speed = found["speed"]
    limits = {name: value for name, value in speed.get("limits", {}).items() if name.startswith("free")}
    if not limits:
        return None
    name = max(limits, key=lambda each: limits[each])
    if limits[name] < WORTHWHILE * speed["best"]:
        return None
    length, costs = speed["best_length"], found["costs"]
    is_drafting = name == "free drafting"
    points = costs["pass_by_tokens_read"] if is_drafting else costs["verification_by_rows"]
    rows, cost = min(points.items(), key=lambda point: abs(int(point[0]) - length - (not is_drafting)))
    what = f"a drafter pass over {rows} tokens" if is_drafting else f"a verification of {rows} rows"
    return (
        f"{what[0].upper()}{what[1:]} costs {cost:.2f} plain forwards, which holds the pair to {speed['best']:.2f}x "
        f"(without that cost {limits[name]:.2f}x): {_cheaper(found, is_drafting)}."
    )


def _cheaper(found: Found, is_drafting: bool) -> str:
    """What makes a pass or a verification cheaper here, that is not done yet."""
    placed = found["placement"].get("drafter" if is_drafting else "target") or found["placement"]["target"]
    if placed["device"].startswith("cuda") and (reason := placed["eager_because"]):
        remedy = next((text for phrase, text in REMEDIES.items() if phrase in reason), None)
        return f"its forwards run eagerly, since {reason}" + (f"; {remedy}" if remedy else "")
    if not placed["is_native"]:
        return f"this processor does not compute in {placed['dtype']}, so use `--dtype float32 --prepack`, or a GPU"
    if placed["packable"]:
        return "pack the weights (`hf_failfast.prepack(target, drafter)`, here `--prepack`)"
    if is_drafting:
        return "use a smaller drafter"
    if placed["device"] == "cpu" and placed["dtype"] == "float32":
        return "use bfloat16, or a GPU"
    return "draft less (lower `chunk_length`), or use a device whose forwards are bound by memory"


def _well(found: Found) -> str:
    speed = found["speed"]
    allowed = max(speed.get("allowed", speed["speedup"]), speed.get("best", 0.0))
    if max(allowed, speed["speedup"]) < 1:
        return (
            f"The texts are right, but this pair gives {speed['speedup']:.2f}x here, and its acceptance and costs "
            f"allow {allowed:.2f}x: do without a drafter here, or train a better one."
        )
    return (
        f"All is well: {speed['speedup']:.2f}x measured, {allowed:.2f}x allowed by acceptance and costs; more takes a "
        "drafter that gets more tokens accepted, such as one trained on your kind of text."
    )


RULES: tuple[Rule, ...] = (
    _refused,
    _unequal,
    _misfit,
    _no_drafter,
    _failing,
    _of_another_target,
    _translated,
    _too_short,
    _under_promise,
    _rarely_right,
    _other_lengths,
    _busy_host,
    _dear,
    _well,
)
