"""DFlash, a drafter that reads the target's hidden states, equals the original."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from family_support import DATA, check_parity, copy_checkpoint, read_json, tiny_model
from safetensors.torch import load_file
from sessions import draft_of, session_of
from transformers import AutoModelForCausalLM, PreTrainedModel

import hf_failfast
from hf_failfast import FailFastConfig, load_drafter
from hf_failfast.drafters.conditioned.dflash import DFlashDrafter
from hf_failfast.policies.confidence import FixedLength

RUNS = read_json("dflash/case_1/drafts.json")
# Beside the first case, one with a sliding layer that sees both ways, as its config says.
CASES = {case: read_json(f"dflash/{case}/drafts.json") for case in ("case_1", "case_6")}
ALL_RUNS = [(case, index) for case, runs in CASES.items() for index in range(len(runs))]


def load(case: str = "case_1", **options: Any) -> DFlashDrafter:
    drafter = load_drafter(DATA / "dflash" / case / "checkpoint", **({"dtype": torch.float32} | options))
    assert isinstance(drafter, DFlashDrafter)
    return drafter


@functools.cache
def target_of(case: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(DATA / "dflash" / case / "target", dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def target() -> PreTrainedModel:
    return target_of("case_1")


def hidden_states(target: PreTrainedModel, text: list[int], layers: tuple[int, ...]) -> torch.Tensor:
    states = target(torch.tensor([text]), output_hidden_states=True).hidden_states
    return torch.cat([states[layer] for layer in layers], dim=-1)


@pytest.mark.parametrize(("case", "index"), ALL_RUNS)
@torch.no_grad()
def test_rounds_of_the_original(case: str, index: int) -> None:
    """Context, draft and confidences of every round equal the original's.

    Rounds whose block one version of the original shortens near the end are left out.
    """
    run, tensors, target = (
        CASES[case][index],
        load_file(DATA / "dflash" / case / "drafts.safetensors"),
        target_of(case),
    )
    drafter = load(case, block_size=run["block_size"])
    session = session_of(drafter, target, 128)
    policy = FixedLength(run["block_size"] - 1)
    text, seen = run["prompt"] + run["new_tokens"], 0
    length = len(run["prompt"])
    assert len(draft_of(session, torch.tensor([text[:length]]), policy, 64)) == 0
    compared = 0
    for number, one in enumerate(run["rounds"]):
        length += 1  # the target's own token
        features = hidden_states(target, text[: length - 1], drafter.target_layers)
        if index == number == 0:
            torch.testing.assert_close(features[0], tensors["run.0.round.0.target_hidden"], atol=1e-4, rtol=0)
        session.observe([features[:, seen:]])
        assert features.shape[1] - seen == one["context_tokens"]
        seen = features.shape[1]
        draft = draft_of(session, torch.tensor([text[:length]]), policy, 64)
        if one["block"] == run["block_size"]:
            assert draft.token_ids[0].tolist() == one["draft_argmax"]
            torch.testing.assert_close(draft.confidence[0], torch.tensor(one["confidence"]), atol=1e-4, rtol=0)
            assert draft.passes == 1
            compared += 1
        session.accept([one["matches"]])
        length += one["matches"]
    assert compared >= min(4 if case == "case_1" else 3, len(run["rounds"]))  # later cases shorten the last block


def test_both_loops_write_what_the_target_writes(target: PreTrainedModel) -> None:
    """Texts are the target's in both loops, with one target forward per round."""
    drafter = load()
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    stats = check_parity(target, drafter, 40)
    assert stats.records[0].drafted == 0
    assert stats.accepted > 0
    prompt = torch.tensor([RUNS[0]["prompt"]])
    handle = target.model.register_forward_hook(count)
    output = hf_failfast.generate(
        target, prompt, assistant_model=drafter, max_new_tokens=40, do_sample=False, return_dict_in_generate=True
    )
    handle.remove()
    assert forwards == output.speculation.rounds
    assert output.sequences[0].tolist() == RUNS[0]["prompt"] + RUNS[0]["new_tokens"]


def test_the_length_rule_works_inside_of_a_block(target: PreTrainedModel) -> None:
    """Chunks within a block cost no further pass; the first unsure one is the last."""
    drafter = load()
    sure = check_parity(target, drafter, 30, confidence_threshold=0.0)
    unsure = check_parity(target, drafter, 30, confidence_threshold=1.0, chunk_length=2)
    assert {record.drafted for record in sure.records[1:-8]} == {7}
    assert max(record.drafted for record in unsure.records) == 2
    assert all(record.drafter_passes == (record.drafted > 0) for record in sure.records)
    assert drafter.config == FailFastConfig(chunk_length=4)


def test_processors_and_padding(target: PreTrainedModel) -> None:
    """Left padding and a processor leave the target's text unchanged."""
    prompt = torch.tensor([RUNS[4]["prompt"]])
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), prompt], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :5] = 0
    settings = {"max_new_tokens": 20, "do_sample": False, "attention_mask": mask, "repetition_penalty": 1.2}
    plain = target.generate(padded, **settings)
    drafted = hf_failfast.generate(target, padded, assistant_model=load(), **settings)
    assert drafted.tolist() == plain.tolist()


def test_a_target_that_does_not_fit(tmp_path: Path) -> None:
    drafter = load()
    with pytest.raises(ValueError, match="the target's are 32 wide"):
        session_of(drafter, tiny_model("qwen3", 96), 64)
    with pytest.raises(ValueError, match="a target of 6 layers .* but the target has 2"):
        session_of(drafter, tiny_model("qwen3", 96, hidden_size=48), 64)
    folder = copy_checkpoint("dflash/case_1/checkpoint", tmp_path / "a", num_hidden_layers=3, layer_types=None)
    with pytest.raises(ValueError, match=r"missing \['layers.2"):
        load_drafter(folder)
    with pytest.raises(ValueError, match="drafts in its own way"):
        load(prefix_block=8)


def test_sliding_layers_draft(target: PreTrainedModel, tmp_path: Path) -> None:
    """Sliding layers draft, and the output is the target's (no data of the original cover them)."""
    folder = copy_checkpoint(
        "dflash/case_1/checkpoint",
        tmp_path / "sliding",
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=8,
        use_sliding_window=True,
    )
    check_parity(target, load_drafter(folder, dtype=torch.float32), 16)


def test_dtype(target: PreTrainedModel) -> None:
    drafter = load(dtype="auto")
    assert {parameter.dtype for parameter in drafter.body.parameters()} == {torch.bfloat16}
    check_parity(target, drafter, 8)
