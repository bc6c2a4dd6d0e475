"""Does FailFast beat drafts of a fixed length, written token by token or by diffusion?"""

from ...drafters import DiffusionDrafter
from ...measure.methods import is_autoregressive
from .. import plots
from ..base import Axis, Experiment, Setup
from ..sweeps import STORED, Variant, drafted, fixed, timing
from ..tables import SPEED, Column


def variants(setup: Setup) -> list[Variant]:
    """Drafts of n tokens, one pass per token (autoregressive) or fixed chunks (naive diffusion), and FailFast."""
    autoregressive = _autoregressive_drafter(setup)
    found = []
    for length in map(int, setup.values):
        one_by_one = setup.config.with_options(
            {"confidence_threshold": 0.0, "chunk_length": 1, "max_draft_length": length}
        )
        one_chunk = setup.config.with_options({"chunk_length": length, "max_draft_length": length})
        found += [
            drafted({"drafter": "autoregressive", "n": length}, autoregressive, one_by_one),
            fixed({"drafter": "diffusion, fixed", "n": length}, setup.drafter, one_chunk),
        ]
    failfast = {"drafter": "FailFast", "n": setup.config.max_draft_length}
    return [*found, drafted(failfast, setup.drafter, setup.config)]


def _autoregressive_drafter(setup: Setup) -> DiffusionDrafter:
    """The assistant; without one the drafter itself, read one token per pass, where it can be."""
    if setup.assistant is not None:
        return setup.assistant
    if is_autoregressive(setup.drafter):
        return setup.drafter
    raise ValueError("`assistant` must name an autoregressive draft model: this drafter cannot be read as one.")


LENGTH = Axis("n", "n", values=(3, 5, 8, 10, 15, 20))
EXPERIMENT = Experiment(
    question=__doc__,
    run=timing(variants),
    columns=(Column("drafter", "drafter"), LENGTH, *SPEED),
    plot=plots.baselines,
    axis=LENGTH,
    stored=STORED,
)
