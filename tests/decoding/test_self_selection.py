"""Several drafts of one pass, verified together: exact, never shorter than one, refused where it cannot be."""

from typing import Any

import pytest
import torch
from conftest import drafter, failfast, plain, prompt, target, tiny_model
from sampling_support import chi_square, draw, enumerate_distribution, small_pair
from test_other_targets import RECURRENT
from test_trees import check_texts

import hf_failfast
from hf_failfast.decoding.lattice import Column
from hf_failfast.decoding.trees import Trees

RECORD = {"return_dict_in_generate": True}
OPTIONS: dict[str, Any] = {"self_selection": 6, "chunk_length": 5, "max_draft_length": 5}


@pytest.mark.parametrize("nodes", [0, 20])
@pytest.mark.parametrize("kind", ["canvas", "block_shift", "bidirectional"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_identical_to_plain(family: str, kind: str, nodes: int) -> None:
    """Whatever is sampled, the text is the target's own, in no more rounds than with one draft."""
    model, ids = target(family), prompt(33)
    reference = plain(model, ids, max_new_tokens=30)
    options = {"max_new_tokens": 30, "draft_tree": nodes} | RECORD
    one = failfast(model, ids, drafter(kind, family), **options | OPTIONS | {"self_selection": 1, "draft_tree": 0})
    output = failfast(model, ids, drafter(kind, family), **options, **OPTIONS)
    assert torch.equal(output.sequences, reference)
    assert output.speculation.rounds <= one.speculation.rounds
    assert output.speculation.nodes_verified > 0


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gpt2", "cohere2"])
def test_a_batch(name: str) -> None:
    """Rows of a batch get their own texts."""
    check_texts(name, OPTIONS)


def test_drafts_are_sampled_from_the_pass() -> None:
    """Every tree holds the drafter's own draft; the others take each token about as often as it is likely."""
    row = Column([[1, 2, 3]], [0.6], [[0.3, 0.1]])
    trees = Trees(64, num_drafts=2, branches=False)
    found = [trees._tree(row, 1).token_ids for _ in range(3000)]
    assert all(ids[0] == 1 for ids in found)
    others = torch.bincount(torch.tensor([ids[-1] for ids in found]), minlength=4)[1:] / len(found)
    tempered = torch.tensor([0.6, 0.3, 0.1]) ** (1 / 1.5)
    torch.testing.assert_close(others, tempered / tempered.sum(), atol=0.04, rtol=0.0)


def test_samples_follow_the_targets_distribution(tmp_path: Any) -> None:
    """The target's samples pick among the drafts, and keep their distribution."""
    pair, warping = small_pair(str(tmp_path)), {"temperature": 1.3, "top_k": 0}
    counts = draw(pair, pair.drafter(), 1500, **warping, self_selection=4)
    assert chi_square(counts, enumerate_distribution(pair, **warping)) > 1e-3


def test_refusals() -> None:
    """Out of range, with drawn drafts, on targets without trees and in transformers' own loop: refused by name."""
    model, proposer = target("llama"), drafter("canvas", "llama")
    for value in (0, 65, 1.5, True):
        with pytest.raises(ValueError, match="`self_selection` must be an integer from 1 to 64"):
            failfast(model, prompt(9), proposer, self_selection=value)
    with pytest.raises(ValueError, match="`self_selection`=4 needs `verifier='sample_and_match'`"):
        failfast(model, prompt(9), proposer, self_selection=4, verifier="rejection")
    with pytest.raises(ValueError, match="`self_selection`=4 is not possible, only `self_selection`=1: `mamba`"):
        failfast(tiny_model("mamba", **RECURRENT["mamba"]), prompt(9), proposer, self_selection=4)
    with pytest.raises(ValueError, match="`self_selection`=4 is not possible with `assisted_generate`"):
        hf_failfast.assisted_generate(model, prompt(9), assistant_model=proposer, self_selection=4)
