"""Drafters and conversations can be copied, pickled, saved and sent to another process."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import drafter, failfast, plain, prompt, shared_drafter, target
from family_support import DATA, tiny_model
from torch import multiprocessing
from transformers import AutoModelForCausalLM, PreTrainedModel

import hf_failfast
from hf_failfast.drafters.checkpoints.target_fit import MadeFor, fingerprint
from hf_failfast.drafters.conditioned.canvas import ConditionedDrafter

EXACT: dict[str, Any] = {"max_new_tokens": 18, "chunk_length": 4, "max_draft_length": 8}
EXACT |= {"confidence_threshold": 0.05, "return_dict_in_generate": True}


def conditioned() -> ConditionedDrafter:
    shared: Any = copy.deepcopy(shared_drafter())
    return ConditionedDrafter(shared.model, shared.spec, (0, 1), 8, shared.config)


def dflash_target() -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(DATA / "dflash" / "case_1" / "target", dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def native(kind: str) -> Callable[[], hf_failfast.DiffusionDrafter]:
    return lambda: copy.copy(drafter(kind, "llama"))


def stored(name: str, **options: Any) -> Callable[[], hf_failfast.DiffusionDrafter]:
    return lambda: hf_failfast.load_drafter(DATA / name / "case_1" / "checkpoint", dtype=torch.float32, **options)


KINDS: dict[str, Callable[[], hf_failfast.DiffusionDrafter]] = {
    "canvas": native("canvas_shift"),
    "bidirectional": native("bidirectional"),
    "shared": lambda: copy.copy(shared_drafter()),
    "shared, fewer tokens": lambda: copy.copy(shared_drafter(3)),
    "conditioned": conditioned,
    "dflash": stored("dflash"),
    "reference": stored("fastdllm_v2", mode="reference", mask_token_id=255),
    "dit": stored("mdlm"),
}


def target_of(kind: str, drafter: Any) -> PreTrainedModel:
    if kind == "dflash":
        return dflash_target()
    if kind in ("reference", "dit"):
        return tiny_model("llama", drafter.own_model.config.vocab_size)
    return target("llama")


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": through_a_file,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("kind", KINDS)
def test_drafters(kind: str) -> None:
    """A copy of a drafter that was used drafts the same, on its own weights, and carries no target."""
    original = KINDS[kind]()
    model = target_of(kind, original)
    original.made_for = MadeFor("the/target", fingerprint(model.get_input_embeddings().weight))
    size = len(pickle.dumps(original))
    text = prompt(9) % model.config.vocab_size
    expected = failfast(model, text, original, **EXACT)
    assert torch.equal(expected.sequences, plain(model, text, max_new_tokens=18))
    assert abs(len(pickle.dumps(original)) - size) < 2000
    for way in WAYS.values():
        copied = way(original)
        output = failfast(model, text, copied, **EXACT)
        assert torch.equal(output.sequences, expected.sequences)
        assert output.speculation.records == expected.speculation.records
        shared = {id(module) for module in original.modules()} & {id(module) for module in copied.modules()}
        assert not shared


def test_a_copy_has_hooks_of_its_own() -> None:
    """A copied drafter that feeds hidden states to its layers feeds them to its own."""
    original = conditioned()
    copied = copy.deepcopy(original)
    decoders: list[Any] = [original.body.decoder, copied.body.decoder]
    states = torch.ones(1, 2, 2, 32)
    ids = torch.full((1, 3, 32), 0.5)
    before = [decoder(inputs_embeds=ids).last_hidden_state for decoder in decoders]
    with copied.injection.of(states):
        after = [decoder(inputs_embeds=ids).last_hidden_state for decoder in decoders]
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("way", [*WAYS, "copy"])
def test_conversations(way: str) -> None:
    """A copied conversation writes the same text, remembers nothing, and both go on."""
    model, original = target("llama"), hf_failfast.Conversation(drafter("canvas_shift", "llama"))
    first = failfast(model, prompt(9), original, **EXACT).sequences
    second = torch.cat([first, prompt(5)], dim=1)
    with original.held():
        copied = copy.copy(original) if way == "copy" else WAYS[way](original)
    expected = plain(model, second, max_new_tokens=18)
    for conversation in (copied, original, copied):
        assert torch.equal(failfast(model, second, conversation, **EXACT).sequences, expected)


def draft_in_another_process(drafter: Any, model: Any, results: Any) -> None:
    results.put(failfast(model, prompt(9), drafter, **EXACT).sequences.tolist())


def test_a_spawned_worker() -> None:
    """A conversation, and the drafter in it, can be arguments of a spawned process."""
    model = copy.deepcopy(target("llama"))
    for module in model.modules():
        module._forward_hooks.clear()  # those that collect hidden states in other tests cannot be pickled
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    conversation = hf_failfast.Conversation(drafter("canvas_shift", "llama"))
    worker = context.Process(target=draft_in_another_process, args=(conversation, model, results))
    worker.start()
    answer = results.get(timeout=240)
    worker.join()
    assert answer == plain(model, prompt(9), max_new_tokens=18).tolist()


def test_a_drafter_says_what_it_is() -> None:
    """Its kind, its own weights counted once, its target and the chunk rule's numbers."""
    found = repr(hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER))
    assert found == (
        "MaskedDrafter(14.2 M parameters, made for HuggingFaceTB/SmolLM2-135M-Instruct, tau=0.6, N=4, N_max=12)"
    )
