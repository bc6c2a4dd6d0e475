"""Every strategy with the published layouts of every family that drafts by chunks: the target's own text."""

from typing import Any

import pytest
import torch
from family_support import DATA, tiny_model

from hf_failfast import DiffusionDrafter, Hierarchy, load_drafter

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "bd3lm": {},
    "dream": {},
    "fastdllm_v2": {"mask_token_id": 250},  # of the reduced vocabulary
    "llada": {},
    "mdlm": {},
    "sdar": {},
}
RULE: dict[str, Any] = {"chunk_length": 4, "max_draft_length": 8}
STRATEGIES: dict[str, dict[str, Any]] = {
    "tree": {"draft_tree": 16},
    "tail and reuse": {"draft_lookup": 5, "draft_reuse": True},
    "self-selection": {"self_selection": 3},
    "diffuspec": {"length_policy": "diffuspec"},
    "diffuspec with a tail": {"length_policy": "diffuspec", "draft_lookup": 5},
}
PROMPT = torch.randint(0, 100, (1, 9), generator=torch.Generator().manual_seed(1)).repeat(1, 3)


def load(family: str) -> DiffusionDrafter:
    return load_drafter(DATA / family / "case_1" / "checkpoint", dtype=torch.float32, **CHECKPOINTS[family])


def target_of(drafter: DiffusionDrafter) -> Any:
    return tiny_model("llama", drafter.own_model.config.vocab_size)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", CHECKPOINTS)
def test_texts(family: str, strategy: str) -> None:
    """A strategy leaves the text as it is, and drafts."""
    drafter = load(family)
    target = target_of(drafter)
    settings: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False}
    expected = target.generate(PROMPT, **settings)
    settings |= {"custom_generate": "hf_failfast", "return_dict_in_generate": True, "drafter_errors": "raise"}
    output = target.generate(PROMPT, assistant_model=drafter, **settings, **RULE, **STRATEGIES[strategy])
    assert torch.equal(output.sequences, expected)
    assert output.speculation.drafted > 0


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_stacks(family: str) -> None:
    """A stack with a lookup leaves the text as it is, alone and in a batch."""
    drafter = load(family)
    target, stack = target_of(drafter), Hierarchy(["lookup", drafter])
    settings: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    drafting = {"assistant_model": stack, "custom_generate": "hf_failfast", "drafter_errors": "raise"} | RULE
    for prompt in (PROMPT, PROMPT.repeat(2, 1)):
        assert torch.equal(target.generate(prompt, **settings, **drafting), target.generate(prompt, **settings))
