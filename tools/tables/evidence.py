"""What `make evidence` measured, one row per method."""

from hf_failfast.experiments.tables import Column, Interval, cells

from . import markdown, result, was_quiet

# A score of fewer answers moves by more than methods differ.
ENOUGH_ANSWERS = 20
METHODS = {
    "plain": "plain `generate`",
    "prompt_lookup": "transformers' prompt lookup",
    "assisted": "transformers' assisted generation",
    "fixed": "fixed drafts",
    "failfast": "FailFast",
    "goodput": "goodput",
}
SCORES = (
    ("failfast_humaneval", Column("HumanEval pass@1", "pass@1", ".2f")),
    ("failfast_arithmetic", Column("arithmetic", "exact_match", ".2f")),
    ("failfast_extraction", Column("extraction", "field_accuracy", ".2f")),
    ("failfast_summaries", Column("summaries ROUGE-L", "rougeL", ".3f")),
)
TASKS = {
    "failfast_humaneval": "HumanEval",
    "failfast_arithmetic": "arithmetic",
    "failfast_extraction": "extraction",
    "failfast_summaries": "summaries",
    "all": "all",
}


def table(kind: str) -> str:
    """`scores`: the accuracy, where there are enough answers to show one; `accuracy`: every task's score by method;
    `speed`: speedups by method and task, or where the machine was busy mean acceptance lengths."""
    document = result("results/smollm2.json")
    methods = {row["method"]: {} for row in document["rows"]}
    for row in document["rows"]:
        methods[row["method"]][row["task"]] = row
    answers = max(row["answers"] for row in document["rows"] if row["task"] != "all")
    if kind == "scores" and answers < ENOUGH_ANSWERS:
        return _too_few(answers, document["float32"])
    if kind != "speed":
        lines = [
            [METHODS[method], *(column.cell(of_task[task]) for task, column in SCORES)]
            for method, of_task in methods.items()
        ]
        return markdown(["method", *(column.title for _, column in SCORES)], lines)
    # Without the clock's numbers, where the machine was busy: mean acceptance lengths, by task.
    is_timed = was_quiet(document)
    by_task = Interval("speedup", "speedup", ".2f") if is_timed else Column("", "mean_acceptance_length", ".2f")
    columns = (
        Column("mean acceptance length", "mean_acceptance_length", ".2f"),
        *([Column("tokens/s", "tokens_per_second", ".1f")] if is_timed else []),
        Column("identical", "identical", ".0%"),
    )
    lines = [
        [METHODS[method], *(by_task.cell(of_task[task]) for task in TASKS), *cells(columns, [of_task["all"]])[0]]
        for method, of_task in methods.items()
        if method != "plain"
    ]
    return markdown(["method", *TASKS.values(), *(column.title for column in columns)], lines)


def _too_few(answers: int, in_float32: dict) -> str:
    return (
        f"{answers} answers a task are too few for scores; {ENOUGH_ANSWERS} are the least that this page shows. The "
        f"texts themselves were compared: in float32 {in_float32['identical']:.0%} of {in_float32['answers']} drafted "
        "answers equal plain `generate`'s, token by token."
    )
