"""Experiments that time variants of drafting against plain decoding."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product

from transformers import PreTrainedModel

from ..config import FailFastConfig
from ..drafters import DiffusionDrafter
from ..drafters.denoising import Denoising
from ..drafters.masked.session import MaskedDrafter
from ..measure.methods import drafted, fixed, is_autoregressive
from .setup import Bench, Outcome, Row, Variant, timed

BASELINE_LENGTHS = (3, 5, 8, 10, 15, 20)
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
CHUNK_LENGTHS = (5, 10, 15, 20)
MAX_DRAFT_LENGTHS = (10, 20, 30, 40, 50, 60, 70)
DENOISING_STEPS = (1, 2, 4)
SPECDIFF_LENGTHS = (1, 2, 4, 6, 8, 10, 15, 20)
SPECDIFF_STEPS = (1, 2, 4, 6, 8, 10)
OUTPUT_LENGTHS = (512, 1024, 2048)


@dataclass(frozen=True)
class Sweep:
    """An experiment over one axis: what a value of it changes, and the values of the paper.

    variants: (bench, values) to the methods to time.
    """

    axis: str
    values: tuple[float, ...]
    variants: Callable[[Bench, Sequence[float]], list[Variant]]

    def run(self, bench: Bench) -> Outcome:
        return Outcome(timed(bench, self.variants(bench, bench.values or self.values)))


def baseline_variants(bench: Bench, values: Sequence[float]) -> list[Variant]:
    """Drafts of n tokens, one pass per token (autoregressive) or fixed chunks (naive diffusion), and FailFast."""
    autoregressive = autoregressive_drafter(bench)
    variants = []
    for length in map(int, values):
        one_by_one = bench.config.with_options(
            {"confidence_threshold": 0.0, "chunk_length": 1, "max_draft_length": length}
        )
        one_chunk = bench.config.with_options({"chunk_length": length, "max_draft_length": length})
        variants += [
            Variant({"drafter": "autoregressive", "n": length}, drafted(autoregressive, one_by_one)),
            Variant({"drafter": "diffusion, fixed", "n": length}, fixed(bench.drafter, one_chunk)),
        ]
    failfast = drafted(bench.drafter, bench.config)
    return [*variants, Variant({"drafter": "FailFast", "n": bench.config.max_draft_length}, failfast)]


def autoregressive_drafter(bench: Bench) -> DiffusionDrafter:
    """The assistant; without one the drafter itself, read one token per pass, where it can be."""
    if bench.assistant is not None:
        return bench.assistant
    if is_autoregressive(bench.drafter):
        return bench.drafter
    raise ValueError("`assistant` must name an autoregressive draft model: this drafter cannot be read as one.")


def _option_variants(name: str) -> Callable[[Bench, Sequence[float]], list[Variant]]:
    """One variant per value of a FailFast option, the others as they are; a cap below the chunk is raised to it."""

    def variants(bench: Bench, values: Sequence[float]) -> list[Variant]:
        found = []
        for value in values:
            config = bench.config.with_options({name: value if name == "confidence_threshold" else int(value)})
            if name == "chunk_length":
                config = replace(config, max_draft_length=max(config.max_draft_length, config.chunk_length))
            found.append(Variant({name: value}, drafted(bench.drafter, config)))
        return found

    return variants


def denoising_variants(bench: Bench, values: Sequence[float]) -> list[Variant]:
    """Passes per chunk; the last variant is `full`, one pass per token."""
    length = bench.config.chunk_length
    steps = [*(int(value) for value in values if value < length), length]
    return [
        Variant(
            {"denoising_steps": count, "is_full": count == length},
            drafted(with_steps(bench.drafter, count), bench.config),
        )
        for count in steps
    ]


def specdiff_variants(bench: Bench, values: Sequence[float]) -> list[Variant]:
    """SpecDiff (arXiv 2408.05636): fixed drafts of gamma tokens in T denoising passes, wherever T <= gamma; sampled
    answers by its rejection sampling."""

    def config(gamma: int) -> FailFastConfig:
        return bench.config.with_options({"chunk_length": gamma, "max_draft_length": gamma, "verifier": "rejection"})

    return [
        Variant({"gamma": gamma, "T": steps}, fixed(with_steps(bench.drafter, steps), config(gamma)))
        for gamma, steps in product(map(int, values), SPECDIFF_STEPS)
        if steps <= gamma
    ]


def with_steps(drafter: DiffusionDrafter, steps: int) -> DiffusionDrafter:
    """The same weights, filling a chunk in `steps` passes."""
    if not isinstance(drafter, MaskedDrafter):
        raise ValueError(f"Denoising steps are for masked drafters; {type(drafter).__name__} drafts in one pass.")
    return drafter.with_denoising(Denoising(steps))


def run_long_outputs(bench: Bench) -> Outcome:
    """FailFast on answers of given lengths. End-of-sequence tokens are ignored by all methods, since few answers are
    that long: behind its natural end a text may repeat itself, which is easy to draft."""
    rows: list[Row] = []
    lengths = [int(value) for value in bench.values or OUTPUT_LENGTHS]
    with _without_end(bench.target):
        for index, length in enumerate(lengths):
            prompts = [replace(prompt, max_length=prompt.ids.shape[1] + length) for prompt in bench.prompts]
            progress = _part_of(bench.on_progress, index, len(lengths))
            variant = Variant({"output_tokens": length}, drafted(bench.drafter, bench.config))
            rows += timed(replace(bench, prompts=prompts, on_progress=progress), [variant])
    return Outcome(rows)


def _part_of(progress: Callable[[float], None], index: int, count: int) -> Callable[[float], None]:
    return lambda done: progress((index + done) / count)


@contextmanager
def _without_end(model: PreTrainedModel) -> Iterator[None]:
    config = model.generation_config
    model.generation_config = deepcopy(config)
    model.generation_config.eos_token_id = None
    try:
        yield
    finally:
        model.generation_config = config


BASELINES = Sweep("n", BASELINE_LENGTHS, baseline_variants)
TAU = Sweep("confidence_threshold", THRESHOLDS, _option_variants("confidence_threshold"))
CHUNK = Sweep("chunk_length", CHUNK_LENGTHS, _option_variants("chunk_length"))
CAP = Sweep("max_draft_length", MAX_DRAFT_LENGTHS, _option_variants("max_draft_length"))
STEPS = Sweep("denoising_steps", DENOISING_STEPS, denoising_variants)
SPECDIFF = Sweep("gamma", SPECDIFF_LENGTHS, specdiff_variants)
