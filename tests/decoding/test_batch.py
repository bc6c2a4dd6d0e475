"""Rows of a batch get the tokens they get alone, whatever their lengths, drafts, stops and processors."""

from typing import Any

import pytest
import torch
from conftest import TARGETS, drafter, failfast, plain, prompt, target
from scripted import ScriptedDrafter
from transformers import PreTrainedModel

from hf_failfast.compatibility import CACHE

LENGTHS = (23, 9, 16)
PAD = 0


def batch(lengths: tuple[int, ...] = LENGTHS, side: str = "left") -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts padded to one length, (B, n), and their mask."""
    width = max(lengths)
    ids, mask = torch.full((len(lengths), width), PAD), torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        columns = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, columns] = prompt(length)[0]
        mask[row, columns] = 1
    return ids, mask


def alone(model: PreTrainedModel, lengths: tuple[int, ...] = LENGTHS, **options: Any) -> list[list[int]]:
    """The tokens that plain `generate` gives each prompt alone."""
    shown = {length: torch.ones(1, length, dtype=torch.long) for length in lengths}  # not guessed from padding ids
    return [
        plain(model, prompt(length), attention_mask=shown[length], **options)[0, length:].tolist()
        for length in lengths
    ]


def padded(answers: list[list[int]], pad: int = PAD) -> list[list[int]]:
    longest = max(map(len, answers))
    return [answer + [pad] * (longest - len(answer)) for answer in answers]


@pytest.mark.parametrize("kind", ["canvas_shift", "block", "bidirectional"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", TARGETS)
def test_rows_get_the_tokens_they_get_alone(family: str, side: str, kind: str) -> None:
    """Every row of a batch padded left or right gets the tokens it gets alone."""
    model = target(family)
    ids, mask = batch(side=side)
    options = {"max_new_tokens": 24, "confidence_threshold": 0.05, "chunk_length": 3}
    output = failfast(model, ids, drafter(kind, family), attention_mask=mask, return_dict_in_generate=True, **options)
    assert output.sequences[:, ids.shape[1] :].tolist() == alone(model, max_new_tokens=24)
    assert torch.equal(output.sequences[:, : ids.shape[1]], ids)
    if kind == "canvas_shift":
        assert output.speculation.rounds < 24


@pytest.mark.parametrize("family", TARGETS)
def test_a_mask_with_holes(family: str) -> None:
    """Tokens hidden inside a prompt are not read and leave no gap in the positions."""
    model, ids, mask = target(family), prompt(21), torch.ones(1, 21, dtype=torch.long)
    mask[0, [0, 1, 8, 9, 15]] = 0
    output = failfast(model, ids, drafter("canvas_shift", family), attention_mask=mask, max_new_tokens=24)
    shown = ids[mask.bool()][None]
    expected = plain(model, shown, attention_mask=torch.ones_like(shown), max_new_tokens=24)
    assert output[:, 21:].tolist() == expected[:, 16:].tolist()
    if getattr(model.config, "sliding_window", None) is None:  # plain `generate` counts hidden tokens to the window
        assert output.tolist() == plain(model, ids, attention_mask=mask, max_new_tokens=24).tolist()


def reference_of(model: PreTrainedModel, lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    return [plain(model, prompt(length), max_new_tokens=80) for length in lengths]


class ScriptedRows(ScriptedDrafter):
    """One script per row, in the order of the prompts; each checks that the loop keeps the session's contract."""

    def __init__(self, scripts: list[ScriptedDrafter]) -> None:
        super().__init__(scripts[0].reference)
        self.scripts = iter(scripts)

    def start_one(self, request: Any) -> Any:
        return next(self.scripts).start_one(request)


def scripts(references: list[torch.Tensor], *accept_lengths: list[int]) -> ScriptedRows:
    return ScriptedRows([ScriptedDrafter(*pair) for pair in zip(references, accept_lengths, strict=True)])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_rows_that_accept_differently(family: str) -> None:
    """Rows that accept different numbers of tokens get their own texts; the slowest sets the number of rounds."""
    model, (ids, mask) = target(family), batch()
    proposer = scripts(reference_of(model), [10, 0, 3], [0], [5, 10, 1, 2])
    output = failfast(model, ids, proposer, attention_mask=mask, max_new_tokens=40, return_dict_in_generate=True)
    assert output.sequences[:, 23:].tolist() == alone(model, max_new_tokens=40)
    assert output.speculation.rounds == 40  # the row that accepts no token takes one per token
    assert output.speculation.emitted == 3 * 40


def ends(model: PreTrainedModel, positions: tuple[int, ...]) -> list[int]:
    """For each row a token id that its text has at the given position, and perhaps earlier."""
    return [
        int(text[0, length + end]) for text, length, end in zip(reference_of(model), LENGTHS, positions, strict=True)
    ]


@pytest.mark.parametrize("positions", [(2, 11, 30), (30, 4, 4), (0, 17, 1)])
@pytest.mark.parametrize("returned", [False, True])
def test_rows_that_end_at_different_times(positions: tuple[int, ...], returned: bool) -> None:
    """Rows that end early are padded as in plain `generate` and leave the later forwards."""
    model, (ids, mask) = target("llama"), batch()
    options = {"max_new_tokens": 40, "eos_token_id": ends(model, positions), "pad_token_id": 7}
    expected = alone(model, **options)
    reference = model.generate(ids, attention_mask=mask, do_sample=False, **options)
    assert reference[:, 23:].tolist() == padded(expected, 7)
    proposer = scripts(reference_of(model), [10, 0, 3], [0], [5, 10, 1, 2])
    rows: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    output = failfast(
        model, ids, proposer, attention_mask=mask, return_dict_in_generate=returned, max_draft_length=10, **options
    )
    hook.remove()
    assert torch.equal(output.sequences if returned else output, reference)
    assert rows[0] == 3 and (rows[-1] < 3 or returned)
    assert rows == sorted(rows, reverse=True)


@pytest.mark.parametrize("positions", [(2, 11, 30), (30, 4, 4), (0, 17, 1), (3, 3, 3)])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_returned_cache_continues(family: str, positions: tuple[int, ...]) -> None:
    """The returned cache has the length of plain `generate`'s, and plain `generate` continues from it."""
    model, (ids, mask) = target(family), batch()
    options = {"max_new_tokens": 40, "eos_token_id": ends(model, positions), "pad_token_id": 7}
    proposer = scripts(reference_of(model), [10, 0, 3], [0], [5, 10, 1, 2])
    first = failfast(model, ids, proposer, attention_mask=mask, return_dict_in_generate=True, **options)
    reference = model.generate(ids, attention_mask=mask, do_sample=False, return_dict_in_generate=True, **options)[
        CACHE
    ]
    assert first[CACHE].get_seq_length() == reference.get_seq_length() == first.sequences.shape[1] - 1
    turn = torch.cat([first.sequences, prompt(5).expand(3, -1)], dim=1)
    shown = torch.ones_like(turn)
    shown[:, :23] = mask
    for row, answer in enumerate(alone(model, **options)):
        shown[row, 23 + len(answer) : first.sequences.shape[1]] = 0
    texts = [text[None, seen.bool()] for text, seen in zip(turn, shown, strict=True)]
    expected = torch.cat([plain(model, text, max_new_tokens=12)[:, -12:] for text in texts])
    for continued in (
        model.generate(turn, attention_mask=shown, do_sample=False, **{CACHE: reference}, max_new_tokens=12),
        plain(model, turn, attention_mask=shown, **{CACHE: first[CACHE]}, max_new_tokens=12),
    ):
        if family == "llama":  # a window counts hidden columns in plain generation
            assert torch.equal(continued[:, turn.shape[1] :], expected)
