"""What `make evidence-gemma` measured: how the drafter was made, and what it and SmolLM2's are worth."""

from typing import Any

from hf_failfast.experiments.tables import Column, Interval, cells

from . import markdown, result, was_quiet


def table(kind: str) -> str:
    """`training`: a sentence; `drafting`: a line for each pair, without speeds where the machine was busy."""
    document = result("results/gemma.json")
    return _training(document) if kind == "training" else _drafting(document)


def _training(document: dict[str, Any]) -> str:
    training, hardware = document["training"], document["hardware"]
    decoding, vocabulary = training["decoding"], training["draft_vocabulary"]
    threads = f"{hardware['threads']} thread{'s' if hardware['threads'] > 1 else ''}"
    return (
        f"The drafter of this table learned for {training['minutes']:.0f} minutes ({training['steps']} steps; "
        f"{threads} of an {hardware['processor']}, load {hardware['load']}) from {training['questions']} beginnings "
        f"that Gemma continued ({training['answer_tokens']:,} tokens, {training['loops']:.0%} of them cut since they "
        f"loop), with a head of {vocabulary['size']:,} ids ({vocabulary['coverage']:.1%} of these tokens). In "
        f"simulated decoding of {decoding['answers']} unseen beginnings it gets "
        f"{decoding['mean_acceptance_length']:.2f} tokens a round ({decoding['low']:.2f} to {decoding['high']:.2f})."
    )


def _drafting(document: dict[str, Any]) -> str:
    columns = [
        Column("target", "target"),
        Column("drafter of", "drafter"),
        Column("drafts", "rule"),
        Column("dtype", "dtype"),
        Column("identical", "identical_of"),
        Interval("tokens a round", "tokens_per_round", ".2f"),
    ]
    if was_quiet(document):
        columns.append(Interval("speedup over plain `generate`", "speedup", ".2f"))
    rows = [row | {"identical_of": f"{row['identical']} of {row['answers']}"} for row in document["rows"]]
    return markdown([column.title for column in columns], cells(columns, rows))
