"""A family with a body of its own is a body with its loader, a row of `FAMILIES` and a line of `LOADERS`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_support import check_parity, tiny_model
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutput

from hf_failfast import DiffusionDrafter, load_drafter
from hf_failfast.drafters.checkpoints import families
from hf_failfast.drafters.checkpoints.families import Family
from hf_failfast.drafters.checkpoints.inspection import inspect_checkpoint
from hf_failfast.drafters.checkpoints.weights import LoadRequest, load_into
from hf_failfast.drafters.loading import LOADERS
from hf_failfast.drafters.masked.session import MaskedDrafter

VOCABULARY = 64

# The body, in a file of its own


class Bigram(nn.Module):
    """A token predicts the next one, a mask by its position; the names of the modules are the checkpoint's."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def forward(
        self,
        *,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        logits_to_keep: int | torch.Tensor,
        **_: Any,  # attention mask and cache, for which a body without attention has no use
    ) -> CausalLMOutput:
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = self.tokens(input_ids) + self.positions(position_ids)
        return CausalLMOutput(logits=self.head(hidden[:, kept]))


def load_bigram(request: LoadRequest) -> DiffusionDrafter:
    config = PreTrainedConfig(num_hidden_layers=1, **request.checkpoint.config)
    with torch.device("meta"):
        body = Bigram(config)
    load_into(body, request)
    return MaskedDrafter(body.eval(), request.checkpoint.spec, request.config, request.options)


# The row

BIGRAM = Family(
    "Bigram",
    "bigram",
    "bigram",
    {"attention": "causal_canvas", "shift": 1},
    native_body=False,
    mask_is_last_id=True,
)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of the family, which is registered for the test."""
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, BIGRAM))
    monkeypatch.setitem(LOADERS, "bigram", load_bigram)
    config = {"vocab_size": VOCABULARY + 1, "hidden_size": 16, "max_position_embeddings": 512}
    torch.manual_seed(0)
    save_file(Bigram(PreTrainedConfig(**config)).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bigram"} | config))
    return tmp_path


def test_it_drafts_exactly(checkpoint: Path) -> None:
    """Loaded by name, both loops write the target's own text, and every round has a draft."""
    stats = check_parity(tiny_model("llama", VOCABULARY), load_drafter(checkpoint), max_draft_length=8)
    assert all(record.drafted for record in stats.records[:-1])


def test_it_is_told_what_it_is(checkpoint: Path, tmp_path: Path) -> None:
    """`inspect` names the family, and the mask id that only its row says; a target of another vocabulary misfits."""
    found = inspect_checkpoint(checkpoint)
    assert (found.family, found.body, found.spec.mask_token_id) == ("Bigram", "bigram", VOCABULARY)
    tiny_model("llama", 2 * VOCABULARY).config.save_pretrained(tmp_path / "target")
    assert "vocabulary has 65 entries" in str(inspect_checkpoint(checkpoint, tmp_path / "target").misfit)


def test_facts_of_the_row_are_followed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's options are the drafter's config, and drafting options that it does not take are refused by name."""
    row = replace(BIGRAM, options={"chunk_length": 3}, takes_drafting_options=False)
    monkeypatch.setattr(families, "FAMILIES", (row,))
    assert load_drafter(checkpoint).config.chunk_length == 3
    with pytest.raises(ValueError, match="bigram drafts in its own way"):
        load_drafter(checkpoint, denoising_steps=2)


def test_every_loader_belongs_to_a_row() -> None:
    """No loader is left without a family, and no body that transformers lacks without a loader."""
    bodies = {family.body for family in families.FAMILIES}
    assert set(LOADERS) <= bodies
    assert {family.body for family in families.FAMILIES if not family.native_body} <= set(LOADERS)
