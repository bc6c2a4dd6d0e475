"""An experiment from its options to its document."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel

from ..config import FailFastConfig
from ..drafters import DiffusionDrafter, load_drafter_for
from ..eval.preflight import check_prompts
from ..eval.task_prompts import task_prompts
from ..measure.provenance import provenance
from ..measure.records import Latencies
from ..pairs import Pair, load_pair
from .base import Experiment, Progress, Setup
from .calibration import Calibration, Confirmation, calibrate, confirm


@dataclass(frozen=True)
class SetupOptions:
    """What a `Setup` is loaded from; checked before anything is loaded.

    target, drafter: None for SmolLM2 and its drafter. assistant: by name. values: empty for the experiment's own.
    options: FailFast's, where the drafter's own are not wanted. latencies: (target, drafter) ms of the modelled
    speedup, or (None, None). temperature: 0 for greedy answers.
    """

    target: str | None = None
    drafter: str | None = None
    assistant: str | None = None
    tasks: tuple[str, ...] = ("failfast_offline",)
    prompts_file: str | None = None
    limit: int = 2
    max_new_tokens: int = 96
    repeats: int = 1
    values: tuple[float, ...] = ()
    dtype: Any = "auto"
    device: str = "cpu"
    options: dict[str, Any] = field(default_factory=dict)
    latencies: tuple[float | None, float | None] = (None, None)
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"`temperature` must be a number >= 0, but is {self.temperature!r}.")
        FailFastConfig().with_options(self.options)
        Latencies.given(*self.latencies)
        check_prompts(self.tasks, self.prompts_file)

    def load_pair(self) -> Pair:
        return load_pair(self.target, self.drafter, self.dtype, self.device)

    def setup(self, pair: Pair, on_progress: Progress, skip: int = 0) -> Setup:
        """With the prompts after the first `skip` of each task."""
        prompts = task_prompts(
            self.tasks,
            pair.tokenizer,
            limit=self.limit,
            max_new_tokens=self.max_new_tokens,
            device=pair.target.device,
            prompts_file=self.prompts_file,
            skip=skip,
            temperature=self.temperature,
        )
        return Setup(
            pair.target,
            pair.tokenizer,
            pair.drafter,
            pair.drafter.config.with_options(self.options),
            prompts,
            values=self.values,
            assistant=None if self.assistant is None else load_autoregressive(self.assistant, pair.target),
            repeats=self.repeats,
            latencies=Latencies.given(*self.latencies),
            seed=self.seed,
            on_progress=on_progress,
        )


def measure(name: str, experiment: Experiment, options: SetupOptions, on_progress: Progress) -> dict[str, Any]:
    """The experiment's document: what was asked, of what, where, and the rows."""
    pair = options.load_pair()
    setup = options.setup(pair, on_progress)
    if experiment.axis is not None and not setup.values:
        setup = replace(setup, values=experiment.axis.values)
    outcome = experiment.run(setup)
    found = {"experiment": name, "rows": outcome.rows, "totals": outcome.totals}
    return found | _facts(options, pair, setup)


def calibrated(
    options: SetupOptions, tolerance: float, on_progress: Progress
) -> tuple[Calibration, Confirmation, dict[str, Any]]:
    """What `calibrate` finds, what is left of it on as many other prompts, and the document of both."""
    pair = options.load_pair()
    setup = options.setup(pair, on_progress)
    others = options.setup(pair, on_progress, skip=options.limit)  # named before the search if there are none
    calibration = calibrate(setup.part(0, 0.9), tolerance)
    confirmation = confirm(others.part(0.9, 1), calibration.best)
    over_start = confirmation.over_start
    found = {
        "best": asdict(confirmation.recommended),
        "fastest": asdict(calibration.best),
        "start": asdict(setup.config),
        "is_faster_than_start": confirmation.is_faster,
        "over_start": None if over_start is None else asdict(over_start),
        "tolerance": tolerance,
        "plateau": calibration.plateau,
        "rows": calibration.rows,
        "held_out": confirmation.rows,
    }
    return calibration, confirmation, found | _facts(options, pair, setup)


def _facts(options: SetupOptions, pair: Pair, setup: Setup) -> dict[str, Any]:
    """What the numbers depend on."""
    setting = {
        "assistant": options.assistant,
        "dtype": str(pair.target.dtype).removeprefix("torch."),
        "tasks": options.tasks,
        "prompts": len(setup.prompts),
        "max_new_tokens": options.max_new_tokens,
        "repeats": options.repeats,
        "temperature": options.temperature,
        "seed": options.seed,
    }
    return {"setting": pair.names | setting | asdict(setup.config)} | provenance(pair.target.device)


def load_autoregressive(name: str, target: PreTrainedModel) -> DiffusionDrafter:
    """Any causal LM of the target's tokenizer as a drafter. At one token per pass it never sees a mask."""
    return load_drafter_for(target, name, attention="causal_canvas", shift=1, mask_token_id=0)
