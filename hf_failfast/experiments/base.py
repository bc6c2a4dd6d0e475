"""One experiment as one object, what it runs on, and what it finds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import FailFastConfig
from ..drafters import DiffusionDrafter
from ..measure.records import Latencies
from ..measure.timing import Prompts
from .plots import Draw
from .tables import Column, Row

Progress = Callable[[float], None]  # told the share that is done, 0..1


@dataclass(frozen=True)
class Setup:
    """A pair and the prompts it is measured on.

    config: the chunk rule wherever an experiment does not vary it.
    prompts: one each; their generation arguments say whether answers are greedy or sampled.
    values: what the experiment's axis takes.
    assistant: an autoregressive draft model, read as a drafter of one token per pass; None if there is none.
    repeats: runs per prompt and method; the one of median time counts.
    """

    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    drafter: DiffusionDrafter
    config: FailFastConfig
    prompts: Sequence[Prompts]
    values: tuple[float, ...] = ()
    assistant: DiffusionDrafter | None = None
    repeats: int = 1
    latencies: Latencies | None = None
    seed: int = 0
    on_progress: Progress = field(default=lambda done: None)

    def part(self, start: float, end: float) -> "Setup":
        """The same for a part of the work, whose progress goes from `start` to `end`."""
        return replace(self, on_progress=lambda done: self.on_progress(start + (end - start) * done))


@dataclass(frozen=True)
class Outcome:
    """What an experiment found: rows of a table, and numbers about all of them."""

    rows: list[Row]
    totals: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Axis(Column):
    """The column that an experiment varies, and the values it takes unless others are asked for."""

    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """Everything that commands, tables, figures and docs say about an experiment; its name is its file's.

    question: in one sentence. run: measures. columns: of the table of its rows.
    axis: None for an experiment that varies nothing.
    stored: options of `hf-failfast experiment` with which `make experiments` fills results/experiments.
    """

    question: str
    run: Callable[[Setup], Outcome]
    columns: tuple[Column, ...]
    plot: Draw
    axis: Axis | None = None
    stored: str = ""
