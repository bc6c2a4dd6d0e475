"""How much does N matter, the tokens that a draft grows by?"""

from ..base import Axis
from ..sweeps import STORED, by_option, sweep

EXPERIMENT = sweep(
    __doc__,
    Axis("N", "chunk_length", ".0f", values=(5, 10, 15, 20)),
    by_option("chunk_length"),
    stored=f"{STORED} --values 2,3,5,10,20 --max-draft-length 60",
)
