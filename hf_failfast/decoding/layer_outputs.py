"""Hidden states and attention weights of every emitted token, in the shapes of plain `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from transformers import Cache, GenerationConfig

from ..engine.runner import LayerOutput
from .sequences import Sequences

# Per emitted token, per layer.
Steps = tuple[tuple[torch.Tensor, ...], ...]


class Span(NamedTuple):
    """What one token was chosen from: every layer's outputs for a sequence's known tokens from `start` to `end`."""

    start: int
    end: int
    layers: list[torch.Tensor]  # hidden states (width, size) or attention weights (heads, width, end)


def asked_layers(generation_config: GenerationConfig) -> tuple[LayerOutput, ...]:
    """Which of `hidden_states` and `attentions` the caller asked for."""
    asked: dict[LayerOutput, bool] = {
        "hidden_states": bool(generation_config.output_hidden_states),
        "attentions": bool(generation_config.output_attentions),
    }
    return tuple(name for name in asked if generation_config.return_dict_in_generate and asked[name])


class LayerOutputs:
    """Keeps every round's layer outputs for the tokens that it emitted.

    The first token of a sequence was chosen after the whole prompt, or the part of it that no cache held; every other
    one after the token before it. Masked tokens of a padded prompt, and steps after a sequence's end, are zeros: plain
    `generate` runs the target on padding there.
    """

    def __init__(self, sequences: Sequences, names: Sequence[LayerOutput], past: Cache) -> None:
        self._sequences = sequences
        self._stored = int(past.get_seq_length())
        self._windows = [getattr(layer, "sliding_window", None) for layer in past.layers]
        self._rows: dict[LayerOutput, list[list[Span]]] = {
            name: [[] for _ in range(sequences.num_rows)] for name in names
        }

    def add(
        self,
        outputs: Mapping[LayerOutput, Sequence[torch.Tensor]],  # (B, q, size) and (B, heads, q, slots) per layer
        ends: Sequence[int],  # the position after the window's last column
        seen: Sequence[int],  # tokens that the target had read before
        known: Sequence[int],  # tokens before the round
        emitted: Sequence[int],
    ) -> None:
        """Copies the emitted tokens' part out of a round's window; arguments in the order of `running`."""
        for name, spans in self._rows.items():
            for index, row in enumerate(self._sequences.running):
                for end in range(known[index], known[index] + emitted[index]):
                    start = end - 1 if spans[row] else seen[index]
                    first = ends[index] - outputs[name][0].shape[-2]
                    window = slice(start - first, end - first)
                    layers = [layer[index, ..., window, :] for layer in outputs[name]]
                    if name == "attentions":
                        layers = [layer[..., :end] for layer in layers]
                    spans[row].append(Span(start, end, [layer.clone() for layer in layers]))

    def steps(self, name: LayerOutput) -> Steps | None:
        """Hidden states (B, width, size) or attention weights (B, heads, width, keys), if they were asked for."""
        if name not in self._rows:
            return None
        rows = self._rows[name]
        return tuple(
            self._step(name, step, [row[step] if step < len(row) else None for row in rows])
            for step in range(max(map(len, rows)))
        )

    def _step(self, name: LayerOutput, step: int, spans: list[Span | None]) -> tuple[torch.Tensor, ...]:
        """One step of all sequences, by the columns of the text."""
        end = self._sequences.prompt_length + step
        start = end - 1 if step else self._stored
        rows = [span and self._by_column(row, span, start, end) for row, span in enumerate(spans)]
        zeros = [torch.zeros_like(layer) for layer in next(row for row in rows if row)]
        layers = [torch.stack(layer) for layer in zip(*(row or zeros for row in rows), strict=True)]
        if name == "attentions":
            layers = [layer[..., self._first_key(number, start) :] for number, layer in enumerate(layers)]
        return tuple(layers)

    def _by_column(self, row: int, span: Span, start: int, end: int) -> list[torch.Tensor]:
        """A sequence's part of a step that goes from column `start` to `end`."""
        columns = self._sequences.columns(row)[: span.end]
        layers = span.layers
        if layers[0].dim() == 3:  # attention weights
            layers = [_spread(layer, -1, columns, end) for layer in layers]
        return [_spread(layer, -2, columns[span.start :] - start, end - start) for layer in layers]

    def _first_key(self, layer: int, start: int) -> int:
        """The first column that a layer of plain `generate`'s cache still holds after it has read `start` columns."""
        window = self._windows[layer] if self._windows else None
        return 0 if window is None else max(start - (window - 1), 0)


def _spread(values: torch.Tensor, dim: int, places: torch.Tensor, size: int) -> torch.Tensor:
    """The values at their places in a dimension of the given size; zeros elsewhere."""
    shape = list(values.shape)
    shape[dim] = size
    return values.new_zeros(shape).index_copy(dim, places.to(values.device), values)
