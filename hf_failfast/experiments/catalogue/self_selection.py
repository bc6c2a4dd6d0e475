"""How many drafts of one pass should be verified together? (1: the chain.)"""

from ..base import Axis, Setup
from ..sweeps import STORED, Variant, drafted, sweep
from ..tables import VERIFIED


def variants(setup: Setup) -> list[Variant]:
    """Each number of drafts."""
    return [
        drafted({"drafts": count}, setup.drafter, setup.config.with_options({"self_selection": count}))
        for count in map(int, setup.values)
    ]


EXPERIMENT = sweep(__doc__, Axis("drafts", "drafts", values=(1, 2, 4, 8)), variants, STORED, (VERIFIED,))
