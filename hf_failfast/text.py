"""The text of one generation as it grows."""

from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig
from transformers.generation import BaseStreamer


@dataclass
class GeneratedText:
    """The sequence so far, in a buffer of the longest it can get, with what the caller asked to be recorded."""

    prompt: torch.Tensor  # (1, n)
    padding: int  # leading positions that the models never see
    max_length: int
    generation_config: GenerationConfig
    scores: tuple[torch.Tensor, ...] | None = None  # one (1, vocabulary) per emitted token
    logits: tuple[torch.Tensor, ...] | None = None
    length: int = field(init=False)
    streamed: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = self.streamed = self.prompt.shape[1]
        self.device = self.prompt.device
        self._buffer = self.prompt.new_empty(1, max(self.max_length, self.length))
        self._buffer[:, : self.length] = self.prompt
        if self.generation_config.return_dict_in_generate:
            self.scores = () if self.generation_config.output_scores else None
            self.logits = () if self.generation_config.output_logits else None

    @property
    def ids(self) -> torch.Tensor:
        """All ids (1, length), padding included: what processors, criteria and the caller see."""
        return self._buffer[:, : self.length]

    @property
    def visible(self) -> torch.Tensor:
        """The ids without padding: what target and drafter see."""
        return self._buffer[:, self.padding : self.length]

    def append(self, token_ids: torch.Tensor, scores: torch.Tensor, logits: torch.Tensor) -> None:
        """Adds m tokens (1, m) with their processed and raw scores (1, m, vocabulary)."""
        count = token_ids.shape[1]
        self._buffer[:, self.length : self.length + count] = token_ids
        self.length += count
        if self.scores is not None:
            self.scores += scores.unbind(dim=1)
        if self.logits is not None:
            self.logits += logits.unbind(dim=1)

    def emit(self, streamer: BaseStreamer | None) -> int:
        """Hands the tokens added since the last call to the streamer, and counts them."""
        count = self.length - self.streamed
        if streamer is not None:
            streamer.put(self._buffer[:, self.streamed : self.length].cpu())
        self.streamed = self.length
        return count
