"""Run by `test_targets.py` under torchrun, on two processes: argument 1 is the folder of target and drafter."""

import sys
from pathlib import Path

import torch
from torch import distributed
from transformers import AutoModelForCausalLM

import hf_failfast

folder = Path(sys.argv[1])
target = AutoModelForCausalLM.from_pretrained(folder / "target", tp_plan="auto", dtype=torch.float32).eval()
assert type(target.model.layers[0].self_attn.q_proj.weight).__name__ == "DTensor", "the target was not split"
drafter = hf_failfast.load_drafter(folder / "drafter")
drafted = {"assistant_model": drafter, "custom_generate": "hf_failfast", "max_new_tokens": 20}
ids = torch.arange(1, 13)[None]

plain = target.generate(ids, do_sample=False, max_new_tokens=20)
greedy = target.generate(ids, do_sample=False, return_dict_in_generate=True, **drafted)
assert greedy.speculation.accepted > 0
assert torch.equal(greedy.sequences, plain)
torch.manual_seed(0)
sampled = target.generate(ids, do_sample=True, verifier="rejection", **drafted)

everyone = [None] * distributed.get_world_size()
distributed.all_gather_object(everyone, [greedy.sequences.tolist(), sampled.tolist()])
assert all(texts == everyone[0] for texts in everyone), "the ranks wrote different texts"
Path(folder / f"done-{distributed.get_rank()}").touch()
distributed.destroy_process_group()
