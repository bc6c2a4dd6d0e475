"""The public families of diffusion language models, as data: body, spec, and what their files call things.

Sources are the published configs and the original implementations named per family. A row says what a checkpoint's
own config does not; where the config says it (`mask_token_id`, `block_size`), the config wins over the row.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

QWEN2_MASK = 151665  # the first id after Qwen2.5's special tokens
QWEN3_MASK = 151669  # the first id after Qwen3's special tokens


@dataclass(frozen=True)
class Family:
    """How the checkpoints of one family are recognised, loaded and read.

    model_type: what their config says.
    body: the transformers model type that computes the same, given the attention of the spec; or, if not
        `native_body`, the name of code of ours. `LOADERS` (`drafters/loading.py`) has the bodies that are not loaded
        as a causal LM of transformers.
    spec: `DrafterSpec` values that hold for the family.
    marks: where the model type does not suffice: parts of the checkpoint's name or classes, letters and digits only.
    required_key: or a config key that only this family has.
    config_keys: their config key -> ours; a dot leads into a part of theirs. `block_size` and `mask_token_id` go to
        the spec.
    weight_keys: regular expressions over weight names -> what the body calls them, applied in this order.
    ignored_weights: regular expressions over stored buffers that the body computes itself.
    options: FailFast options that suit the family, for checkpoints that name none.
    takes_drafting_options: whether `DraftingOptions` fit; otherwise it drafts in its own way.
    reads_hidden_states: whether the drafter reads the target's hidden states.
    borrows_embedding: whether embedding and head are the target's.
    block_is_draft: whether one pass drafts one block, whose first position is the last known token.
    mask_is_last_id: whether the mask token is the last of the vocabulary where the config names none.
    """

    name: str
    model_type: str
    body: str
    spec: Mapping[str, Any]
    marks: tuple[str, ...] = ()
    required_key: str | None = None
    config_keys: Mapping[str, str] = field(default_factory=dict)
    weight_keys: Mapping[str, str] = field(default_factory=dict)
    ignored_weights: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    native_body: bool = True
    takes_drafting_options: bool = True
    reads_hidden_states: bool = False
    borrows_embedding: bool = False
    block_is_draft: bool = False
    mask_is_last_id: bool = False

    def matches(self, config: Mapping[str, Any], name: str) -> bool:
        if config.get("model_type") != self.model_type:
            return False
        if not self.marks and self.required_key is None:
            return True
        has_key = self.required_key is not None and self.required_key in config
        return has_key or any(mark in _labels(config, name) for mark in self.marks)

    def renamed(self, config: dict[str, Any]) -> dict[str, Any]:
        """The config in our keys; takes the renamed values out of the given one."""
        found = {}
        for theirs, ours in self.config_keys.items():
            *path, key = theirs.split(".")
            part = reduce(lambda part, name: part.get(name) or {}, path, config)
            if part.get(key) is not None:
                found[ours] = part.pop(key)
        return config | found


BLOCKS = {"attention": "block_causal", "shift": 0}
FULL = {"attention": "bidirectional"}
DLLM_MDLM = FULL | {"shift": 0}
DLLM_BD3LM = BLOCKS | {"block_size": 32, "alignment": "free"}

LLADA_CONFIG = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "n_layers": "num_hidden_layers",
    "mlp_hidden_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "embedding_size": "vocab_size",
    "weight_tying": "tie_word_embeddings",
    "include_qkv_bias": "attention_bias",
}
LLADA_WEIGHTS = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}
DIFFUGPT_WEIGHTS = {r"^denoise_model\.": "transformer.", r"^embed_tokens\.": "transformer.wte."}

# DFlash drafts with the target's embedding, from its hidden states, a block in one pass: short chunks cost no more.
DFLASH: dict[str, Any] = {
    "options": {"chunk_length": 4},
    "takes_drafting_options": False,
    "reads_hidden_states": True,
    "borrows_embedding": True,
    "block_is_draft": True,
}
# Diffusion transformers, for which transformers has no class.
DIT: dict[str, Any] = {"native_body": False, "mask_is_last_id": True}

FAMILIES = (
    # Block-causal with token shift. arXiv 2509.26328.
    Family(
        "Fast-dLLM v2",
        "Fast_dLLM_Qwen",
        "qwen2",
        {"attention": "block_causal", "shift": 1, "mask_token_id": QWEN2_MASK, "block_size": 32},
        config_keys={"bd_size": "block_size"},
    ),
    # Block-causal without shift. SDAR: arXiv 2510.06303; the Hub's configs name neither block size nor mask id.
    Family("SDAR / TraDo", "sdar", "qwen3", BLOCKS | {"mask_token_id": QWEN3_MASK, "block_size": 4}),
    Family("SDAR MoE", "sdar_moe", "qwen3_moe", BLOCKS | {"mask_token_id": QWEN3_MASK, "block_size": 4}),
    # DFlash configs call themselves qwen3 and have a block size, so they come first. arXiv 2602.06036.
    Family(
        "DFlash",
        "qwen3",
        "dflash",
        FULL | {"shift": 0},
        required_key="dflash_config",
        config_keys={f"dflash_config.{key}": key for key in ("mask_token_id", "target_layer_ids")},
        native_body=False,
        **DFLASH,
    ),
    Family(
        "DFlash assistant of transformers",
        "muse_glimmer_assistant",
        "muse_glimmer_assistant",
        FULL | {"shift": 0, "mask_token_id": 201818, "block_size": 16},
        **DFLASH,
    ),
    Family(
        "Efficient-DLM",
        "qwen3",
        "qwen3",
        BLOCKS | {"mask_token_id": 151662, "block_size": 32},
        marks=("efficientdlm",),
        required_key="block_size",
    ),
    Family(
        "Stable-DiffCoder",
        "llama",
        "llama",
        BLOCKS | {"mask_token_id": 5, "block_size": 4},
        marks=("stablediffcoder",),
    ),
    # dllm's AR-to-diffusion checkpoints: one model type, two attentions, told apart by name.
    Family("dllm bd3lm", "a2d-qwen3", "qwen3", DLLM_BD3LM | {"mask_token_id": QWEN3_MASK}, marks=("bd3lm",)),
    Family("dllm bd3lm", "a2d-qwen2", "qwen2", DLLM_BD3LM | {"mask_token_id": QWEN2_MASK}, marks=("bd3lm",)),
    Family("dllm mdlm", "a2d-qwen3", "qwen3", DLLM_MDLM | {"mask_token_id": QWEN3_MASK}, marks=("mdlm",)),
    Family("dllm mdlm", "a2d-qwen2", "qwen2", DLLM_MDLM | {"mask_token_id": QWEN2_MASK}, marks=("mdlm",)),
    # Bidirectional. Dream: arXiv 2508.15487; LLaDA: 2502.09992; DiffuLLaMA and DiffuGPT: 2410.17891.
    Family("Dream / DiffuCoder", "Dream", "qwen2", FULL | {"shift": 1, "mask_token_id": 151666}),
    Family("Open-dCoder", "qwen2", "qwen2", FULL | {"shift": 1, "mask_token_id": QWEN2_MASK}, marks=("opendcoder",)),
    Family(
        "LLaDA",
        "llada",
        "llama",
        FULL | {"shift": 0, "mask_token_id": 126336},
        config_keys=LLADA_CONFIG,
        weight_keys=LLADA_WEIGHTS,
    ),
    Family("DiffuLLaMA", "llama", "llama", FULL | {"shift": 1}, marks=("diffullama",)),
    Family(
        "DiffuGPT",
        "diffugpt",
        "gpt2",
        FULL | {"shift": 1, "mask_token_id": 10541},
        weight_keys=DIFFUGPT_WEIGHTS,
        ignored_weights=(r"\.attn\.bias$", r"\.attn\.masked_bias$"),
    ),
    # MDLM: arXiv 2406.07524; BD3-LM: 2503.09573.
    Family("MDLM", "mdlm", "dit", FULL | {"shift": 0}, **DIT),
    Family("BD3-LM", "bd3lm", "dit", BLOCKS, **DIT),
    # Random canvas instead of masks, native to transformers.
    Family(
        "DiffusionGemma",
        "diffusion_gemma",
        "diffusion_gemma",
        {"attention": "causal_canvas", "shift": 0, "mask_token_id": None, "noise": "random"},
        takes_drafting_options=False,
    ),
)


def find_family(config: Mapping[str, Any], name: str) -> Family | None:
    """The family of a checkpoint with this config and this name (Hub id or folder); None if it is not a known one."""
    return next((family for family in FAMILIES if family.matches(config, name)), None)


def bodies() -> dict[str, str]:
    """Every known model type -> the native model type of its body."""
    return {family.model_type: family.body for family in reversed(FAMILIES) if family.native_body}


def nearest_family(model_type: str) -> Family:
    """The known family to compare an unknown checkpoint with: of the same body, or of the most similar name."""
    same_body = [family for family in FAMILIES if model_type in (family.body, family.model_type)]
    if same_body:
        return same_body[0]
    names = [family.model_type for family in FAMILIES]
    closest = difflib.get_close_matches(model_type, names, n=1, cutoff=0)[0]
    return FAMILIES[names.index(closest)]


def block_size_of_name(name: str) -> int | None:
    """The block size in a Hub id such as `JetLM/SDAR-4B-Chat-b32` or `kuleshov-group/bd3lm-owt-block_size16`."""
    found = re.search(r"(?:-b|block_?size)(\d+)$", name.rstrip("/"))
    return int(found.group(1)) if found else None


def _labels(config: Mapping[str, Any], name: str) -> str:
    """The names that a checkpoint has: its own, its classes' and files'; letters and digits only."""
    auto_map = config.get("auto_map") or {}
    parts = [name.rstrip("/").rsplit("/")[-1], config.get("_name_or_path") or "", *(config.get("architectures") or ())]
    labels = " ".join([*map(str, parts), *map(str, auto_map.values())])
    return re.sub(r"[^a-z0-9 ]", "", labels.lower())
