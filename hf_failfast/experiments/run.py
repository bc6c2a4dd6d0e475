"""An experiment from its options to its document."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.progress import Progress
from transformers import PreTrainedModel

from ..cli.output.progress import progress_bar
from ..config import FailFastConfig
from ..drafters import DiffusionDrafter, DraftRequest, load_drafter
from ..engine.causal_lm import execution_device
from ..eval.options import Latencies
from ..eval.preflight import check_prompts
from ..measure.arms import Prompts
from ..measure.provenance import provenance
from ..pairs import Pair, load_pair
from .calibration import Calibration, calibrate, confirm
from .catalogue import EXPERIMENTS
from .prompts import task_prompts
from .setup import Bench


@dataclass(frozen=True)
class Setup:
    """What an experiment runs on; checked before anything is loaded.

    target, drafter: None for SmolLM2 and its drafter. assistant: of `Bench`, by name.
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
    values: tuple[float, ...] | None = None
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


def measure(name: str, setup: Setup) -> dict[str, Any]:
    """The experiment's document: what was asked, of what, where, and the rows."""
    pair = load_pair(setup.target, setup.drafter, setup.dtype, setup.device)
    prompts = _prompts(setup, pair)
    with progress_bar() as progress:
        bench = _bench(setup, pair, prompts, progress, name)
        outcome = EXPERIMENTS[name](bench)
    found = {"experiment": name, "rows": outcome.rows, "totals": outcome.totals}
    return found | _facts(setup, pair, bench)


def calibrated(setup: Setup, tolerance: float) -> tuple[Calibration, dict[str, Any]]:
    """What `calibrate` finds, and the document that also holds the choice's speed on as many other prompts."""
    pair = load_pair(setup.target, setup.drafter, setup.dtype, setup.device)
    chosen_on, others = _prompts(setup, pair), _prompts(setup, pair, skip=setup.limit)
    with progress_bar() as progress:
        bench = _bench(setup, pair, chosen_on, progress, "settings")
        calibration = calibrate(bench, tolerance)
        held_out = confirm(_bench(setup, pair, others, progress, "confirmation"), [calibration.best, bench.config])
    found = {
        "best": asdict(calibration.best),
        "tolerance": tolerance,
        "plateau": calibration.plateau,
        "rows": calibration.rows,
        "held_out": held_out,
    }
    return calibration, found | _facts(setup, pair, bench)


def _prompts(setup: Setup, pair: Pair, skip: int = 0) -> list[Prompts]:
    return task_prompts(
        setup.tasks,
        pair.tokenizer,
        limit=setup.limit,
        max_new_tokens=setup.max_new_tokens,
        device=pair.target.device,
        prompts_file=setup.prompts_file,
        skip=skip,
        temperature=setup.temperature,
    )


def _bench(setup: Setup, pair: Pair, prompts: list[Prompts], progress: Progress, title: str) -> Bench:
    task = progress.add_task(title, total=1.0)
    return Bench(
        pair.target,
        pair.tokenizer,
        pair.drafter,
        pair.drafter.config.with_options(setup.options),
        prompts,
        values=setup.values,
        assistant=None if setup.assistant is None else load_autoregressive(setup.assistant, pair.target),
        repeats=setup.repeats,
        latencies=Latencies.given(*setup.latencies),
        seed=setup.seed,
        on_progress=lambda done: progress.update(task, completed=done),
    )


def _facts(setup: Setup, pair: Pair, bench: Bench) -> dict[str, Any]:
    """What the numbers depend on."""
    setting = {
        "assistant": setup.assistant,
        "dtype": str(pair.target.dtype).removeprefix("torch."),
        "tasks": setup.tasks,
        "prompts": len(bench.prompts),
        "max_new_tokens": setup.max_new_tokens,
        "repeats": setup.repeats,
        "temperature": setup.temperature,
        "seed": setup.seed,
    }
    return {"setting": pair.names | setting | asdict(bench.config)} | provenance(pair.target.device)


def load_autoregressive(name: str, target: PreTrainedModel) -> DiffusionDrafter:
    """Any causal LM of the target's tokenizer as a drafter; drafting one token per pass it is never shown a mask."""
    drafter = load_drafter(
        name,
        attention="causal_canvas",
        shift=1,
        mask_token_id=0,
        dtype=target.dtype,
        device_map=execution_device(target),
    )
    drafter.start(DraftRequest(target, capacity=1))  # refuses a model that does not fit
    return drafter
