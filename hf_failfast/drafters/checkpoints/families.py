"""The public families of diffusion language models, as data: body, spec, and what their files call things.

Sources are the published configs and the original implementations named per family. A row says what a checkpoint's
own config does not; where the config or the tokenizer says it (`mask_token_id`, `block_size`), they win over the row.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from .family import Family, Listing, class_names

QWEN2_MASK = 151665  # the first id after Qwen2.5's special tokens
QWEN3_MASK = 151669  # the first id after Qwen3's special tokens

# PEFT's adapter_config.json, what it says of a LoRA of linear layers. Settings that would change its output otherwise.
LORA_KEYS = ("alpha_pattern", "lora_alpha", "r", "rank_pattern", "target_modules", "use_rslora")
LORA_FIXED: dict[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": (),
    "arrow_config": (),
    "bias": ("none",),
    # The others take a part out of the base model's weights.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "layer_replication": ([],),
    "lora_bias": (False,),
    "megatron_config": (),
    "modules_to_save": ([],),
    "peft_type": ("LORA",),
    "target_parameters": ([],),
    "task_type": ("CAUSAL_LM",),
    "trainable_token_indices": (),
    "use_bdlora": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
}
# Of the beginning of training, of merging, of how PEFT finds the layers whose updates the weight file names.
LORA_OTHER = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
)
# One pass a draft: each costs as much as a verification.
LORA_OPTIONS = {"chunk_length": 8, "max_draft_length": 8}
UNO_CALL = 'load_drafter(id, subfolder="adapter")'


def _lora(name: str, spec: Mapping[str, Any], names: tuple[str, ...], listing: Listing) -> Family:
    return Family(
        name,
        None,
        "lora",
        {"attention": "causal", "shift": 1, **spec},
        names=names,
        needs=("peft_type",),
        own_keys=LORA_KEYS,
        fixed=LORA_FIXED,
        without_effect=LORA_OTHER,
        weights="adapter_model",
        options=LORA_OPTIONS,
        native_body=False,
        takes_drafting_options=False,
        listing=listing,
    )


BLOCKS = {"attention": "block_causal", "shift": 0}
FULL = {"attention": "bidirectional"}
DLLM_MDLM = FULL | {"shift": 0}
DLLM_BD3LM = BLOCKS | {"block_size": 32, "alignment": "free"}

CODA_TRAINING = (
    "attention_kernel",
    "block_masking_probability",
    "mask_block_sizes",
    "prefix_probability",
    "sampling_eps",
    "truncate_probability",
)
SDAR_TRAINING = ("debug", "ep_size", "fuse_cross_entropy", "micro_forward", "skip_checkpoint", "use_deepep")
# The training of NVIDIA's diffusion models, whatever attention it used beside the one of a draft.
NVIDIA_TRAINING = (
    "ada_dlm_loss_ratio",
    "ada_perm_ratio_global",
    "ada_perm_ratio_per_block",
    "adaptive_mask_rate",
    "ar_loss_weight",
    "complementary_mask",
    "diff_loss_weight",
    "dlm_arch",
    "dlm_loss_weight",
    "dlm_paradigm",
    "dlm_type",
    "dp_varying_mask_ratio",
    "global_loss_avg",
    "multi_sampling",
    "num_skip_loss_tokens",
    "prefix_ratio",
    "random_length_prob",
    "tok_mask_half_life_ratio",
)

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
# Of the variants that LLaDA's own code has, the published one is Llama's architecture.
LLADA_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_type": ("silu",),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False,),
    "block_group_size": (1,),
    "block_type": ("llama",),
    "clip_qkv": (),
    "include_bias": (False,),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "multi_query_attention": (False,),
    "rope": (True,),
    "scale_logits": (False,),
}
LLADA_OTHER = (
    "alibi_bias_max",
    "attention_layer_norm_with_affine",
    "embedding_dropout",
    "flash_attention",
    "init_cutoff_factor",
    "init_device",
    "init_fn",
    "init_std",
    "mlp_ratio",
    "precision",
    "residual_dropout",
    "rope_full_precision",
)
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

# Three names for one thing each: whether all layers read the block causally, and whether the last known token's row
# is a draft's first. JetSpec says `causal_head`.
DFLASH_CONFIG = {
    "causal": "is_causal",
    "causal_head": "is_causal",
    "is_causal": "is_causal",
    "sample_from_anchor": "shift",
    "shift_label": "shift",
}
DFLASH_KEYS = (
    "block_size",
    "final_logit_softcapping",
    "input_embedding_scale",
    "mask_token_id",
    "num_target_layers",
    "output_multiplier",
    "swa_window_size",
    "target_hidden_size",
    "target_layer_ids",
    "use_swa",
)
DFLASH_FIXED: dict[str, tuple[Any, ...]] = {
    "attention_sink_bias": (False,),
    "draft_shift": (False,),
    "fc_norm": (False,),
    "projector_type": ("dflash",),
}
DFLASH2_DEFAULTS = {"conv_group_size": 16, "conv_kernel_size": 2, "selector_rank": 256, "selector_top_k": 16}
DSPARK_DEFAULTS = {
    "confidence_head_with_markov": True,
    "enable_confidence_head": True,
    "markov_head_type": "vanilla",
    "markov_rank": 256,
}
DSPARK_KEYS = tuple(DSPARK_DEFAULTS)
SPECULATORS_KEYS = ("draft_vocab_size", "sliding_window_non_causal", "speculators_model_type", "target_hidden_size")
SPECULATORS_OTHER = ("max_anchors", "speculators_config", "speculators_version")
# Frozen copies of the target's weights; ours are the target's themselves.
TARGETS_OWN = (r"^embed_tokens\.", r"^lm_head\.", r"^verifier_(lm_head|norm)\.")
# DFlash drafts with the target's embedding, from its hidden states, a block in one pass: short chunks cost no more.
DFLASH: dict[str, Any] = {
    "options": {"chunk_length": 4},
    "takes_drafting_options": False,
    "reads_hidden_states": True,
    "block_is_draft": True,
}
# Diffusion transformers, for which transformers has no class.
DIT: dict[str, Any] = {
    "native_body": False,
    "mask_is_last_id": True,
    "own_keys": ("cond_dim", "hidden_dim", "model_length", "n_blocks", "n_heads", "vocab_size"),
}

FAMILIES = (
    # Block-causal with token shift. arXiv 2509.26328.
    Family(
        "Fast-dLLM v2",
        "Fast_dLLM_Qwen",
        "qwen2",
        {"attention": "block_causal", "shift": 1, "mask_token_id": QWEN2_MASK, "block_size": 32},
        config_keys={"bd_size": "block_size"},
        without_effect=("conplemenrary_mask", "complementary_mask"),
        listing=Listing(
            "Efficient-Large-Model/Fast_dLLM_v2_1.5B, _7B", "Qwen2.5", "up to 32, to the block edge", "data"
        ),
    ),
    # Block-causal without shift. SDAR: arXiv 2510.06303; the Hub's configs name neither block size nor mask id.
    Family(
        "SDAR / TraDo",
        "sdar",
        "qwen3",
        BLOCKS | {"mask_token_id": QWEN3_MASK, "block_size": 4},
        without_effect=SDAR_TRAINING,
        listing=Listing(
            "JetLM/SDAR-{1.7B,4B,8B}-Chat, -b8 to -b64; Gen-Verse/TraDo-*",
            "Qwen3",
            "up to 4 (too short to gain much), or to N of `-bN`",
            "data (blocks of 4 and 32)",
            'load_drafter("JetLM/SDAR-1.7B-Chat-b32")',
        ),
    ),
    Family(
        "SDAR MoE",
        "sdar_moe",
        "qwen3_moe",
        BLOCKS | {"mask_token_id": QWEN3_MASK, "block_size": 4},
        own_keys=("head_dim",),  # read by the model, though its config class does not list it
        without_effect=SDAR_TRAINING,
        listing=Listing("JetLM/SDAR-30B-A3B-Chat, -Sci", "Qwen3", "up to 4", "format"),
    ),
    # DFlash configs call themselves qwen3. arXiv 2602.06036; JetSpec is the same with a causal block.
    Family(
        "DFlash",
        "qwen3",
        "dflash",
        FULL | {"shift": 0, "block_size": 16},
        classes=("dflashdraftmodel",),
        sign="dflash_config",
        config_keys=DFLASH_CONFIG,
        section="dflash_config",
        body_config="qwen3",
        own_keys=DFLASH_KEYS,
        fixed=DFLASH_FIXED,
        native_body=False,
        listing=Listing(
            "z-lab/Qwen3-4B-DFlash-b16, Qwen3-8B-DFlash-b16 and others of the class `DFlashDraftModel`; "
            "JetSpec/jetspec-\\*",
            "the target it was trained for",
            "block - 1 (7, 15)",
            "data; JetSpec's causal block: format",
        ),
        **DFLASH,
    ),
    # One more in the block: two-tap convolutions, and a selector of each position's best candidates.
    Family(
        "DFlash 2",
        "qwen3",
        "dflash2",
        FULL | {"shift": 0, "block_size": 16},
        classes=("dflash2draftmodel",),
        config_keys=DFLASH_CONFIG,
        section="dflash_config",
        body_config="qwen3",
        own_keys=(*DFLASH_KEYS, "conv_group_size", "conv_kernel_size", "selector_rank", "selector_top_k"),
        fixed=DFLASH_FIXED,
        native_body=False,
        listing=Listing(
            "z-lab/Qwen3.8-27B-DFlash2, z-lab/Muse-Glimmer-30B-DFlash2 and others of the class `DFlash2DraftModel`",
            "the target it was trained for",
            "block - 1 (7, 15)",
            "data",
        ),
        **DFLASH,
    ),
    # A Markov head on the same layers, and a head for the probability of acceptance. arXiv 2607.05147.
    Family(
        "DSpark",
        "qwen3",
        "dspark",
        FULL | {"shift": 1},
        classes=("qwen3dsparkmodel",),
        needs=("target_layer_ids", "markov_rank"),
        body_config="qwen3",
        own_keys=("block_size", "mask_token_id", "num_target_layers", "target_layer_ids", *DSPARK_KEYS),
        fixed=DFLASH_FIXED | {"dspark_bonus_anchor": (False,)},
        without_effect=("num_anchors",),
        ignored_weights=TARGETS_OWN,
        native_body=False,
        listing=Listing(
            "deepseek-ai/dspark_qwen3_{4b,8b,14b}_block7",
            "the target it was trained for",
            "block (7)",
            "format",
        ),
        **DFLASH,
    ),
    # The same three in the format of vLLM's speculators 0.9: no model type, states in place of layers, vLLM's names.
    *(
        Family(
            f"{kind} of speculators",
            None,
            body,
            FULL | {"shift": shift, "block_size": 8},
            values={"speculators_model_type": body},
            config_defaults={"sliding_window_non_causal": both_ways, **defaults},
            config_keys={"sample_from_anchor": "shift", "aux_hidden_state_layer_ids": "target_states"},
            body_section="transformer_layer_config",
            body_config="qwen3",
            own_keys=("block_size", "mask_token_id", *SPECULATORS_KEYS, *defaults),
            without_effect=SPECULATORS_OTHER,
            ignored_weights=TARGETS_OWN,
            native_body=False,
            listing=Listing(
                f"RedHatAI/\\*-speculator.{body}",
                "the target it was trained for",
                "block (8)" if shift else "block - 1 (7)",
                "format",
            ),
            **DFLASH,
        )
        for kind, body, shift, both_ways, defaults in (
            ("DFlash", "dflash", 0, False, {}),
            ("DFlash 2", "dflash2", 0, True, DFLASH2_DEFAULTS),
            ("DSpark", "dspark", 1, False, DSPARK_DEFAULTS),
        )
    ),
    Family(
        "DFlash assistant of transformers",
        "muse_glimmer_assistant",
        "muse_glimmer_assistant",
        FULL | {"shift": 0, "mask_token_id": 201818, "block_size": 16},
        listing=Listing(
            "meta-models/Muse-Glimmer-30B-assistant (transformers' own DFlash class)",
            "Muse Glimmer",
            "block - 1 (15)",
            "format; drafts equal to transformers' own generator's; text prompts only",
        ),
        **DFLASH,
    ),
    # arXiv 2512.14067.
    Family(
        "Efficient-DLM",
        "qwen3",
        "qwen3",
        BLOCKS | {"mask_token_id": 151662, "block_size": 32},
        classes=("efficientdlm",),
        names=("efficientdlm",),
        needs=("block_size",),
        without_effect=NVIDIA_TRAINING,
        listing=Listing("nvidia/Efficient-DLM-{4B,8B}", "Qwen3", "up to 32", "format; mask id not confirmed"),
    ),
    Family(
        "Stable-DiffCoder",
        "llama",
        "llama",
        BLOCKS | {"mask_token_id": 5, "block_size": 4},
        classes=("stablediffcoder",),
        listing=Listing("ByteDance-Seed/Stable-DiffCoder-8B-{Base,Instruct}", "Seed-Coder", "up to 4", "format"),
    ),
    # dllm's AR-to-diffusion checkpoints: one model type, two attentions, told apart by name.
    Family(
        "dllm bd3lm",
        "a2d-qwen3",
        "qwen3",
        DLLM_BD3LM | {"mask_token_id": QWEN3_MASK},
        names=("bd3lm",),
        listing=Listing(
            "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1, dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-bd3lm-v0.1",
            "Qwen3, Qwen2.5",
            "32, from any position",
            "format",
        ),
    ),
    Family("dllm bd3lm", "a2d-qwen2", "qwen2", DLLM_BD3LM | {"mask_token_id": QWEN2_MASK}, names=("bd3lm",)),
    Family(
        "dllm mdlm",
        "a2d-qwen3",
        "qwen3",
        DLLM_MDLM | {"mask_token_id": QWEN3_MASK},
        names=("mdlm",),
        listing=Listing("dllm-hub/\\*-diffusion-mdlm-v0.1", "Qwen3, Qwen2.5", "any", "format"),
    ),
    Family("dllm mdlm", "a2d-qwen2", "qwen2", DLLM_MDLM | {"mask_token_id": QWEN2_MASK}, names=("mdlm",)),
    # Bidirectional. Dream: arXiv 2508.15487; LLaDA: 2502.09992; DiffuLLaMA and DiffuGPT: 2410.17891.
    Family(
        "Dream / DiffuCoder",
        "Dream",
        "qwen2",
        FULL | {"shift": 1, "mask_token_id": 151666},
        fixed={"use_mrope": (False,)},
        listing=Listing(
            "Dream-org/Dream-v0-\\*, Dream-Coder-v0-\\*; apple/DiffuCoder-7B-\\*", "Qwen2.5", "any", "data"
        ),
    ),
    # Qwen3's MoE under its own names, read both ways: github.com/RadicalNumerics/RND1.
    Family(
        "RND1",
        "rnd1",
        "qwen3_moe",
        FULL | {"shift": 1, "mask_token_id": QWEN3_MASK},
        own_keys=("head_dim",),
        fixed={"is_causal": (False,)},
        without_effect=("moe_backend", "num_diffusion_steps"),
        listing=Listing("radicalnumerics/RND1-Base-0910", "Qwen3", "any", "format; config as its class writes it"),
    ),
    # arXiv 2510.03270. Its config leaves out that head and embedding are two.
    Family(
        "CoDA",
        "CoDA",
        "qwen3",
        FULL | {"shift": 1, "mask_token_id": QWEN3_MASK},
        config_defaults={"tie_word_embeddings": False},
        without_effect=CODA_TRAINING,
        listing=Listing("Salesforce/CoDA-v0-{Base,Instruct}", "Qwen3", "any", "format; config not seen whole"),
    ),
    Family(
        "Open-dCoder",
        "qwen2",
        "qwen2",
        FULL | {"shift": 1, "mask_token_id": QWEN2_MASK},
        classes=("opendcoder",),
        names=("opendcoder",),
        listing=Listing("fredzzp/open-dcoder-0.5B", "Qwen2.5", "any", "format"),
    ),
    Family(
        "LLaDA",
        "llada",
        "llama",
        FULL | {"shift": 0, "mask_token_id": 126336},
        config_keys=LLADA_CONFIG,
        fixed=LLADA_FIXED,
        without_effect=LLADA_OTHER,
        weight_keys=LLADA_WEIGHTS,
        listing=Listing("GSAI-ML/LLaDA-8B-\\*, LLaDA-1.5", "its own: no AR target", "any", "data"),
    ),
    Family(
        "DiffuLLaMA",
        "llama",
        "llama",
        FULL | {"shift": 1, "mask_token_id": 811},
        names=("diffullama",),
        listing=Listing("diffusionfamily/diffullama", "Llama 2", "any", "format"),
    ),
    # GPT-2's config.json, or none, beside the weights of a wrapper.
    Family(
        "DiffuGPT",
        "diffugpt",
        "gpt2",
        FULL | {"shift": 1},
        without_effect=("n_ctx",),
        weight_keys=DIFFUGPT_WEIGHTS,
        ignored_weights=(r"\.attn\.bias$", r"\.attn\.masked_bias$"),
        mask_by_width={768: 10541, 1024: 50257},
        listing=Listing(
            "diffusionfamily/diffugpt-{s,m}",
            "GPT-2",
            "any",
            "format; mask id of -m: the first free one, not confirmed",
        ),
    ),
    # MDLM: arXiv 2406.07524; BD3-LM: 2503.09573.
    Family(
        "MDLM",
        "mdlm",
        "dit",
        FULL | {"shift": 0},
        fixed={"time_conditioning": (False,)},
        without_effect=("dropout",),
        listing=Listing(
            "kuleshov-group/mdlm-owt, mdlm-no_flashattn-fp32-owt, mdlm-noeos-owt",
            "GPT-2",
            "any, 1,024 positions",
            "data",
            "load_drafter(id, denoising_steps=2)",
        ),
        **DIT,
    ),
    Family(
        "BD3-LM",
        "bd3lm",
        "dit",
        BLOCKS,
        fixed={"adaln": (True,), "causal": (False,), "time_conditioning": (False,)},
        without_effect=("attn_backend", "cross_attn", "dropout", "sampling_eps_max", "sampling_eps_min", "var_min"),
        listing=Listing(
            "kuleshov-group/bd3lm-owt-block_size{4,8,16}",
            "GPT-2",
            "up to 4, 8, 16, 1,024 positions",
            "data (blocks of 4)",
        ),
        **DIT,
    ),
    # Plain causal LMs that fill masks causally. PARD: arXiv 2504.18583.
    *(
        Family(
            "PARD",
            body,
            body,
            {"attention": "causal", "shift": 1},
            needs=("pard_token",),
            config_keys={"pard_token": "mask_token_id"},
            fixed={"spd_type": ("pard",)},
            listing=listing,
        )
        for body, listing in (
            (
                "qwen2",
                Listing(
                    "amd/PARD-Qwen2.5-0.5B, PARD-Qwen3-0.6B, PARD-Llama-3.2-1B, PARD-DeepSeek-R1-Distill-Qwen-1.5B",
                    "Qwen2.5, Qwen3, Llama 3",
                    "any",
                    "format",
                ),
            ),
            ("qwen3", None),
            ("llama", None),
        )
    ),
    # WeDLM, by its config a Qwen2.5 or a Qwen3.
    *(
        Family(
            "WeDLM",
            "wedlm",
            body,
            {"attention": "causal", "shift": 0, "mask_token_id": QWEN2_MASK},
            values={"qk_norm": has_norm},
            own_keys=("qk_norm",),
            fixed={} if has_norm else {"attention_bias": (True,), "head_dim": ()},
            without_effect=("wedlm_entropy_threshold", "wedlm_pos_penalty_factor", "wedlm_window_size"),
            listing=Listing("tencent/WeDLM-{7B,8B}-\\*", "Qwen2.5, Qwen3", "any", "format") if has_norm else None,
        )
        for body, has_norm in (("qwen3", True), ("qwen2", False))
    ),
    # A causal LM that was trained on its own unfinished Jacobi iterations: random tokens in place of masks.
    Family(
        "Jacobi forcing",
        "qwen2",
        "qwen2",
        {"attention": "causal", "shift": 1, "mask_token_id": None, "noise": "random"},
        names=("jacobiforcing",),
        listing=Listing(
            "JacobiForcing/JacobiForcing_{Coder,Math}_7B_v1",
            "Qwen2.5",
            "any",
            "format; the original starts from earlier guesses, here each chunk from random tokens",
        ),
    ),
    # Causal text; the last known token and the masks after it see each other. SDLM: arXiv 2509.24007.
    Family(
        "SDLM",
        "qwen2",
        "qwen2",
        {"attention": "anchored_canvas", "shift": 1, "mask_token_id": QWEN2_MASK, "block_size": 4},
        needs=("text_mask_token_id",),
        config_keys={"text_mask_token_id": "mask_token_id"},
        fixed={"causal_attn": (False,)},
        listing=Listing("OpenGVLab/SDLM-3B-D4, SDLM-3B-D8, SDLM-32B-D4", "Qwen2.5", "block (4, 8)", "format"),
    ),
    Family(
        "Nemotron-Labs-Diffusion",
        "nemotron_labs_diffusion",
        "ministral3",
        {"attention": "anchored_canvas", "shift": 0, "mask_token_id": 100, "block_size": 32},
        fixed={"attention_bias": (False,), "mlp_bias": (False,), "num_ar_layers": (0,), "num_diffusion_layers": (0,)},
        without_effect=NVIDIA_TRAINING,
        weight_keys={r"^encoder\.": "model.", r"^diffusion_head\.": "lm_head."},
        listing=Listing("nvidia/Nemotron-Labs-Diffusion-{3B,8B,14B}", "Ministral 3", "block - 1 (31)", "format"),
    ),
    # The target itself with a LoRA on the positions to be filled. Uno: arXiv 2609.04010; I-DLM: arXiv 2604.11035.
    _lora(
        "Uno",
        {"noise": "random", "mask_token_id": QWEN3_MASK},
        ("uno",),
        Listing("s-sahoo/uno-qwen3-8B", "Qwen3-8B itself", "any (16 trained)", "format", UNO_CALL),
    ),
    _lora(
        "I-DLM",
        {"mask_token_id": QWEN3_MASK},
        ("idlm",),
        Listing("yifanyu/I-DLM-8B-lora-r128", "Qwen3-8B itself", "any (4 trained)", "format; config not seen"),
    ),
    # Random canvas instead of masks, native to transformers.
    Family(
        "DiffusionGemma",
        "diffusion_gemma",
        "diffusion_gemma",
        {"attention": "causal_canvas", "shift": 0, "mask_token_id": None, "noise": "random"},
        takes_drafting_options=False,
        listing=Listing(
            "google/diffusiongemma-26B-A4B-it",
            "Gemma 4",
            "any (256 trained)",
            "format; equal to transformers' own forward",
        ),
    ),
)

# Any other LoRA: how it drafts is in the file beside it, or is said by the caller.
ANY_LORA = _lora(
    "LoRA",
    {"mask_token_id": None},
    (),
    Listing("LoRAs of `hf-failfast train --lora`, and others by arguments", "the target itself", "any", "format"),
)


def find_family(config: Mapping[str, Any], name: str) -> Family | None:
    """The family of a checkpoint with this config and this name (Hub id or folder); None if it is not a known one.

    Raises ValueError if it could be of two.
    """
    found = [family for family in FAMILIES if family.matches(config, name)]
    if len({family.name for family in found}) > 1:
        raise ValueError(
            f"{name!r} could be of {len(found)} families: {' or '.join(family.name for family in found)}. Pass "
            "`attention=` and what else applies, or give the folder a name that says which."
        )
    if not found and "peft_type" in config:
        return ANY_LORA
    return found[0] if found else None


def check_section(config: Mapping[str, Any]) -> None:
    """Raises ValueError on a config, of no known family, with the section of one: its class is what is not known."""
    for family in FAMILIES:
        if family.section is not None and family.section in config:
            known = [each.name for each in FAMILIES if each.section == family.section]
            raise ValueError(
                f"The config has `{family.section}` as {' and '.join(known)} checkpoints do, but its classes "
                f"{class_names(config)} (`model_type` {config.get('model_type')!r}) are not known."
            )


def bodies() -> dict[str, str]:
    """Every known model type -> the native model type of its body."""
    families = [family for family in reversed(FAMILIES) if family.native_body and family.model_type is not None]
    return {str(family.model_type): family.body for family in families}


def nearest_family(model_type: str) -> Family:
    """The known family to compare an unknown checkpoint with: of the same body, or of the most similar name."""
    same_body = [family for family in FAMILIES if model_type in (family.body, family.model_type)]
    if same_body:
        return same_body[0]
    names = [str(family.model_type) for family in FAMILIES]
    closest = difflib.get_close_matches(model_type, names, n=1, cutoff=0)[0]
    return FAMILIES[names.index(closest)]


def block_size_of_name(name: str) -> int | None:
    """The block size in a Hub id such as `JetLM/SDAR-4B-Chat-b32` or `kuleshov-group/bd3lm-owt-block_size16`."""
    found = re.search(r"(?:-b|block_?size)(\d+)$", name.rstrip("/"))
    return int(found.group(1)) if found else None
