"""Which strategies a target and a drafter can have; one that was asked for in vain is refused with a ValueError."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from transformers.cache_utils import QuantizedCache

from ..compatibility import CACHE
from ..config import MOST_NODES, FailFastConfig
from ..drafters import DiffusionDrafter, DraftSession
from ..engine.causal_lm import attention_name
from ..engine.positions import counted_from
from ..policies.confidence import ConfidenceThreshold
from .refusals import fits_slots, has_alibi, sees_later_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_told: WeakSet[PreTrainedModel] = WeakSet()  # targets whose users know why they get no trees


def check_tree(
    model: PreTrainedModel, drafter: DiffusionDrafter, options: FailFastConfig, arguments: dict[str, Any]
) -> None:
    """Raises ValueError on a target, drafter or cache of the call that trees cannot be had with."""
    if not options.most_nodes:
        return
    name, off = ("draft_tree", 0) if options.draft_tree else ("self_selection", 1)
    if (reason := _why_no_tree(model, drafter, arguments)) is not None:
        raise ValueError(f"`{name}`={getattr(options, name)} is not possible, only `{name}`={off}: {reason}.")


def can_branch(model: PreTrainedModel, drafter: DiffusionDrafter, arguments: dict[str, Any]) -> bool:
    """Whether drafts of the call could be trees, if nobody asked for them."""
    return _why_no_tree(model, drafter, arguments) is None and _why_chains(model, 0) is None


def _why_no_tree(model: PreTrainedModel, drafter: DiffusionDrafter, arguments: dict[str, Any]) -> str | None:
    """What keeps this target, drafter and cache from having trees; None: nothing."""
    config = model.config.get_text_config(decoder=True)
    cache = arguments.get(CACHE)
    given = arguments.get("generation_config") or model.generation_config
    implementation = arguments.get("cache_implementation") or given.cache_implementation
    reasons = {
        f"`{model.config.model_type}` keeps a recurrent state, which has one past and no branches": getattr(
            model, "_is_stateful", False
        )
        or (not model.config.is_encoder_decoder and not fits_slots(model)),
        f"`{model.config.model_type}` is an encoder-decoder, which transformers' own loop decodes": (
            model.config.is_encoder_decoder
        ),
        f"the tokens of `{config.model_type}` see later ones (`is_decoder=False`, `use_bidirectional_attention`), so "
        "those of other branches, too": sees_later_tokens(model),
        "a quantised cache cannot move the K/V of an accepted path": (
            implementation == "quantized" or isinstance(cache, QuantizedCache)
        ),
        f"a {type(drafter).__name__} proposes one token per position and no alternatives": (
            not drafter.has_alternatives
        ),
    }
    return next((reason for reason, is_true in reasons.items() if is_true), None)


def check_overlap(model: PreTrainedModel, drafter: DiffusionDrafter, options: FailFastConfig) -> None:
    """Raises ValueError on a target and a drafter that cannot work at the same time, and on a rule that has to know a
    round's end before it drafts again."""
    if not options.overlap:
        return
    policy = options.length_policy
    reasons = {
        f"`length_policy` is a {type(policy).__name__}, and only a ConfidenceThreshold can draft before the "
        "round before is over": not isinstance(policy, str) and type(policy) is not ConfidenceThreshold,
        "the target's weights are offloaded, and are moved by one forward at a time": any(
            weights.device.type == "meta" for weights in model.parameters()
        ),
        f"a {type(drafter).__name__} decides on lengths itself": not drafter.drafts_by_chunks,
    }
    for reason, is_true in reasons.items():
        if is_true:
            raise ValueError(f"`overlap`=True is not possible, only `overlap`=False: {reason}.")


def check_takes_back(drafter: DiffusionDrafter, session: DraftSession) -> None:
    """Raises ValueError on a drafter that cannot draft before it knows what the target has verified."""
    reason = "cannot take back what it has read of a text that turns out to be another one"
    if session.target_layers:
        reason = "reads the target's hidden states, which are there only after the verification"
    elif session.top_logits:
        reason = "learns from each round before it drafts again"
    if session.target_layers or session.top_logits or not session.takes_back:
        raise ValueError(f"`overlap`=True is not possible, only `overlap`=False: a {type(drafter).__name__} {reason}.")


def check_chain(config: FailFastConfig) -> None:
    """Raises ValueError on options that transformers' own loop, which verifies chains, cannot honour."""
    options: dict[str, object] = {"draft_tree": 0, "draft_lookup": 0, "draft_reuse": False, "self_selection": 1}
    for name, off in (options | {"exact": False, "overlap": False}).items():
        if (value := getattr(config, name)) not in (off, None):
            raise ValueError(
                f"`{name}`={value} is not possible with `assisted_generate`, only `{name}`={off}: transformers' own "
                "loop verifies the drafter's chains, one after the other."
            )


def takes_trees(model: PreTrainedModel, max_length: int) -> bool:
    """Whether the target's attention takes a mask and positions of its own, as trees need; logs once why not."""
    reason = _why_chains(model, max_length)
    if reason is not None and model not in _told:
        _told.add(model)
        logger.warning("Trees (`draft_tree`, `self_selection`) fall back to chains: %s.", reason)
    return reason is None


def _why_chains(model: PreTrainedModel, max_length: int) -> str | None:
    config = model.config.get_text_config(decoder=True)
    attention, counted = attention_name(model), counted_from(config)
    if attention not in ("sdpa", "eager"):
        return f"`attn_implementation`={attention!r} takes no mask of its own"
    if has_alibi(model):
        return f"`{config.model_type}` computes ALiBi from a mask of two dimensions"
    if counted is not None and max_length + MOST_NODES > counted:
        return f"`{config.model_type}` counts positions itself"
    return None
