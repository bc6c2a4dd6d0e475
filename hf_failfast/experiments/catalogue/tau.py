"""How much does the confidence threshold matter?"""

from ..base import Axis
from ..sweeps import STORED, by_option, sweep

EXPERIMENT = sweep(
    __doc__,
    Axis("tau", "confidence_threshold", ".2f", values=tuple(round(0.05 * step, 2) for step in range(1, 20))),
    by_option("confidence_threshold"),
    stored=f"{STORED} --values 0.05,0.2,0.35,0.45,0.55,0.7,0.85,0.95",
)
