"""How fast the trainer is, and where a step's time goes.

    python benchmarks/training.py --steps 10
    python benchmarks/training.py --steps 10 --conditioned

Random answers for SmolLM2-135M-Instruct (speed does not depend on what they say). Shares are of the wall time of whole
steps: data (batches are made), teacher (the target's forward), body (the drafter's forward), head (its logits), loss
(everything else of the loss), backward, and the rest, which is mostly the optimizer.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from store import RESULTS, store

from hf_failfast.measure.provenance import provenance
from hf_failfast.pairs import load_smollm2
from hf_failfast.training import trainer as trainer_module
from hf_failfast.training.config import TrainingConfig
from hf_failfast.training.data.shards import Example
from hf_failfast.training.export import Provenance
from hf_failfast.training.precision import training_dtype
from hf_failfast.training.trainer import Trainer

PROMPT, ANSWER = 40, 150  # tokens, about those of SmolLM2's own questions and answers without loops


class Stopwatch:
    """Seconds by name; what is timed inside of something else does not count there."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inner = [0.0]

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        self._inner.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            elapsed = time.perf_counter() - started
            self.seconds[name] += elapsed - self._inner.pop()
            self._inner[-1] += elapsed

    def around(self, owner: Any, attribute: str, name: str) -> None:
        """Times every call of a function that `owner` has."""
        function: Callable[..., Any] = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timed(name):
                return function(*args, **kwargs)

        setattr(owner, attribute, timed)


def random_examples(count: int, vocabulary: int, states: int | None) -> list[Example]:
    """Sequences of one length; with final states of that width, or none."""
    tokens = torch.randint(vocabulary, (count, PROMPT + ANSWER), generator=torch.Generator().manual_seed(0))
    return [Example(row, PROMPT, None if states is None else torch.randn(ANSWER, states).bfloat16()) for row in tokens]


def main(
    steps: int = 10,
    batch_size: int = 4,
    anchors: int = 24,
    canvas_length: int = 8,
    conditioned: bool = False,
    dtype: Annotated[str, typer.Option(help="bfloat16, float32, or auto: what the machine multiplies fast.")] = "auto",
    output: Path = RESULTS / "training.json",
) -> None:
    """Adds a row to the output: its settings, tokens and steps a second, and the shares of a step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = training_dtype(device) if dtype == "auto" else getattr(torch, dtype)
    trainer_module.training_dtype = lambda _: chosen  # type: ignore[assignment]
    target, _ = load_smollm2(chosen)
    states = None if conditioned else target.config.hidden_size
    data = [random_examples(count, target.config.vocab_size, states) for count in (8 * batch_size, batch_size)]
    config = TrainingConfig(
        steps=steps + 1,
        batch_size=batch_size,
        anchors=anchors,
        canvas_length=canvas_length,
        conditioned=conditioned,
        evaluation_steps=steps + 2,
    )
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(target.to(device), (data[0], data[1]), config, Path(folder), Provenance("", "", "", {}))
        trainer.train_step()  # the first one allocates
        if trainer.teacher is not None:
            watch.around(trainer, "teacher", "teacher")
        watch.around(trainer, "_batch", "data")
        watch.around(trainer.drafter, "forward", "body")
        watch.around(trainer.drafter, "logits", "head")
        watch.around(trainer_module, "training_loss", "loss")
        watch.around(trainer.accelerator, "backward", "backward")
        tokens = 0.0
        for _ in range(steps):
            with watch.timed("rest"):
                tokens += trainer.train_step()["tokens"]
    seconds = sum(watch.seconds.values())
    row = {
        "settings": {"dtype": str(chosen).removeprefix("torch."), "conditioned": conditioned, "batch_size": batch_size}
        | {"anchors": anchors, "canvas_length": canvas_length, "threads": torch.get_num_threads()},
        "tokens_per_second": round(tokens / seconds, 1),
        "steps_per_second": round(steps / seconds, 3),
        "shares": {name: round(spent / seconds, 3) for name, spent in watch.seconds.most_common()},
        "provenance": provenance(),
    }
    store(row, output)


if __name__ == "__main__":
    typer.run(main)
