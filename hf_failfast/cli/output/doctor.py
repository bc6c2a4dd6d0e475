"""What a user sees of the doctor's findings."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from ...experiments.doctor.promise import mean_length

Rows = Iterator[tuple[str, str]]


def show(found: dict[str, Any]) -> None:
    """Prints the findings part by part, and the advice last."""
    console = Console()
    table = Table(show_header=False, title=f"{found['target']} with {found['drafter'] or 'no drafter'}")
    for part in (_texts, _fit, _promises, _speed, _forwards):
        rows = list(part(found))
        for row in rows:
            table.add_row(*row)
        if rows:
            table.add_section()
    console.print(table)
    if found["acceptance"]:
        console.print(_by_position(found["acceptance"]))
    if found["costs"]:
        console.print(_costs(found["costs"]))
    for text in found["warnings"]:
        console.print(f"- {text}", markup=False, highlight=False)
    console.print(found["advice"], markup=False, highlight=False, style="bold")


def _texts(found: dict[str, Any]) -> Rows:
    if found["refusal"]:
        yield "refused", found["refusal"]
    by = "its drafter" if found["drafter"] and not found["fit"]["misfit"] else "drafts with planned mistakes"
    for dtype, check in found["exactness"].items():
        same = f"{check['identical']} of {check['answers']} answers identical to plain generate, by {by}"
        yield dtype, "\n".join([same, *map(_parting, check["partings"])])
    if found["float32_not_checked"]:
        yield "float32", f"not checked: {found['float32_not_checked']}"


def _parting(parting: dict[str, Any]) -> str:
    return (
        f"answer {parting['prompt'] + 1} parts at new token {parting['position'] + 1}: {parting['kind']}, best two "
        f"logits {parting['margin']:.2g} apart, rounding {parting['rounding']:.2g}"
    )


def _fit(found: dict[str, Any]) -> Rows:
    fit = found["fit"]
    if fit["misfit"]:
        yield "misfit", fit["misfit"]
    if found["drafter"] is None:
        yield "the bundled drafter", fit["bundled_misfit"] or "has the target's shape"
        return
    yield "drafter", f"{fit['family']}, {fit['attention']}"
    if fit["made_for"]:
        is_this = {True: "this target", False: "ANOTHER target", None: "not compared"}[fit["is_made_for_this_target"]]
        yield "made for", f"{fit['made_for']}: {is_this}"
    if fit["vocabulary"][1] is not None:  # a LoRA has the target's
        yield "vocabulary", "{} entries, the drafter's {}".format(*fit["vocabulary"])
        yield "width", "{}, the drafter's {}".format(*fit["hidden_size"])
    yield "tokenizer", _tokenizer(fit)
    if fit["reads_layers"]:
        made_for = f", made for {fit['made_for_layers']}" if fit["made_for_layers"] else ""
        yield "reads layers", f"{fit['reads_layers']} of the target's {fit['layers']}{made_for}"


def _tokenizer(fit: dict[str, Any]) -> str:
    pair = fit["tokenizers"]
    if fit["unread_tokenizer"]:
        return f"the drafter's cannot be read, and is taken to have the target's ids: {fit['unread_tokenizer']}"
    if pair is None:
        return "the target's (the drafter has none of its own)"
    lines = [
        "{} tokens, the drafter's {}".format(*pair["sizes"]),
        f"{pair['other_ids']} under other ids, {pair['only_target']} the target's only, {pair['only_drafter']} the "
        "drafter's only",
        f"{pair['prompts_alike']} of {pair['prompts']} prompts encoded alike; chat template: {pair['chat_template']}",
        *(f"{name}: {ours!r}, the drafter's {theirs!r}" for name, (ours, theirs) in pair["special"].items()),
    ]
    return "\n".join([*lines, *(["drafted across tokenizers"] if fit["is_translated"] else [])])


def _promises(found: dict[str, Any]) -> Rows:
    if found["drafter_error"]:
        yield "drafter error", found["drafter_error"]
    acceptance = found["acceptance"]
    if not acceptance:
        return
    yield "tokens a round", f"{acceptance['mean_acceptance_length']:.2f}, the target's own included"
    yield "accepted", f"{acceptance['acceptance_rate']:.0%} of the drafted tokens"
    promised = acceptance["promised"]
    if promised is None:
        yield "promised", "nothing that can be read"
    else:
        length = f"{promised['mean_acceptance_length']:.2f}"
        yield "promised", f"{length} tokens a pass, at every position of a text ({promised['source']})"
    if acceptance["teacher_forced"]:
        yield "counted that way here", f"{mean_length(acceptance['teacher_forced']):.2f}"


def _speed(found: dict[str, Any]) -> Rows:
    speed = found["speed"]
    if not speed:
        return
    yield (
        "speedup",
        f"{speed['speedup']:.2f}x measured"
        + (f", {speed['allowed']:.2f}x allowed by acceptance and costs" if "allowed" in speed else ""),
    )
    yield "time", ", ".join(f"{name} {share:.0%}" for name, share in speed["time_share"].items())
    yield "options", ", ".join(f"{name} {value}" for name, value in speed["options"].items())
    if "best" in speed:
        yield "best fixed length", f"{speed['best_length']} tokens, {speed['best']:.2f}x"
        yield "would be", ", ".join(f"{value:.2f}x with {name}" for name, value in speed["limits"].items())


def _forwards(found: dict[str, Any]) -> Rows:
    for role, placed in found["placement"].items():
        weights = "packed" if placed["packed"] else "could be packed" if placed["packable"] else "as they are"
        graphs = f"eager: {placed['eager_because']}" if placed["eager_because"] else "replayed as CUDA graphs"
        attention = placed["attention"] or "its own"
        yield (
            f"{role}'s forwards",
            f"{placed['dtype']} on {placed['device']}, attention {attention}, weights {weights}\n{graphs}",
        )


def _by_position(acceptance: dict[str, Any]) -> Table:
    """Of rounds and of positions of a text: the share with that many draft tokens accepted."""
    promised = (acceptance["promised"] or {}).get("accepted", [])
    columns = (acceptance["by_position"], acceptance["teacher_forced"] or [], promised)
    table = Table("draft position", "accepted", "at every position of the text", "promised")
    for position in range(len(acceptance["by_position"])):
        shares = (f"{column[position]:.2f}" if position < len(column) else "" for column in columns)
        table.add_row(str(position + 1), *shares)
    return table


def _costs(costs: dict[str, Any]) -> Table:
    table = Table("costs", f"plain forwards of {costs['plain_forward_ms']:.1f} ms")
    for key, what in (
        ("pass_by_tokens_read", "drafter pass, tokens: {}"),
        ("verification_by_rows", "verification, rows: {}"),
    ):
        for count, cost in costs[key].items():
            table.add_row(what.format(count), f"{cost:.2f}")
    return table
