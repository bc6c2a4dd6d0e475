"""Does a tree of the drafter's other likely tokens gain more than its rows cost? (0 nodes: the chain.)"""

from ..base import Axis, Setup
from ..on_gpu import MODELLED
from ..sweeps import STORED, Variant, drafted, sweep
from ..tables import VERIFIED


def variants(setup: Setup) -> list[Variant]:
    """Trees of each size around the same drafts; the table also has what the acceptance would be worth on a GPU, where
    rows cost less."""
    sizes = map(int, setup.values)
    return [
        drafted({"draft_tree": size}, setup.drafter, setup.config.with_options({"draft_tree": size})) for size in sizes
    ]


NODES = Axis("nodes", "draft_tree", values=(0, 8, 16, 32, 64))
EXPERIMENT = sweep(__doc__, NODES, variants, STORED, (VERIFIED, *MODELLED))
