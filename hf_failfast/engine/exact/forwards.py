"""A model's forwards under `EachAlone`: where they can be had, for plain decoding, and as a runner of the engine."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from ..causal_lm import attention_name
from ..cpu.packed_weights import is_prepacked
from ..runner import EagerRunner
from ..slot_cache import layer_windows
from ..window import Window
from .operations import each_alone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRIED_TOKENS = 5

# The circumstances in which a model was tried.
_TRIED: WeakKeyDictionary[PreTrainedModel, set[tuple[torch.dtype, int, bool]]] = WeakKeyDictionary()


def check_possible(model: PreTrainedModel) -> None:
    """Raises ValueError naming what of the model rules exact forwards out, once a model has computed a few tokens."""
    weights = list(model.parameters())
    devices = {each.device.type for each in weights} - {"cpu"}
    dtypes = {str(each.dtype).removeprefix("torch.") for each in weights if each.dtype not in DTYPES}
    kinds = {type(each).__name__ for each in weights if type(each) not in (torch.Tensor, torch.nn.Parameter)}
    attention = attention_name(model)
    reasons = {
        f"weights of the target are on {', '.join(sorted(devices))}, and products that round every row alike are "
        "there for a CPU only": bool(devices),
        f"weights of the target are {', '.join(sorted(dtypes))}, and not float32, bfloat16 or float16": bool(dtypes),
        f"weights of the target are {', '.join(sorted(kinds))}, and no ordinary ones": bool(kinds),
        "under autocast a layer computes in another dtype than its own": torch.is_autocast_enabled("cpu"),
        f"`attn_implementation`={attention!r} adds up in an order that changes with the text; 'sdpa' is replaced": (
            attention != "sdpa"
        ),
    }
    for reason, is_true in reasons.items():
        if is_true:
            raise ValueError(f"`exact`=True is not possible, only `exact`=False: {reason}.")
    circumstances = (model.dtype, torch.get_num_threads(), is_prepacked(model))
    if circumstances not in _TRIED.setdefault(model, set()):
        _try(model)
        _TRIED[model].add(circumstances)


def _try(model: PreTrainedModel) -> None:
    """Raises ValueError if tokens that are computed together get other logits than one at a time."""
    ids = torch.arange(TRIED_TOKENS)[None] % model.config.get_text_config(decoder=True).vocab_size
    runner = ExactRunner(model)

    def logits(widths: list[int]) -> torch.Tensor:
        cache = runner.new_cache(TRIED_TOKENS)
        parts = [
            runner.run(Window(part, [cache.lengths[0]], part.shape[1]), cache).outputs[0]
            for part in ids.split(widths, dim=1)
        ]
        return torch.cat(parts, dim=1)

    if not torch.equal(logits([TRIED_TOKENS]), logits([1] * TRIED_TOKENS)):
        raise ValueError(
            f"`exact`=True is not possible, only `exact`=False: {TRIED_TOKENS} tokens that a "
            f"`{model.config.model_type}` computes together get other logits than one after the other."
        )


def exact_forwards(model: PreTrainedModel) -> AbstractContextManager[None]:
    """In this context the model's forwards round each token as if it were alone, as those of `exact=True` do.

    Plain `generate` writes in it, token for token, what drafted decoding with `exact=True` writes, whatever the
    drafter, one prompt at a time. Raises ValueError if that is not possible.
    """
    check_possible(model)
    if any(layer_windows(model.config.get_text_config(decoder=True))):
        raise ValueError(
            f"`exact_forwards` cannot make plain `generate` of `{model.config.model_type}` write what `exact=True` "
            "writes: its cache forgets what is outside of a sliding window, and attention adds up what is left in "
            "another order. Drafted decoding with `exact=True` keeps all of it: one text, whatever the drafter."
        )
    return _exact(model)


@contextmanager
def _exact(model: PreTrainedModel) -> Iterator[None]:
    own, forward = vars(model).get("forward"), model.forward

    @functools.wraps(forward)
    def exact_forward(*args: Any, **kwargs: Any) -> Any:
        with each_alone():
            return forward(*args, **kwargs)

    model.forward = exact_forward
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own


class ExactRunner(EagerRunner):
    """An eager runner whose forwards give each token of a window the logits and K/V that it would have alone."""

    @property
    def description(self) -> str:
        return "eager, exact"

    def _forward(self, *args: Any) -> Any:
        with each_alone():
            return super()._forward(*args)
