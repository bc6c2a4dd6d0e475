"""Forms, losses and optimizers after equal training time: what `benchmarks/equal_time.py` measured."""

from typing import Any

from . import markdown, result


def table() -> str:
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in result("results/ablation_equal_time.json")["runs"]:
        runs.setdefault(run["variant"], []).append(run)
    titles = ("variant", "tokens a round, each seed (95 % interval)", "1st accepted", "held out", "steps")
    return markdown(titles, [(name, *_cells(of_seeds)) for name, of_seeds in runs.items()])


def _cells(runs: list[dict[str, Any]]) -> tuple[str, ...]:
    """Of a variant, its seeds side by side."""
    decoding = [run["decoding"] for run in runs]
    lengths = [f"{d['mean_acceptance_length']:.3f} ({d['low']:.2f} to {d['high']:.2f})" for d in decoding]
    first = [f"{each['acceptance_by_position'][0]:.3f}" for each in decoding]
    others = [[f"{run['held_out']:.3f}" for run in runs], [str(run["steps"]) for run in runs]]
    return tuple(", ".join(each) for each in (lengths, first, *others))
