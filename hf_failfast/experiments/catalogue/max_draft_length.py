"""What do long drafts gain?"""

from ..base import Axis
from ..sweeps import STORED, by_option, sweep

EXPERIMENT = sweep(
    __doc__,
    Axis("N_max", "max_draft_length", ".0f", values=(10, 20, 30, 40, 50, 60, 70)),
    by_option("max_draft_length"),
    stored=f"{STORED} --chunk-length 8 --confidence-threshold 0.45",
)
