"""A pair so small that a forward is nearly all overhead, as on a fast GPU: what does the loop itself cost?

    OMP_NUM_THREADS=1 python benchmarks/proxy.py

The target has 8 layers of width 64; the draft model is its first 2 layers, and the other 6 add so little that both
agree on about 83 % of the tokens. It is read as a drafter of one token per pass, five passes per round (K = 5), so
that transformers' assisted generation can run the same model with the same five tokens. The last line is one JSON
document.
"""

import copy
import json
import random
import tempfile
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

import hf_failfast
from hf_failfast.showcase import setting

VOCAB_SIZE, WIDTH, LAYERS, DRAFT_LAYERS = 1000, 64, 8, 2
LATER_LAYERS = 0.04  # what the layers that only the target has are scaled by
DRAFT_LENGTH = 5


def pair() -> tuple[PreTrainedModel, PreTrainedModel, hf_failfast.DiffusionDrafter]:
    """(target, its first layers as an autoregressive assistant, the same as a drafter)."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE + 1,  # the last id would be the mask; with one token per pass it is never fed
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    target = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for layer in target.model.layers[DRAFT_LAYERS:]:
            layer.self_attn.o_proj.weight.mul_(LATER_LAYERS)
            layer.mlp.down_proj.weight.mul_(LATER_LAYERS)
    small = copy.deepcopy(config)
    small.num_hidden_layers = DRAFT_LAYERS
    small.layer_types = config.layer_types[:DRAFT_LAYERS]
    assistant = Qwen2ForCausalLM(small).eval()
    assistant.load_state_dict(target.state_dict(), strict=False)
    assistant.generation_config.num_assistant_tokens = DRAFT_LENGTH
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    with tempfile.TemporaryDirectory() as folder:
        assistant.save_pretrained(folder)
        drafter = hf_failfast.load_drafter(
            folder, attention="causal_canvas", shift=1, mask_token_id=VOCAB_SIZE, dtype=torch.float32
        )
    return target, assistant, drafter


def time_batch(methods: dict[str, dict[str, Any]], target: PreTrainedModel, num_rows: int, repeats: int) -> Any:
    """Median over the repeats of plain `generate`'s seconds over the method's, run beside each other."""
    prompt = torch.randint(VOCAB_SIZE, (num_rows, 64), generator=torch.Generator().manual_seed(num_rows))
    arguments = {"max_new_tokens": 96, "do_sample": False, "return_dict_in_generate": True}
    mask = torch.ones_like(prompt)
    outputs, ratios = {}, {name: [] for name in methods}
    order = random.Random(0)
    for _ in range(repeats + 1):
        seconds = {}
        for name in order.sample(["plain", *methods], len(methods) + 1):
            started = perf_counter()
            outputs[name] = target.generate(prompt, attention_mask=mask, **arguments, **methods.get(name, {}))
            seconds[name] = perf_counter() - started
        for name, values in ratios.items():
            values.append(seconds["plain"] / seconds[name])
    records = {}
    for name, values in ratios.items():
        stats = outputs[name].get("speculation")
        records[name] = {
            "speedup": round(median(values[1:]), 3),  # the first round warms up
            "identical": torch.equal(outputs[name].sequences, outputs["plain"].sequences),
            "acceptance_rate": None if stats is None else round(stats.acceptance_rate, 3),
        }
    return records


def main(
    batches: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,4,8",
    repeats: Annotated[int, typer.Option(min=1)] = 13,
) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    target, assistant, drafter = pair()
    ours = {"assistant_model": drafter, "custom_generate": "hf_failfast"}
    always = {"confidence_threshold": 0.0, "chunk_length": 1, "max_draft_length": DRAFT_LENGTH}
    methods = {"hf_failfast": ours | always, "hf_failfast, goodput": ours | {"length_policy": "goodput"}}
    results = {}
    for num_rows in map(int, batches.split(",")):
        others = {"HF assisted": {"assistant_model": assistant}} if num_rows == 1 else {}
        results[num_rows] = time_batch(methods | others, target, num_rows, repeats)
        for name, record in results[num_rows].items():
            print(f"batch {num_rows}  {record['speedup']:.2f}x  {name}  {record}")
    print(json.dumps({"results": results, "repeats": repeats} | setting(target)))


if __name__ == "__main__":
    typer.run(main)
