"""Is a stack of a lookup and the drafter, levels chosen by measured costs, better than either and than a tail?"""

from ...decoding.hierarchy import Hierarchy
from ...measure.methods import prompt_lookup
from ..base import Setup
from ..sweeps import STORED_FEW, Variant, comparison, drafted

TAIL = 8


def variants(setup: Setup) -> list[Variant]:
    """The drafter, also with a tail; lookups alone, transformers' and ours; and stacks (HSD, arXiv 2510.19705): with
    an assistant, which judges what the drafter proposes, as the last level, too."""
    drafter, config, assistant = setup.drafter, setup.config, setup.assistant
    stacks = {"lookup": Hierarchy(["lookup"]), "lookup > drafter": Hierarchy(["lookup", drafter])}
    if assistant is not None:
        stacks |= {
            "drafter > assistant": Hierarchy([drafter, assistant]),
            "lookup > drafter > assistant": Hierarchy(["lookup", drafter, assistant]),
        }
    return [
        drafted({"method": "drafter"}, drafter, config),
        drafted({"method": f"drafter, tail of {TAIL}"}, drafter, config.with_options({"draft_lookup": TAIL})),
        Variant({"method": "transformers' prompt lookup"}, prompt_lookup()),
        *(drafted({"method": name}, stack, config) for name, stack in stacks.items()),
    ]


EXPERIMENT = comparison(__doc__, variants, STORED_FEW)
