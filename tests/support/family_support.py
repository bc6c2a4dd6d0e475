"""Shared by the tests of drafter families: conformance data, tiny targets, parity in both loops."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Qwen3Config

import hf_failfast
from hf_failfast import DiffusionDrafter, SpecDecodingStats
from hf_failfast.drafters.bodies.dflash import CandidateSelector, DFlashBody, layer_sights
from hf_failfast.drafters.masked.session import MaskedSession
from hf_failfast.engine.ragged import RaggedIds

transformers.logging.set_verbosity_error()

DATA = Path(__file__).parents[1] / "data" / "families"


def read_json(path: str) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = json.loads((DATA / path).read_text())
    return data


def forward_data(folder: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of ids (1, n) and the original's logits (1, n, vocabulary), unshifted."""
    tensors = load_file(DATA / folder / "forward.safetensors")
    count = len(tensors) // 2
    return [
        (tensors[f"forward.{index}.input_ids"].long()[None], tensors[f"forward.{index}.logits"][None])
        for index in range(count)
    ]


def tiny_model(model_type: str, vocab_size: int, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A random causal LM whose logits are well apart."""
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **(sizes | options))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def save_as(
    model: PreTrainedModel, folder: Path, changes: dict[str, Any], removed: tuple[str, ...] = ("block_size",)
) -> Path:
    """Saves the model in the public format: a config with other keys than transformers writes."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in removed or key in changes}))
    return folder


def copy_checkpoint(folder: str, destination: Path, **changes: Any) -> Path:
    """A checkpoint of the conformance data with some config values changed (None: removed)."""
    shutil.copytree(DATA / folder, destination)
    path = destination / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return destination


def save_dflash2(folder: Path, target: PreTrainedModel, **section: Any) -> Path:
    """A random DFlash 2 checkpoint for a target, in the published layout; its selector's scores count."""
    config = target.config.get_text_config()
    sizes = {"conv_group_size": 4, "conv_kernel_size": 2, "selector_rank": 6, "selector_top_k": 5}
    own = {
        "architectures": ["DFlash2DraftModel"],
        "model_type": "qwen3",
        "is_causal": False,
        "num_hidden_layers": 1,
        "layer_types": ["sliding_attention"],
        "sliding_window": 16,
        "use_sliding_window": True,
        "num_target_layers": config.num_hidden_layers,
        "head_dim": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "dflash_config": {"block_size": 6, "mask_token_id": config.vocab_size - 1, "target_layer_ids": [0]}
        | sizes
        | section,
    } | {key: getattr(config, key) for key in ("vocab_size", "hidden_size", "rms_norm_eps")}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(own))
    values = Qwen3Config.from_dict({key: value for key, value in own.items() if key != "dflash_config"})
    body = DFlashBody(values, config.hidden_size, layer_sights(values, own))
    body.add_convolutions(sizes["conv_kernel_size"], sizes["conv_group_size"])
    body.candidate_selector = CandidateSelector(config.vocab_size, config.hidden_size, sizes["selector_rank"], 5)
    generator = torch.Generator().manual_seed(0)
    weights = {key: torch.randn(value.shape, generator=generator) * 0.6 for key, value in body.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def check_parity(
    target: PreTrainedModel, drafter: DiffusionDrafter, tokens: int = 40, **options: Any
) -> SpecDecodingStats:
    """Asserts that both loops give the target's own text; returns the statistics of our loop."""
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, target.config.get_text_config().vocab_size, (1, 21), generator=generator)
    settings = {"max_new_tokens": tokens, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    plain = target.generate(prompt, **settings)
    settings |= {"assistant_model": drafter, "return_dict_in_generate": True, **options}
    output = target.generate(prompt, custom_generate="hf_failfast", **settings)
    assert output.sequences.tolist() == plain.tolist()
    assisted = hf_failfast.assisted_generate(target, prompt, **settings)
    assert assisted.sequences.tolist() == plain.tolist()
    assert assisted.speculation.records == output.speculation.records
    assert output.speculation.drafted > 0
    stats: SpecDecodingStats = output.speculation
    return stats


@torch.no_grad()
def replay(
    session: MaskedSession,
    prompt: list[int],
    output: list[int],
    steps: list[dict[str, Any]],
    end: int,
    block: int | None = None,
) -> None:
    """Asserts that every step of a recorded generation gives the same ids and confidences from the same masks.

    `end` is the length of the window. A position after the prompt that a step does not list is filled as in the
    output, or still a mask if it lies in a later block of length `block`. Positions where the original writes the mask
    token itself are not compared.
    """
    mask_token_id = cast(int, session.spec.mask_token_id)
    known = torch.tensor([prompt])
    for step in steps:
        canvas = torch.tensor([output[len(prompt) : end]])
        masked = torch.tensor(step["pos"]) - len(prompt)
        canvas[:, masked] = mask_token_id
        if block is not None:
            canvas[:, (int(masked[0]) // block + 1) * block :] = mask_token_id
        ids, confidence, *_ = session._denoise(RaggedIds.full(known), canvas, [canvas.shape[1]], canvas.shape[1])
        compared = torch.tensor(step["tok"]) != mask_token_id
        assert ids[0, masked][compared].tolist() == [token_id for token_id in step["tok"] if token_id != mask_token_id]
        torch.testing.assert_close(
            confidence[0, masked][compared], torch.tensor(step["conf"])[compared], atol=1e-4, rtol=0
        )
