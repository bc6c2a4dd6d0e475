"""Drafters whose body is a causal-LM decoder under another attention mask: nearly every public diffusion LM."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args

import torch
from torch import nn

from ...config import FailFastConfig
from ...engine.causal_lm import CausalLM
from ...engine.ragged import RaggedIds, is_even
from ...engine.runner import EagerRunner, Head, raw_logits
from ...engine.window import Window
from ..base import DiffusionDrafter, DraftRequest, DraftSession, PerRow
from ..bodies.borrowed import SharedBody
from ..bodies.dit import DiT
from ..checkpoints.target_fit import check_vocabulary
from ..chunks import Chunk, ChunkedSession, concatenate_alternatives, concatenate_probs
from ..denoising import Alternatives, Denoising, DraftTokens, MostLikely, choose_tokens
from ..spec import DrafterSpec
from .attention_patterns import Bound, attention_pattern
from .fast_dllm_reference import ReferenceSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DraftingMode = Literal["fused", "reference"]


@dataclass(frozen=True)
class DraftingOptions:
    """How a masked drafter works, apart from what its checkpoint demands.

    mode: `fused` (K/V commit and drafting share a pass) or `reference` (Fast-dLLM v2's published pass sequence).
    prefix_block: block of the approximate prefix cache of a bidirectional model; None recomputes exactly.
    """

    denoising: Denoising = Denoising()
    mode: DraftingMode = "fused"
    prefix_block: int | None = None


class MaskedDrafter(DiffusionDrafter):
    """A native transformers causal LM (or layers that borrow the target's embedding and head), used as a spec says.

    lender: the model that lends them where the target has another tokenizer; None: the target does.
    """

    lender: PreTrainedModel | None = None

    def __init__(
        self,
        model: PreTrainedModel | SharedBody | DiT,
        spec: DrafterSpec,
        config: FailFastConfig,
        options: DraftingOptions = DraftingOptions(),
    ) -> None:
        self.model = model
        self.spec = spec
        self.config = config
        self.options = options
        self.drafts_by_chunks = self.has_alternatives = options.mode == "fused"
        attention_pattern(spec, options.prefix_block)  # raises now, not at the first draft
        if options.mode not in get_args(DraftingMode):
            raise ValueError(f"`mode` must be one of {list(get_args(DraftingMode))}, but is {options.mode!r}.")
        if options.mode == "reference" and (spec.attention != "block_causal" or spec.shift != 1):
            raise ValueError("`mode='reference'` is Fast-dLLM v2's: block_causal attention with shift 1.")

    @property
    def own_model(self) -> Any:
        return self.lender if isinstance(self.model, SharedBody) else self.model

    def borrowing_from(self, lender: PreTrainedModel) -> Self:
        if not isinstance(self.model, SharedBody):
            return self
        self.check_target(lender)
        if self.made_for is not None:
            self.made_for.check(lender)
        other = copy.copy(self)
        other.lender, other.made_for, other.runners = lender, None, self.runners
        return other

    def start(self, request: DraftRequest) -> DraftSession:
        self.check_target(request.target)
        model = self.model.attach(request.target) if isinstance(self.model, SharedBody) else cast(CausalLM, self.model)
        vocab_size = request.target.config.get_text_config(decoder=True).vocab_size
        if self.options.mode == "reference":
            self.runners.explain(request.target, "`mode='reference'` reads every pass on the host")
            return PerRow.of(request, lambda one: ReferenceSession(model, self.spec, vocab_size, one))
        if self.spec.attention == "bidirectional" and self.options.prefix_block is None:
            self.runners.explain(request.target, "a bidirectional drafter reads the whole text in every pass")
        runner = self.runners.drafter(model, request.target)
        return MaskedSession(runner, self.spec, vocab_size, request, self.options, self.window)

    def modules(self) -> Iterator[nn.Module]:
        return self.model.modules()

    def with_denoising(self, denoising: Denoising) -> Self:
        """The same drafter, with chunks filled in another number of passes."""
        other = copy.copy(self)
        other.options, other.runners = replace(self.options, denoising=denoising), self.runners
        return other

    def check_target(self, target: PreTrainedModel) -> None:
        vocab_size = target.config.get_text_config(decoder=True).vocab_size
        check_vocabulary(self.model.config.get_text_config(decoder=True).vocab_size, vocab_size)
        if isinstance(self.model, SharedBody):
            self.model.check_target(target)


class MaskedSession(ChunkedSession):
    """Drafts by filling masked positions. Final K/V stay in slots, so that no pass re-reads the prefix: the pass that
    drafts also commits the newly accepted tokens. The sequences of a batch share each pass.

    vocab_size: ids from here on are unknown to the target.
    """

    takes_back = True

    def __init__(
        self,
        runner: EagerRunner,
        spec: DrafterSpec,
        vocab_size: int,
        request: DraftRequest,
        options: DraftingOptions = DraftingOptions(),
        window: int = 0,
    ) -> None:
        model = runner.model
        self.device = model.device
        super().__init__(request.eos_on(self.device), window)
        block = spec.block_size or 1
        # A window leaves as much room for drafts as it has tokens.
        capacity = min(request.capacity, 2 * window) if window else request.capacity
        max_positions = getattr(model.config, "max_position_embeddings", None) or capacity + block
        self.spec = spec
        self.vocab_size = vocab_size
        last_id = model.config.vocab_size - 1  # stands for the target's ids that the drafter does not know
        self.last_id = last_id if last_id < vocab_size - 1 else None
        self.vocabulary: torch.Tensor | None = getattr(model, "vocabulary", None)
        self.warp = request.warp
        self.num_alternatives = request.num_alternatives
        self.denoising = options.denoising
        self.pattern = attention_pattern(spec, options.prefix_block)
        self.runner = runner
        self.cache = runner.new_cache((capacity // block + 2) * block, request.num_rows)
        longest = max_positions // block * block
        self.longest = min(longest, capacity) if window else longest  # tokens of a sequence, its draft included
        self.generator = torch.Generator(self.device).manual_seed(0)
        is_autoregressive = self.pattern.reads_causally and spec.shift == 1
        self.judges = is_autoregressive and request.num_rows == 1 and options.denoising.is_single_pass
        self._guess: Sequence[int] = ()

    def guess(self, token_ids: Sequence[int]) -> None:
        self._guess = token_ids

    def accept(self, counts: Sequence[int]) -> None:
        self._guess = ()
        self._forget([length + count for length, count in zip(self.lengths, counts, strict=True)])

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        self.cache.keep(rows)

    def restart(self, rows: Sequence[int]) -> None:
        self.cache.rollback([0 if row in rows else length for row, length in enumerate(self.cache.lengths)])

    def inherit(self, previous: Self, num_tokens: int, rows: tuple[int, int] = (0, 0)) -> int:
        row, source = rows
        offset = previous.offsets[source] if previous.offsets else 0
        if num_tokens > offset:
            self.offsets = self.offsets or [0] * len(self.cache.lengths)
            self.offsets[row] = offset
            self.cache.adopt(previous.cache, self.pattern.final_length(num_tokens - offset), row, source)
        return self.cache.lengths[row]

    def max_draft_length(self, num_tokens: int) -> int:
        return self.longest - num_tokens

    def draft_chunk(self, known: RaggedIds, length: int) -> Chunk:
        """In as many fillings as the attention pattern needs."""
        ids = known.ids.to(self.device)
        guess, self._guess = self._guess[: max(self.longest - known.lengths[0] - length, 0)], ()
        if guess:
            return self._judged(RaggedIds(ids, known.lengths), torch.tensor([guess], device=self.device), length)
        known = RaggedIds(ids if self.last_id is None else ids.clamp(max=self.last_id), known.lengths)
        missing = [length] * len(known.lengths)
        chunks: list[Chunk] = []
        places: list[list[int]] = [[] for _ in missing]  # of each sequence's tokens among the columns of all chunks
        width = 0
        while any(missing):
            num_noise, num_read = self._plan(known.lengths, missing)
            canvas = self._noise(len(missing), max(num_noise))
            tokens, passes = self._denoise(known, canvas, num_noise, max(num_read)), 1
            if not self.denoising.is_single_pass:
                tokens, passes = self._refine(known, canvas, num_noise, num_read, tokens)
            chunk = Chunk(tokens.token_ids, tokens.confidence, passes, tokens.probs, tokens.alternatives)
            if not chunks and num_read == missing:
                return chunk
            known = known.append(chunk.token_ids, num_read)
            chunks.append(chunk)
            for place, count in zip(places, num_read, strict=True):
                place += range(width, width + count)
            width += chunk.token_ids.shape[1]
            missing = [left - count for left, count in zip(missing, num_read, strict=True)]
        return _join(chunks, places)

    def _judged(self, known: RaggedIds, guess: torch.Tensor, length: int) -> Chunk:
        """One pass over guessed tokens (1, m) and a canvas of `length` tokens after them: the guessed tokens up to the
        first that the drafter would not have written, and its own there; the whole canvas if it agrees with all."""
        guessed = known.append(guess)
        ids = guessed.ids if self.last_id is None else guessed.ids.clamp(max=self.last_id)
        num_noise, num_read = self._plan(guessed.lengths, [length])
        canvas = self._noise(1, num_noise[0])
        count = guess.shape[1]
        tokens = self._denoise(
            RaggedIds(ids, guessed.lengths), canvas, num_noise, count + num_read[0], self.spec.shift + count
        )
        differs = (tokens.token_ids[:, :count] != guess).long().cumsum(dim=1)
        agreed = int((differs == 0).sum())  # host sync: the tokens that stay
        self._forget([known.lengths[0] + agreed])
        kept = agreed + 1 if agreed < count else count + num_read[0]
        return Chunk(tokens.token_ids[:, :kept], tokens.confidence[:, :kept], 1)

    def _forget(self, lengths: Sequence[int]) -> None:
        """Keeps the slots that are final now that `lengths[b]` tokens of sequence b are accepted; none below 0, where
        they end before what a window shows."""
        final = [self.pattern.final_length(max(length, 0)) for length in lengths]
        self.cache.rollback([min(pair) for pair in zip(self.cache.lengths, final, strict=True)])

    def _plan(self, lengths: Sequence[int], wanted: Sequence[int]) -> tuple[list[int], list[int]]:
        """Per sequence, how many noise positions to feed and tokens to read next: the wanted number (which may be 0),
        or fewer if the attention pattern allows no more."""
        pairs = zip(lengths, wanted, strict=True)
        plans = [self.pattern.plan(clean_end, count) if count else (0, 0) for clean_end, count in pairs]
        return [noise for noise, _ in plans], [read for _, read in plans]

    def _refine(
        self,
        known: RaggedIds,
        canvas: torch.Tensor,  # (B, c)
        num_noise: Sequence[int],
        num_read: Sequence[int],
        tokens: DraftTokens,  # of the first pass
    ) -> tuple[DraftTokens, int]:
        """Makes passes until every position is fixed. Returns the tokens, and the number of passes with the first."""
        column = torch.arange(max(num_read), device=self.device)
        is_open = column < torch.tensor(num_read, device=self.device)[:, None]
        masked = is_open.clone()
        fed = min(canvas.shape[1], len(column))
        passes = 1
        while True:
            masked &= ~self.denoising.choose(tokens.confidence, masked, passes - 1, in_order=self.warp is not None)
            if not bool(masked.any()):  # host sync: another pass or not
                return tokens, passes
            is_filled = (is_open & ~masked)[:, :fed]
            filled = torch.where(is_filled, tokens.token_ids[:, :fed], canvas[:, :fed])
            canvas = torch.cat([filled, canvas[:, fed:]], dim=1)
            # With a shift, the first position is predicted by the last known token, which must be in the window again.
            self._forget([length - self.spec.shift for length in known.lengths])
            tokens = self._denoise(known, canvas, num_noise, max(num_read)).where(masked, tokens)
            passes += 1

    def _denoise(
        self,
        known: RaggedIds,
        canvas: torch.Tensor,  # (B, c)
        num_noise: Sequence[int],  # how much of the canvas belongs to each sequence
        num_read: int,
        shift: int | None = None,
    ) -> DraftTokens:
        """One pass over the known tokens that are not in the slots, which it commits, and the canvas after them.
        Returns its choice for `num_read` positions, beginning with the one that the row `shift` before the canvas
        predicts: by default the first after the known ones."""
        shift = self.spec.shift if shift is None else shift
        pairs = zip(self.cache.lengths, known.lengths, strict=True)
        reusable = [self.pattern.reusable_length(cached, clean_end) for cached, clean_end in pairs]
        noise = num_noise[0] if is_even(num_noise) else torch.tensor(num_noise, device=self.device)[:, None]

        def limit(positions: torch.Tensor, clean_end: Bound) -> torch.Tensor:
            return self.pattern.limit(positions, clean_end, clean_end + noise)

        needs_limit = not self.pattern.is_causal(canvas.shape[1])
        window = Window.over(known, canvas, reusable, num_read, shift, limit if needs_limit else None)
        forward = self.runner.run(window, self.cache, self.head)
        self._forget(known.lengths)
        return self.choose(*forward.outputs)

    @property
    def admissible(self) -> tuple[int, int | None]:
        """How many of the drafter's ids can be proposed, and the one among them that cannot."""
        if self.vocabulary is None:
            return self.vocab_size, self.spec.mask_token_id
        return len(self.vocabulary), None

    @property
    def head(self) -> Head:
        return MostLikely(*self.admissible, self.num_alternatives) if self.warp is None else raw_logits

    def choose(self, *outputs: torch.Tensor) -> DraftTokens:
        """The target's ids that the drafter proposes at r positions, from the head's results."""
        if self.warp is None:
            token_ids, confidence, *others = outputs
            tokens = DraftTokens(token_ids, confidence, alternatives=Alternatives(*others) if others else None)
        else:
            (logits,) = outputs
            tokens = choose_tokens(logits, *self.admissible, self.warp, self.num_alternatives)
        if self.vocabulary is None:
            return tokens
        token_ids, confidence, probs, alternatives = tokens
        if probs is not None:
            whole = probs.new_zeros(*probs.shape[:2], self.vocab_size)
            probs = whole.index_copy(-1, self.vocabulary, probs)
        if alternatives is not None:
            alternatives = alternatives._replace(token_ids=self.vocabulary[alternatives.token_ids])
        return DraftTokens(self.vocabulary[token_ids], confidence, probs, alternatives)

    def _noise(self, num_rows: int, length: int) -> torch.Tensor:
        if self.spec.noise == "random":
            ids = self.spec.num_noise_ids(self.vocab_size)
            return torch.randint(ids, (num_rows, length), generator=self.generator, device=self.device)
        return torch.full((num_rows, length), cast(int, self.spec.mask_token_id), device=self.device)


def _join(chunks: list[Chunk], places: list[list[int]]) -> Chunk:
    """Lays all chunks side by side, and takes columns `places[b]` for sequence b."""
    token_ids = torch.cat([chunk.token_ids for chunk in chunks], dim=1)
    confidence = torch.cat([chunk.confidence for chunk in chunks], dim=1)
    probs, alternatives = concatenate_probs(chunks), concatenate_alternatives(chunks)
    if token_ids.shape[1] > len(places[0]):  # sequences differ in their fillings
        index = torch.tensor(places, device=token_ids.device)
        token_ids, confidence = token_ids.gather(1, index), confidence.gather(1, index)
        row = torch.arange(len(index), device=index.device)[:, None]
        probs = None if probs is None else probs[row, index]
        alternatives = None if alternatives is None else alternatives.map(lambda values: values[row, index])
    return Chunk(token_ids, confidence, sum(chunk.passes for chunk in chunks), probs, alternatives)
