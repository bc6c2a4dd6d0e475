"""How many tokens should the text itself add to a draft, beside transformers' own prompt lookup? (0: none.)"""

from ...measure.methods import prompt_lookup
from .. import plots
from ..base import Axis, Experiment, Setup
from ..sweeps import STORED, Variant, drafted, timing
from ..tables import SPEED, VERIFIED, Column


def variants(setup: Setup) -> list[Variant]:
    """Tails of each length after the same drafts, in chains; and prompt lookup alone."""
    tails = [
        drafted(
            {"method": "draft and tail", "n": count}, setup.drafter, setup.config.with_options({"draft_lookup": count})
        )
        for count in map(int, setup.values)
    ]
    return [*tails, Variant({"method": "prompt lookup", "n": None}, prompt_lookup())]


TAIL = Axis("n", "n", values=(0, 4, 8, 16))
EXPERIMENT = Experiment(
    question=__doc__,
    run=timing(variants),
    columns=(Column("method", "method"), TAIL, *SPEED, VERIFIED),
    plot=plots.sweep(TAIL),
    axis=TAIL,
    stored=STORED,
)
