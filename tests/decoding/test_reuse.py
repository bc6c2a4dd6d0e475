"""The rest of a rejected draft, proposed again: aligned, exact, counted."""

from typing import Any

import pytest
import torch
from conftest import VOCAB_SIZE, drafter, failfast, plain, prompt, target
from sampling_support import chi_square, draw, enumerate_distribution, small_pair
from scripted import ScriptedDrafter
from test_architectures import ARCHITECTURES, NEW, model_of
from test_batch import LENGTHS, batch
from test_parity import STATELESS
from test_trees import rows_of, script

import hf_failfast
from hf_failfast.decoding.reuse import Reuse
from hf_failfast.decoding.suggestion import View

RECORD = {"return_dict_in_generate": True}
OPTIONS: dict[str, Any] = {"draft_reuse": True, "chunk_length": 4, "max_draft_length": 4}


def test_a_rest_is_aligned_by_its_longest_match() -> None:
    """The rest goes on where text and sure draft end as a part of it does; without a common token it says nothing."""
    reuse = Reuse()
    reuse.reject(0, [5, 6, 7, 6, 8, 9])

    def found(text: list[int], drafted: list[int], sure: int | None, room: int = 9) -> Any:
        suggestion = reuse.suggest(View(0, text, drafted, sure, room, [1.0] * len(drafted)))
        return suggestion and (suggestion.start, suggestion.token_ids, suggestion.match)

    assert found([1, 2, 6], [], 0) == (0, [7, 6, 8, 9], 1)
    assert found([1, 7, 6], [], 0) == (0, [8, 9], 2)
    assert found([1, 7], [6, 3], 1) == (1, [8, 9], 2)
    assert found([1, 7], [6, 3], 1, room=2) == (1, [8], 2)
    assert found([1, 9], [], 0) is None  # nothing follows
    assert found([1, 2], [], 0) is None
    assert found([1, 2, 6], [], None) is None


class Slipping(ScriptedDrafter):
    """Forgets a token in every other draft; of the drafts between them only the first token is right, and sure."""

    def start_one(self, request: Any) -> Any:
        session = super().start_one(request)
        draft_chunk = session.draft_chunk

        def slipping(known: Any, length: int) -> Any:
            chunk, (start,) = draft_chunk(known, length), known.lengths
            ids = self.reference[:, start : start + length + 1].clone()
            if len(session.accepted) % 2:
                ids[:, 1:] = (ids[:, 1:] + 1) % VOCAB_SIZE
                return chunk._replace(token_ids=ids[:, :length])
            return chunk._replace(token_ids=ids[:, 1:])

        session.draft_chunk = slipping
        return session


@pytest.mark.parametrize("nodes", [0, 24])
def test_a_rest_is_accepted(nodes: int) -> None:
    """What a draft that forgot a token held after it is proposed again, accepted and counted."""
    model, ids = target("llama"), prompt(20)
    reference = plain(model, ids, max_new_tokens=80)
    unsure: dict[str, Any] = {"confidence": lambda index: 0.9 if index == 0 else 0.1, "rank": 0}
    rounds = []
    for is_reused in (False, True):
        options = OPTIONS | {"draft_reuse": is_reused, "draft_tree": nodes, "max_draft_length": 8, "chunk_length": 8}
        output = failfast(model, ids, Slipping(reference, **unsure), max_new_tokens=50, **options, **RECORD)
        assert torch.equal(output.sequences, reference[:, :70])
        rounds.append(output.speculation.rounds)
    stats = output.speculation
    assert 20 < stats.reuse_accepted <= stats.reused
    assert stats.as_dict()["reused"] == stats.reused
    assert rounds[1] < rounds[0]


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "gemma3_text", "deepseek_v3"])
def test_architectures(name: str) -> None:
    """Reuse changes no text, alone and in a batch, in chains and in trees."""
    model, options = model_of(name), {"max_new_tokens": NEW}
    references = [plain(model, prompt(length), **options) for length in LENGTHS]
    ids, mask = batch()
    expected = [reference[0, length:].tolist() for reference, length in zip(references, LENGTHS, strict=True)]
    for nodes in (0, 24):
        every = options | OPTIONS | {"draft_tree": nodes}
        assert torch.equal(failfast(model, prompt(LENGTHS[0]), script(references[0]), **every), references[0])
        output = failfast(model, ids, rows_of(references), attention_mask=mask, **every)
        assert output[:, ids.shape[1] :].tolist() == expected
    assert name in ARCHITECTURES


@pytest.mark.parametrize("kind", ["canvas_shift", "block", "bidirectional"])
def test_with_everything_else(kind: str) -> None:
    """Reuse, tails and trees together, with processors too, leave the text as it is."""
    model, ids = target("qwen3"), torch.cat([prompt(12)] * 3, dim=1)
    for processors in ({}, STATELESS["repetition_penalty"]):
        reference = plain(model, ids, max_new_tokens=30, **processors)
        for nodes in (0, 24):
            every = OPTIONS | {"draft_lookup": 5, "draft_tree": nodes}
            output = failfast(model, ids, drafter(kind, "qwen3"), max_new_tokens=30, **processors, **every)
            assert torch.equal(output, reference)


@pytest.mark.parametrize("nodes", [0, 12])
def test_samples_follow_the_targets_distribution(nodes: int, tmp_path: Any) -> None:
    """Samples with reused drafts fit the enumerated distribution."""
    pair, warping = small_pair(str(tmp_path)), {"temperature": 1.3, "top_k": 0}
    options = {"draft_reuse": True, "draft_tree": nodes, "verifier": "rejection", "draft_temperature": 2.5}
    counts = draw(pair, pair.drafter(), 1500, **warping, **options)
    assert chi_square(counts, enumerate_distribution(pair, **warping)) > 1e-3


@pytest.mark.parametrize("value", [1, 0, "yes"])
def test_other_values(value: Any) -> None:
    """Only True and False are taken; transformers' own loop refuses it."""
    with pytest.raises(ValueError, match="`draft_reuse` must be True or False"):
        failfast(target("llama"), prompt(9), drafter("canvas"), draft_reuse=value)
    with pytest.raises(ValueError, match="`draft_reuse`=True is not possible with `assisted_generate`"):
        hf_failfast.assisted_generate(target("llama"), prompt(9), assistant_model=drafter("canvas"), draft_reuse=True)
