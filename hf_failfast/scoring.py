"""From the target's logits to the scores its tokens are chosen by."""

import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process

from .verification import choose_greedy, choose_sampled

# Processors that look at one row of scores and nothing else: they may see all rows of a round at once.
ROWWISE_PROCESSORS = (
    logits_process.EpsilonLogitsWarper,
    logits_process.EtaLogitsWarper,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.LogitNormalization,
    logits_process.MinPLogitsWarper,
    logits_process.SuppressTokensLogitsProcessor,
    logits_process.TemperatureLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.TypicalLogitsWarper,
)


class TokenChoice:
    """How one call turns logits into tokens: its logits processors, then argmax or sampling."""

    def __init__(self, processors: LogitsProcessorList, do_sample: bool) -> None:
        self.processors = processors
        self.choose = choose_sampled if do_sample else choose_greedy

    @property
    def is_rowwise(self) -> bool:
        """Whether the scores of a position do not depend on the tokens before it, nor on earlier calls."""
        return all(type(processor) in ROWWISE_PROCESSORS for processor in self.processors)

    def scores(self, prefix_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Processed copy of logits (1, m, vocabulary) behind the prefix (1, n); m > 1 only if `is_rowwise`."""
        if not self.processors:
            return logits
        rows = logits[0]
        return self.processors(prefix_ids.expand(len(rows), -1), rows.clone())[None]
