"""Does the speedup hold over long answers?"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

from transformers import PreTrainedModel

from .. import plots
from ..base import Axis, Experiment, Outcome, Setup
from ..sweeps import drafted, timed
from ..tables import MEMORY, SPEED, Row


def run(setup: Setup) -> Outcome:
    """FailFast on answers of given lengths. All methods ignore end-of-sequence tokens, since few answers are that
    long: after its natural end a text may repeat itself, which is easy to draft."""
    rows: list[Row] = []
    count = len(setup.values)
    with _without_end(setup.target):
        for index, length in enumerate(map(int, setup.values)):
            prompts = [replace(prompt, max_length=prompt.ids.shape[1] + length) for prompt in setup.prompts]
            part = setup.part(index / count, (index + 1) / count)
            variant = drafted({"output_tokens": length}, setup.drafter, setup.config)
            rows += timed(replace(part, prompts=prompts), [variant])
    return Outcome(rows)


@contextmanager
def _without_end(model: PreTrainedModel) -> Iterator[None]:
    config = model.generation_config
    model.generation_config = deepcopy(config)
    model.generation_config.eos_token_id = None
    try:
        yield
    finally:
        model.generation_config = config


LENGTH = Axis("output tokens", "output_tokens", values=(512, 1024, 2048))
EXPERIMENT = Experiment(
    question=__doc__,
    run=run,
    columns=(LENGTH, *SPEED, MEMORY),
    plot=plots.sweep(LENGTH),
    axis=LENGTH,
    stored="--limit 1 --tasks failfast_summaries --target-latency-ms 34 --drafter-latency-ms 6 --values 256,512",
)
