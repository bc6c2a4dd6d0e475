"""Turns the target's logits into scores, and chooses tokens by them."""

from collections.abc import Callable

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import logits_process

from ..config import FailFastConfig, Verifier
from .verification import NAMED, Branches, Scores, choose_among, choose_greedy, choose_sampled

# Warpers that see a position's scores as a bag: what they do to a token depends neither on its id nor on the tokens
# that an earlier warper has removed.
WARPERS = (
    logits_process.EpsilonLogitsWarper,
    logits_process.EtaLogitsWarper,
    logits_process.LogitNormalization,
    logits_process.MinPLogitsWarper,
    logits_process.TemperatureLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.TypicalLogitsWarper,
)

# Processors that look at one position's scores and nothing else: they may see all positions of a round at once.
ROWWISE_PROCESSORS = (
    *WARPERS,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.SuppressTokensLogitsProcessor,
    logits_process.TopHLogitsWarper,
)

# Processors that look at one sequence's scores and own tokens, and remember nothing. The repetition penalty is not one
# of them: it knows the padding of each sequence of its batch.
ROW_INDEPENDENT_PROCESSORS = (
    *ROWWISE_PROCESSORS,
    logits_process.ExponentialDecayLengthPenalty,
    logits_process.ForcedBOSTokenLogitsProcessor,
    logits_process.ForcedEOSTokenLogitsProcessor,
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.NoBadWordsLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.SequenceBiasLogitsProcessor,
    logits_process.SuppressTokensAtBeginLogitsProcessor,
    logits_process.WatermarkLogitsProcessor,
)


class TokenChoice:
    """How one call turns logits into tokens: its logits processors, then argmax or sampling.

    The processors are transformers' own objects, in transformers' order. Where the last of them are warpers that begin
    with a top-k, these run on a shortlist of the most likely tokens instead of the whole vocabulary.

    keeps_scores: whether the caller records scores, which must then be those of the whole vocabulary.
    verifier: how a sample is tied to the draft: see `FailFastConfig`.

    is_argmax: the token is the most likely one of the raw logits.
    """

    def __init__(
        self,
        processors: LogitsProcessorList,
        do_sample: bool,
        keeps_scores: bool = False,
        verifier: str | Verifier = "rejection",
    ) -> None:
        self.do_sample = do_sample
        self.verifier = NAMED[verifier] if isinstance(verifier, str) else verifier
        self.is_rowwise = all(type(processor) in ROWWISE_PROCESSORS for processor in processors)
        self.is_row_independent = all(type(processor) in ROW_INDEPENDENT_PROCESSORS for processor in processors)
        self.is_argmax = not do_sample and not processors
        start, end = (len(processors),) * 2 if keeps_scores else _top_k_stage(processors)
        self.processors = LogitsProcessorList(processors[:start])  # for the whole vocabulary
        self.top_k_stage = LogitsProcessorList(processors[start:end])  # makes the shortlist, if there is one
        self.warpers = LogitsProcessorList(processors[end:])  # for the shortlist

    def scores(self, prefix_ids: torch.Tensor, logits: torch.Tensor) -> Scores:
        """Processed copy of fp32 logits (B, m, V) after the prefixes (B, n); m > 1 only if `is_rowwise`.

        `is_rowwise` says that the scores of a position depend neither on the tokens before it nor on earlier calls.
        """
        if not self.processors and not self.top_k_stage:
            return Scores(logits, _every_token(logits))
        prefix_ids = prefix_ids.repeat_interleave(logits.shape[1], dim=0)
        rows = logits.flatten(0, 1)
        if self.processors:
            rows = self.processors(prefix_ids, rows.clone())
        values, token_ids = self._warp(prefix_ids, rows)
        return Scores(values.view(*logits.shape[:2], -1), token_ids.view(*logits.shape[:2], -1))

    def choose(
        self, scores: Scores, draft_ids: torch.Tensor | None = None, draft_probs: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The target's tokens (B, m). draft_probs: (B, k, V), what the draft tokens (B, k) were drawn from, if any."""
        if not self.do_sample:
            return choose_greedy(scores)
        if draft_ids is None:
            draft_ids = scores.token_ids[:, :0, 0]
        return self.verifier(scores, draft_ids, draft_probs)

    def choose_in_tree(self, scores: Scores, drafted: Branches | None) -> torch.Tensor:
        """The target's tokens (B, m) after the known tokens and nodes of a tree. drafted: what was drawn there; None:
        the tree was not drawn."""
        if not self.do_sample:
            return choose_greedy(scores)
        return choose_sampled(scores) if drafted is None else choose_among(scores, drafted)

    def _warp(self, prefix_ids: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(values, token ids) of r positions (r, V) after the warpers, both (r, shortlist) or (r, V).

        Two cases need all V scores. Tokens that are not on the shortlist, which is longer than k, pass the top-k only
        if all that are on it do. And where a top-p cuts between equal scores, the order in which `torch.sort` leaves
        all V scores decides.
        """
        if not self.top_k_stage:
            return rows, _every_token(rows)
        length = 2 * self.top_k_stage[-1].top_k + 8
        if length < rows.shape[-1]:
            token_ids = rows.topk(length, sorted=False).indices.sort(dim=-1).values
            shortlist = self.top_k_stage(prefix_ids, rows.gather(-1, token_ids))
            values = self.warpers(prefix_ids, shortlist)
            is_removed = values == -torch.inf
            lowest = shortlist.masked_fill(is_removed, torch.inf).amin(dim=-1, keepdim=True)
            is_tied = (is_removed & (shortlist == lowest)).any(dim=-1)
            is_too_short = shortlist.isfinite().all(dim=-1)
            too_short, tied = torch.stack([is_too_short.any(), is_tied.any()]).tolist()  # host sync: ties
            if tied and not too_short:
                whole = self.warpers(prefix_ids, self.top_k_stage(prefix_ids, rows[is_tied]))
                values[is_tied] = whole.gather(-1, token_ids[is_tied])
            if not too_short:
                return values, token_ids
        rows = self.warpers(prefix_ids, self.top_k_stage(prefix_ids, rows))
        return rows, _every_token(rows)


def _every_token(rows: torch.Tensor) -> torch.Tensor:
    return torch.arange(rows.shape[-1], device=rows.device).expand_as(rows)


def _top_k_stage(processors: LogitsProcessorList) -> tuple[int, int]:
    """Start and end of a top-k with the temperatures before it (which keep the order of the scores), if all later
    processors may work on the tokens it leaves; else an empty stage at the end."""
    kinds = [type(processor) for processor in processors]
    for start in range(len(kinds)):
        others = [kind for kind in kinds[start:] if kind is not logits_process.TemperatureLogitsWarper]
        if others[:1] == [logits_process.TopKLogitsWarper] and all(kind in WARPERS for kind in others):
            return start, kinds.index(logits_process.TopKLogitsWarper, start) + 1
    return len(kinds), len(kinds)


def draft_warp(
    config: FailFastConfig, generation_config: GenerationConfig, processors: LogitsProcessorList
) -> Callable[[torch.Tensor], Scores] | None:
    """Turns the drafter's logits (B, r, V) into scores of q: by the request's warpers, so that q is as sharp as the
    target's p, at the drafter's own temperature if it has one. None where drafts are not drawn."""
    if not config.draws_drafts or config.searches_paths or not generation_config.do_sample:
        return None
    warpers = LogitsProcessorList(processor for processor in processors if type(processor) in WARPERS)
    if config.draft_temperature is not None:
        others = [warper for warper in warpers if type(warper) is not logits_process.TemperatureLogitsWarper]
        warpers = LogitsProcessorList(
            [logits_process.TemperatureLogitsWarper(float(config.draft_temperature)), *others]
        )
    choice = TokenChoice(warpers, do_sample=True)
    return lambda logits: choice.scores(logits.new_zeros(len(logits), 0, dtype=torch.long), logits)
