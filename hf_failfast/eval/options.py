"""The options of the lm-eval model `hf_failfast`, checked before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Literal, get_args

from transformers import PreTrainedModel

from ..config import FailFastConfig, Verifier
from ..drafters import load_drafter_for
from ..engine.runner_pool import RunnerName
from ..measure.methods import Method, assisted, drafted, fixed, load_assistant, plain, prompt_lookup
from ..measure.records import Latencies

MethodName = Literal["failfast", "fixed", "plain", "assisted", "prompt_lookup"]

# Which methods an option has a meaning for; anywhere else it is refused rather than ignored.
APPLIES_TO: dict[str, tuple[MethodName, ...]] = {
    "assistant": ("failfast", "fixed", "assisted"),
    "confidence_threshold": ("failfast",),
    "chunk_length": ("failfast", "fixed"),
    "max_draft_length": ("failfast",),
    "length_policy": ("failfast",),
    "verifier": ("failfast", "fixed"),
    "draft_temperature": ("failfast", "fixed"),
    "runner": ("failfast", "fixed", "plain"),
    "draft_tree": ("failfast", "fixed"),
    "draft_lookup": ("failfast", "fixed"),
    "draft_reuse": ("failfast", "fixed"),
    "self_selection": ("failfast", "fixed"),
    "exact": ("failfast", "fixed"),
    "overlap": ("failfast", "fixed"),
    "num_assistant_tokens": ("assisted", "prompt_lookup"),
    "target_latency_ms": ("failfast", "fixed"),
    "drafter_latency_ms": ("failfast", "fixed"),
}


@dataclass(frozen=True)
class EvalOptions:
    """How answers are generated and what they are compared with.

    assistant: folder or Hub id of the drafter; for `assisted`, of an autoregressive draft model, or of a
        drafter that reads as one (`measure/methods.py`).
    method: `failfast`, `fixed` (the drafter with drafts of one chunk, never extended), `plain` (the target alone),
        `assisted` (transformers' assisted generation) or `prompt_lookup` (transformers' n-gram drafts).
    compare_plain: run plain decoding on every prompt too, in random order, for paired speedups.
    prepack: pack the weights of all models for a CPU, for every method alike.
    confidence_threshold, chunk_length, max_draft_length: tau, N, N_max; default: the drafter's own.
    length_policy: `confidence`, `goodput` or `diffuspec`; default: the drafter's own.
    verifier, draft_temperature: how samples verify a draft; default: the drafter's own.
    runner: `auto`, `eager`, `cuda_graphs` or `compiled_graphs`, as in `load_drafter`; of `plain`, none and
        `eager` are transformers' `generate`, the others this package's loop without drafts.
    draft_tree, draft_lookup, draft_reuse: tokens that a round verifies as a tree and that the text so far may add to
        a draft, and whether the rest of a rejected draft is proposed again; default: the drafter's own.
    self_selection: drafts of one pass that are verified together; default: the drafter's own.
    exact: whether each token is rounded as if it were alone, with `compare_plain` in plain decoding, too.
    overlap: make the next draft while the target verifies this one; default: the drafter's own.
    num_assistant_tokens: draft length of `assisted` and `prompt_lookup`; default: transformers' own, and 10.
    target_latency_ms, drafter_latency_ms: forward latencies of the modelled speedup; both, or neither to have them
        measured, which needs `compare_plain`.
    order_seed: decides which of the two runs of a prompt comes first.
    """

    assistant: str | None = None
    method: MethodName = "failfast"
    compare_plain: bool = False
    prepack: bool = False
    confidence_threshold: float | None = None
    chunk_length: int | None = None
    max_draft_length: int | None = None
    length_policy: str | None = None
    verifier: Verifier | None = None
    draft_temperature: float | None = None
    runner: RunnerName | None = None
    draft_tree: int | None = None
    draft_lookup: int | None = None
    draft_reuse: bool | None = None
    self_selection: int | None = None
    exact: bool | None = None
    overlap: bool | None = None
    num_assistant_tokens: int | None = None
    target_latency_ms: float | None = None
    drafter_latency_ms: float | None = None
    order_seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(MethodName):
            raise ValueError(f"`method` must be one of {list(get_args(MethodName))}, but is {self.method!r}.")
        for name in ("compare_plain", "prepack"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"`{name}` must be True or False, but is {value!r}.")
        for name, methods in APPLIES_TO.items():
            if getattr(self, name) is not None and self.method not in methods:
                raise ValueError(f"`{name}` is for the methods {list(methods)}, but `method` is {self.method!r}.")
        if self.method in APPLIES_TO["assistant"] and not self.assistant:
            raise ValueError(f"`assistant` must name a drafter's folder or Hub id for `method={self.method}`.")
        if self.runner is not None and self.runner not in get_args(RunnerName):
            raise ValueError(f"`runner` must be one of {list(get_args(RunnerName))}, but is {self.runner!r}.")
        _ = self.latencies
        FailFastConfig().with_options(self.failfast_options)
        tokens = self.num_assistant_tokens
        if tokens is not None and (not isinstance(tokens, Integral) or tokens < 1):
            raise ValueError(f"`num_assistant_tokens` must be an integer >= 1, but is {tokens!r}.")

    @property
    def latencies(self) -> Latencies | None:
        """Those of the modelled speedup; None to have them measured."""
        return Latencies.given(self.target_latency_ms, self.drafter_latency_ms)

    @property
    def failfast_options(self) -> dict[str, Any]:
        """The FailFast options that were given, by name."""
        given = {name: getattr(self, name) for name in FailFastConfig.field_names()}
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def take(cls, arguments: dict[str, Any]) -> "EvalOptions":
        """The options among lm-eval's model arguments, which are removed from `arguments`."""
        return cls(**{field.name: arguments.pop(field.name) for field in fields(cls) if field.name in arguments})

    @classmethod
    def check(cls, arguments: Mapping[str, Any]) -> None:
        """Raises the ValueError that a model with these arguments would raise."""
        cls.take(dict(arguments))


def load_method(options: EvalOptions, target: PreTrainedModel) -> Method:
    """The method that the options name, its drafter loaded beside the target in the target's dtype."""
    if options.method == "plain":
        return plain(options.runner or "eager")
    if options.method == "prompt_lookup":
        return prompt_lookup(options.num_assistant_tokens)
    assert options.assistant is not None
    if options.method == "assisted":
        return assisted(load_assistant(options.assistant, target), options.num_assistant_tokens)
    drafter = load_drafter_for(target, options.assistant, runner=options.runner or "auto")
    config = drafter.config.with_options(options.failfast_options)
    return fixed(drafter, config) if options.method == "fixed" else drafted(drafter, config)
