"""Data parallelism over processes and machines, simulated with gloo on the CPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from eval_support import save_models

WORKER = """
import json, sys, torch
torch.set_num_threads(1)
from eval_support import evaluate_tasks
from hf_failfast.eval.model import HFFailFastLM
target, drafter, output = sys.argv[1:]
model = HFFailFastLM(target, assistant=drafter, dtype="float32", device="cpu", compare_plain=True)
results = evaluate_tasks(model, ["failfast_extraction"], limit=5, apply_chat_template=True)
if results is not None:
    samples = [s for s in results["samples"]["failfast_extraction"] if s["filter"] == "speed"]
    row = results["results"]["failfast_extraction"]
    with open(output, "w") as file:
        json.dump({"row": row, "ids": sorted(s["doc_id"] for s in samples), "processes": model.world_size}, file)
if model.world_size > 1:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("local_processes", [2, 1], ids=["one machine", "two machines"])
def test_two_processes_answer_every_document_once(local_processes: int, tmp_path: Path) -> None:
    """lm-eval's own model takes the rank on the machine for the rank: two machines are both the first."""
    folders = save_models(tmp_path)
    alone = run(folders, tmp_path / "alone.json", world_size=1, local_processes=1)
    both = run(folders, tmp_path / "both.json", world_size=2, local_processes=local_processes)
    assert (alone["processes"], both["processes"]) == (1, 2)
    assert both["ids"] == alone["ids"] == [0, 1, 2, 3, 4]
    for metric in ("new_tokens", "mean_acceptance_length", "acceptance_rate", "identical"):
        assert both["row"][f"{metric},speed"] == pytest.approx(alone["row"][f"{metric},speed"])
    assert both["row"]["field_accuracy,none"] == alone["row"]["field_accuracy,none"]


def run(folders: dict[str, str], output: Path, world_size: int, local_processes: int) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", WORKER, folders["target"], folders["drafter"], str(output)]
    workers = []
    for rank in range(world_size):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        if world_size > 1:
            environment |= {
                "ACCELERATE_USE_CPU": "true",
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(rank % local_processes),
                "LOCAL_WORLD_SIZE": str(local_processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        workers.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), errors
    return json.loads(output.read_text())
