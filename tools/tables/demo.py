"""The methods of `hf-failfast demo`, as `make bench` measured them."""

from . import markdown, result

NAMES = {
    "plain generate": "plain `generate`",
    "HF prompt lookup": "transformers' prompt lookup",
    "hf_failfast": "hf_failfast, bundled drafter",
}


def table() -> str:
    rows = []
    for record in result("results/bench.json")["results"]:
        if record["method"] not in NAMES:
            continue
        length = record["mean_acceptance_length"]
        rows.append(
            (
                NAMES[record["method"]],
                f"{record['tokens_per_second']:.1f}",
                f"{record['speedup']:.2f}x",
                None if length is None else f"{length:.2f}",
            )
        )
    return markdown(("method", "tokens/s", "speedup", "mean acceptance length"), rows)
