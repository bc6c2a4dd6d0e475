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

from eval_support import evaluate_tasks, save_models

from hf_failfast.eval.model import HFFailFastLM

TASK = "failfast_extraction"
WORKER = """
import json, sys, torch
from test_eval_parallel import evaluate
torch.set_num_threads(1)
facts = evaluate(*sys.argv[1:3])
if facts:
    with open(sys.argv[3], "w") as file:
        json.dump(facts, file)
torch.distributed.destroy_process_group()
"""


def evaluate(target: str, drafter: str) -> dict[str, Any]:
    """What the first process knows in the end; the others know nothing."""
    model = HFFailFastLM(target, assistant=drafter, dtype="float32", device="cpu", compare_plain=True)
    results = evaluate_tasks(model, [TASK], limit=5, apply_chat_template=True)
    if results is None:
        return {}
    samples = [sample for sample in results["samples"][TASK] if sample["filter"] == "speed"]
    ids = sorted(sample["doc_id"] for sample in samples)
    return {"row": results["results"][TASK], "ids": ids, "processes": model.world_size}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def alone(folders: dict[str, str]) -> dict[str, Any]:
    return evaluate(folders["target"], folders["drafter"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "local_processes",
    [pytest.param(2, id="one machine"), pytest.param(1, id="two machines", marks=pytest.mark.exhaustive)],
)
def test_two_processes_answer_every_document_once(
    local_processes: int, folders: dict[str, str], alone: dict[str, Any], tmp_path: Path
) -> None:
    """Two processes, on one machine or two, share the documents and report what one process does."""
    both = run_two(folders, tmp_path / "both.json", local_processes)
    assert (alone["processes"], both["processes"]) == (1, 2)
    assert both["ids"] == alone["ids"] == [0, 1, 2, 3, 4]
    for metric in ("new_tokens", "mean_acceptance_length", "acceptance_rate", "identical"):
        assert both["row"][f"{metric},speed"] == pytest.approx(alone["row"][f"{metric},speed"])
    assert both["row"]["field_accuracy,none"] == alone["row"]["field_accuracy,none"]


def run_two(folders: dict[str, str], output: Path, local_processes: int) -> dict[str, Any]:
    """Two processes, as torchrun starts them on one machine or on two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    search_path = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *(path for path in sys.path if path)]
    workers = []
    for rank in range(2):
        environment = {
            "PYTHONPATH": os.pathsep.join(search_path),
            "ACCELERATE_USE_CPU": "true",
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(rank % local_processes),
            "LOCAL_WORLD_SIZE": str(local_processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [sys.executable, "-c", WORKER, folders["target"], folders["drafter"], str(output)]
        workers.append(subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True))
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), errors
    return json.loads(output.read_text())
