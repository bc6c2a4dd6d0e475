"""Drafters in the format of speculators, and DSpark in DeepSpec's own: the same bodies under other names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_support import DATA, check_parity
from safetensors.torch import load_file, save_file
from sessions import session_of
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_failfast import load_drafter
from hf_failfast.drafters.checkpoints.inspection import inspect_checkpoint
from hf_failfast.drafters.conditioned.dflash import DFlashDrafter, DFlashSession
from hf_failfast.drafters.denoising import DraftTokens

BODY = "num_hidden_layers num_attention_heads num_key_value_heads hidden_size intermediate_size head_dim vocab_size"
KINDS = {"dflash": "case_6", "dflash2": "case_7", "dspark": "case_6"}


@pytest.fixture(scope="module", params=["case_6", "case_7"])
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def target_of(case: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(DATA / "dflash" / case / "target", dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def read(case: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    folder = DATA / "dflash" / case / "checkpoint"
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def write(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / "model.safetensors")
    return folder


def speculators(kind: str, folder: Path, window: int | None = None, **changes: Any) -> Path:
    """A checkpoint of the z-lab format as speculators' converter and trainer write it, with some values changed."""
    theirs, weights = read(KINDS[kind])
    section = theirs["dflash_config"]
    layer = {key: theirs[key] for key in BODY.split()} | {"model_type": "qwen3", "rms_norm_eps": 1e-6}
    layer |= {"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "max_position_embeddings": 40960}
    if window is not None:
        layer |= {"layer_types": theirs["layer_types"], "sliding_window": window, "use_sliding_window": True}
    config = {
        "architectures": ["DFlashSpeculator"],
        "speculators_model_type": kind,
        "speculators_version": "0.9.0",
        "speculators_config": {"algorithm": kind, "verifier": {"name_or_path": "x", "architectures": []}},
        "transformer_layer_config": layer,
        "draft_vocab_size": theirs["vocab_size"],
        "target_hidden_size": None,
        "block_size": section["block_size"],
        "mask_token_id": section["mask_token_id"],
        "aux_hidden_state_layer_ids": [layer_id + 1 for layer_id in section["target_layer_ids"]],
        "transformers_version": "5.23.0",
    }
    config |= {key: section[key] for key in section if key.startswith(("conv_", "selector_"))}
    extra = changes.pop("weights", {})
    return write(folder, config | changes, weights | extra)


def session(folder: Path, target: PreTrainedModel, **options: Any) -> DFlashSession:
    drafter = load_drafter(folder, dtype=torch.float32, **options)
    assert isinstance(drafter, DFlashDrafter)
    found = session_of(drafter, target, 128)
    assert isinstance(found, DFlashSession)
    text = torch.randint(0, 70, (1, 30), generator=torch.Generator().manual_seed(2))
    states = target(text, output_hidden_states=True).hidden_states
    found.observe([torch.cat([states[layer] for layer in drafter.target_layers], dim=-1)])
    return found


def draft(folder: Path, target: PreTrainedModel) -> DraftTokens:
    return session(folder, target).draft_block(torch.tensor([[5]]))


@pytest.mark.parametrize("kind", ["dflash", "dflash2"])
@torch.no_grad()
def test_the_same_weights_in_both_formats(kind: str, tmp_path: Path) -> None:
    """Layers are numbered by their outputs, one higher than z-lab's; the body is in a section of its own."""
    case = KINDS[kind]
    theirs, weights = read(case)
    plain = {"layer_types": ["full_attention"] * 2, "use_sliding_window": False}
    section = {key: value for key, value in theirs["dflash_config"].items() if "logit" not in key and "out" not in key}
    zlab = write(tmp_path / "zlab", theirs | plain | {"dflash_config": section}, weights)
    target = target_of(case)
    expected, found = draft(zlab, target), draft(speculators(kind, tmp_path / "a"), target)
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    torch.testing.assert_close(found.confidence, expected.confidence)


@torch.no_grad()
def test_sliding_layers(tmp_path: Path) -> None:
    """Causal in the block unless the config says both ways (dflash2's default), the window from the anchor on."""
    target = target_of("case_6")
    wide = draft(speculators("dflash", tmp_path / "wide", window=100), target)
    narrow = draft(speculators("dflash", tmp_path / "narrow", window=4), target)
    both = draft(speculators("dflash", tmp_path / "both", window=100, sliding_window_non_causal=True), target)
    full = draft(speculators("dflash", tmp_path / "full"), target)
    torch.testing.assert_close(both.confidence, full.confidence)
    assert (wide.confidence - full.confidence).abs().max() > 1e-4
    assert (narrow.confidence - wide.confidence).abs().max() > 1e-4
    found = session(speculators("dflash", tmp_path / "b", window=4, sliding_window_non_causal=True), target)
    mask = found.body.sights[0].mask(torch.arange(30, 38), 38)
    assert mask is not None
    assert mask.tolist() == [[slot >= 26 for slot in range(38)]] * 8


@torch.no_grad()
def test_a_reduced_vocabulary(tmp_path: Path) -> None:
    """d2t holds differences; the own head proposes its ids only, and q lives on them."""
    target = target_of("case_6")
    chosen = torch.arange(3, 80, 4)
    t2d = torch.zeros(80, dtype=torch.bool)
    t2d[chosen] = True
    own = {
        "d2t": chosen - torch.arange(len(chosen)),
        "t2d": t2d,
        "lm_head.weight": target.lm_head.weight[chosen].detach().clone(),
    }
    folder = speculators("dflash", tmp_path / "a", draft_vocab_size=len(chosen), weights=own)
    full, found = draft(speculators("dflash", tmp_path / "full"), target), draft(folder, target)
    assert set(found.token_ids[0].tolist()) <= set(chosen.tolist())
    both = torch.isin(full.token_ids, chosen)
    assert found.token_ids[both].tolist() == full.token_ids[both].tolist()
    assert (found.confidence[both] >= full.confidence[both] - 1e-6).all()
    check_parity(target, load_drafter(folder, dtype=torch.float32), 16)
    half = load_drafter(folder, dtype=torch.bfloat16)
    assert isinstance(half, DFlashDrafter)
    assert half.body.vocabulary is not None
    assert half.body.vocabulary.tolist() == chosen.tolist()
    wrong = {**own, "d2t": own["d2t"] + 60}
    broken = speculators("dflash", tmp_path / "b", draft_vocab_size=len(chosen), weights=wrong)
    with pytest.raises(ValueError, match="`d2t` must lead to 20 different ids below 80"):
        load_drafter(broken)


# DSpark


def heads(kind: str, rank: int = 6, with_markov: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.7

    found = {
        "markov_head.markov_w1.weight": random(80, rank),
        "markov_head.markov_w2.weight": random(80, rank),
        "confidence_head.proj.weight": random(1, 40 + (rank if with_markov else 0)),
        "confidence_head.proj.bias": random(1),
    }
    if kind == "gated":
        found |= {"markov_head.gate_proj.weight": random(rank, 40 + rank), "markov_head.gate_proj.bias": random(rank)}
    if kind == "rnn":
        found |= {"markov_head.joint_proj.weight": random(3 * rank, 40 + 2 * rank)}
        found |= {"markov_head.joint_proj.bias": random(3 * rank)}
    return found


def deepspec(folder: Path, kind: str, **changes: Any) -> Path:
    """DeepSpec's own format: the target's config with the keys of the draft on top, and copies of its embeddings."""
    theirs, weights = read("case_6")
    config = {key: value for key, value in theirs.items() if key not in ("dflash_config", "auto_map", "is_causal")}
    config |= {
        "architectures": ["Qwen3DSparkModel"],
        "block_size": 7,
        "layer_types": ["full_attention"] * 2,
        "use_sliding_window": False,
        "mask_token_id": 78,
        "target_layer_ids": [1, 2],
        "num_anchors": 512,
        "markov_rank": 6,
        "markov_head_type": kind,
        "enable_confidence_head": True,
        "confidence_head_with_markov": True,
    }
    copies = {"embed_tokens.weight": torch.zeros(80, 40), "lm_head.weight": torch.zeros(80, 40)}
    return write(folder, config | changes, weights | heads(kind) | copies)


@pytest.mark.parametrize("kind", ["vanilla", "gated", "rnn"])
@torch.no_grad()
def test_dspark_drafts(kind: str, tmp_path: Path) -> None:
    """Token j is read at row j, the anchor's included; its logits and its acceptance depend on the token before."""
    target = target_of("case_6")
    found = session(deepspec(tmp_path / "a", kind), target)
    seen: list[torch.Tensor] = []
    found.body.register_forward_hook(lambda *call: seen.append(call[2]))
    tokens = found.draft_block(torch.tensor([[5]]))
    assert tokens.token_ids.shape == (1, 7)
    weights = {key.removeprefix("markov_head."): value for key, value in heads(kind).items()}
    hidden, previous, state = seen[0][0], 5, torch.zeros(6)
    for position in range(7):
        token = weights["markov_w1.weight"][previous]
        acceptance = torch.cat([hidden[position], token]) @ weights["confidence_head.proj.weight"][0]
        acceptance = torch.sigmoid(acceptance + weights["confidence_head.proj.bias"][0])
        if kind == "gated":
            both = torch.cat([hidden[position], token])
            token = torch.sigmoid(weights["gate_proj.weight"] @ both + weights["gate_proj.bias"]) * token
        if kind == "rnn":
            joint = torch.cat([state, token, hidden[position]])
            gate, new, out = (weights["joint_proj.weight"] @ joint + weights["joint_proj.bias"]).chunk(3)
            state = gate.sigmoid() * state + (1 - gate.sigmoid()) * new.tanh()
            token = out.tanh()
        logits = target.lm_head(hidden[position]) + weights["markov_w2.weight"] @ token
        logits[78] = -torch.inf
        previous = int(logits.argmax())
        assert int(tokens.token_ids[0, position]) == previous
        torch.testing.assert_close(tokens.confidence[0, position], acceptance, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["vanilla", "gated", "rnn"])
def test_dspark_is_lossless(kind: str, tmp_path: Path) -> None:
    target = target_of("case_6")
    folder = deepspec(tmp_path / "a", kind)
    stats = check_parity(target, load_drafter(folder, dtype=torch.float32), 24, confidence_threshold=0.0)
    assert max(record.drafted for record in stats.records) == 7
    found = inspect_checkpoint(folder, DATA / "dflash" / "case_6" / "target")
    assert (found.family, found.chunk_per_pass, found.misfit) == ("DSpark", 7, None)


@torch.no_grad()
def test_dspark_in_both_formats(tmp_path: Path) -> None:
    target = target_of("case_6")
    folder = speculators(
        "dspark", tmp_path / "a", weights=heads("gated"), markov_rank=6, markov_head_type="gated", block_size=7
    )
    expected, found = draft(deepspec(tmp_path / "b", "gated"), target), draft(folder, target)
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    torch.testing.assert_close(found.confidence, expected.confidence)
    assert inspect_checkpoint(folder).family == "DSpark of speculators"
    from_masks = speculators(
        "dspark",
        tmp_path / "c",
        weights=heads("gated"),
        markov_rank=6,
        markov_head_type="gated",
        sample_from_anchor=False,
    )
    assert inspect_checkpoint(from_masks).chunk_per_pass == 7


@torch.no_grad()
def test_heads_can_be_left_out(tmp_path: Path) -> None:
    target = target_of("case_6")
    bare = speculators("dspark", tmp_path / "a", markov_rank=0, enable_confidence_head=False, sample_from_anchor=False)
    expected, found = draft(speculators("dflash", tmp_path / "b"), target), draft(bare, target)
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    own = {key: value for key, value in heads("vanilla", with_markov=False).items() if "confidence" in key}
    sure = speculators(
        "dspark",
        tmp_path / "c",
        weights=own,
        markov_rank=0,
        confidence_head_with_markov=False,
        sample_from_anchor=False,
    )
    found = draft(sure, target)
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert (found.confidence - expected.confidence).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eagle_layers": 3}, r"has \['eagle_layers'\], which DFlash of speculators"),
        ({"target_hidden_size": 64}, "`target_hidden_size` must be 40"),
        ({"transformer_layer_config": {"model_type": "llama"}}, "describes a 'llama'"),
        ({"speculators_model_type": "eagle3"}, "names a `model_type`"),
        ({"draft_vocab_size": 20}, r"missing \['d2t'"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = speculators("dflash", tmp_path / "a", **changes)
    with pytest.raises(ValueError, match=message):
        load_drafter(folder)


def test_an_unknown_markov_head(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`markov_head_type` must be 'vanilla', 'gated' or 'rnn', but is 'lstm'"):
        load_drafter(deepspec(tmp_path / "a", "lstm"))
