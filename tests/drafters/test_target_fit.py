"""A drafter warns of a target that it was not made for, once."""

import json
import shutil
import warnings

import pytest
import torch
from conftest import failfast, prompt, saved_drafter, tiny_model

import hf_failfast
from hf_failfast.drafters.checkpoints.target_fit import fingerprint


@pytest.fixture
def drafter(tmp_path):
    """(target name, fingerprint or None) -> a drafter whose config names them."""

    def made(target: str, of: torch.Tensor | None) -> hf_failfast.DiffusionDrafter:
        folder = tmp_path / "drafter"
        shutil.copytree(saved_drafter("canvas_shift", "llama"), folder, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        config["failfast"] |= {"target": target} | ({} if of is None else {"target_fingerprint": fingerprint(of)})
        (folder / "config.json").write_text(json.dumps(config))
        return hf_failfast.load_drafter(folder)

    return made


def embedding(model):
    return model.get_input_embeddings().weight


def generate(model, drafter):
    return failfast(model, prompt(4), drafter, max_new_tokens=4)


def is_silent(model, drafter):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, drafter)


def test_another_target_is_warned_of_once(drafter):
    made = drafter("user/some-target", embedding(tiny_model("llama", seed=1)))
    other = tiny_model("llama", seed=2)
    other.config._name_or_path = "user/another"
    with pytest.warns(UserWarning, match="made for 'user/some-target' and drafts for 'user/another'"):
        generate(other, made)
    is_silent(other, made)


def test_the_target_itself_is_recognised_under_any_name_and_in_any_dtype(drafter):
    target = tiny_model("llama", seed=1)
    made = drafter("user/some-target", embedding(target))
    target.config._name_or_path = "/models/copy"
    is_silent(target, made)
    is_silent(target.to(torch.bfloat16), made)


def test_a_fine_tuned_target_is_recognised(drafter):
    target = tiny_model("llama", seed=1)
    made = drafter("user/some-target", embedding(target))
    with torch.no_grad():
        embedding(target).add_(0.01 * torch.randn_like(embedding(target)))
    is_silent(target, made)


def test_a_vocabulary_of_another_size(drafter):
    target = tiny_model("llama", seed=1)
    made = drafter("user/some-target", torch.cat([embedding(target), embedding(target)[:4]]))
    with pytest.warns(UserWarning, match="few drafts may be accepted"):
        generate(target, made)


def test_without_a_fingerprint_the_name_decides(drafter):
    made = drafter("user/some-target", None)
    target = tiny_model("llama", seed=1)
    target.config._name_or_path = "/models/some-target"
    is_silent(target, made)
    other = tiny_model("llama", seed=1)
    other.config._name_or_path = "user/another"
    with pytest.warns(UserWarning, match="another model"):
        generate(other, made)


def test_the_bundled_drafter_names_its_target():
    made_for = hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER).made_for
    assert made_for.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
