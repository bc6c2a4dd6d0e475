"""A LoRA makes its target a drafter: on the positions to be filled only, with the target's own K/V, and exactly."""

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LOOPS, TARGETS, failfast, plain, prompt, target, tiny_model
from lora_support import ATTENTION, MLP, PREFIX, layers_of, logits_with, save_lora
from safetensors.torch import load_file, save_file
from sampling_support import Pair, chi_square, draw, enumerate_distribution, small_pair
from sessions import chunk_of, session_of
from transformers import DynamicCache, PreTrainedModel

import hf_failfast
from hf_failfast import Conversation, DrafterSpec, FailFastConfig, load_drafter
from hf_failfast.compatibility import CACHE
from hf_failfast.drafters.base import DraftRequest
from hf_failfast.drafters.checkpoints.inspection import inspect_checkpoint
from hf_failfast.drafters.lora.drafter import LoraDrafter, LoraSession, NoisedLM
from hf_failfast.drafters.lora.view import LowRank
from hf_failfast.engine.slot_cache import SlotCache

MASK = 7
# Folder name -> what the caller says, and the spec.
FORMATS: dict[str, tuple[dict[str, Any], DrafterSpec]] = {
    "uno-qwen3-8B": ({}, DrafterSpec("causal", 1, 151669, noise="random")),
    "I-DLM-8B-lora-r128": ({"mask_token_id": MASK}, DrafterSpec("causal", 1, MASK)),
    "mine": ({"mask_token_id": MASK}, DrafterSpec("causal", 1, MASK)),
    "mine, canvas": ({"mask_token_id": MASK, "attention": "causal_canvas"}, DrafterSpec("causal_canvas", 1, MASK)),
    "mine, anchor": ({"mask_token_id": MASK, "attention": "anchored_canvas"}, DrafterSpec("anchored_canvas", 1, MASK)),
    "mine, no shift": ({"mask_token_id": MASK, "shift": 0}, DrafterSpec("causal", 0, MASK)),
}
# Every chunk is drafted, whatever its confidence.
LONG: dict[str, Any] = {"confidence_threshold": 0.0, "chunk_length": 4, "max_draft_length": 8}
LONG |= {"return_dict_in_generate": True, "drafter_errors": "raise"}


def lora(folder: Path, model: PreTrainedModel, name: str = "mine", **options: Any) -> LoraDrafter:
    given, _ = FORMATS[name]
    drafter = load_drafter(save_lora(folder / name, model), **given, **options)
    assert isinstance(drafter, LoraDrafter)
    return drafter


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> LoraDrafter:
    """Of the Llama target."""
    return lora(tmp_path_factory.mktemp("lora"), target("llama"))


# Exactness


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", TARGETS)
def test_every_format_on_every_target(family: str, name: str, tmp_path: Path) -> None:
    """Greedy text is the target's own in both loops; the first draft token too, if the row before it sees no noise."""
    model, input_ids = target(family), prompt(33)
    drafter = lora(tmp_path, model, name)
    assert drafter.spec == FORMATS[name][1]
    reference = plain(model, input_ids, max_new_tokens=24)
    for generate in LOOPS.values():
        options = {key: value for key, value in LONG.items() if generate is failfast or key != "drafter_errors"}
        output = generate(model, input_ids, drafter, max_new_tokens=24, **options)
        assert torch.equal(output.sequences, reference)
        assert output.speculation.drafted > 0
        if drafter.spec.shift and drafter.spec.attention != "anchored_canvas":
            rounds = [record for record in output.speculation.records if record.drafted]
            assert all(record.accepted for record in rounds)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_draft_is_the_targets_own_pass_with_the_updates_on_noise(family: str, tmp_path: Path) -> None:
    """Ids and confidences are those of PEFT's formula, on the masked rows of one whole pass."""
    model = target(family)
    drafter = lora(tmp_path, model)
    text = prompt(9)
    ids = torch.cat([text, text.new_full((1, 3), MASK)], dim=1)
    logits = logits_with(model, tmp_path / "mine", ids, torch.arange(12) >= 9)[0, 8:]
    chunk = chunk_of(session_of(drafter, model, 64), text, text[:, :0], 4)
    assert chunk.token_ids[0].tolist() == logits.argmax(-1).tolist()
    torch.testing.assert_close(chunk.confidence[0], logits.softmax(-1).amax(-1), atol=1e-4, rtol=1e-4)
    without = model(ids).logits[0, 8:]
    assert torch.equal(chunk.token_ids[0, :1], without[:1].argmax(-1))
    assert (logits - without)[1:].abs().max() > 0.1


@torch.no_grad()
def test_text_rows_are_the_targets_bit_for_bit(made: LoraDrafter) -> None:
    """Logits and K/V of the text before the noise; those of the noise differ."""
    model = target("llama")
    noised = NoisedLM(model, made.weights.updates)
    ids = torch.cat([prompt(12), prompt(5)], dim=1)
    own, with_lora = (SlotCache(2, 32) for _ in range(2))
    expected = model(ids, **{CACHE: own}).logits
    marked = ids + noised.offset * (torch.arange(17) >= 12)
    logits = noised(input_ids=marked, logits_to_keep=17, **{CACHE: with_lora}).logits
    assert torch.equal(logits[:, :12], expected[:, :12])
    assert not torch.isclose(logits[:, 12:], expected[:, 12:]).any(dim=-1).all()
    for mine, theirs in zip(with_lora.layers, own.layers, strict=True):
        for states, reference in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
            assert torch.equal(states[:, :, :12], reference[:, :, :12])
            assert not torch.equal(states[:, :, 12:17], reference[:, :, 12:17])


@pytest.mark.parametrize("name", ["uno-qwen3-8B", "mine", "mine, canvas"])
def test_batches_of_uneven_length(name: str, tmp_path: Path) -> None:
    """Padded prompts, rows that end on their own, and rows that leave the batch."""
    model = tiny_model("llama", eos_token_id=11)
    drafter = lora(tmp_path, model, name)
    ids = torch.randint(12, 120, (4, 14), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, :6] = mask[3, :9] = 0
    settings: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 30, "pad_token_id": 0}
    reference = plain(model, ids, **settings)
    output = failfast(model, ids, drafter, **settings, **LONG)
    assert torch.equal(output.sequences, reference)
    assert output.speculation.drafted > 0


@pytest.mark.parametrize("options", [{"draft_tree": 12}, {"draft_lookup": 4}, {"self_selection": 2}])
def test_trees_and_lookup(options: dict[str, Any], made: LoraDrafter) -> None:
    model, input_ids = target("llama"), prompt(20)
    reference = plain(model, input_ids, max_new_tokens=30)
    assert torch.equal(failfast(model, input_ids, made, max_new_tokens=30, **LONG, **options).sequences, reference)


@pytest.mark.parametrize("length", [1, 2, 33])
def test_short_prompts_and_recorded_layers(length: int, made: LoraDrafter) -> None:
    """What the target returns of its layers is of its own forwards only."""
    model, input_ids = target("llama"), prompt(length)
    wanted: dict[str, Any] = {"max_new_tokens": 12, "output_hidden_states": True, "return_dict_in_generate": True}
    reference = plain(model, input_ids, **wanted)
    output = failfast(model, input_ids, made, **wanted | LONG)
    assert torch.equal(output.sequences, reference.sequences)
    for found, expected in zip(output.hidden_states, reference.hidden_states, strict=True):
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wrapped", [False, True])
def test_turns_of_a_conversation(wrapped: bool, made: LoraDrafter) -> None:
    """With the target's own cache kept from turn to turn, a draft reads nothing of the turns before."""
    model, cache = target("llama"), DynamicCache(config=target("llama").config)
    drafter = Conversation(made) if wrapped else made
    text = prompt(20)
    for turn in range(3):
        reference = plain(model, text, max_new_tokens=10)
        output = failfast(model, text, drafter, max_new_tokens=10, **{CACHE: cache}, **LONG)
        assert torch.equal(output.sequences, reference)
        assert output.speculation.drafted > 0
        text = torch.cat([reference, prompt(5, seed=turn + 1)], dim=1)


def test_a_timeout_gets_slots_of_its_own(made: LoraDrafter) -> None:
    """An abandoned draft would go on writing in the target's slots."""
    model, input_ids = target("llama"), prompt(20)
    reference = plain(model, input_ids, max_new_tokens=20)
    with slots_of(made) as given:
        output = failfast(model, input_ids, made, max_new_tokens=20, drafter_timeout=60.0, **LONG)
        failfast(model, input_ids, made, max_new_tokens=20, **LONG)
    assert torch.equal(output.sequences, reference)
    assert [slots is None for slots in given] == [True, False]


@contextmanager
def slots_of(drafter: LoraDrafter) -> Iterator[list[Any]]:
    """The slots that each generation hands to the drafter."""
    given: list[Any] = []
    start = LoraDrafter.start

    def recorded(self: LoraDrafter, request: DraftRequest) -> Any:
        given.append(request.slots)
        return start(self, request)

    LoraDrafter.start = recorded  # type: ignore[method-assign]
    try:
        yield given
    finally:
        LoraDrafter.start = start  # type: ignore[method-assign]


# One model


def test_a_draft_reads_the_last_token_only(made: LoraDrafter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The K/V of the text are the target's: no pass of the drafter reads the prompt; the first round has none."""
    fed: list[list[int]] = []
    call = NoisedLM.__call__

    def recorded(self: NoisedLM, *, input_ids: torch.Tensor, logits_to_keep: Any, **inputs: Any) -> Any:
        fed.append([token < self.offset for token in input_ids[0].tolist()])
        return call(self, input_ids=input_ids, logits_to_keep=logits_to_keep, **inputs)

    monkeypatch.setattr(NoisedLM, "__call__", recorded)
    options = LONG | {"max_draft_length": 4}
    output = failfast(target("llama"), prompt(40), made, max_new_tokens=30, **options)
    assert {len(row) for row in fed} <= {1, 2, 3, 4}
    assert all(row == [True] + [False] * (len(row) - 1) for row in fed)
    first, *others = output.speculation.records
    assert first.drafted == 0 and all(record.drafter_passes == 1 for record in others if record.drafted)


def test_there_is_no_second_copy_of_the_weights(made: LoraDrafter) -> None:
    model = target("llama")
    weights = {weight.data_ptr() for weight in NoisedLM(model, made.weights.updates).model.parameters()}
    own = {weight.data_ptr() for weight in made.weights.parameters()}
    assert weights == own | {weight.data_ptr() for weight in model.parameters()}


def snapshot(model: PreTrainedModel) -> list[Any]:
    """All that could be left in a model."""
    found: list[Any] = [(name, tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()]
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        found.append((name, id(module), type(module), [list(each) for each in hooks], sorted(vars(module))))
    return found


def same(first: list[Any], second: list[Any]) -> bool:
    if len(first) != len(second):
        return False
    return all(
        torch.equal(one[2], other[2]) and one[:2] == other[:2]
        if isinstance(one, tuple) and isinstance(one[2], torch.Tensor)
        else one == other
        for one, other in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("errors", ["plain", "raise"])
def test_the_target_is_untouched(errors: str, made: LoraDrafter, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a call, after one whose drafts fail in the middle of a pass, and while a draft is made."""
    model, input_ids = target("llama"), prompt(20)
    before, reference = snapshot(model), plain(model, input_ids, max_new_tokens=20)
    failfast(model, input_ids, made, max_new_tokens=20, **LONG)
    assert same(before, snapshot(model))

    forward, calls = LowRank.forward, []

    def failing(self: LowRank, hidden: torch.Tensor) -> torch.Tensor:
        calls.append(same(before, snapshot(model)))
        if len(calls) == 20:
            raise RuntimeError("out of memory")
        return forward(self, hidden)

    monkeypatch.setattr(LowRank, "forward", failing)
    options = LONG | {"drafter_errors": errors}
    if errors == "raise":
        with pytest.raises(RuntimeError, match="out of memory"):
            failfast(model, input_ids, made, max_new_tokens=20, **options)
    else:
        output = failfast(model, input_ids, made, max_new_tokens=20, **options)
        assert torch.equal(output.sequences, reference)
        assert output.speculation.drafter_errors == 1
    assert all(calls) and len(calls) == 20
    assert same(before, snapshot(model))
    assert torch.equal(plain(model, input_ids, max_new_tokens=20), reference)


def test_the_targets_later_weights_are_the_drafts(made: LoraDrafter) -> None:
    """Nothing of a target is kept: another one, or changed weights, draft with what they are then."""
    model = tiny_model("llama", seed=5)
    input_ids = prompt(16)
    for _ in range(2):
        reference = plain(model, input_ids, max_new_tokens=12)
        assert torch.equal(failfast(model, input_ids, made, max_new_tokens=12, **LONG).sequences, reference)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.3)


def test_copies(made: LoraDrafter) -> None:
    model, input_ids = target("llama"), prompt(16)
    expected = failfast(model, input_ids, made, max_new_tokens=12, **LONG)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        output = failfast(model, input_ids, other, max_new_tokens=12, **LONG)
        assert output.speculation.records == expected.speculation.records


def test_a_target_in_another_dtype(made: LoraDrafter) -> None:
    model = copy.deepcopy(target("llama")).to(torch.bfloat16)
    assert failfast(model, prompt(16), made, max_new_tokens=12, **LONG).speculation.accepted > 0
    assert {weight.dtype for weight in made.weights.parameters()} == {torch.float32}


# Sampling

HOT = {"temperature": 1.3, "top_k": 0}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, LoraDrafter]:
    folder = tmp_path_factory.mktemp("pair")
    small = small_pair(str(folder / "target"))
    drafter = load_drafter(save_lora(folder / "lora", small.target, r=2), mask_token_id=1)
    assert isinstance(drafter, LoraDrafter)
    return small, drafter


def fit(pair: tuple[Pair, LoraDrafter], **options: Any) -> float:
    counts = draw(*pair, 1500, **HOT, confidence_threshold=0.0, **options)
    return chi_square(counts, enumerate_distribution(pair[0], **HOT))


@pytest.mark.parametrize(
    "options", [{}, {"verifier": "rejection"}, {"verifier": "rejection", "draft_temperature": 2.5}]
)
def test_samples_follow_the_targets_distribution(options: dict[str, Any], pair: tuple[Pair, LoraDrafter]) -> None:
    assert fit(pair, **options) > 1e-3


original_draft = LoraSession.draft


def spoils_a_slot(self: LoraSession, *arguments: Any) -> Any:
    """A draft that leaves the K/V of noise in the place of the text's last slot."""
    draft = original_draft(self, *arguments)
    cache = None if self.slots is None else self.slots.cache
    if cache is not None and len(draft):
        with torch.inference_mode():
            for layer in cache.layers:
                for row, end in enumerate(cache.lengths):
                    for states in (layer.keys, layer.values):
                        states[row, :, end - 1] = states[row, :, end + 1]
    return draft


def test_the_proof_rejects_noise_in_the_targets_slots(
    pair: tuple[Pair, LoraDrafter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoraSession, "draft", spoils_a_slot)
    assert fit(pair) < 1e-6


def test_the_proof_rejects_updates_of_the_text(pair: tuple[Pair, LoraDrafter]) -> None:
    """A LoRA that is active on the target's rows changes the text."""
    small, drafter = pair
    merged = copy.deepcopy(small.target)
    with torch.no_grad():
        for name, update in drafter.weights.updates.items():
            merged.get_submodule(name).weight += update.up @ update.down
    counts = draw(Pair(merged, small.folder), drafter, 1500, **HOT, confidence_threshold=0.0)
    assert chi_square(counts, enumerate_distribution(small, **HOT)) < 1e-6


# Loading


def test_the_scale_is_that_of_the_config(tmp_path: Path) -> None:
    """`lora_alpha` over the rank, over its root with rsLoRA, and both by layer where there are patterns."""
    model = target("llama")
    plain_up = load_file(save_lora(tmp_path / "a", model) / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    up = plain_up[f"{PREFIX}{name}.lora_B.weight"]
    for config, scale in (
        ({}, 2.0),
        ({"lora_alpha": 12}, 3.0),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 20}}, 5.0),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 20}}, 2.0),
        ({"r": None, "lora_alpha": None, "rank_pattern": {".*": 4}}, 2.0),
    ):
        folder = save_lora(tmp_path / "b", model)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        drafter = load_drafter(folder, mask_token_id=MASK)
        assert isinstance(drafter, LoraDrafter)
        torch.testing.assert_close(drafter.weights.updates[name].up.data, up * scale)


REFUSED: dict[str, dict[str, Any]] = {
    "peft_type": {"peft_type": "LOHA"},
    "bias": {"bias": "all"},
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "layer_replication": {"layer_replication": [[0, 2]]},
    "trainable_token_indices": {"trainable_token_indices": [3]},
    "target_parameters": {"target_parameters": ["experts.gate_up_proj"]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [1, 2]},
    "task_type": {"task_type": "SEQ_CLS"},
    "use_qalora": {"use_qalora": True},
    "arrow_config": {"arrow_config": {"top_k": 3}},
    "a_key_that_nobody_knows": {"a_key_that_nobody_knows": 1},
}


@pytest.mark.parametrize("key", REFUSED)
@pytest.mark.parametrize("name", ["uno-qwen3-8B", "I-DLM-8B-lora-r128", "mine"])
def test_settings_that_change_the_output_are_refused(name: str, key: str, tmp_path: Path) -> None:
    folder = save_lora(tmp_path / name, target("llama"), **REFUSED[key])
    with pytest.raises(ValueError, match=key):
        load_drafter(folder, **FORMATS[name][0])


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


DOWN = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
UP = DOWN.replace("lora_A", "lora_B")
FAULTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "no B": (lambda tensors: tensors.pop(UP), "missing .*lora_B"),
    "no A": (lambda tensors: tensors.pop(DOWN), "unexpected .*lora_B"),
    "DoRA": (
        lambda tensors: tensors.update({DOWN.replace("A.weight", "magnitude_vector"): torch.ones(3)}),
        "magnitude",
    ),
    "embedding": (
        lambda tensors: tensors.update({f"{PREFIX}model.embed_tokens.lora_embedding_A": torch.ones(3)}),
        "embedding_A",
    ),
    "rank": (lambda tensors: tensors.update({DOWN: torch.ones(3, 32)}), "rank 4"),
    "none of a module": (
        lambda tensors: [tensors.pop(key) for key in list(tensors) if "down_proj" in key],
        r"`target_modules` names \['down_proj'\]",
    ),
    "all": (lambda tensors: tensors.clear(), "not those of a LoRA"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_do_not_fit_the_config(fault: str, tmp_path: Path) -> None:
    """`inspect` says it in the same words."""
    change, message = FAULTS[fault]
    folder = changed(save_lora(tmp_path / "a", target("llama")), change)
    with pytest.raises(ValueError, match=message) as loading:
        load_drafter(folder, mask_token_id=MASK)
    with pytest.raises(ValueError) as inspecting:
        inspect_checkpoint(folder, mask_token_id=MASK)
    assert str(inspecting.value) == str(loading.value)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    folder = save_lora(tmp_path / "a", target("llama"))
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged or incomplete"):
        load_drafter(folder, mask_token_id=MASK)
    path.rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="pickle"):
        load_drafter(folder, mask_token_id=MASK)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="no adapter_model.safetensors"):
        load_drafter(folder, mask_token_id=MASK)


MISFITS: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "another width": (lambda: tiny_model("llama", hidden_size=48), "but the target's has 64 and 48"),
    "fewer layers": (lambda: tiny_model("llama", num_hidden_layers=1), "`model.layers.1.mlp.down_proj`.*no such"),
    "another architecture": (lambda: tiny_model("gpt2"), r"target \(GPT2LMHeadModel\) has no such linear layer"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_targets_that_do_not_fit(misfit: str, made: LoraDrafter, tmp_path: Path) -> None:
    """Refused by name before the first token, and by `inspect` in the same words."""
    make, message = MISFITS[misfit]
    model = make()
    with pytest.raises(ValueError, match=message) as error:
        failfast(model, prompt(8), made, max_new_tokens=4)
    model.save_pretrained(tmp_path / "target")
    folder = save_lora(tmp_path / "a", target("llama"))
    assert inspect_checkpoint(folder, tmp_path / "target", mask_token_id=MASK).misfit == str(error.value)


def test_other_refusals(tmp_path: Path) -> None:
    model = target("llama")
    folder = save_lora(tmp_path / "a", model)
    with pytest.raises(ValueError, match="`mask_token_id` must be an id >= 0"):
        load_drafter(folder)
    with pytest.raises(ValueError, match="`mask_token_id` is 120, but the target's embedding"):
        failfast(model, prompt(8), load_drafter(folder, mask_token_id=120), max_new_tokens=4)
    with pytest.raises(ValueError, match="`mask_token_id` must be >= 1 with random noise"):
        load_drafter(folder, mask_token_id=0, noise="random")
    for attention in ({"attention": "bidirectional"}, {"attention": "block_causal", "block_size": 4}):
        with pytest.raises(ValueError, match="`attention` must be one of .* for a LoRA of the target"):
            load_drafter(folder, mask_token_id=MASK, **attention)
    for options in ({"denoising_steps": 2}, {"mode": "reference"}, {"prefix_block": 4}):
        with pytest.raises(ValueError, match="do not fit"):
            load_drafter(folder, mask_token_id=MASK, **options)
    with pytest.raises(ValueError, match="`drafter_window`=64 does not fit"):
        load_drafter(folder, mask_token_id=MASK, drafter_window=64)
    head = save_lora(tmp_path / "b", tiny_model("llama"))
    tensors = {
        f"{PREFIX}lm_head.lora_A.weight": torch.ones(4, 32),
        f"{PREFIX}lm_head.lora_B.weight": torch.ones(120, 4),
    }
    save_file(tensors, head / "adapter_model.safetensors")
    (head / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    with pytest.raises(ValueError, match="`lm_head`, the target's head"):
        failfast(model, prompt(8), load_drafter(head, mask_token_id=MASK), max_new_tokens=4)


def test_a_target_that_runs_another_forward(made: LoraDrafter) -> None:
    """A view of it would run the original's layers, without the updates."""
    model = copy.deepcopy(target("llama"))
    layer = model.model.layers[0].mlp
    layer.forward = layer.forward
    with pytest.raises(ValueError, match="LlamaMLP runs another forward than its own"):
        failfast(model, prompt(8), made, max_new_tokens=4)
    on_meta = copy.deepcopy(target("llama"))
    on_meta.model.layers.to("meta")
    with pytest.raises(ValueError, match="not at hand"):
        made.start(DraftRequest(on_meta, capacity=8))


@pytest.mark.parametrize("ends", [ATTENTION, MLP, ("layers.1.mlp.up_proj",)])
def test_some_layers_only(ends: tuple[str, ...], tmp_path: Path) -> None:
    model, input_ids = target("llama"), prompt(12)
    drafter = load_drafter(save_lora(tmp_path / "a", model, ends, target_modules="all-linear"), mask_token_id=MASK)
    assert isinstance(drafter, LoraDrafter)
    assert drafter.weights.names == sorted(layers_of(model, ends))
    reference = plain(model, input_ids, max_new_tokens=12)
    assert torch.equal(failfast(model, input_ids, drafter, max_new_tokens=12, **LONG).sequences, reference)


def test_what_inspect_says(tmp_path: Path) -> None:
    folder = save_lora(tmp_path / "uno-qwen3-8B", target("llama"))
    target("llama").save_pretrained(tmp_path / "target")
    found = inspect_checkpoint(folder, tmp_path / "target")
    assert (found.family, found.body, found.misfit) == ("Uno", "lora", None)
    assert found.spec == FORMATS["uno-qwen3-8B"][1]
    assert found.parameters == sum(4 * (inputs + outputs) for inputs, outputs in layers_of(target("llama")).values())
    assert load_drafter(folder).config == FailFastConfig(chunk_length=8, max_draft_length=8)


def test_random_noise_stays_below_the_mask_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_lora(tmp_path / "a", target("llama"))
    drafter = load_drafter(folder, noise="random", mask_token_id=5)
    seen: set[int] = set()
    call = NoisedLM.__call__

    def recorded(self: NoisedLM, *, input_ids: torch.Tensor, logits_to_keep: Any, **inputs: Any) -> Any:
        seen.update(token - self.offset for token in input_ids.flatten().tolist() if token >= self.offset)
        return call(self, input_ids=input_ids, logits_to_keep=logits_to_keep, **inputs)

    monkeypatch.setattr(NoisedLM, "__call__", recorded)
    failfast(target("llama"), prompt(8), drafter, max_new_tokens=40, **LONG)
    assert seen == {0, 1, 2, 3, 4}


def test_the_hub_id_of_a_subfolder_and_a_path(tmp_path: Path) -> None:
    save_lora(tmp_path / "uno-qwen3-8B" / "adapter", target("llama"))
    drafter = load_drafter(tmp_path / "uno-qwen3-8B", subfolder="adapter")
    assert isinstance(drafter, LoraDrafter) and drafter.spec.noise == "random"
    output = target("llama").generate(
        prompt(8), assistant_model=drafter, custom_generate=hf_failfast.generate, max_new_tokens=4, do_sample=False
    )
    assert output.shape == (1, 12)
