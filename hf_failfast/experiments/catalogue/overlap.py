"""Is the next draft worth making while the target verifies this one?"""

from .. import plots
from ..base import Axis, Experiment, Setup
from ..sweeps import STORED_FEW, Variant, drafted, timing, with_cap_of_a_chunk
from ..tables import SPEED, VERIFIED, Column


def variants(setup: Setup) -> list[Variant]:
    """Each chunk length with and without overlap."""
    return [
        drafted(
            {"overlap": "yes" if overlaps else "no", "chunk_length": length},
            setup.drafter,
            with_cap_of_a_chunk(setup.config.with_options({"chunk_length": length, "overlap": overlaps})),
        )
        for length in map(int, setup.values)
        for overlaps in (False, True)
    ]


LENGTH = Axis("N", "chunk_length", values=(2, 4, 8))
EXPERIMENT = Experiment(
    question=__doc__,
    run=timing(variants),
    columns=(Column("overlap", "overlap"), LENGTH, *SPEED, VERIFIED),
    plot=plots.sweep(LENGTH),
    axis=LENGTH,
    stored=STORED_FEW,
)
