"""DFlash (arXiv 2602.06036): a block drafter that reads the target's hidden states. Two bodies, one session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.functional import embedding
from transformers.modeling_outputs import CausalLMOutput

from ...compatibility import CACHE
from ...config import FailFastConfig
from ...engine.causal_lm import execution_device, in_place
from ...engine.runner import EagerRunner, Head, raw_logits
from ...engine.window import Sight, Window
from ..base import DiffusionDrafter, DraftRequest, DraftSession, PerRow
from ..bodies.dflash import (
    AcceptanceHead,
    CandidateSelector,
    DFlashBody,
    MarkovHead,
    NativeDFlashBody,
    Step,
    layer_sights,
)
from ..checkpoints.target_fit import check_layers, check_mask_token, check_states, check_vocabulary, check_width
from ..checkpoints.weights import LoadRequest, load_into, load_native
from ..denoising import Alternatives, DraftTokens, MostLikely, choose_in_turn, choose_tokens
from .block_session import BlockSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Body = DFlashBody | NativeDFlashBody


@dataclass(frozen=True)
class BlockReading:
    """How a block is fed and read.

    target_layers: indices into the target's `hidden_states`.
    block_size: positions of a block: the last known token, then masks.
    shift: 1 if the last known token's row is the first of the draft, 0 if the first mask's is.
    embedding_scale: by which the raw rows of the target's embedding are multiplied, whatever the target does to them.
    """

    target_layers: tuple[int, ...]
    block_size: int
    mask_token_id: int
    shift: int = 0
    embedding_scale: float = 1.0

    @property
    def num_drafted(self) -> int:
        """Tokens that a block drafts."""
        return self.block_size - 1 + self.shift


@dataclass(frozen=True)
class LogitRule:
    """What follows the head: a factor, then a soft cap."""

    multiplier: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> LogitRule:
        """The rule that a config's `output_multiplier` and `final_logit_softcapping` name."""
        cap = values.get("final_logit_softcapping")
        multiplier = values.get("output_multiplier")
        return cls(1.0 if multiplier is None else float(multiplier), float(cap) if cap and cap > 0 else None)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if self.multiplier != 1.0:
            logits = logits.float() * self.multiplier
        return logits if self.cap is None else torch.tanh(logits.float() / self.cap) * self.cap


class DFlashLM:
    """A body between one target's embedding and head: the call of a causal LM whose window begins with the context."""

    def __init__(self, body: Body, target: PreTrainedModel, reading: BlockReading, rule: LogitRule) -> None:
        self.body = body
        self.config = body.config
        self.reading = reading
        self.rule = rule
        self.embedding = target.get_input_embeddings()
        self.head = target.get_output_embeddings()

    def modules(self) -> Iterator[nn.Module]:
        """Every module whose weights a forward reads."""
        return chain(self.body.modules(), self.embedding.modules(), self.head.modules())

    @property
    def dtype(self) -> torch.dtype:
        return self.body.dtype

    @property
    def device(self) -> torch.device:
        return self.body.device

    def __call__(
        self,
        *,
        input_ids: torch.Tensor,  # (1, m + b), those of the context unread
        logits_to_keep: int | torch.Tensor,
        **inputs: Any,  # `states` (1, m, features), `position_ids`, the cache; a mask, which is not read
    ) -> CausalLMOutput:
        num_states = inputs["states"].shape[1]
        hidden = self.hidden(input_ids, **inputs)
        if isinstance(logits_to_keep, int):
            hidden = hidden[:, -logits_to_keep:]
        else:
            hidden = hidden[:, (logits_to_keep - num_states).clamp(min=0)]
        return CausalLMOutput(logits=self.logits(hidden))

    def hidden(self, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Hidden states (1, b, width) of the block at the end of a window, with the arguments of a call."""
        states = inputs["states"]
        block = input_ids[:, states.shape[1] :].to(execution_device(self.embedding))
        embedded = self._embed(block).to(self.device, self.dtype)
        hidden: torch.Tensor = self.body(embedded, states, inputs["position_ids"], inputs[CACHE])
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of hidden states, over the target's ids or those of the body's own head."""
        if self.body.lm_head is not None:
            return self.rule(self.body.lm_head(hidden))
        return self.rule(self.head(hidden.to(execution_device(self.head), self.head.weight.dtype)).to(self.device))

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Rows of the target's embedding as they are, without what some targets do to them (a scale in Gemma, a norm
        in Muse Glimmer), times the drafter's own scale."""
        with in_place(self.embedding):
            rows = embedding(token_ids, self.embedding.weight)
        return rows if self.reading.embedding_scale == 1.0 else rows * self.reading.embedding_scale


class DFlashDrafter(DiffusionDrafter):
    """A DFlash checkpoint: drafts up to a block in one pass, from the second round on.

    rule: what follows the target's head; None: what the target itself applies there.
    """

    def __init__(self, body: Body, reading: BlockReading, rule: LogitRule | None, config: FailFastConfig) -> None:
        # Where a token's q depends on the one before, it holds for no alternative to that one.
        self.has_alternatives = not (body.candidate_selector or body.markov_head or body.confidence_head)
        self.body = body
        self.reading = reading
        self.rule = rule
        self.config = config

    @property
    def walks(self) -> bool:
        """Whether heads of the body's own choose tokens, or say how sure they are, from the hidden states."""
        body = self.body
        heads = (body.candidate_selector, body.markov_head, body.confidence_head, body.lm_head)
        return any(head is not None for head in heads)

    @property
    def target_layers(self) -> tuple[int, ...]:
        return self.reading.target_layers

    @property
    def block_size(self) -> int:
        return self.reading.block_size

    @property
    def mask_token_id(self) -> int:
        return self.reading.mask_token_id

    def start(self, request: DraftRequest) -> DraftSession:
        self.check_target(request.target)
        if self.walks:
            self.runners.explain(request.target, "the drafter's own heads are read token by token")
        return PerRow.of(request, lambda one: DFlashSession(self, one))

    def modules(self) -> Iterator[nn.Module]:
        return self.body.modules()

    def check_target(self, target: PreTrainedModel) -> None:
        config, own = target.config.get_text_config(decoder=True), self.body.config
        if getattr(own, "vocab_size", None) is not None:  # the native body has none to compare
            check_vocabulary(own.vocab_size, config.vocab_size)
        check_mask_token(self.mask_token_id, target.get_input_embeddings().weight.shape[0])
        check_states(config)
        check_width(own.hidden_size, config.hidden_size, len(self.target_layers))
        read = [state - 1 for state in self.target_layers]
        check_layers(read, config.num_hidden_layers, getattr(own, "num_target_layers", None))


class DFlashSession(BlockSession):
    """Drafts one block per round; the original always proposes the whole block."""

    def __init__(self, drafter: DFlashDrafter, request: DraftRequest) -> None:
        target = request.target
        self.body = drafter.body
        self.device = self.body.device
        self.reading = drafter.reading
        self.target_layers = drafter.target_layers
        self.walks = drafter.walks
        config = target.config.get_text_config(decoder=True)
        rule = LogitRule.of(vars(config)) if drafter.rule is None else drafter.rule
        self.vocab_size = config.vocab_size
        self.vocabulary = self.body.vocabulary
        self.warp = request.warp
        self.num_alternatives = request.num_alternatives
        self.model = DFlashLM(self.body, target, drafter.reading, rule)
        best = MostLikely(self.vocab_size, self.reading.mask_token_id, self.num_alternatives)
        self.head: Head = raw_logits if self.warp else best
        self.runner = EagerRunner(self.model) if self.walks else drafter.runners.drafter(self.model, target)
        super().__init__(
            self.runner.new_cache(request.capacity + drafter.block_size),
            torch.zeros(1, 0, self.body.num_features, dtype=self.body.dtype, device=self.device),
            self.reading.num_drafted,
            request.eos_on(self.device),
        )

    def observe(self, states: Sequence[torch.Tensor]) -> None:
        new = states[0].to(self.device, self.body.dtype)
        self.features = torch.cat([self.features, new], dim=1) if self.features.shape[1] else new

    def draft_block(self, known: torch.Tensor) -> DraftTokens:
        known = known.to(self.device)  # a draft ends with the block: no token is drafted yet
        start, features = self.cache.get_seq_length(), self.features
        num_new = features.shape[1]
        masks = known.new_full((1, self.reading.block_size - 1), self.reading.mask_token_id)
        window = torch.cat([known.new_zeros(1, num_new), known, masks], dim=1)
        tokens = (self._walked if self.walks else self._read)(window, features, start)
        self.cache.rollback(start + num_new)
        self.features = features[:, :0]
        return tokens

    def _read(self, window: torch.Tensor, features: torch.Tensor, start: int) -> DraftTokens:
        """Each token for itself, by the head within the forward."""
        limit = torch.full((window.shape[1],), start + window.shape[1], device=self.device)
        forward = self.runner.run(
            Window(window, [start], self.reading.num_drafted, Sight(limit), states=features), self.cache, self.head
        )
        if self.warp is None:
            token_ids, confidence, *others = forward.outputs
            return DraftTokens(token_ids, confidence, alternatives=Alternatives(*others) if others else None)
        (logits,) = forward.outputs
        return choose_tokens(logits, self.vocab_size, self.reading.mask_token_id, self.warp, self.num_alternatives)

    def _walked(self, window: torch.Tensor, features: torch.Tensor, start: int) -> DraftTokens:
        """By the body's own heads."""
        num_tokens, num_known = window.shape[1], features.shape[1]
        positions = torch.arange(start, start + num_tokens, device=self.device)[None]
        hidden = self.model.hidden(window, states=features, position_ids=positions, **{CACHE: self.cache})
        self.cache.advance(num_tokens)
        read = hidden[:, 1 - self.reading.shift :]
        return self._choose(read, self.model.logits(read), window[:, num_known])

    def _choose(self, hidden: torch.Tensor, logits: torch.Tensor, last: torch.Tensor) -> DraftTokens:
        """Tokens from the logits (1, n, V) of hidden states (1, n, width): each for itself, or given the one before it
        where the body has a selector."""
        mask_token_id, confidence = self.reading.mask_token_id, self._acceptance(hidden)
        walker = self.body.candidate_selector or self.body.markov_head
        if walker is None and confidence is None:
            return choose_tokens(
                self._spread(logits), self.vocab_size, mask_token_id, self.warp, self.num_alternatives
            )
        walk = (lambda position, _: logits[:, position]) if walker is None else walker.walk(hidden, logits.float())
        return choose_in_turn(
            lambda position, previous: self._spread(walk(position, previous)),
            logits.shape[1],
            last,
            self.vocab_size,
            mask_token_id,
            self.warp,
            confidence,
        )

    def _acceptance(self, hidden: torch.Tensor) -> Step | None:
        """From a position and the token before it to the trained acceptance probability; None if there is none."""
        head, markov = self.body.confidence_head, self.body.markov_head
        if head is None:
            return None
        with_markov = markov is not None and head.proj.in_features > hidden.shape[-1]
        return lambda position, previous: head(
            hidden[:, position], markov.of(previous) if markov is not None and with_markov else None
        )

    def _spread(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (..., V) over the target's ids, of logits over the body's own; what it cannot propose has none."""
        if self.vocabulary is None:
            return logits
        whole = logits.new_full((*logits.shape[:-1], self.vocab_size), -torch.inf, dtype=torch.float32)
        return whole.index_copy(-1, self.vocabulary, logits.float())


def load_dflash(request: LoadRequest) -> DFlashDrafter:
    """A drafter from a checkpoint in the z-lab format. Raises ValueError on one without the layers that it reads."""
    return _load(request, lambda body: None)


def load_dflash2(request: LoadRequest) -> DFlashDrafter:
    """A drafter of the second generation, with convolutions and a candidate selector. Raises ValueError on a config
    that does not size them."""
    values = request.checkpoint.config
    sizes = ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")
    if missing := [key for key in sizes if values.get(key) is None]:
        raise ValueError(f"The config has no {missing}, which a DFlash 2 checkpoint needs.")
    num_taps, group_size, rank, num_candidates = (int(values[key]) for key in sizes)
    if not 1 <= num_candidates <= int(values["vocab_size"]):
        raise ValueError(f"`selector_top_k` must be in 1 .. {values['vocab_size']}, but is {num_candidates}.")

    def extend(body: DFlashBody) -> None:
        body.add_convolutions(num_taps, group_size)
        width = body.config.hidden_size
        body.candidate_selector = CandidateSelector(body.config.vocab_size, width, rank, num_candidates)

    return _load(request, extend)


def load_dspark(request: LoadRequest) -> DFlashDrafter:
    """A drafter with a Markov head and a head that was trained on acceptance."""
    values = request.checkpoint.config
    rank = int(values.get("markov_rank") or 0)

    def extend(body: DFlashBody) -> None:
        width, vocab_size = body.config.hidden_size, body.config.vocab_size
        if rank > 0:
            kind, drafted = str(values.get("markov_head_type")), values.get("draft_vocab_size") or vocab_size
            body.markov_head = MarkovHead(kind, vocab_size, drafted, width, rank)
        if values.get("enable_confidence_head"):
            body.confidence_head = AcceptanceHead(width + (rank if values.get("confidence_head_with_markov") else 0))

    return _load(request, extend)


def _load(request: LoadRequest, extend: Callable[[DFlashBody], None]) -> DFlashDrafter:
    """extend: adds to the layers what the generation has beside them."""
    from transformers import Qwen3Config

    values = request.checkpoint.config
    config = Qwen3Config.from_dict(values)
    if (values.get("target_hidden_size") or config.hidden_size) != config.hidden_size:
        raise ValueError(
            f"`target_hidden_size` must be {config.hidden_size}, the drafter's own width, but is "
            f"{values['target_hidden_size']}: adapters between two widths are not supported."
        )
    states = values.get("target_states")
    if states is None:
        layer_ids = values.get("target_layer_ids") or usual_layers(
            values.get("num_target_layers"), config.num_hidden_layers
        )
        states = [layer_id + 1 for layer_id in layer_ids]  # hidden state 0 is the embedding
    drafted = values.get("draft_vocab_size") or config.vocab_size
    with torch.device("meta"):
        body = DFlashBody(config, len(states) * config.hidden_size, layer_sights(config, values))
        if drafted != config.vocab_size:
            body.reduce_vocabulary(drafted)
        extend(body)
    load_into(body, request, request.checkpoint.family.ignored_weights)
    if body.vocabulary is not None and body.vocabulary.device.type != "meta":
        _check_vocabulary(body.vocabulary, config.vocab_size)
    scale = values.get("input_embedding_scale")
    reading = _reading(states, request, 1.0 if scale is None else float(scale))
    return DFlashDrafter(body.eval().to(body.device), reading, LogitRule.of(values), request.config)


def _check_vocabulary(vocabulary: torch.Tensor, vocab_size: int) -> None:
    """Raises ValueError unless the ids of a reduced vocabulary are different ids of the whole one."""
    if vocabulary.min() < 0 or vocabulary.max() >= vocab_size or len(vocabulary.unique()) < len(vocabulary):
        raise ValueError(f"`d2t` must lead to {len(vocabulary)} different ids below {vocab_size}, but does not.")


def usual_layers(num_target_layers: int | None, count: int) -> list[int]:
    """The target's layers that a drafter reads if its config does not name them: as many as it has layers, `count`,
    spread from the second one to the last but two. Raises ValueError if the target's depth is not known either."""
    if num_target_layers is None:
        raise ValueError("The config has neither `target_layer_ids` nor `num_target_layers`.")
    if count == 1:
        return [num_target_layers // 2]
    return [round(1 + index * (num_target_layers - 4) / (count - 1)) for index in range(count)]


def load_dflash_assistant(request: LoadRequest) -> DFlashDrafter:
    """A drafter from a checkpoint of transformers' own DFlash class."""
    from transformers import AutoModel

    body = NativeDFlashBody(load_native(request, AutoModel))
    states = [layer_id + 1 for layer_id in body.config.target_layer_ids]
    return DFlashDrafter(body.eval(), _reading(states, request), None, request.config)


def _reading(states: Sequence[int], request: LoadRequest, embedding_scale: float = 1.0) -> BlockReading:
    spec = request.checkpoint.spec
    block_size, mask_token_id = cast(int, spec.block_size), cast(int, spec.mask_token_id)
    return BlockReading(tuple(states), block_size, mask_token_id, spec.shift, embedding_scale)
