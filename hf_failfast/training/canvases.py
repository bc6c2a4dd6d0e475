"""What one packed training batch reads: the clean sequences once, and after them many canvases of masked positions.

Token shift 1, as in the AR model the layers come from: the row at position p predicts the token at p + 1. A canvas
anchored at clean position t drafts the tokens at t + 1 .. t + K: row t predicts draft position 1, the row at t + k the
draft position k + 1.
"""

from dataclasses import dataclass, replace

import torch

from .config import CanvasAttention


@dataclass(frozen=True)
class Canvases:
    """tokens [batch, T] right-padded, anchors [batch, A] clean positions in [0, T).

    attention: `causal_canvas` has K - 1 masked rows a canvas, which see each other; so has `causal`, where they see
        those before them. In `block_causal` K is the block size, the anchor is the
        last position before a block, and the canvas is the whole block: K rows.
    window: the most tokens of a text that a row sees, those up to itself or to its canvas's anchor; 0: all.
    revealed: [batch, A, rows], the canvas rows that hold their token in place of the mask. In a `causal_canvas` these
        are the first ones, what a conditioned drafter has drafted in earlier passes: each sees those before it only.
    """

    tokens: torch.Tensor
    anchors: torch.Tensor
    canvas_length: int
    attention: CanvasAttention = "causal_canvas"
    revealed: torch.Tensor | None = None
    window: int = 0

    def to(self, device: torch.device) -> "Canvases":
        revealed = None if self.revealed is None else self.revealed.to(device)
        return replace(self, tokens=self.tokens.to(device), anchors=self.anchors.to(device), revealed=revealed)

    @property
    def rows_per_canvas(self) -> int:
        return self.canvas_length - (self.attention != "block_causal")

    def canvas_positions(self) -> torch.Tensor:
        """[batch, A, rows]: a masked row has the position of the token that it stands for."""
        offsets = torch.arange(1, self.rows_per_canvas + 1, device=self.anchors.device)
        return self.anchors[:, :, None] + offsets

    def canvas_tokens(self) -> torch.Tensor:
        """[batch, A, rows] the tokens the canvas rows stand for; arbitrary after a sequence's end."""
        positions = self.canvas_positions().clamp(max=self.tokens.shape[1] - 1)
        return self.tokens.gather(1, positions.flatten(1)).view_as(positions)

    def position_ids(self) -> torch.Tensor:
        """[batch, L] of the clean rows and the canvas rows, L = T + A * rows."""
        batch, clean = self.tokens.shape
        columns = torch.arange(clean, device=self.tokens.device).expand(batch, -1)
        return torch.cat([columns, self.canvas_positions().flatten(1)], dim=1)

    def attention_mask(self) -> torch.Tensor:
        """bool [batch, 1, L, L], True where row sees column: the clean positions of `_last_clean`, its own canvas."""
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        last = self._last_clean()[:, :, None]
        seen = (columns <= last) & self._is_near(columns, last)
        return torch.cat([seen, self._own_canvas()], dim=2)[:, None]

    def conditioned_attention_mask(self) -> torch.Tensor:
        """bool [batch, 1, T + L, T + L]: T rows of the target's hidden states come first.

        A clean row sees the target's states before it and itself, since those of its own position do not exist when it
        is drafted from; a canvas row sees what its anchor sees, the anchor, and its own canvas.
        """
        batch, clean = self.tokens.shape
        columns = torch.arange(clean, device=self.tokens.device)
        last = self._last_clean()[:, :, None]
        seen = (columns < last) & self._is_near(columns, last)
        rows = torch.cat([seen, columns == last, self._own_canvas()], dim=2)
        states = torch.zeros(clean, rows.shape[2], dtype=torch.bool, device=self.tokens.device)
        states[:, :clean] = (columns <= columns[:, None]) & self._is_near(columns, columns[:, None])
        return torch.cat([states.expand(batch, -1, -1), rows], dim=1)[:, None]

    def _is_near(self, columns: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Bools, whether columns are among the last `window` up to `last`."""
        return columns > last - (self.window or self.tokens.shape[1] + 1)

    def _last_clean(self) -> torch.Tensor:
        """[batch, L] the last clean position each row sees: itself, its block's last, or its canvas's anchor."""
        batch, clean = self.tokens.shape
        columns = torch.arange(clean, device=self.tokens.device)
        if self.attention == "block_causal":
            columns = (columns // self.canvas_length + 1) * self.canvas_length - 1
        anchors = self.anchors.repeat_interleave(self.rows_per_canvas, dim=1)
        return torch.cat([columns.expand(batch, -1), anchors], dim=1)

    def _own_canvas(self) -> torch.Tensor:
        """bool [batch, L, A * rows]: clean rows belong to canvas -1 and see no canvas."""
        batch, clean = self.tokens.shape
        device = self.tokens.device
        of_column = torch.arange(self.anchors.shape[1], device=device).repeat_interleave(self.rows_per_canvas)
        of_row = torch.cat([torch.full((clean,), -1, device=device), of_column])
        own = (of_row[:, None] == of_column).expand(batch, -1, -1)
        if self.attention == "block_causal" or (self.attention == "causal_canvas" and self.revealed is None):
            return own
        place = torch.arange(self.rows_per_canvas, device=device).repeat(self.anchors.shape[1])
        of_row = torch.nn.functional.pad(place, (clean, 0))[:, None]
        if self.attention == "causal" or self.revealed is None:
            return own & (place <= of_row)
        known = torch.nn.functional.pad(self.revealed.flatten(1), (clean, 0))[:, :, None]
        return own & (~known | (place <= of_row))
