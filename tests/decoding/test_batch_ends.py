"""Rows that end at any time, with a returned or given cache, under what looks across the rows of a batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import VOCAB_SIZE, failfast, plain, quick_first, target
from scripted import ScriptedDrafter
from test_batch import ScriptedRows, batch
from test_batch_options import EndsWith
from test_parity import BanByCall
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from hf_failfast.compatibility import CACHE

LENGTHS = (5, 9)
WIDTH, PAD = max(LENGTHS), 0


class LooksAcross(LogitsProcessor):
    """Makes each row's last token less likely in all others."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, input_ids[:, -1]] -= 2.0
        return scores


# Everything that makes the rows of a batch advance together; made anew for each call, since some remember.
JOINT: dict[str, Callable[[], dict[str, Any]]] = {
    "repetition_penalty": lambda: {"repetition_penalty": 1.3},
    "encoder_repetition_penalty": lambda: {"encoder_repetition_penalty": 1.5},
    "encoder_no_repeat_ngram_size": lambda: {"encoder_no_repeat_ngram_size": 2},
    "prefix function": lambda: {"prefix_allowed_tokens_fn": lambda row, ids: range(row, VOCAB_SIZE)},
    "own processor": lambda: {"logits_processor": LogitsProcessorList([LooksAcross()])},
    "own processor with a memory": lambda: {"logits_processor": LogitsProcessorList([BanByCall()])},
    "own criterion": lambda: {"stopping_criteria": [EndsWith([3, 50, 77], WIDTH, len(LENGTHS))]},
    "guidance_scale": lambda: {"guidance_scale": 1.5},  # the slowest: the target reads every text twice
}


@pytest.mark.parametrize("name", quick_first(JOINT, len(JOINT) - 1))
def test_every_end(name: str) -> None:
    """Whichever tokens end a row, the text and the K/V of a returned and of a given cache are plain `generate`'s."""
    model, (ids, mask) = target("llama"), batch(LENGTHS)
    accepted = 0
    for end in range(0, VOCAB_SIZE, 3):
        ends = [end, end + 1, end + 2]
        options = {"attention_mask": mask, "max_new_tokens": 10, "pad_token_id": PAD, "eos_token_id": ends}
        reference = plain(model, ids, return_dict_in_generate=True, **options, **JOINT[name]())
        texts = [reference.sequences[row : row + 1, WIDTH - length :] for row, length in enumerate(LENGTHS)]
        output = failfast(model, ids, knows(texts), return_dict_in_generate=True, **options, **JOINT[name]())
        given = DynamicCache(config=model.config)
        text = failfast(model, ids, knows(texts), **options, **JOINT[name](), **{CACHE: given})
        assert output.sequences.tolist() == text.tolist() == reference.sequences.tolist(), ends
        for cache in (output[CACHE], given):
            check_states(cache, reference[CACHE], reference.sequences, ends)
        assert output.speculation.drafter_errors == 0
        accepted += output.speculation.accepted
    assert accepted > 100


def knows(texts: list[torch.Tensor]) -> ScriptedRows:
    """Drafts these texts, right for a number of tokens that changes, and goes on after their ends."""
    pairs = zip(texts, ([10, 2], [3, 0, 10, 1]), strict=True)
    return ScriptedRows([ScriptedDrafter(text, right, sees_eos=False) for text, right in pairs])


def check_states(cache: Any, expected: Any, sequences: torch.Tensor, ends: list[int]) -> None:
    """The caches are equally long, and hold the same K/V of each row up to its end."""
    assert cache.get_seq_length() == expected.get_seq_length() == sequences.shape[1] - 1
    for row, length in enumerate(LENGTHS):
        is_end = torch.isin(sequences[row, WIDTH:], torch.tensor(ends)).tolist()
        end = WIDTH + (is_end.index(True) + 1 if True in is_end else len(is_end))
        own = slice(WIDTH - length, min(end, sequences.shape[1] - 1))
        for ours, theirs in zip(cache.layers, expected.layers, strict=True):
            torch.testing.assert_close(ours.keys[row, :, own], theirs.keys[row, :, own], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours.values[row, :, own], theirs.values[row, :, own], atol=1e-4, rtol=1e-4)
