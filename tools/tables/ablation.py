"""What `benchmarks/ablation.py` measured."""

from . import markdown, result


def table(name: str) -> str:
    """`name`: of the file in results/."""
    runs = result(f"results/{name}.json")["runs"]
    rows = []
    for run in runs:
        gain = run["mean_acceptance_length"] - run["start"]
        first, second, third, *_ = run["acceptance_by_position"]
        positions = (f"{share:.3f}" for share in (first, second, third))
        rows.append((run["variant"], f"{run['mean_acceptance_length']:.3f}", f"{gain:+.3f}", *positions))
    return markdown(("variant", "mean acceptance length", "change", "1st accepted", "2nd", "3rd"), rows)
