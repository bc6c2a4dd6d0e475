"""One forward over a window: the mask by limits, the tokens read, and parts that add up to the whole."""

import pytest
import torch
from conftest import TARGETS, prompt, target
from sessions import logits_of

from hf_failfast.drafters.masked.attention_patterns import attention_pattern
from hf_failfast.drafters.spec import DrafterSpec
from hf_failfast.engine.runner import EagerRunner

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("edges", [[20], [1, 20], [7, 8, 19], [16, 17, 33]])
def test_parts_equal_the_whole(family: str, edges: list[int]) -> None:
    """Forwards over parts of a text, each after the cached slots, give the logits of one forward over all of it."""
    model = target(family)
    runner = EagerRunner(model)
    with torch.no_grad():
        expected = model(prompt(40)).logits
        cache = runner.new_cache(48)
        parts = [
            logits_of(runner, prompt(40)[:, start:end], cache, end - start)
            for start, end in zip([0, *edges], [*edges, 40], strict=True)
        ]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, **TOLERANCE)


@pytest.mark.parametrize("family", TARGETS)
def test_causal_limits_equal_no_limits(family: str) -> None:
    """Causal limits give the logits of the model's own causal mask, sliding windows included."""
    runner = EagerRunner(target(family))
    with torch.no_grad():
        first, second = runner.new_cache(48), runner.new_cache(48)
        for window in (prompt(30), prompt(9)):
            start = first.get_seq_length()
            limit = torch.arange(start, start + window.shape[1]) + 1
            rows = window.shape[1]
            torch.testing.assert_close(
                logits_of(runner, window, first, rows, limit), logits_of(runner, window, second, rows), **TOLERANCE
            )


@pytest.mark.parametrize("family", TARGETS)
def test_limits_hide_what_is_after_them(family: str) -> None:
    """A token sees all slots before its limit, and none at or after it."""
    model = target(family)
    runner = EagerRunner(model)
    ids, limit = prompt(12), torch.tensor([4, 4, 4, 4, 9, 9, 9, 9, 9, 12, 12, 12])

    def logits(changed: int) -> torch.Tensor:
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 120
        with torch.no_grad():
            return logits_of(runner, other, runner.new_cache(16), 12, limit)[0]

    with torch.no_grad():
        base = logits_of(runner, ids, runner.new_cache(16), 12, limit)[0]
    for changed in range(12):
        moved = (logits(changed) - base).abs().amax(dim=-1) > 1e-4
        assert moved.tolist() == [bound > changed for bound in limit.tolist()], changed


def test_rows() -> None:
    """Returns the logits of the tokens asked for: the last n, or those of given indices."""
    runner = EagerRunner(target("llama"))
    with torch.no_grad():
        every = logits_of(runner, prompt(9), runner.new_cache(16), 9)
        last = logits_of(runner, prompt(9), runner.new_cache(16), 3)
        some = logits_of(runner, prompt(9), runner.new_cache(16), torch.tensor([2, 5]))
    torch.testing.assert_close(last, every[:, -3:])
    torch.testing.assert_close(some, every[:, [2, 5]])


# What a pass feeds and sees, by attention


def limits(spec: DrafterSpec, start: int, clean_end: int, end: int) -> list[int]:
    pattern = attention_pattern(spec)
    return pattern.limit(torch.arange(start, end), clean_end, end).tolist()


def test_causal_canvas() -> None:
    """Clean positions see no noise; noise sees the whole canvas."""
    for shift in (0, 1):
        spec = DrafterSpec("causal_canvas", shift, 7)
        assert limits(spec, 3, 5, 8) == [4, 5, 8, 8, 8]
        assert attention_pattern(spec).plan(5, 3) == (3 - shift, 3)
        assert attention_pattern(spec).final_length(5) == 5


def test_block_causal() -> None:
    """Blocks are counted from position 0, not from the start of the window."""
    spec = DrafterSpec("block_causal", 1, 7, block_size=4)
    assert limits(spec, 2, 5, 12) == [4, 4, 8, 8, 8, 8, 12, 12, 12, 12]
    assert limits(spec, 4, 5, 7) == [7, 7, 7]
    pattern = attention_pattern(spec)
    assert [pattern.plan(clean, 3) for clean in (4, 5, 6, 7, 8)] == [(4, 3), (3, 3), (2, 2), (1, 1), (4, 3)]
    assert [pattern.final_length(clean) for clean in (3, 4, 5, 8)] == [0, 4, 4, 8]


def test_bidirectional() -> None:
    """No K/V are final, since all saw noise."""
    spec = DrafterSpec("bidirectional", 0, 7)
    assert limits(spec, 0, 3, 5) == [5, 5, 5, 5, 5]
    assert attention_pattern(spec).plan(3, 2) == (2, 2)
    assert attention_pattern(DrafterSpec("bidirectional", 1, 7)).plan(3, 2) == (2, 2)
    assert attention_pattern(spec).final_length(3) == 0
