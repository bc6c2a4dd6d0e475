"""What rounds of a recorded acceptance would take on a GPU: modelled by forwards measured on one."""

from dataclasses import dataclass

from ..policies.goodput import seconds_at
from .tables import Column, Row

PASS_ROWS = 16  # that a drafter's pass is taken to read: the new tokens and a canvas


@dataclass(frozen=True)
class ForwardCosts:
    """Milliseconds of a forward by the rows it reads, ascending; linear between them. target: of 7B parameters.
    drafter: of 1.5B."""

    target: tuple[tuple[int, float], ...]
    drafter: tuple[tuple[int, float], ...]


# NVIDIA H200, bfloat16, one sequence (results/gpu-nvidia-h200.json): transformers' own forward, and our CUDA graphs.
H200 = {
    "eager": ForwardCosts(
        ((1, 20.530482), (16, 24.182841), (32, 27.895111), (64, 34.925121)),
        ((1, 21.394396), (16, 24.294374), (32, 25.990683), (64, 23.349290)),
    ),
    "captured": ForwardCosts(
        ((1, 6.688118), (16, 7.743439), (32, 8.052627), (64, 8.105678)),
        ((1, 3.658823), (16, 4.245710), (32, 4.396240), (64, 4.624223)),
    ),
}


class ModelledSpeedup(Column):
    """The speedup over plain decoding that the row's tokens, verified rows and passes a round would be on an H200, for
    a target of 7B parameters and a drafter of 1.5B with the acceptance of the row: modelled, not measured. Time
    between the forwards is left out. The key is of `H200`."""

    def cell(self, row: Row) -> str:
        tokens, passes = row.get("mean_acceptance_length"), row.get("drafter_passes_per_round")
        if tokens is None or passes is None:
            return ""
        rate = row.get("acceptance_rate") or 0.0
        return format(speedup(H200[self.key], tokens, (tokens - 1) / rate if rate else 0.0, passes), self.form)


def speedup(costs: ForwardCosts, tokens: float, drafted: float, passes: float) -> float:
    """Of rounds that make `tokens` tokens out of `drafted` draft tokens and `passes` drafter passes, all means."""
    return tokens * _at(costs.target, 1) / (_at(costs.target, 1 + drafted) + passes * _at(costs.drafter, PASS_ROWS))


MODELLED = tuple(ModelledSpeedup(f"modelled speedup, H200 {kind}", kind, ".2f") for kind in H200)


def _at(points: tuple[tuple[int, float], ...], rows: float) -> float:
    """Milliseconds for a mean number of rows."""
    below = int(rows)
    low, high = seconds_at(points, below), seconds_at(points, below + 1)
    return low + (high - low) * (rows - below)
