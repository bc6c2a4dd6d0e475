"""Examines a target, with its drafter if there is one, and writes down what was found."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ...decoding.round_costs import DrafterFailed, typical_context
from ...decoding.round_costs import measure as measure_costs
from ...decoding.stats import SpecDecodingStats
from ...drafters import BUNDLED_DRAFTER, DiffusionDrafter, DraftRequest
from ...measure.methods import PLAIN, Method, drafted, plain_of
from ...measure.metrics import speedup_of
from ...measure.provenance import provenance, setting
from ...measure.records import SpeedRecord
from ...measure.timing import time_answers
from ...pairs import SMOLLM2
from . import placement
from .acceptance import in_decoding, num_positions, teacher_forced
from .checkup import Checkup
from .costs import RelativeCosts
from .diagnosis import advice, is_exact
from .exactness import compared
from .probe import ProbeDrafter
from .promise import promise
from .subject import Subject

OnProgress = Callable[[str, float], None]  # told the title of a part of the work, and the share of it that is done


class Refused(Exception):
    """The loop does not take the target, or fails with it."""


@contextmanager
def refusals() -> Iterator[None]:
    """Turns whatever a drafted call raises into a finding."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except ValueError as error:
        raise Refused(str(error)) from error
    except Exception as error:
        raise Refused(f"{type(error).__name__}: {error}") from error


def examine(checkup: Checkup, on_progress: OnProgress = lambda title, done: None) -> dict[str, Any]:
    """All that was found, ready for JSON. `exact`: whether all is well with the texts. `advice`: one sentence.

    Raises ValueError if the target cannot answer without a drafter either.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = _examined(checkup, on_progress)
    messages = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
    found["warnings"] = list(dict.fromkeys(messages))
    return found | {"exact": is_exact(found), "advice": advice(found)}


def _examined(checkup: Checkup, on_progress: OnProgress) -> dict[str, Any]:
    on_progress("Loading the models", 0.0)
    subject = Subject.load(checkup)
    on_progress("Loading the models", 1.0)
    name = None if checkup.drafter_name is None else checkup.drafter or BUNDLED_DRAFTER.name
    found: dict[str, Any] = {
        "target": checkup.target or SMOLLM2,
        "drafter": name,
        "prompts": len(subject.prompts),
        "max_new_tokens": checkup.max_new_tokens,
        "repeats": checkup.repeats,
        "fit": subject.fit(),
        "refusal": None,
        "drafter_error": None,
        "exactness": {},
        "float32_not_checked": None,
        "acceptance": None,
        "speed": None,
        "costs": None,
        "placement": {},
    }
    found |= setting(subject.target) | provenance(subject.target.device)
    _check_plain(subject)
    drafter = subject.drafter or ProbeDrafter([])
    try:
        found |= _in_own_dtype(subject, drafter, on_progress)
        found |= _in_float32(subject, drafter, found["exactness"], on_progress)
    except Refused as refused:
        found["refusal"] = str(refused)
    return found


def _check_plain(subject: Subject) -> None:
    try:
        PLAIN.run(subject.target, subject.prompts[0].up_to(1))
    except Exception as error:
        raise ValueError(f"Plain `generate` of the target fails: {type(error).__name__}: {error}") from error


def _method(subject: Subject, drafter: DiffusionDrafter) -> Method:
    config = (
        drafter.config.with_options({"exact": subject.config.exact}) if subject.drafter is None else subject.config
    )
    return drafted(drafter, config)


def _tell_answers(subject: Subject, drafter: DiffusionDrafter) -> None:
    """A probe drafts the target's answers, as they are in its present dtype."""
    if isinstance(drafter, ProbeDrafter):
        plain = plain_of(subject.config)
        answers = [(each.ids, plain.run(subject.target, each)[0].token_ids) for each in subject.prompts]
        drafter.answers = [torch.cat([ids, ids.new_tensor([new])], dim=1) for ids, new in answers]


def _compared(subject: Subject, plain: Sequence[SpeedRecord], ours: Sequence[SpeedRecord]) -> dict[str, Any]:
    ids = [[record.token_ids or () for record in records] for records in (plain, ours)]
    return compared(subject.target, [prompt.ids for prompt in subject.prompts], *ids)


def _in_own_dtype(subject: Subject, drafter: DiffusionDrafter, on_progress: OnProgress) -> dict[str, Any]:
    """Texts, times, acceptance and costs in the target's own dtype."""
    _tell_answers(subject, drafter)
    method = _method(subject, drafter)
    arms = {each.title: partial(each.run, subject.target) for each in (plain_of(subject.config), method)}
    with refusals():
        plain, ours = time_answers(
            arms,
            subject.target,
            subject.prompts,
            subject.checkup.repeats,
            on_progress=partial(on_progress, "Answering"),
        ).values()
    stats = SpecDecodingStats.total([record.stats for record in ours if record.stats is not None])
    error = _error(subject, method) if stats.drafter_errors else None
    costs = None if error else _costs(subject, drafter, on_progress)
    found: dict[str, Any] = {
        "exactness": {_dtype(subject): _compared(subject, plain, ours)},
        "drafter_error": error,
        "costs": costs and costs.as_dict(),
        "placement": _placement(subject, drafter),
    }
    if subject.drafter is None or error:
        return found
    return found | _worth(subject, ours, stats, costs, on_progress)


def _dtype(subject: Subject) -> str:
    return str(subject.target.dtype).removeprefix("torch.")


def _error(subject: Subject, method: Method) -> str:
    """What a drafter that fails in the middle of an answer fails with."""
    strict = replace(method, arguments=method.arguments | {"drafter_errors": "raise"})
    for prompt in subject.prompts:
        try:
            strict.run(subject.target, prompt)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "an error that did not come again"


def _placement(subject: Subject, drafter: DiffusionDrafter) -> dict[str, Any]:
    session = drafter.start(DraftRequest(subject.target, capacity=1))
    own = placement.of_drafter(subject.target, drafter, session)
    found = {"target": placement.of_target(subject.target, drafter).as_dict()}
    return found if own is None else found | {"drafter": own.as_dict()}


def _costs(subject: Subject, drafter: DiffusionDrafter, on_progress: OnProgress) -> RelativeCosts | None:
    on_progress("Measuring the costs", 0.0)
    longest = max(prompt.max_length for prompt in subject.prompts)
    try:
        costs = measure_costs(subject.target, drafter, 1, typical_context(subject.target, drafter, longest))
    except (DrafterFailed, ValueError):  # too few positions to measure
        return None
    on_progress("Measuring the costs", 1.0)
    return RelativeCosts.of(costs)


def _worth(
    subject: Subject,
    records: Sequence[SpeedRecord],
    stats: SpecDecodingStats,
    costs: RelativeCosts | None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Acceptance beside what was promised, and the speedup beside what costs and acceptance allow."""
    promised = promise(str(subject.checkup.drafter_name))
    length = num_positions(subject, len(promised.accepted) if promised else 0)
    accepted = in_decoding(subject, length)
    answers = [record.token_ids or () for record in records]
    taught = teacher_forced(subject, answers, length, partial(on_progress, "Drafting at every position"))
    seconds = {"draft": stats.draft_seconds, "verify": stats.verify_seconds, "host": stats.other_seconds}
    names = ("confidence_threshold", "chunk_length", "max_draft_length")
    speed: dict[str, Any] = {
        "speedup": speedup_of(records).speedup,
        "time_share": {name: value / sum(seconds.values()) for name, value in seconds.items()},
        "options": {name: getattr(subject.config, name) for name in names},
    }
    if costs is not None and accepted:
        best_length, best = costs.best(accepted)
        speed |= {"allowed": costs.of_rounds(stats), "best_length": best_length, "best": best}
        speed["limits"] = costs.limits(accepted, promised.accepted if promised else ())
    acceptance = {
        "mean_acceptance_length": stats.mean_acceptance_length,
        "acceptance_rate": stats.acceptance_rate,
        "tokens": stats.emitted,
        "signs": stats.advice(),
        "by_position": accepted,
        "teacher_forced": taught,
        "promised": promised and promised.as_dict(),
    }
    return {"acceptance": acceptance, "speed": speed}


def _in_float32(
    subject: Subject, drafter: DiffusionDrafter, checked: dict[str, Any], on_progress: OnProgress
) -> dict[str, Any]:
    """The same texts in float32, where rounding decides next to nothing; moves the target there in place."""
    if getattr(subject.target, "is_quantized", False):
        return {"float32_not_checked": "the target is quantised"}
    if subject.target.dtype == torch.float32:
        return {}
    try:
        subject.target.float()
        _tell_answers(subject, drafter)
        method = _method(subject, drafter)
        plain: list[SpeedRecord] = []
        ours: list[SpeedRecord] = []
        for done, prompt in enumerate(subject.prompts, 1):
            plain += plain_of(subject.config).run(subject.target, prompt)
            with refusals():
                ours += method.run(subject.target, prompt)
            on_progress("Checking in float32", done / len(subject.prompts))
        return {"exactness": checked | {"float32": _compared(subject, plain, ours)}}
    except torch.OutOfMemoryError:
        return {"float32_not_checked": "there is too little memory for the target in float32"}
