"""Does a tree of the drafter's other likely tokens gain more than its rows cost? (0 nodes: the chain.)"""

from ..base import Axis, Setup
from ..sweeps import STORED, Variant, drafted, sweep
from ..tables import VERIFIED


def variants(setup: Setup) -> list[Variant]:
    """Trees of each size around the same drafts."""
    sizes = map(int, setup.values)
    return [
        drafted({"draft_tree": size}, setup.drafter, setup.config.with_options({"draft_tree": size})) for size in sizes
    ]


EXPERIMENT = sweep(__doc__, Axis("nodes", "draft_tree", values=(0, 8, 16, 32, 64)), variants, STORED, (VERIFIED,))
