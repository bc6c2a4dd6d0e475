"""Conformance with the reference implementation of Fast-dLLM v2: logits, denoising steps and drafts.

`data/families/fastdllm_v2` holds a tiny checkpoint in the public format and the original code's float32 results on it.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from family_support import DATA, read_json
from safetensors.torch import load_file
from sessions import draft_of, logits_of, session_of

from hf_failfast import load_drafter
from hf_failfast.drafters.masked.session import MaskedDrafter, MaskedSession
from hf_failfast.policies.confidence import FixedLength

CASE = "fastdllm_v2/case_1"
FOLDER = DATA / CASE
MASK_ID = 250
BLOCK = 32


def is_plain(run: dict[str, Any]) -> bool:
    """Whether the replay covers a run: no one-block prefix (the reference ignores it), reuse or block cache."""
    return len(run["prefix"]) != BLOCK and not run.get("last_round_rejected") and not run.get("use_block_cache")


RUNS = [run for run in read_json(f"{CASE}/drafts.json") if is_plain(run)]
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(scope="module")
def drafter() -> MaskedDrafter:
    loaded = load_drafter(FOLDER / "checkpoint", mask_token_id=MASK_ID, dtype=torch.float32)
    assert isinstance(loaded, MaskedDrafter)
    return loaded


def new_session(drafter: MaskedDrafter, capacity: int = 256) -> MaskedSession:
    """A session as `drafter.start` makes it, for a target of the drafter's own vocabulary."""
    return session_of(drafter, drafter.model, capacity)  # type: ignore[arg-type]


def forward(session: MaskedSession, ids: list[int]) -> torch.Tensor:
    """Logits (1, q, vocabulary) of tokens after the session's slots; the slots then hold these tokens."""
    start = session.cache.get_seq_length()
    positions = torch.arange(start, start + len(ids))
    limit = session.pattern.limit(positions, start, start + len(ids))
    with torch.no_grad():
        return logits_of(session.runner, torch.tensor([ids]), session.cache, len(ids), limit)


def test_the_public_config_is_understood(drafter: MaskedDrafter) -> None:
    """The public config gives attention, block size and shift, without the checkpoint's own code."""
    assert (drafter.spec.attention, drafter.spec.block_size, drafter.spec.shift) == ("block_causal", BLOCK, 1)
    assert drafter.spec.mask_token_id == MASK_ID
    assert drafter.model.config.model_type == "qwen2"
    assert drafter.model.dtype == torch.float32


def test_the_published_mask_id_is_the_default() -> None:
    """Without a mask id the published one is taken; this reduced vocabulary lacks it, so it is refused."""
    with pytest.raises(ValueError, match=r"`mask_token_id` must be < 256, .* but is 151665"):
        load_drafter(FOLDER / "checkpoint")


@pytest.mark.parametrize("index", range(7))
def test_logits(index: int, drafter: MaskedDrafter) -> None:
    """Logits equal the reference's, in one forward or in two split at a block's edge."""
    arrays = load_file(FOLDER / "forward.safetensors")
    ids, expected = arrays[f"forward.{index}.input_ids"].flatten().tolist(), arrays[f"forward.{index}.logits"]
    rows = slice(None) if expected.shape[0] == len(ids) else [31, 63, 74]
    whole = forward(new_session(drafter), ids)[0]
    torch.testing.assert_close(whole[rows], expected, **TOLERANCE)

    for edge in range(BLOCK, len(ids), BLOCK):
        session = new_session(drafter)
        parts = torch.cat([forward(session, ids[:edge]), forward(session, ids[edge:])], dim=1)[0]
        torch.testing.assert_close(parts[rows], expected, **TOLERANCE)


# The reference's drafting loop, rewritten on this package's forward


@dataclass
class Replay:
    """Drafts in small blocks: each step fills the masks above a threshold, and the surest one."""

    drafter: MaskedDrafter
    run: dict[str, Any]
    ids: list[int] = field(init=False)
    passes: int = 0
    confidences: list[float] = field(default_factory=list)
    steps: list[dict[str, list[Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids = list(self.run["prefix"])
        self.goal = self.run["spec_len"]  # tokens wanted, which grows
        self.session = new_session(self.drafter)

    def draft(self) -> list[int]:
        start = len(self.ids)
        self._fill_slots(start // BLOCK * BLOCK)
        for _ in range(self.run["max_new_tokens"] // BLOCK):
            self.ids += [MASK_ID] * (-len(self.ids) % BLOCK or BLOCK)
            if self._fill_block(start):
                break
            self._fill_slots(len(self.ids))
        new = self.ids[start:]
        if self.run["stop_token"] in new:
            new = new[: new.index(self.run["stop_token"]) + 1]
        return new[: self.goal]

    def _fill_slots(self, end: int) -> None:
        """Commits the complete blocks; the row of their last token gives the first token of the next block."""
        start = self.session.cache.get_seq_length()
        if end > start:
            logits = forward(self.session, self.ids[start:end])
            self.passes += 1
            if len(self.ids) == end:
                self.ids.append(int(self.session.choose(*self.session.head(logits[:, -1:]))[0]))

    def _fill_block(self, start: int) -> bool:
        """Fills the last block; returns whether the draft is complete."""
        block = len(self.ids) - BLOCK
        size = self.run["small_block_size"]
        for left in range(block, block + BLOCK, size):
            while masked := [p for p in range(left, left + size) if self.ids[p] == MASK_ID]:
                self._denoise(block, masked)
                if self._has_ended(self.ids[start:]):
                    return True
                if len(self.ids) >= start + self.goal and MASK_ID not in self.ids[start : start + self.goal]:
                    if not self._may_extend():
                        return True
                    self.goal += self.run["incr_len"]
        return False

    def _has_ended(self, new: list[int]) -> bool:
        stop = self.run["stop_token"]
        return stop in new and MASK_ID not in new[: new.index(stop)]

    def _denoise(self, block: int, masked: list[int]) -> None:
        assert self.session.cache.get_seq_length() == block
        logits = forward(self.session, self.ids[block:])
        self.session.cache.rollback(block)
        self.passes += 1
        rows = torch.tensor(masked) - 1 - block
        ids, confidence, *_ = self.session.choose(*self.session.head(logits[:, rows]))
        tokens, sure = ids[0].tolist(), confidence[0].tolist()
        self.steps.append({"pos": masked, "tok": tokens, "conf": sure})
        self.confidences += sure
        for position, token, value in zip(masked, tokens, sure, strict=True):
            if value > self.run["threshold"] or value == max(sure):
                self.ids[position] = token

    def _may_extend(self) -> bool:
        if "tau" not in self.run or min(self.confidences) < self.run["tau"]:
            return False
        return len(self.confidences) < self.run["max_spec_len"]


def run_name(run: dict[str, Any]) -> str:
    return f"{len(run['prefix'])}-{run.get('tau')}-{run['threshold']}-{run['spec_len']}-{run['stop_token']}"


@pytest.mark.parametrize("run", RUNS, ids=run_name)
def test_drafts_of_the_reference(run: dict[str, Any], drafter: MaskedDrafter) -> None:
    """Drafts, passes, and the ids and confidences of every denoising step equal the reference's."""
    replay = Replay(drafter, run)
    assert replay.draft() == run["draft"]
    assert replay.passes == run["num_forward_passes"]
    if "steps" in run:
        assert [(step["pos"], step["tok"]) for step in replay.steps] == [(s["pos"], s["tok"]) for s in run["steps"]]
        expected = [value for step in run["steps"] for value in step["conf"]]
        torch.testing.assert_close(torch.tensor(replay.confidences), torch.tensor(expected), **TOLERANCE)
        torch.testing.assert_close(torch.tensor(replay.confidences), torch.tensor(run["confidences"]), **TOLERANCE)


@pytest.mark.parametrize("run", [run for run in RUNS if "steps" in run and run["tau"] == 0.2], ids=run_name)
def test_the_first_pass_of_our_own_drafting(run: dict[str, Any], drafter: MaskedDrafter) -> None:
    """One pass that commits the prefix and drafts gives the reference's first step."""
    prefix = run["prefix"]
    step = run["steps"][0]
    session = new_session(drafter)
    if len(prefix) % BLOCK == 0:  # the reference takes the block's first token from the prefix, then fills the rest
        draft = draft_of(session, torch.tensor([prefix]), FixedLength(1), 64)
        assert draft.token_ids[0].tolist() == run["draft"][:1]
    else:
        draft = draft_of(session, torch.tensor([prefix]), FixedLength(len(step["pos"])), 64)
        assert step["pos"][0] == len(prefix)
        assert draft.token_ids[0].tolist() == step["tok"]
        torch.testing.assert_close(draft.confidence[0], torch.tensor(step["conf"]), **TOLERANCE)
    assert draft.passes == 1
    assert session.cache.get_seq_length() == len(prefix) // BLOCK * BLOCK
