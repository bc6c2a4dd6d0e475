"""`hf-failfast train`, from a target to a drafter that is loaded and pays; several processes; failures; options."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from training_support import SPECIALS, VOCABULARY, talkative_target, tiny_target, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from typer.main import get_command
from typer.testing import CliRunner

from hf_failfast import load_drafter
from hf_failfast.cli.app import app
from hf_failfast.training.config import DataConfig, TrainingConfig
from hf_failfast.training.data.shards import Example, load_shard, save_shard
from hf_failfast.training.data.synthesis import load_examples

REQUIRED_GAIN = 1.0  # of the held-out mean acceptance length, in tokens per draft
OPTIONS = (
    "--questions 100 --answer-tokens 16 --synthesis-batch-size 256 --canvas-length 4 --layers 0 --batch-size 8 "
    "--anchors 12 --draft-vocabulary 0 --steps 120 --evaluation-steps 60 --learning-rate 1e-2 --ema-decay 0.9 "
    "--cross-entropy-weight 1 --regression-weight 0"
)


# Every option of the command, with its default where it has one.
COMMAND = """
target output data threads licence=apache-2.0 as_json=False seed=0
steps minutes form=canvas layout=z-lab attention=causal_canvas conditioned=False input_fusion=True extended=0.25
lora=False lora_rank=32
initial layers intermediate_size canvas_length=8 drafter_window=256
draft_vocabulary coverage batch_size=4 accumulation=1 anchors=24 optimizer=adamw learning_rate=0.0015 ema_decay=0.0
cross_entropy_weight=0.3 position_decay=4.5 focal_weight=0.0 chain_weight=0.0 streak_weight=0.0 soft_label_weight=0.0
reach_alpha regression_weight=1.0 evaluation_steps=200
source prompts unseen records=prompts field questions answer_tokens=192 prompt_tokens=512 sampled_answers=0
answer_temperature=1.0 store_states=True synthesis_batch_size=128
"""


def test_the_options_of_the_command() -> None:
    """Names and defaults are those of `COMMAND`, and every option says what it is."""
    found = get_command(app).commands["train"].params
    assert {each.name if each.default is None else f"{each.name}={each.default}" for each in found} == {
        *COMMAND.split()
    }
    assert all(each.help for each in found)


def test_the_options_reach_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option of each kind arrives in its dataclass; what is not given is its default, or follows from the steps."""
    seen: list[Any] = []
    monkeypatch.setattr("hf_failfast.training.run.run", lambda *given: seen.append(given))
    options = (
        "--steps 20 --layers 0,3 --initial first --no-store-states --synthesis-batch-size 7 --seed 5 --conditioned"
    )
    train("--target", "t", "--output", str(tmp_path), *options.split())
    train("--target", "t", "--output", str(tmp_path))
    (file := tmp_path / "a.txt").touch()
    train("--target", "t", "--output", str(tmp_path), "--source", str(file), "--source", "self-written")
    train("--target", "t", "--output", str(tmp_path), "--source", str(file))
    (job, data, training, _), (_, default_data, default_training, as_json), (_, mixed, *_), (_, one, *_) = seen
    assert (mixed.source, one.source) == ((str(file), "self-written"), str(file))
    assert job.data == tmp_path / "data"
    assert data == DataConfig(questions=80, store_states=False, batch_size=7, seed=5)
    assert training == TrainingConfig(steps=20, layers=(0, 3), initial="first", conditioned=True, seed=5)
    assert (default_data, default_training, as_json) == (DataConfig(), TrainingConfig(minutes=60), False)


def write_predictable_target(folder: Path) -> None:
    """A target that has learned to count round the ten digits: its text can be drafted several tokens at once."""
    generator = torch.Generator().manual_seed(0)
    following = len(SPECIALS) + 16 + (torch.arange(VOCABULARY) + 1) % 10  # some digit, whatever character came before
    config = tiny_target(layers=2).config
    config.initializer_range = 0.05
    target = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    optimizer = torch.optim.AdamW(target.parameters(), lr=1e-2)
    for _ in range(60):
        text = [torch.randint(len(SPECIALS), VOCABULARY, (32,), generator=generator)]
        for _ in range(11):
            text.append(following[text[-1]])
        batch = torch.stack(text, dim=1)
        target(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    target.save_pretrained(folder)
    tiny_tokenizer(template=None).save_pretrained(folder)


def train(*options: str) -> str:
    result = CliRunner().invoke(app, ["train", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_train_makes_a_better_drafter_from_nothing(tmp_path: Path) -> None:
    """In less than three minutes the mean acceptance length rises by `REQUIRED_GAIN`; the text is the target's."""
    started = time.monotonic()
    target_folder, output = tmp_path / "target", tmp_path / "drafter"
    write_predictable_target(target_folder)
    train("--target", str(target_folder), "--output", str(output), *OPTIONS.split())
    log = [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]
    lengths = [record["held_out"]["mean_acceptance_length"] for record in log]
    assert lengths[-1] >= lengths[0] + REQUIRED_GAIN, lengths
    assert (output / "report.png").read_bytes().startswith(b"\x89PNG")

    target = AutoModelForCausalLM.from_pretrained(target_folder, dtype=torch.float32)
    drafter = load_drafter(output, dtype=torch.float32)
    settings = {"max_new_tokens": 16, "do_sample": False, "return_dict_in_generate": True}
    rounds = emitted = 0
    for example in load_examples(output / "data")[1]:
        prompt = example.tokens[None, : example.prompt_length]
        result = target.generate(prompt, custom_generate="hf_failfast", assistant_model=drafter, **settings)
        assert torch.equal(result.sequences, target.generate(prompt, **settings).sequences)
        rounds += result.speculation.rounds
        emitted += result.speculation.emitted
    assert emitted / rounds >= lengths[0] + REQUIRED_GAIN / 2  # the ends of short answers cut drafts
    assert time.monotonic() - started < 180


def small_run(tmp_path: Path) -> list[str]:
    """The options of a run on a random target, whose folder is made here."""
    target = tmp_path / "tiny"
    talkative_target().save_pretrained(target)
    tiny_tokenizer().save_pretrained(target)
    counts = ["--questions", "40", "--answer-tokens", "8", "--synthesis-batch-size", "64"]
    sizes = ["--canvas-length", "4", "--batch-size", "2", "--anchors", "2", "--seed", "1"]
    return ["--target", str(target), "--output", str(tmp_path / "drafter"), *counts, *sizes]


def process(command: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_two_processes_train_one_drafter(tmp_path: Path) -> None:
    """Two gloo processes of batch 2 end with the weights of one process with two micro-steps of batch 2."""
    options = [*small_run(tmp_path), "--steps", "2", "--data", str(tmp_path / "data")]
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "hf_failfast.cli"]
    with process([*launch, "train", *options]) as run:
        output, _ = run.communicate(timeout=240)
    assert run.returncode == 0, output
    record = json.loads((tmp_path / "drafter" / "training.json").read_text())
    assert (record["processes"], record["step"]) == (2, 2)
    train(*options, "--output", str(tmp_path / "alone"), "--accumulation", "2")
    together, alone = (torch.load(tmp_path / name / "checkpoint.pt")["parameters"] for name in ("drafter", "alone"))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-2)


def test_a_run_killed_while_it_writes_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    options = [*small_run(tmp_path), "--steps", "1000", "--evaluation-steps", "1"]
    log = tmp_path / "drafter" / "train_log.jsonl"
    with process(["hf_failfast.cli", "train", *options]) as run:
        deadline = time.monotonic() + 120
        while not log.exists() or len(log.read_text().splitlines()) < 4:
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)  # every step writes all files, so it most likely hits one
    reached = torch.load(tmp_path / "drafter" / "checkpoint.pt")["step"]
    assert reached >= 2
    train(*options[:-4], "--steps", str(reached + 1), "--evaluation-steps", "1")
    assert torch.load(tmp_path / "drafter" / "checkpoint.pt")["step"] == reached + 1
    load_drafter(tmp_path / "drafter")


@contextmanager
def small_files() -> Iterator[None]:
    """No file can grow beyond 4 KiB, as on a full disk; the test's own output included, so keep it short."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_keeps_the_shard_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "shard-00000.safetensors"
    save_shard(path, [Example(torch.arange(9), 3, None)])
    message = r"shard-00000.safetensors could not be written: .* What was there before is kept"
    with small_files(), pytest.raises(OSError, match=message):
        save_shard(path, [Example(torch.arange(9_000), 3, None)])
    assert [example.tokens.tolist() for example in load_shard(path)] == [list(range(9))]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_encoder_decoder_is_refused_in_one_line(tmp_path: Path) -> None:
    AutoConfig.for_model("t5", vocab_size=32, d_model=16, num_layers=1).save_pretrained(tmp_path / "t5")
    result = CliRunner().invoke(app, ["train", "--target", str(tmp_path / "t5"), "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "`target` must be a decoder-only causal LM" in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_layers_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    options = [*small_run(tmp_path), "--layers", "0,7"]
    result = CliRunner().invoke(app, ["train", *options])
    assert result.exit_code == 1 and "`layers` must be between 0 and 0" in result.output
    assert not (tmp_path / "drafter").exists()
