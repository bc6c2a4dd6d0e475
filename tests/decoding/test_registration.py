"""The registration leaves alone the model, the names and functions of others, and the question of trust."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DOORS, REPOSITORY, drafter, plain, prompt, target, tiny_model
from scripted import ScriptedDrafter

import hf_failfast


def snapshot(model: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    return dict(model.__dict__), model.generation_config.to_dict(), model.config.to_dict()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("door", [*DOORS, "assisted"])
def test_the_model_is_left_as_it_was(door: str, fails: bool) -> None:
    """A call changes nothing on the model, neither during it nor after, errors included."""
    model, input_ids = tiny_model("llama"), prompt(12)
    reference = plain(model, input_ids, max_new_tokens=40, repetition_penalty=1.1)
    before, class_before = snapshot(model), dict(type(model).__dict__)
    during = []

    def watch(index: int) -> float:
        during.append(dict(model.__dict__) == before[0])
        if fails:
            raise RuntimeError("the drafter broke")
        return 1.0

    script = ScriptedDrafter(reference, [3], confidence=watch)
    call: Callable[..., Any] = model.generate
    options = dict(DOORS.get(door, {}), assistant_model=script, max_new_tokens=20, repetition_penalty=1.1)
    if door == "assisted":
        call = lambda *args, **kwargs: hf_failfast.assisted_generate(model, *args, **kwargs)  # noqa: E731
    elif fails:
        options["drafter_errors"] = "raise"
    if fails:
        with pytest.raises(RuntimeError, match="the drafter broke"):
            call(input_ids, **options)
    else:
        call(input_ids, **options)
    assert during
    assert all(during)
    assert snapshot(model) == before
    assert dict(type(model).__dict__) == class_before
    assert torch.equal(plain(model, input_ids, max_new_tokens=40, repetition_penalty=1.1), reference)


def test_other_names_reach_transformers(tmp_path: Path) -> None:
    """Other `custom_generate` names reach transformers."""
    model = target("llama")
    with pytest.raises(OSError, match="does not contain a `custom_generate` subdirectory"):
        model.generate(prompt(5), custom_generate=str(tmp_path), trust_remote_code=True, max_new_tokens=2)

    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate" / "generate.py").write_text(
        "def generate(model, inputs=None, **kwargs):\n    return inputs + kwargs['added']\n"
    )
    output = model.generate(prompt(5), custom_generate=str(tmp_path), trust_remote_code=True, added=7)
    assert torch.equal(output, prompt(5) + 7)


def test_the_folder_needs_trust() -> None:
    """The folder needs `trust_remote_code=True`."""
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        target("llama").generate(
            prompt(5), custom_generate=str(REPOSITORY), assistant_model=drafter("canvas"), trust_remote_code=False
        )


def test_functions_of_others_still_work() -> None:
    """Another callable as `custom_generate` is called with its own arguments."""
    seen: dict[str, Any] = {}

    def decode(model: Any, input_ids: torch.Tensor, mine: int = 0, **kwargs: Any) -> torch.Tensor:
        seen.update(kwargs, mine=mine)
        return input_ids

    model = target("llama")
    assert torch.equal(model.generate(prompt(5), custom_generate=decode, mine=3, max_new_tokens=2), prompt(5))
    assert seen["mine"] == 3
