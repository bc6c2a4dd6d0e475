"""lm-eval tasks that report speed beside accuracy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from ..measure.metrics import SPEED_METRICS, values_of
from ..measure.records import SpeedRecord, record_of
from . import model  # noqa: F401  (registers the model, so that plain `lm_eval` knows it by the tasks' YAML)

SPEED_FILTER = "speed"


class SpeedResponse(dict[str, Any]):
    """What the speed filter makes of an answer: its record's known fields; empty if the answer came from a cache."""

    def __str__(self) -> str:  # what lm-eval writes to the samples
        return json.dumps(self)


class SpeedTask(ConfigurableTask):
    """A generation task with one more filter, `speed`, whose rows are the speed metrics.

    Its YAML may name a stock task to start from, relative to lm-eval's task folder: `inherits: gsm8k/gsm8k.yaml`; the
    YAML's own keys win. With other models than `hf_failfast`, and where every answer came from a cache, the task is an
    ordinary one. Raises ValueError on a task that generates nothing.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        merged = inherited(config)
        if merged.get("output_type", "generate_until") != "generate_until":
            raise ValueError(
                f"`output_type` must be generate_until to measure speed, but that of {merged.get('task')!r} is "
                f"{merged['output_type']!r}; use the stock task."
            )
        super().__init__(config=merged)

    def apply_filters(self) -> list[Instance] | None:
        """The task's own filters, then `speed`, whose response is an answer's record."""
        instances = super().apply_filters()
        records = [record_of(request) for request in self.instances]
        if any(record is not None for record in records):
            for request, record in zip(self.instances, records, strict=True):
                request.filtered_resps[SPEED_FILTER] = SpeedResponse(record.as_dict() if record else {})
        return instances

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """One filter's metrics of one document; none of the speed filter's if the answer came from a cache."""
        response = results[0]
        if isinstance(response, SpeedResponse):
            return values_of(SpeedRecord(**response)) if response else {}
        return super().process_results(doc, results)

    def aggregation(self) -> dict[str, Callable[..., Any]]:
        return super().aggregation() | {metric.name: metric.aggregate for metric in SPEED_METRICS}

    def higher_is_better(self) -> dict[str, bool]:
        known = {metric.name: metric.higher_is_better for metric in SPEED_METRICS}
        return super().higher_is_better() | {name: better for name, better in known.items() if better is not None}


def inherited(config: dict[str, Any]) -> dict[str, Any]:
    """The config on top of the stock task's that it `inherits`, without the stock task's tags."""
    own = dict(config)
    own.pop("class", None)
    stock = own.pop("inherits", None)
    if stock is None:
        return own
    base = load_yaml(Path(lm_eval.tasks.__file__).parent / stock)
    base.pop("tag", None)
    return base | own
