"""What a round costs, and what that is over plain decoding at the paper's acceptance."""

from typing import Any

import torch
from transformers import PreTrainedModel

from hf_failfast.drafters.denoising import MostLikely
from hf_failfast.engine import kernels
from hf_failfast.engine.runner import best_tokens

from .machine import Machine
from .passes import forward_pass, measure_passes

# FailFast with Fast-dLLM v2 1.5B on MATH: tokens per round, from the authors' latency breakdown (arXiv 2512.20573).
TOKENS_PER_ROUND = 6.55


# Verified rows: a chain of drafts, and trees of two sizes.
ROWS = (16, 32, 64)


def measure_rounds(
    machine: Machine,
    drafter: PreTrainedModel,
    target: PreTrainedModel,
    kind: str,
    rows: int = 16,
    batch: int = 1,
    most_passes: int = 3,
) -> dict[str, float]:
    """Milliseconds of a round, host included: the drafter's passes of 32 rows with confidence and decision, the verify
    pass of `rows` rows with acceptance, one host read after each; and what that is over plain decoding at the paper's
    tokens per round."""
    draft = forward_pass(machine, drafter, kind, 32, MostLikely(drafter.config.vocab_size, 7), batch)
    verify, plain = (forward_pass(machine, target, kind, count, best_tokens, batch) for count in (rows, 1))
    eos = torch.tensor([3], device=machine.device)
    drafted = torch.zeros(batch, rows - 1, dtype=torch.long, device=machine.device)
    sure = torch.ones(batch, rows - 1, device=machine.device)
    drafted_lengths, lengths, finished = [rows - 1] * batch, [machine.context] * batch, [False] * batch

    def round_of(passes: int) -> None:
        for _ in range(passes):
            ids, confidence = draft()
            kernels.chunk_decision(ids[:, :10], confidence[:, :10], 0.45, eos)
        (tokens,) = verify()
        kernels.accept(drafted, sure, tokens, drafted_lengths, lengths, finished, 2 * machine.context, eos)

    token = machine.seconds(lambda: plain()[0].tolist())
    found = {"plain_token_ms": 1e3 * token}
    for passes in range(1, most_passes + 1):
        seconds = machine.seconds(lambda passes=passes: round_of(passes))
        found[f"round_ms, {passes} passes"] = 1e3 * seconds
        found[f"over_plain, {passes} passes"] = TOKENS_PER_ROUND * token / seconds
    return found


def measure_pair(machine: Machine, drafter: PreTrainedModel, name: str) -> dict[str, Any]:
    """Passes of a target; rounds with the drafter over plain decoding of the same kind, and over eager decoding; and
    with more verified rows, as a tree has."""
    target = machine.model(name)
    found = {"passes": measure_passes(machine, target)}
    rounds = {kind: measure_rounds(machine, drafter, target, kind) for kind in ("eager", "captured")}
    for rows in ROWS[1:] if machine.is_gpu else ROWS[1:2]:
        rounds[f"captured, {rows} rows"] = measure_rounds(machine, drafter, target, "captured", rows)
    eager = rounds["eager"]["plain_token_ms"]
    for kind, times in rounds.items():
        if kind == "eager":
            continue
        for passes in (1, 2, 3):
            milliseconds = times[f"round_ms, {passes} passes"]
            times[f"over_eager_plain, {passes} passes"] = TOKENS_PER_ROUND * eager / milliseconds
    return found | {"rounds at 6.55 tokens": rounds}


def measure_batches(machine: Machine, drafter: PreTrainedModel, name: str) -> dict[str, Any]:
    """Rounds of one drafter pass for 1, 4 and 8 sequences over plain decoding of as many, both captured and eager."""
    target = machine.model(name)
    found: dict[str, Any] = {}
    for batch in (1, 4, 8) if machine.is_gpu else (1, 2):
        found[f"{batch} sequences"] = {
            kind: measure_rounds(machine, drafter, target, kind, batch=batch, most_passes=1)
            for kind in ("eager", "captured")
        }
    return found
