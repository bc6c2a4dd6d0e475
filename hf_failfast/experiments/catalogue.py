"""Every experiment by its name."""

from collections.abc import Callable

from .setup import Bench, Outcome
from .sweeps import BASELINES, CAP, CHUNK, SPECDIFF, STEPS, TAU, run_long_outputs
from .traces import run_confidence, run_difficulty, run_trajectory

EXPERIMENTS: dict[str, Callable[[Bench], Outcome]] = {
    "baselines": BASELINES.run,
    "tau": TAU.run,
    "chunk-length": CHUNK.run,
    "max-draft-length": CAP.run,
    "denoising-steps": STEPS.run,
    "specdiff": SPECDIFF.run,
    "long-outputs": run_long_outputs,
    "confidence": run_confidence,
    "difficulty": run_difficulty,
    "trajectory": run_trajectory,
}
