"""The drafter in transformers' own assisted loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.candidate_generator import CandidateGenerator

from ..drafters import DiffusionDrafter, DraftRequest, Warp
from ..engine.ragged import RaggedIds
from ..policies.base import LengthPolicy
from .stats import RoundRecord, SpecDecodingStats
from .stopping import DraftRoom

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FailFastCandidateGenerator(CandidateGenerator):
    """Drafts candidates chunk by chunk for `GenerationMixin._assisted_decoding`; one instance per `generate` call.

    Deterministic drafts come without candidate logits: under sampling transformers then samples from the target and
    compares. Drafts drawn with a `warp` come with theirs, for speculative sampling. Both are exact.
    """

    requires_model_outputs = False
    model_kwargs_overrides = {"output_hidden_states": True}

    def __init__(
        self,
        drafter: DiffusionDrafter,
        target: PreTrainedModel,
        policy: LengthPolicy,
        max_length: int,
        eos_token_ids: torch.Tensor | None = None,
        warp: Warp | None = None,
    ) -> None:
        self.policy = policy
        policy.start(1, max_length)
        self.room = DraftRoom.of(target, max_length)
        self.session = drafter.start(DraftRequest(target, max_length, 1, eos_token_ids, warp))
        if self.session.top_logits:
            raise ValueError(
                "A drafter that learns needs the target's logits, which transformers' assisted loop does not hand on: "
                "use `custom_generate='hf_failfast'`, or pass the drafter itself."
            )
        self.requires_model_outputs = bool(self.session.target_layers)
        self.num_observed = 0  # tokens whose hidden states the session has
        self.stats = SpecDecodingStats()

    def get_candidates(
        self, input_ids: torch.Tensor, model_outputs: Any = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(ids (1, n) followed by the draft of k tokens, the log-probabilities (1, k, V) it was drawn from, if any).

        model_outputs: of the last verify forward, if the session drafts from hidden states; its first positions
            belong to the tokens accepted since the forward before.
        """
        if model_outputs is not None:
            count = input_ids.shape[1] - 1 - self.num_observed
            layers = [model_outputs.hidden_states[layer][:, :count] for layer in self.session.target_layers]
            self.session.observe([torch.cat(layers, dim=-1)])
            self.num_observed += count
        draft = self.session.draft(RaggedIds.full(input_ids), self.policy, [self.room.after(input_ids.shape[1])])
        self._draft = draft.to(input_ids.device)
        self.stats.host_reads += draft.host_reads
        logits = None if self._draft.probs is None else self._draft.probs.log()
        return torch.cat([input_ids, self._draft.token_ids], dim=1), logits

    def update_candidate_strategy(self, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int) -> None:
        """Records that the first `num_matches` tokens of the last draft were accepted."""
        num_matches = int(num_matches)
        self.session.accept([num_matches])
        self.policy.observe([num_matches])
        self.stats.observe(RoundRecord(len(self._draft), num_matches, num_matches + 1, self._draft.passes))
