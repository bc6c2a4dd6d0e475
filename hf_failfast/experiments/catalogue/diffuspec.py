"""What do DiffuSpec's draft lengths gain, and its search for coherent paths, over FailFast's drafts?"""

from ...policies import DiffuSpecLength
from ..base import Setup
from ..sweeps import STORED_FEW, Variant, comparison, drafted, fixed


def variants(setup: Setup) -> list[Variant]:
    """FailFast's chain; fixed drafts as long as DiffuSpec's longest; its lengths; and both of its parts (arXiv
    2510.02358)."""
    config, longest = setup.config, setup.config.max_draft_length
    lengths = DiffuSpecLength(config.chunk_length, longest)
    return [
        drafted({"method": "FailFast"}, setup.drafter, config),
        fixed({"method": f"fixed, {longest} tokens"}, setup.drafter, config.with_options({"chunk_length": longest})),
        drafted({"method": "lengths"}, setup.drafter, config.with_options({"length_policy": lengths})),
        drafted({"method": "lengths, paths"}, setup.drafter, config.with_options({"length_policy": "diffuspec"})),
    ]


EXPERIMENT = comparison(__doc__, variants, STORED_FEW)
