"""A drafting pass over recorded text, without slots, so that it has gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

from ...engine.runner import EagerRunner
from .pupils import Pupil


class Pass(NamedTuple):
    """The input of a pass over q tokens that drafts n canvases of r tokens.

    num_states: hidden states of the target that stand in the place of the first tokens.
    """

    input_ids: torch.Tensor  # (q,)
    positions: torch.Tensor  # (q,)
    visible: torch.Tensor  # (q, q), bool: what each row sees
    rows: torch.Tensor  # (n, r): the rows that draft
    places: torch.Tensor  # (n, r): the tokens of the text that they draft
    num_states: int = 0


def passes(pupil: Pupil, ids: torch.Tensor, anchors: Sequence[int], noise: torch.Tensor) -> Iterator[Pass]:
    """Drafts after the first `anchors[i]` >= 1 tokens of ids (n,), as the drafter makes them while it decodes.

    noise: (c,), at least as long as a pass feeds.
    """
    if pupil.shares_context:
        yield _shared_pass(pupil, ids, torch.tensor(anchors, device=ids.device), noise)
    else:
        for anchor in anchors:
            yield _single_pass(pupil, ids, anchor, noise)


def _shared_pass(pupil: Pupil, ids: torch.Tensor, anchors: torch.Tensor, noise: torch.Tensor) -> Pass:
    """Known tokens are causal; each canvas sees the known tokens before it, and itself. A conditioned drafter's
    canvas begins with the last known token, which sees none of the masks after it."""
    device, length, shift = ids.device, pupil.canvas_length, pupil.spec.shift
    repeated = int(pupil.injection is not None)
    noise = noise[: length - (repeated or shift)]
    width, clean = repeated + len(noise), int(anchors.max()) - repeated
    starts = anchors - repeated
    canvases = torch.cat([ids[starts[:, None]][:, :repeated], noise.expand(len(anchors), -1)], dim=1)
    within = torch.arange(width, device=device)
    owner = torch.arange(-1, len(anchors), device=device).repeat_interleave(
        torch.tensor([clean, *[width] * len(anchors)], device=device)
    )
    inside = torch.cat([torch.arange(clean, device=device), within.repeat(len(anchors))])
    is_clean = owner < 0
    start = torch.where(is_clean, 0, starts[owner.clamp(min=0)])
    positions = start + inside
    sees_clean = torch.where(is_clean, inside + 1, start)
    sees_own = torch.where(inside < repeated, inside + 1, width)
    visible = is_clean & (inside < sees_clean[:, None])
    visible |= ~is_clean & (owner == owner[:, None]) & (inside < sees_own[:, None])
    draft = torch.arange(length, device=device)
    rows = clean + width * torch.arange(len(anchors), device=device)[:, None] + draft
    if not repeated and shift:  # the last known token drafts the first one
        rows = torch.cat([anchors[:, None] - 1, rows[:, :-1]], dim=1)
    input_ids = torch.cat([ids[:clean], canvases.flatten()])
    return Pass(input_ids, positions, visible, rows, anchors[:, None] + draft, clean if repeated else 0)


def _single_pass(pupil: Pupil, ids: torch.Tensor, anchor: int, noise: torch.Tensor) -> Pass:
    num_noise, num_read = pupil.pattern.plan(anchor, pupil.canvas_length)
    positions = torch.arange(anchor + num_noise, device=ids.device)
    limit = pupil.pattern.limit(positions, anchor, anchor + num_noise)
    places = anchor + torch.arange(num_read, device=ids.device)[None]
    input_ids = torch.cat([ids[:anchor], noise[:num_noise]])
    return Pass(input_ids, positions, positions < limit[:, None], places - pupil.spec.shift, places)


def logits(runner: EagerRunner, pupil: Pupil, each: Pass, states: torch.Tensor | None) -> torch.Tensor:
    """(n, r, V) of the pass's drafting rows. states: (m, width), the target's hidden states that the drafter reads."""
    read = each.rows.flatten()
    injected: AbstractContextManager[None] = nullcontext()
    if pupil.injection is not None:
        assert states is not None
        given = states.unflatten(-1, (len(pupil.source_layers), -1))
        injected = pupil.injection.of(given[None, : each.num_states], _added(pupil, each, given))
    with injected:
        output = runner.model(
            input_ids=each.input_ids[None],
            position_ids=each.positions[None],
            attention_mask=runner.mask_of(each.visible[None], each.positions[None]),
            use_cache=False,
            return_dict=True,
            **({"logits_to_keep": read} if runner.leaves_out_logits else {}),
        )
    found: torch.Tensor = output.logits[0]
    return (found if len(found) == len(read) else found[read]).unflatten(0, each.rows.shape)


@torch.no_grad()
def _added(pupil: Pupil, each: Pass, states: torch.Tensor) -> torch.Tensor | None:
    """(1, n * r, hidden), what the newest states (m, layers, hidden) before each canvas add to its input."""
    fusion = pupil.fusion
    if fusion is None:
        return None
    newest = fusion.prepared(states[each.places[:, :1] - 2])
    canvas = fusion.canvas(newest).expand(-1, each.places.shape[1] - 1, -1)
    return torch.cat([fusion.token(newest), canvas], dim=1).flatten(0, 1)[None]
