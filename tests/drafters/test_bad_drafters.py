"""Drafters that do not fit, do not load or are broken: a clear error, or the target's own text."""

import copy
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DRAFTERS, LOOPS, VOCAB_SIZE, drafter, failfast, plain, prompt, saved_drafter, target, tiny_model
from safetensors.torch import load_file, save_file

import hf_failfast
from hf_failfast import load_drafter
from hf_failfast.drafters.masked.session import MaskedDrafter
from hf_failfast.drafters.spec import SECTION, DrafterSection

CANVAS = {"attention": "causal_canvas", "mask_token_id": 7}


# Pairs that do not fit


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("vocab_size", [60, 140, 1000])
def test_another_vocabulary(vocab_size: int, loop: str, tmp_path: Path) -> None:
    """Refuses a drafter whose vocabulary differs by more than padding, and names both sizes."""
    tiny_model("qwen2", vocab_size=vocab_size).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"vocabulary has {vocab_size} entries and the target's {VOCAB_SIZE}"):
        LOOPS[loop](target("llama"), prompt(5), load_drafter(tmp_path, **CANVAS), max_new_tokens=3)


@pytest.mark.parametrize("vocab_size", [112, 120, 128])
def test_padded_vocabularies_fit(vocab_size: int, tmp_path: Path) -> None:
    """Accepts one tokenizer's vocabulary padded to two sizes; the text is plain `generate`'s."""
    tiny_model("qwen2", vocab_size=vocab_size).save_pretrained(tmp_path)
    input_ids = prompt(20) % 112
    expected = plain(target("llama"), input_ids, max_new_tokens=20, suppress_tokens=list(range(112, 120)))
    output = failfast(
        target("llama"),
        input_ids,
        load_drafter(tmp_path, **CANVAS),
        max_new_tokens=20,
        suppress_tokens=list(range(112, 120)),
    )
    assert torch.equal(output, expected)


@pytest.mark.parametrize("kind", ["canvas_shift", "block_shift", "bidirectional"])
@pytest.mark.parametrize("loop", LOOPS)
def test_tokens_that_the_drafter_does_not_know(loop: str, kind: str, tmp_path: Path) -> None:
    """The text is plain `generate`'s where the prompt holds ids that the drafter's smaller vocabulary lacks."""
    tiny_model("qwen2", vocab_size=112).save_pretrained(tmp_path)
    options: dict[str, Any] = DRAFTERS[kind] | {"mask_token_id": 7}
    input_ids = torch.tensor([[5, 115, 9, 119, 3]])
    output = LOOPS[loop](target("llama"), input_ids, load_drafter(tmp_path, **options), max_new_tokens=20)
    assert torch.equal(output, plain(target("llama"), input_ids, max_new_tokens=20))


@pytest.mark.parametrize("given", [None, target, 7, {"path": "x"}])
@pytest.mark.parametrize("loop", LOOPS)
def test_something_else_as_drafter(loop: str, given: Any) -> None:
    """Refuses what is no drafter, an ordinary model too, and names its type."""
    given = target("qwen2") if given is target else given
    with pytest.raises(ValueError, match=f"`assistant_model` must be a drafter .* but is {type(given).__name__}"):
        LOOPS[loop](target("llama"), prompt(5), given, max_new_tokens=3)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_path_that_is_not_there(loop: str, tmp_path: Path) -> None:
    """The error of a mistyped path names it."""
    with pytest.raises(OSError, match="no-such-drafter"):
        LOOPS[loop](target("llama"), prompt(5), str(tmp_path / "no-such-drafter"), max_new_tokens=3)


# Checkpoints


def test_no_mask_id() -> None:
    """Refuses a checkpoint without a mask id, and names the argument that gives one."""
    with pytest.raises(ValueError, match=r"`mask_token_id` must be an id >= 0 .* but is None.*pass `mask_token_id=`"):
        load_drafter(_folder(), attention="causal_canvas")


def test_mask_id_beyond_the_embedding() -> None:
    """Refuses a mask id beyond the embedding when it is loaded, not at the first pass."""
    with pytest.raises(ValueError, match="`mask_token_id` must be < 120, the drafter's embedding rows, but is 120"):
        load_drafter(_folder(), attention="causal_canvas", mask_token_id=120)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "diagonal"}, r"`attention` must be one of \[.*block_causal.*\], but is 'diagonal'"),
        ({}, "does not say how it drafts: pass `attention=`"),
        (
            {"attention": "block_causal"},
            "`block_size` must be an integer >= 1 for block_causal attention, but is None",
        ),
        ({"attention": "block_causal", "block_size": 0}, "`block_size` must be an integer >= 1 .* but is 0"),
        ({"attention": "causal_canvas", "shift": 2}, "`shift` must be 0 or 1, but is 2"),
        ({"attention": "causal_canvas", "noise": "pink"}, "`noise` must be one of .* but is 'pink'"),
        ({"attention": "causal_canvas", "mask_token_id": -1}, "`mask_token_id` must be an id >= 0 .* but is -1"),
    ],
)
def test_specs_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    """Refuses a spec that is incomplete or out of range, and names the field."""
    with pytest.raises(ValueError, match=message):
        load_drafter(_folder(), **({"mask_token_id": 7} | options))


def test_unknown_attention_in_the_checkpoint(tmp_path: Path) -> None:
    """Refuses an attention of the config that this version does not know."""
    _copy(saved_drafter("canvas"), tmp_path, failfast={"attention": "spiral", "mask_token_id": 7})
    with pytest.raises(ValueError, match="`attention` must be one of .* but is 'spiral'"):
        load_drafter(tmp_path)


def test_unknown_model_type(tmp_path: Path) -> None:
    """Refuses an unknown model type without running the code beside it; a known one loads without that code."""
    _copy(_folder(), tmp_path, model_type="tulu", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (tmp_path / "evil.py").write_text("raise SystemExit('remote code was run')\n")
    with pytest.raises(ValueError, match="`model_type` is 'tulu', which is neither native .* never run"):
        load_drafter(tmp_path, **CANVAS)
    _copy(_folder(), tmp_path, auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"})
    load_drafter(tmp_path, **CANVAS)


@pytest.mark.parametrize("edit", ["missing", "unexpected"])
def test_weights_that_do_not_fit(edit: str, tmp_path: Path) -> None:
    """Lists the weights that are missing and those that are unexpected."""
    _copy(_folder(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if edit == "missing":
        del weights["model.layers.1.mlp.up_proj.weight"]
    else:
        weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(64, 32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"do not fit its config: .*{edit} \['model.layers..\.mlp.up_proj.weight"):
        load_drafter(tmp_path, **CANVAS)


def test_no_weights(tmp_path: Path) -> None:
    """Refuses a folder without weights."""
    _copy(_folder(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        load_drafter(tmp_path, **CANVAS)


@pytest.mark.parametrize("key", ["confidence_threshold", "chunk_length"])
def test_bad_numbers_in_the_checkpoint(key: str, tmp_path: Path) -> None:
    """Refuses FailFast numbers out of range when the checkpoint is loaded."""
    _copy(_folder(), tmp_path, failfast=CANVAS | {key: -1})
    with pytest.raises(ValueError, match=f"`{key}` must be .* but is -1"):
        load_drafter(tmp_path)


def test_unknown_keys_in_the_checkpoint(tmp_path: Path) -> None:
    """Refuses keys of the section that this version does not know, by name."""
    _copy(_folder(), tmp_path, failfast=CANVAS | {"chunk_lenght": 4, "trees": True})
    with pytest.raises(ValueError, match=r"`failfast` has \['chunk_lenght', 'trees'\].* does not know"):
        load_drafter(tmp_path)


def test_a_conditioned_drafter_must_say_what_it_reads(tmp_path: Path) -> None:
    """Refuses a config that leaves out the layers or the length of the canvas."""
    _copy(_folder(), tmp_path, failfast=CANVAS | {"conditioned": True, "shared_embeddings": True})
    with pytest.raises(ValueError, match="needs `shared_embeddings`, `canvas_length` and `source_layers`"):
        load_drafter(tmp_path)


def test_a_section_is_written_as_it_was_read() -> None:
    """Keeps every value of the bundled drafter's config when it is parsed and written again."""
    content = json.loads((hf_failfast.BUNDLED_DRAFTER / "config.json").read_text())[SECTION]
    assert DrafterSection.of(content).content() == content


@functools.cache
def _folder() -> str:
    """A plain causal-LM checkpoint whose config has no section of ours."""
    folder = tempfile.mkdtemp(prefix="checkpoint-")
    tiny_model("qwen2").save_pretrained(folder)
    return folder


def _copy(source: str, folder: Path, **changes: Any) -> None:
    """A checkpoint with some keys of its config changed."""
    config = json.loads((Path(source) / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((Path(source) / "model.safetensors").read_bytes())


# Broken drafters


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("loop", LOOPS)
def test_nan_weights(loop: str, kind: str) -> None:
    """The text is plain `generate`'s with a drafter that is all NaN, and no draft grows on NaN confidence."""
    broken = copy.deepcopy(drafter(kind))
    assert isinstance(broken, MaskedDrafter)
    with torch.no_grad():
        for parameter in broken.model.parameters():
            parameter.fill_(torch.nan)
    output = LOOPS[loop](target("qwen2"), prompt(20), broken, max_new_tokens=20, return_dict_in_generate=True)
    assert torch.equal(output.sequences, plain(target("qwen2"), prompt(20), max_new_tokens=20))
    assert all(record.drafted <= 10 for record in output.speculation.records), "extended on NaN confidence"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("vocabulary", ["whole", "one row"])
def test_nan_logits(vocabulary: str, value: float) -> None:
    """The text is plain `generate`'s where some of the drafter's logits are NaN or infinite."""
    broken = copy.deepcopy(drafter("canvas_shift"))
    assert isinstance(broken, MaskedDrafter)

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[..., slice(None) if vocabulary == "whole" else 5] = value
        return output

    broken.model.get_output_embeddings().register_forward_hook(spoil)
    output = failfast(target("qwen2"), prompt(20), broken, max_new_tokens=20)
    assert torch.equal(output, plain(target("qwen2"), prompt(20), max_new_tokens=20))


@pytest.mark.parametrize("positions", [24, 32, 50])
@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_drafter_with_fewer_positions_than_the_text(family: str, kind: str, positions: int, tmp_path: Path) -> None:
    """No draft reaches beyond the drafter's positions; after them the target goes on alone."""
    tiny_model(family, max_position_embeddings=positions).save_pretrained(tmp_path)
    short = load_drafter(tmp_path, mask_token_id=7, dtype=torch.float32, **DRAFTERS[kind])
    output = failfast(target("qwen2"), prompt(20), short, max_new_tokens=40, return_dict_in_generate=True)
    assert torch.equal(output.sequences, plain(target("qwen2"), prompt(20), max_new_tokens=40))
    records = output.speculation.records
    assert records[0].drafted > 0
    assert records[-2].drafted == 0
    length = 20
    for record in records:
        assert length + record.drafted <= positions or record.drafted == 0
        length += record.emitted
    assert length == 60
