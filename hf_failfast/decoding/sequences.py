"""The sequences of one generation as they grow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig
from transformers.generation import BaseStreamer

from ..engine.ragged import RaggedIds, indices, is_even


class Sequences:
    """The sequences of a batch so far, and what the caller asked to be recorded of every emitted token.

    A sequence has two views: its columns, padding included (callers, processors and criteria see these), and its
    visible tokens (`known`), which the models read.

    lengths: columns in use, per sequence.
    finished: whether it is complete, per sequence; its columns after the end hold the padding token.
    running: the rows that take part in the rounds, finished ones that stay for a last pass included. The rows of
        every tensor of a round are these, in this order.
    """

    def __init__(
        self, prompt: torch.Tensor, attention_mask: torch.Tensor | None, generation_config: GenerationConfig
    ) -> None:
        num_rows, self.prompt_length = prompt.shape
        self.device = prompt.device
        self.lengths = [self.prompt_length] * num_rows
        self.finished = [False] * num_rows
        self.running = list(range(num_rows))
        self.streamed = self.prompt_length
        self.pad_token_id = generation_config._pad_token_tensor
        self._ids = prompt
        self._prompt_columns = [torch.arange(self.prompt_length, device=self.device)] * num_rows
        self._compact: torch.Tensor | None = None  # the known ids, where they are not the columns themselves
        if attention_mask is not None and not bool(attention_mask.all()):
            self._prompt_columns = [row.nonzero()[:, 0].to(self.device) for row in attention_mask]
            known = [ids[columns] for ids, columns in zip(prompt, self._prompt_columns, strict=True)]
            self._compact = pad_sequence(known, batch_first=True)
        self.num_hidden = [self.prompt_length - len(columns) for columns in self._prompt_columns]
        records = generation_config.return_dict_in_generate
        self._scores = Record(num_rows) if records and generation_config.output_scores else None
        self._logits = Record(num_rows) if records and generation_config.output_logits else None

    @property
    def keeps_vectors(self) -> bool:
        """Whether scores or logits of every emitted token are recorded."""
        return self._scores is not None or self._logits is not None

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    @property
    def length(self) -> int:
        """Columns of the longest sequence."""
        return max(self.lengths)

    @property
    def unfinished(self) -> list[int]:
        """The rows that are not complete."""
        return [row for row in self.running if not self.finished[row]]

    @property
    def known(self) -> RaggedIds:
        """The tokens of the running rows that the models see."""
        lengths = [self.lengths[row] - self.num_hidden[row] for row in self.running]
        ids = self._ids if self._compact is None else self._compact
        if len(lengths) < self.num_rows:
            ids = ids[self.running]
        return RaggedIds(ids[:, : max(lengths)].long(), lengths)

    def ids(self, rows: Sequence[int] | None = None) -> torch.Tensor:
        """The columns (B, longest) of all or the given rows, contiguous: what processors, criteria and the caller
        see."""
        lengths = self.lengths if rows is None else [self.lengths[row] for row in rows]
        ids = self._ids[:, : max(lengths)]
        if rows is not None and len(rows) < self.num_rows:
            ids = ids[list(rows)]
        if is_even(lengths) or self.pad_token_id is None:
            return ids.contiguous()
        is_after = torch.arange(ids.shape[1], device=self.device) >= indices(lengths, 1, self.device)
        return torch.where(is_after, self.pad_token_id.to(self.device), ids)

    def columns(self, row: int) -> torch.Tensor:
        """The columns of a row's known tokens, ascending."""
        new = torch.arange(self.prompt_length, self.lengths[row], device=self.device)
        return torch.cat([self._prompt_columns[row], new])

    def append(
        self,
        rows: Sequence[int],
        token_ids: torch.Tensor,  # (r, m), in the order of `rows`
        counts: Sequence[int],  # how many of them to add to each row
        scores: torch.Tensor | None,  # processed, (r, m, vocabulary)
        logits: torch.Tensor | None,  # raw, (r, m, vocabulary); unused, as the scores are, unless recorded
    ) -> None:
        """Adds tokens to the rows, and their scores and logits to the records."""
        token_ids = token_ids[:, : max(counts)]
        starts = [self.lengths[row] for row in rows]
        self._ids = _write(self._ids, rows, starts, token_ids)
        if self._compact is not None:
            known = [start - self.num_hidden[row] for row, start in zip(rows, starts, strict=True)]
            self._compact = _write(self._compact, rows, known, token_ids)
        for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
            self.lengths[row] += count
            for record, values in ((self._scores, scores), (self._logits, logits)):
                if record is not None and values is not None:
                    record.add(row, values[index, :count])

    def scores(self, rows: Sequence[int] | None = None) -> tuple[torch.Tensor, ...] | None:
        """Processed scores (B, vocabulary) of all or the given rows, one entry per emitted token, if recorded."""
        return None if self._scores is None else self._scores.steps(rows, self.pad_token_id)

    def logits(self) -> tuple[torch.Tensor, ...] | None:
        """Raw scores (B, vocabulary), one entry per emitted token, if recorded."""
        return None if self._logits is None else self._logits.steps(None, self.pad_token_id)

    def stream(self, streamer: BaseStreamer) -> None:
        """Streams new tokens: for one sequence all of a round's at once, (1, m), as transformers' assisted decoding
        does; for several column by column, (B,), as soon as no sequence can change the column any more."""
        if self.num_rows == 1:
            streamer.put(self._ids[:, self.streamed : self.length].cpu())
            self.streamed = self.length
            return
        complete = min((self.lengths[row] for row in self.unfinished), default=self.length)
        for column in self.ids()[:, self.streamed : complete].T.contiguous().cpu():
            streamer.put(column)
        self.streamed = complete


class Record:
    """One vector per emitted token, row by row."""

    def __init__(self, num_rows: int) -> None:
        self._rows: list[list[torch.Tensor]] = [[] for _ in range(num_rows)]
        self._steps: list[torch.Tensor] = []  # for several rows: those steps that are complete

    def add(self, row: int, values: torch.Tensor) -> None:
        """Adds the vectors of m tokens, (m, vocabulary)."""
        self._rows[row] += values.split(1) if len(values) else ()

    def steps(self, rows: Sequence[int] | None, pad_token_id: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """One tensor (B, vocabulary) per step. After the end of a row the padding token has score 0, and all others
        have the lowest finite one."""
        if len(self._rows) == 1 or (rows is not None and len(rows) == 1):
            return tuple(self._rows[0 if rows is None else rows[0]])
        for step in range(len(self._steps), max(map(len, self._rows))):
            values = [row[step] if step < len(row) else None for row in self._rows]
            like = next(value for value in values if value is not None)
            after = torch.full_like(like, torch.finfo(like.dtype).min)
            if pad_token_id is not None:
                after[:, pad_token_id] = 0
            self._steps.append(torch.cat([after if value is None else value for value in values]))
        return tuple(self._steps)


def _write(buffer: torch.Tensor, rows: Sequence[int], starts: Sequence[int], token_ids: torch.Tensor) -> torch.Tensor:
    """The buffer with tokens (r, m) written from `starts` on; twice as wide when it is full. As in plain `generate`
    int32 ids become int64 with the first token."""
    buffer = buffer.to(torch.promote_types(buffer.dtype, token_ids.dtype))
    end = max(starts) + token_ids.shape[1]
    if end > buffer.shape[1]:
        buffer = pad(buffer, (0, 2 * end - buffer.shape[1]))
    if len(rows) == len(buffer) and is_even(starts):
        buffer[:, starts[0] : end] = token_ids
    else:
        columns = indices(starts, token_ids.shape[1], buffer.device)
        buffer[torch.tensor(rows, device=buffer.device)[:, None], columns] = token_ids
    return buffer
