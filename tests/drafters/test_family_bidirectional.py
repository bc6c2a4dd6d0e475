"""Bidirectional drafters: Dream (shift), LLaDA and dllm's mdlm (no shift), DiffuLLaMA, DiffuGPT."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_support import DATA, check_parity, forward_data, read_json, replay, save_as, tiny_model
from safetensors.torch import load_file, save_file
from sessions import chunk_of, logits_of, session_of
from transformers import GPT2Config, GPT2LMHeadModel

from hf_failfast import DrafterSpec, load_drafter
from hf_failfast.drafters.checkpoints.inspection import inspect_checkpoint
from hf_failfast.drafters.masked.session import MaskedDrafter, MaskedSession
from hf_failfast.engine.window import Window

FOLDERS = {"dream": DrafterSpec("bidirectional", 1, 228), "llada": DrafterSpec("bidirectional", 0, 213)}


def load(family: str, **options: Any) -> MaskedDrafter:
    drafter = load_drafter(DATA / family / "case_1" / "checkpoint", **({"dtype": torch.float32} | options))
    assert isinstance(drafter, MaskedDrafter)
    return drafter


def start(drafter: MaskedDrafter) -> MaskedSession:
    session = session_of(drafter, drafter.model, 256)
    assert isinstance(session, MaskedSession)
    return session


def runs(family: str, function: str) -> list[dict[str, Any]]:
    every = read_json(f"{family}/case_1/denoise.json")
    return [run for run in every if function == run.get("fn", run.get("sampler"))]


@pytest.mark.parametrize("family", FOLDERS)
@torch.no_grad()
def test_logits(family: str) -> None:
    drafter = load(family)
    assert drafter.spec == FOLDERS[family]
    for ids, expected in forward_data(f"{family}/case_1"):
        session = start(drafter)
        limit = session.pattern.limit(torch.arange(ids.shape[1]), 0, ids.shape[1])
        logits = logits_of(session.runner, ids, session.cache, ids.shape[1], limit)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


# Without the rules whose recorded confidence is not the probability.
DREAM_RUNS = [run for run in runs("dream", "generation_utils") if run["alg"] not in ("topk_margin", "entropy")]
# Without the runs whose original sees the masks of later blocks too.
LLADA_RUNS = [run for run in runs("llada", "generate") if run["block_length"] == run["gen_length"]]


@pytest.mark.parametrize("index", range(len(DREAM_RUNS)))
def test_every_step_of_dream(index: int) -> None:
    """Ids and confidences of every step equal the original's, whichever rule fixes positions."""
    run = DREAM_RUNS[index]
    steps = [step for step in run["steps_trace"] if "conf" in step]
    replay(start(load("dream")), run["prompt"], run["output_ids"], steps, len(run["output_ids"]))


@pytest.mark.parametrize("index", range(len(runs("llada", "generate"))))
def test_every_step_of_llada(index: int) -> None:
    run = runs("llada", "generate")[index]
    end = len(run["output_ids"])
    replay(start(load("llada")), run["prompt"], run["output_ids"], run["steps_trace"], end, run["block_length"])


@pytest.mark.parametrize("index", range(len(LLADA_RUNS)))
@torch.no_grad()
def test_whole_drafts_of_llada(index: int) -> None:
    """A chunk of one block equals the original's by both rules: T steps, or a threshold."""
    run = LLADA_RUNS[index]
    rule = {"denoising_threshold": run["threshold"]} if "threshold" in run else {"denoising_steps": run["steps"]}
    prompt = torch.tensor([run["prompt"]])
    chunk = chunk_of(start(load("llada", **rule)), prompt, prompt[:, :0], run["gen_length"])
    assert chunk.token_ids[0].tolist() == run["output_ids"][prompt.shape[1] :]
    assert chunk.passes == run["num_forward_passes"]


@torch.no_grad()
def test_whole_drafts_of_dream() -> None:
    for run in runs("dream", "generation_utils"):
        if run["steps"] == 1:
            prompt = torch.tensor([run["prompt"]])
            chunk = chunk_of(start(load("dream")), prompt, prompt[:, :0], run["max_new_tokens"])
            assert chunk.token_ids[0].tolist() == run["output_ids"][prompt.shape[1] :]
            expected = torch.tensor([run["steps_trace"][0]["conf"]])
            torch.testing.assert_close(chunk.confidence, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_prefix_cache_repeats_fast_dllm_v1() -> None:
    """Steps equal the original's, which reads everything once per block and then only what follows finished blocks.

    Compared where the prompt ends on a block edge, since our blocks are absolute.
    """
    compared = 0
    for run in runs("llada", "generate_with_prefix_cache"):
        prompt, output, block = run["prompt"], run["output_ids"], run["block_length"]
        if len(prompt) % block:
            continue
        session = start(load("llada", prefix_block=block))
        for first in range(len(prompt), len(output), block):
            steps = [step for step in run["steps_trace"] if first <= step["pos"][0] < first + block]
            replay(session, output[:first], output, steps, len(output), block)
            compared += len(steps)
    assert compared >= 4


@pytest.mark.parametrize("family", FOLDERS)
def test_both_loops_write_what_the_target_writes(family: str) -> None:
    drafter = load(family)
    target = tiny_model("llama" if family == "llada" else "qwen2", drafter.model.config.vocab_size)
    check_parity(target, drafter)
    check_parity(target, load(family, denoising_steps=2), tokens=20)
    check_parity(target, load(family, prefix_block=8))
    check_parity(target, load(family, prefix_block=8, denoising_threshold=0.5), tokens=20)


@pytest.mark.parametrize("family", FOLDERS)
@torch.no_grad()
def test_the_prefix_cache_feeds_less_and_stays_close(family: str) -> None:
    """The cache feeds fewer than 60 % of the tokens, and over 70 % of the drafted ids stay the same."""
    drafters = {"exact": load(family), "cached": load(family, prefix_block=16)}
    sessions = {name: start(drafter) for name, drafter in drafters.items()}
    fed = dict.fromkeys(sessions, 0)
    for name, session in sessions.items():
        run = session.runner.run

        def count(window: Window, *rest: Any, name: str = name, run: Any = run) -> Any:
            fed[name] += window.input_ids.shape[1]
            return run(window, *rest)

        session.runner.run = count  # type: ignore[method-assign]
    text = torch.randint(0, 200, (1, 40), generator=torch.Generator().manual_seed(0))
    same = total = 0
    for _ in range(24):
        chunks = {name: chunk_of(session, text, text[:, :0], 8) for name, session in sessions.items()}
        same += int((chunks["exact"].token_ids == chunks["cached"].token_ids).sum())
        total += 8
        for session in sessions.values():
            session.lengths = [text.shape[1]]
            session.accept([2])
        text = torch.cat([text, chunks["exact"].token_ids[:, :3]], dim=1)
    assert fed["cached"] < 0.6 * fed["exact"]
    assert same / total > 0.7


@pytest.mark.parametrize("family", FOLDERS)
@pytest.mark.parametrize("steps", [1, 3])
@torch.no_grad()
def test_the_prefix_cache_is_exact_until_a_block_is_full(family: str, steps: int) -> None:
    """With blocks longer than the text nothing is frozen, and drafts equal the exact ones."""
    exact, cached = (start(load(family, denoising_steps=steps, prefix_block=block)) for block in (None, 512))
    tiny = start(load(family, denoising_steps=steps, prefix_block=1))
    text = torch.randint(0, 200, (1, 7), generator=torch.Generator().manual_seed(0))
    for accepted in (0, 3, 6, 1):
        chunks = [chunk_of(session, text, text[:, :0], 6) for session in (exact, cached, tiny)]
        torch.testing.assert_close(chunks[1], chunks[0])
        assert chunks[2].confidence.isfinite().all()
        for session in (exact, cached, tiny):
            session.lengths = [text.shape[1]]
            session.accept([accepted])
        text = torch.cat([text, chunks[0].token_ids[:, :accepted], torch.tensor([[9]])], dim=1)


def test_weights_keep_their_dtype() -> None:
    for family in FOLDERS:
        drafter = load(family, dtype="auto")
        assert {parameter.dtype for parameter in drafter.model.parameters()} == {torch.bfloat16}


MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
RND1 = {"moe_backend": "hf", "num_diffusion_steps": 256, "is_causal": False, "use_cache": False}
RND1 |= {"sliding_window": False, "rope_scaling": False, "rope_theta": 10000.0, "rope_parameters": None}
# Body, its options, keys of the public config, and the expected shift.
PUBLIC: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "Qwen3-0.6B-diffusion-mdlm-v0.1": ("qwen3", {"head_dim": 8}, {"model_type": "a2d-qwen3"}, 0),
    "Qwen2.5-Coder-0.5B-Instruct-diffusion-mdlm-v0.1": ("qwen2", {}, {"model_type": "a2d-qwen2"}, 0),
    "open-dcoder-0.5B": ("qwen2", {}, {}, 1),
    "diffullama": ("llama", {}, {}, 1),
    "RND1-Base-0910": ("qwen3_moe", MOE, {"model_type": "rnd1"} | RND1, 1),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_formats_load_and_draft(name: str, tmp_path: Path) -> None:
    """A tiny random body with the public config keys loads and drafts (no public weights are at hand)."""
    body, options, changes, shift = PUBLIC[name]
    folder = save_as(tiny_model(body, 128, seed=3, **options), tmp_path / name, changes)
    drafter = load_drafter(folder, mask_token_id=127)
    assert drafter.spec == DrafterSpec("bidirectional", shift, 127)
    check_parity(tiny_model(body, 126, **options), drafter)


def declare_mask(folder: Path, token_id: int) -> None:
    """A tokenizer_config.json that declares a mask token."""
    tokens = {"3": {"content": "<s>"}, str(token_id): {"content": "<mask>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<mask>", "added_tokens_decoder": tokens}))


def test_the_mask_id_may_come_from_the_tokenizer(tmp_path: Path) -> None:
    """The id that the tokenizer declares wins over the family's; where neither has one, the caller must say it."""
    folder = save_as(tiny_model("llama", 820), tmp_path / "diffullama", {})
    assert load_drafter(folder).spec.mask_token_id == 811
    declare_mask(folder, 125)
    assert load_drafter(folder).spec.mask_token_id == 125
    assert load_drafter(folder, mask_token_id=7).spec.mask_token_id == 7
    with pytest.raises(ValueError, match="the checkpoint does not name one, so pass `mask_token_id=`"):
        load_drafter(save_as(tiny_model("llama", 128), tmp_path / "mine", {}), attention="bidirectional")


def tiny_gpt2(vocab_size: int, **sizes: Any) -> GPT2LMHeadModel:
    torch.manual_seed(vocab_size)
    settings = {"initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **settings, **sizes)).eval()


def save_diffugpt(model: GPT2LMHeadModel, folder: Path, with_config: bool) -> Path:
    """A wrapper's weights: GPT-2's under other names, mask buffers included; GPT-2's own config.json or none."""
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    renamed = {
        key.replace("transformer.wte.", "embed_tokens.").replace("transformer.", "denoise_model."): value.half()
        for key, value in weights.items()
    }
    length = model.config.n_positions
    mask = torch.ones(1, 1, length, length, dtype=torch.bool)
    renamed |= {f"denoise_model.h.{layer}.attn.bias": mask.clone() for layer in range(model.config.n_layer)}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    if with_config:
        config = json.loads(path.read_text()) | {"n_ctx": 64, "task_specific_params": {"text-generation": {}}}
        del config["dtype"]  # the public one has none
        path.write_text(json.dumps(config))
    else:
        path.unlink()
    return folder


@pytest.mark.parametrize("with_config", [False, True])
def test_diffugpt_is_a_wrapper_with_or_without_gpt2s_config(with_config: bool, tmp_path: Path) -> None:
    """Loads a wrapper's weights with the sizes of their shapes; `inspect` says the same."""
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 1, "n_positions": 64, "tie_word_embeddings": True}
    model = tiny_gpt2(128, **sizes)
    folder = save_diffugpt(model, tmp_path / "diffugpt-s", with_config)
    drafter = load_drafter(folder, mask_token_id=127)
    assert isinstance(drafter, MaskedDrafter)
    assert drafter.spec == DrafterSpec("bidirectional", 1, 127)
    assert drafter.model.dtype == torch.float16
    ids = torch.arange(20)[None]
    expected = model.half()(ids).logits
    torch.testing.assert_close(drafter.model(ids).logits, expected)
    assert inspect_checkpoint(folder, mask_token_id=127).family == "DiffuGPT"
    check_parity(tiny_gpt2(126, **sizes), load_drafter(folder, mask_token_id=127, dtype=torch.float32))


@pytest.mark.parametrize(("width", "rows", "mask_token_id"), [(768, 10600, 10541), (1024, 50258, 50257)])
def test_the_mask_id_of_diffugpt_by_its_size(width: int, rows: int, mask_token_id: int, tmp_path: Path) -> None:
    """10541 in -s, the first id after GPT-2's in -m; what the tokenizer declares wins."""
    model = tiny_gpt2(rows, n_embd=width, n_layer=1, n_head=2, n_positions=8)
    folder = save_diffugpt(model, tmp_path / "mine", with_config=True)
    assert inspect_checkpoint(folder).spec.mask_token_id == mask_token_id
    declare_mask(folder, 9)
    assert inspect_checkpoint(folder).spec.mask_token_id == 9


def test_gpt2_itself_is_no_diffugpt(tmp_path: Path) -> None:
    tiny_gpt2(128, n_embd=64, n_layer=1, n_head=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not say how it drafts"):
        load_drafter(tmp_path, mask_token_id=127)
