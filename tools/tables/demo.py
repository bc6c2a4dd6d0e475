"""What `hf-failfast demo` measured."""

from . import markdown, result

NAMES = {
    "plain generate": "plain `generate`",
    "HF prompt lookup": "transformers' prompt lookup",
    "hf_failfast": "hf_failfast, bundled drafter",
}


def table() -> str:
    rows = []
    for record in result("results/demo.json")["results"]:
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
