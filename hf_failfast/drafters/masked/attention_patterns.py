"""The attention patterns of diffusion language models: what a pass feeds and sees, and which K/V stay valid after it.

Positions are absolute. `clean_end` is the number of known tokens (accepted and drafted so far); the positions from
there on hold noise in the pass. A pattern answers three questions and knows nothing of models, caches or policies. The
limits of a batch are computed at once: numbers that differ between its sequences are then tensors (B, 1).
"""

from abc import ABC, abstractmethod

import torch

from ..spec import DrafterSpec

Bound = int | torch.Tensor


class AttentionPattern(ABC):
    """Attention of one kind of diffusion language model.

    reads_causally: a known token sees those before it and nothing else, whatever follows.
    """

    reads_causally: bool = False

    def __init__(self, spec: DrafterSpec) -> None:
        self.shift = spec.shift

    @abstractmethod
    def plan(self, clean_end: int, wanted: int) -> tuple[int, int]:
        """(number of noise positions to feed, number of tokens to read) for a pass that should yield `wanted` >= 1."""

    @abstractmethod
    def limit(self, positions: torch.Tensor, clean_end: Bound, window_end: Bound) -> torch.Tensor:
        """For each fed position (q,) or (B, q), the end (exclusive) of the slots that it sees."""

    def is_causal(self, num_noise: int) -> bool:
        """Whether a pass over `num_noise` noise positions is causal and needs no limits."""
        return False

    @abstractmethod
    def final_length(self, clean_end: int) -> int:
        """How many leading slots keep their K/V for good once `clean_end` known tokens have been fed."""

    def reusable_length(self, cached: int, clean_end: int) -> int:
        """How many of the cached slots the next pass may build on."""
        return cached


class CausalCanvas(AttentionPattern):
    """Known tokens attend causally, so their K/V are final at once; noise sees the past and the whole canvas."""

    reads_causally = True

    def plan(self, clean_end: int, wanted: int) -> tuple[int, int]:
        return wanted - self.shift, wanted

    def limit(self, positions: torch.Tensor, clean_end: Bound, window_end: Bound) -> torch.Tensor:
        return torch.where(positions < clean_end, positions + 1, window_end)

    def is_causal(self, num_noise: int) -> bool:
        return num_noise == 0

    def final_length(self, clean_end: int) -> int:
        return clean_end


class Causal(CausalCanvas):
    """Noise attends causally too, so that a pass is an ordinary one of a causal LM (PARD, arXiv 2504.18583)."""

    def limit(self, positions: torch.Tensor, clean_end: Bound, window_end: Bound) -> torch.Tensor:
        return positions + 1

    def is_causal(self, num_noise: int) -> bool:
        return True


class AnchoredCanvas(CausalCanvas):
    """The last known token and the noise after it see each other; earlier tokens attend causally (SDLM, arXiv
    2509.24007). That token's K/V are final only once another token follows it.

    Trained on windows of one length, a pass feeds no longer ones: more tokens take another pass.
    """

    reads_causally = False

    def __init__(self, spec: DrafterSpec) -> None:
        super().__init__(spec)
        self.window = spec.block_size

    def plan(self, clean_end: int, wanted: int) -> tuple[int, int]:
        count = wanted if self.window is None else min(wanted, self.window - 1 + self.shift)
        return count - self.shift, count

    def limit(self, positions: torch.Tensor, clean_end: Bound, window_end: Bound) -> torch.Tensor:
        return torch.where(positions < clean_end - 1, positions + 1, window_end)

    def final_length(self, clean_end: int) -> int:
        return max(clean_end - 1, 0)


class BlockCausal(AttentionPattern):
    """Bidirectional inside absolute blocks, causal between them (Fast-dLLM v2; SDAR; BD3-LM).

    A pass fills the block that holds the next position, to its end, since the models were trained on whole blocks; a
    chunk that crosses the edge takes a second pass, in which the first block's filled tokens are final.
    """

    def __init__(self, spec: DrafterSpec) -> None:
        super().__init__(spec)
        assert spec.block_size is not None
        self.block_size = spec.block_size

    def plan(self, clean_end: int, wanted: int) -> tuple[int, int]:
        to_edge = self.block_size - clean_end % self.block_size
        return to_edge, min(wanted, to_edge)

    def limit(self, positions: torch.Tensor, clean_end: Bound, window_end: Bound) -> torch.Tensor:
        block_end = (positions // self.block_size + 1) * self.block_size
        return block_end.clamp(max=window_end)

    def final_length(self, clean_end: int) -> int:
        return clean_end // self.block_size * self.block_size


class FreeBlocks(BlockCausal):
    """A fresh block of noise right after the last token, whatever the alignment of the clean blocks before it.

    The sampler of dllm's bd3lm checkpoints left-pads each prompt to a block edge, so that drafting always starts on a
    fresh block. Here the clean blocks keep their edges, and with them their K/V; the last, incomplete one counts as a
    block of its own.
    """

    def plan(self, clean_end: int, wanted: int) -> tuple[int, int]:
        return self.block_size, min(wanted, self.block_size)

    def limit(self, positions: torch.Tensor, clean_end: Bound, window_end: Bound) -> torch.Tensor:
        clean = super().limit(positions, clean_end, clean_end)
        return torch.where(positions < clean_end, clean, window_end)


class Bidirectional(AttentionPattern):
    """Every position sees the whole window, so every K/V changes with the noise: nothing is final, all is recomputed.

    The models see how many masks follow, so that a pass feeds exactly as many as it should fill, with shift too.
    """

    def plan(self, clean_end: int, wanted: int) -> tuple[int, int]:
        return wanted, wanted

    def limit(self, positions: torch.Tensor, clean_end: Bound, window_end: Bound) -> torch.Tensor:
        return torch.zeros_like(positions) + window_end

    def final_length(self, clean_end: int) -> int:
        return 0


class CachedPrefix(Bidirectional):
    """Bidirectional, with the K/V of whole blocks of known tokens frozen as they were when last computed.

    An approximation (Fast-dLLM, arXiv 2505.22618, section 3.2): the frozen K/V saw the masks of an earlier pass. They
    are recomputed once per block, in the pass in which the text first reaches into the next block. Of the authors'
    variants this is the prefix cache, but they renew it per generated block; here blocks are absolute.
    """

    def __init__(self, spec: DrafterSpec, block_size: int) -> None:
        super().__init__(spec)
        self.block_size = block_size

    def final_length(self, clean_end: int) -> int:
        return clean_end // self.block_size * self.block_size

    def reusable_length(self, cached: int, clean_end: int) -> int:
        return cached if cached >= self.final_length(clean_end - self.shift) else 0


def attention_pattern(spec: DrafterSpec, prefix_block: int | None = None) -> AttentionPattern:
    """The pattern a spec names; `prefix_block` asks for the approximate prefix cache of a bidirectional model."""
    if prefix_block is not None:
        if spec.attention != "bidirectional" or prefix_block < 1:
            raise ValueError(
                "`prefix_block` must be an integer >= 1 and needs bidirectional attention, "
                f"but is {prefix_block!r} with attention {spec.attention!r}."
            )
        return CachedPrefix(spec, prefix_block)
    if spec.alignment == "free":
        return FreeBlocks(spec)
    patterns: dict[str, type[AttentionPattern]] = {
        "causal": Causal,
        "causal_canvas": CausalCanvas,
        "anchored_canvas": AnchoredCanvas,
        "block_causal": BlockCausal,
        "bidirectional": Bidirectional,
    }
    return patterns[spec.attention](spec)
