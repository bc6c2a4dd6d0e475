"""Which length gamma, and which number of denoising steps T, suit SpecDiff's fixed drafts?"""

from itertools import product

from ...config import FailFastConfig
from .. import plots
from ..base import Axis, Experiment, Setup
from ..sweeps import STORED, Variant, fixed, timing, with_steps
from ..tables import MEMORY, SPEED, Column

STEPS = (1, 2, 4, 6, 8, 10)


def variants(setup: Setup) -> list[Variant]:
    """SpecDiff (arXiv 2408.05636): fixed drafts of gamma tokens in T denoising passes, wherever T <= gamma; sampled
    answers by its rejection sampling."""

    def config(gamma: int) -> FailFastConfig:
        return setup.config.with_options({"chunk_length": gamma, "max_draft_length": gamma, "verifier": "rejection"})

    return [
        fixed({"gamma": gamma, "T": steps}, with_steps(setup.drafter, steps), config(gamma))
        for gamma, steps in product(map(int, setup.values), STEPS)
        if steps <= gamma
    ]


GAMMA = Axis("gamma", "gamma", values=(1, 2, 4, 6, 8, 10, 15, 20))
EXPERIMENT = Experiment(
    question=__doc__,
    run=timing(variants),
    columns=(GAMMA, Column("T", "T"), *SPEED, MEMORY),
    plot=plots.specdiff,
    axis=GAMMA,
    stored=f"{STORED} --values 1,4,8",
)
