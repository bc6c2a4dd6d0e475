"""Ways to train that `hf-failfast train` does not have, each to be measured beside it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from hf_failfast.training.batches import Batch, CanvasPlan
from hf_failfast.training.data.shards import Example
from hf_failfast.training.decoding import answers_of
from hf_failfast.training.objective import HeldOut
from hf_failfast.training.trainer import Trainer


class AutoregressiveTrainer(Trainer):
    """The matched opponent: the same layers, data, losses and steps without canvases, drafting token by token.

    A token counts as accepted only after accepted ones, where the drafter has read exactly the answer: so the
    teacher-forced clean rows say what its own rollout would.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.plan = dataclasses.replace(self.plan, anchors=0)

    @torch.no_grad()
    def held_out_drafts(self, batch: Batch) -> HeldOut:
        alone = dataclasses.replace(batch.canvases, anchors=batch.canvases.anchors[:, :0])
        clean, _ = self.drafter(alone, batch.features)
        logits = self.drafter.logits(clean).float()
        best, drafted = torch.nn.functional.pad(logits, (0, 0, 0, batch.canvases.canvas_length)).max(dim=-1)
        confidence = (best - torch.nn.functional.pad(logits.logsumexp(-1), (0, batch.canvases.canvas_length))).exp()
        matches = batch.drafted(drafted) == batch.drafted(batch.labels)
        return HeldOut(matches.flatten(0, 1), batch.drafted(confidence).flatten(0, 1))


@dataclass(frozen=True, kw_only=True)
class RoundStarts(CanvasPlan):
    """Random anchors out of those that `of` finds in each answer: how many of its tokens stood there."""

    of: Callable[[Sequence[Example]], list[list[int]]]

    def random(self, examples: Sequence[Example], generator: torch.Generator) -> torch.Tensor:
        rows = []
        for example, starts in zip(examples, self.of(examples), strict=True):
            drawn = torch.randint(len(starts), (self.anchors,), generator=generator)
            rows.append(example.prompt_length - 1 + torch.tensor(starts)[drawn])
        return torch.stack(rows)


class OnPolicyTrainer(Trainer):
    """The last third of the time on anchors where a round of the drafter itself begins, which is after its last wrong
    token (Draft-OPD)."""

    START = 2 / 3

    def train_step(self) -> dict[str, float]:
        if self.progress() >= self.START and not isinstance(self.plan, RoundStarts):
            self.plan = RoundStarts(**vars(self.plan), of=self.round_starts)
        return super().train_step()

    def round_starts(self, examples: Sequence[Example]) -> list[list[int]]:
        """The rounds of greedy decoding with the drafter as it is, simulated as in evaluation."""
        canvases, starts = self.plan.every(examples)
        matches = self._drafts(examples, canvases).matches.unflatten(0, starts.shape)
        answers = answers_of(matches, starts, examples, drafts_at_once=not self.config.reads_states)
        return [list(accumulate((count + 1 for count in each.accepted[:-1]), initial=0)) for each in answers]


class InFloat32(TorchFunctionMode):
    """Nothing is turned into bfloat16: there torch's Muon multiplies, which many processors do slowly."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return args[0].clone() if func is torch.Tensor.bfloat16 else func(*args, **(kwargs or {}))


class Optimizers:
    """Several as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        with InFloat32():
            for part in self.parts:
                part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]


class MuonTrainer(Trainer):
    """Muon for the matrices, with updates as large as AdamW's so that one learning rate fits both."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        matrices = [p for p in self.parameters if p.ndim == 2]
        others = [p for p in self.parameters if p.ndim != 2]
        self.optimizer = Optimizers(  # type: ignore[assignment]
            torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0),
        )


class AdafactorTrainer(Trainer):
    """Adafactor, which keeps no moment of a matrix but the sums of its squared gradients by row and by column. Its
    learning rate is relative to the size of the weights."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.optimizer = torch.optim.Adafactor(self.parameters)
