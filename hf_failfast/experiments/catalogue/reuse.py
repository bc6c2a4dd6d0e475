"""Is the rest of a rejected draft worth proposing again, in chains and in trees? (0 nodes: chains.)"""

from .. import plots
from ..base import Axis, Experiment, Setup
from ..sweeps import STORED, Variant, drafted, timing
from ..tables import SPEED, VERIFIED, Column


def variants(setup: Setup) -> list[Variant]:
    """Each size of tree with and without reuse."""
    return [
        drafted(
            {"reuse": "yes" if is_reused else "no", "draft_tree": size},
            setup.drafter,
            setup.config.with_options({"draft_tree": size, "draft_reuse": is_reused}),
        )
        for size in map(int, setup.values)
        for is_reused in (False, True)
    ]


NODES = Axis("nodes", "draft_tree", values=(0, 16))
EXPERIMENT = Experiment(
    question=__doc__,
    run=timing(variants),
    columns=(Column("reuse", "reuse"), NODES, *SPEED, VERIFIED),
    plot=plots.sweep(NODES),
    axis=NODES,
    stored=STORED,
)
