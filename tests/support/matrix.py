"""The compatibility matrix: one row per promise, with its test. docs/compatibility.md shows these rows."""

from typing import Literal, NamedTuple

Result = Literal["exact", "same distribution", "refused", "not tested"]


class Row(NamedTuple):
    feature: str
    result: Result
    test: str | None  # "file::function" in tests/; None only if nothing was tested
    note: str = ""


MATRIX: dict[str, list[Row]] = {
    "Decoding": [
        Row("32 architectures, alone and in a batch", "exact", "test_architectures::test_every_architecture"),
        Row(
            "texts beyond rotary positions, windows and chunks",
            "exact",
            "test_architectures::test_beyond_the_limits",
            "eager and with graphs; learned positions end as in plain `generate`",
        ),
        Row(
            "one text across a longrope change; dynamic NTK",
            "exact",
            "test_architectures::test_rotary_embeddings_change",
            "no draft crosses the change, none follows it with dynamic NTK; Phi-3 needs transformers 5.20",
        ),
        Row("greedy, 8 architectures, 6 kinds of drafter", "exact", "test_parity::test_every_drafter_on_every_target"),
        Row(
            "sampling: temperature, top-k, top-p, min-p, typical, penalties",
            "same distribution",
            "test_sampling::test_samples_follow_the_targets_distribution",
            "`verifier=` `sample_and_match` (default) or `rejection`",
        ),
        Row(
            "rejection sampling of drafts of several denoising steps",
            "same distribution",
            "test_sampling::test_drafts_of_several_denoising_steps",
        ),
        Row(
            "first tokens of SmolLM2 and the bundled drafter",
            "same distribution",
            "test_sampling_real::test_first_tokens_are_those_of_plain_sampling",
            "two samples, both verifiers",
        ),
        Row(
            "trees (`draft_tree`): 32 architectures, windows, chunks, processors, stops, batches",
            "exact",
            "test_trees::test_every_architecture",
            "sliding windows and chunks by positions, eager and with graphs",
        ),
        Row(
            "sampling through trees, both verifiers",
            "same distribution",
            "test_trees::test_samples_follow_the_targets_distribution",
        ),
        Row("lookup tails (`draft_lookup`), as chains and branches", "exact", "test_lookup::test_every_architecture"),
        Row("reused drafts (`draft_reuse`), with trees and tails", "exact", "test_reuse::test_with_everything_else"),
        Row("several drafts of a pass (`self_selection`)", "exact", "test_self_selection::test_identical_to_plain"),
        Row("drafting while the target verifies (`overlap`)", "exact", "test_overlap::test_identical_to_plain"),
        Row('searched paths (`length_policy="diffuspec"`)', "exact", "test_path_search::test_every_architecture"),
        Row(
            "stacks of drafters (`Hierarchy`), whichever levels are asked",
            "exact",
            "test_hierarchy::test_every_architecture",
        ),
        Row(
            "sampling with searched paths and with stacks, both verifiers",
            "same distribution",
            "test_hierarchy::test_samples_follow_the_targets_distribution",
        ),
        Row(
            "sampling with lookup tails, both verifiers",
            "same distribution",
            "test_lookup::test_samples_follow_the_targets_distribution",
        ),
        Row(
            "a seed repeats a sample",
            "exact",
            "test_sampling::test_a_seed_reproduces_the_samples",
            "while measured times stop no draft (docs/performance.md)",
        ),
        Row(
            "logits processors in any combination, watermarking and guidance among them",
            "exact",
            "test_processors::test_greedy_equals_plain_generation",
            "random stacks",
        ),
        Row("the user's processors, stateful ones too", "exact", "test_parity::test_stateful_processor"),
    ],
    "Ends and outputs": [
        Row("several end-of-sequence ids", "exact", "test_stopping::test_end_of_sequence_inside_an_accepted_block"),
        Row("stop strings", "exact", "test_stopping::test_stop_string_inside_an_accepted_block"),
        Row("the user's criteria", "exact", "test_stopping::test_user_criterion_inside_an_accepted_block"),
        Row("streamers", "exact", "test_entry_points::test_a_streamer_gets_nothing_after_a_stop"),
        Row("`output_scores`, `output_logits`", "exact", "test_parity::test_scores_and_logits"),
        Row(
            "`output_hidden_states`, `output_attentions`",
            "exact",
            "test_layer_outputs::test_one_prompt",
            'per emitted token; attentions need `attn_implementation="eager"`, as in plain `generate`',
        ),
        Row("`logits_to_keep`", "exact", "test_layer_outputs::test_logits_to_keep"),
        Row("scores of samples", "exact", "test_processors::test_sampled_scores_are_the_processors_own"),
        Row(
            "`cache` (before transformers 5.24 `past_key_values`) of an earlier call",
            "exact",
            "test_multi_turn::test_a_second_turn_continues_either_way",
        ),
        Row(
            "the drafter's K/V of earlier turns (`Conversation`)",
            "exact",
            "test_conversation::test_a_turn_drafts_as_if_it_had_read_all",
            "one text; the hidden states that a drafter reads are kept, too",
        ),
        Row(
            "`StaticCache`, `DynamicCache` and its subclasses as `cache`",
            "exact",
            "test_multi_turn::test_other_caches_continue_either_way",
            "a subclass with an `update` of its own is refused",
        ),
        Row('`cache_implementation="static"`', "exact", "test_multi_turn::test_cache_implementation_static"),
        Row(
            '`cache_implementation="quantized"` or `"offloaded"`',
            "refused",
            "test_bad_input::test_unsupported_requests_are_named",
        ),
    ],
    "Batches": [
        Row(
            "rows of different length, padded left or right",
            "exact",
            "test_batch::test_rows_get_the_tokens_they_get_alone",
        ),
        Row(
            "a mask with holes",
            "exact",
            "test_batch::test_a_mask_with_holes",
            "sliding windows count shown tokens only",
        ),
        Row("rows that end at different times", "exact", "test_batch::test_rows_that_end_at_different_times"),
        Row("processors", "exact", "test_batch_options::test_processors"),
        Row("stop strings of each row", "exact", "test_batch_options::test_stop_strings"),
        Row(
            "criteria with a memory of rows (lm-eval's)",
            "exact",
            "test_batch_options::test_criteria_with_a_memory_of_rows",
        ),
        Row("`num_return_sequences`", "same distribution", "test_batch_options::test_num_return_sequences"),
        Row("streamers that take a batch", "exact", "test_batch_options::test_a_streamer_of_a_batch_gets_columns"),
        Row("hidden states and attentions", "exact", "test_layer_outputs::test_a_ragged_batch"),
        Row("the returned `cache`", "exact", "test_batch::test_the_returned_cache_continues"),
        Row(
            "Llama 4 beyond `floor_scale`, GPT-Neo, decoders of BART's kind",
            "refused",
            "test_bad_input::test_places_counted_from_the_cache_in_a_batch",
            "exact one by one",
        ),
        Row("BLOOM, Falcon with ALiBi", "refused", "test_bad_input::test_alibi_in_a_batch", "exact one by one"),
        Row(
            "flash or flex attention",
            "refused",
            "test_bad_input::test_a_batch_needs_masks",
            "sdpa and eager take the mask of a batch",
        ),
    ],
    "Faults": [
        Row("a drafter that fails, hangs or answers NaN", "exact", "test_fallback::test_the_rest_is_decoded_plainly"),
        Row("one drafter in several threads", "exact", "test_fallback::test_one_drafter_in_several_threads"),
    ],
    "Targets": [
        Row("bitsandbytes, 4 bits (NF4)", "exact", "test_targets::test_targets", "CPU kernels"),
        Row(
            "bitsandbytes, 8 bits, `llm_int8_threshold=0.0`",
            "exact",
            "test_targets::test_targets",
            "CPU kernels; other thresholds are warned of, their results depend on the forward's length",
        ),
        Row("`device_map`, layers offloaded to disk", "exact", "test_targets::test_targets"),
        Row("several GPUs, drafter on another one", "not tested", None, "no machine with two"),
        Row("a drafter of another dtype", "exact", "test_targets::test_a_drafter_of_another_dtype"),
        Row("`torch.compile`d", "exact", "test_targets::test_targets", "`forward` or module, backend `eager`"),
        Row(
            "weights packed for oneDNN (`hf_failfast.prepack`)",
            "exact",
            "test_packed_weights::test_text",
            "on a CPU, with torch 2.11 to 2.15",
        ),
        Row(
            "plain `generate` with `hf_failfast.grouped_attention`",
            "exact",
            "test_grouped_attention::test_plain_generate_can_have_it",
            "on a CPU",
        ),
        Row(
            "`exact=True` in bfloat16, float16 and float32",
            "exact",
            "test_exact::test_text",
            "on a CPU; equal to plain decoding in `hf_failfast.exact_forwards`",
        ),
        Row("LoRA adapters switched between calls", "exact", "test_targets::test_adapters_switched_between_calls"),
        Row("`PeftModel`", "exact", "test_targets::test_a_peft_model"),
        Row('`tp_plan="auto"` under torchrun', "exact", "test_targets::test_tensor_parallel", "two processes, gloo"),
        Row("GPTQ, AWQ, torchao", "not tested", None, "ordinary modules to the loop; no checkpoint was at hand"),
        Row(
            "encoder-decoder (T5, BART)",
            "exact",
            "test_other_targets::test_in_transformers_own_loop",
            "through `hf_failfast.assisted_generate`; `custom_generate` refuses and names it",
        ),
        Row(
            "text for multimodal models (Qwen2-VL with M-RoPE, Gemma 3)",
            "exact",
            "test_other_targets::test_text_for_a_multimodal_model",
        ),
        Row("Whisper", "not tested", None, "its own `generate` cuts the audio into windows"),
        Row(
            "layers of attention and convolution (LFM2)",
            "exact",
            "test_other_targets::test_in_transformers_own_loop",
            "through `hf_failfast.assisted_generate`; `custom_generate` refuses and names it",
        ),
        Row(
            "recurrent layers (Mamba, Jamba, Qwen3-Next)",
            "refused",
            "test_other_targets::test_a_recurrent_state_is_refused",
            "no rejected token can be taken back; transformers' assisted generation refuses them too",
        ),
    ],
    "Ways in": [
        Row("by name, function or folder", "exact", "test_entry_points::test_drafter_and_streamer"),
        Row(
            '`pipeline("text-generation")`',
            "exact",
            "test_targets::test_pipeline",
            "`assistant_model` with the call: `pipeline()` itself takes autoregressive ones only",
        ),
        Row("`transformers serve`, `transformers chat`", "not tested", None, "they pass no `custom_generate`"),
    ],
}
