"""Entry points: resolve drafter and options, then run the loop inside `model.generate`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import GenerationMixin, LogitsProcessorList
from transformers.generation import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput
from transformers.utils import ModelOutput

from .compatibility import with_cache_name
from .config import FailFastConfig
from .decoding.hierarchy import Hierarchy
from .decoding.loop import failfast_decoding
from .decoding.refusals import check_arguments, check_own_loop, check_state, warn_of_int8_outliers
from .decoding.round_costs import known_of, measured_costs
from .decoding.strategy_refusals import can_branch, check_chain, check_overlap, check_tree
from .decoding.token_choice import draft_warp
from .decoding.transformers_loop import FailFastCandidateGenerator
from .drafters import Conversation, DiffusionDrafter, DrafterErrors, Learning, execution_device, load_drafter
from .drafters.wrappers.cross_tokenizer import CrossTokenizerDrafter
from .engine.exact.forwards import check_possible
from .policies import POLICIES, LengthPolicy
from .policies.base import RoundCosts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "hf_failfast"

# A forward of fewer weights takes no longer than the loop around it, so that its time says nothing of drafting.
FEWEST_WEIGHTS = 20_000_000

# lm-eval passes the drafter as a path with every request; it must not be loaded anew each time.
_load_drafter_once = functools.lru_cache(maxsize=4)(load_drafter)


def _generate(
    model: PreTrainedModel,
    inputs: torch.Tensor | None = None,
    *,
    assistant_model: DiffusionDrafter | str | Path | None = None,
    failfast_config: FailFastConfig | None = None,
    drafter_errors: DrafterErrors = "plain",
    drafter_timeout: float | None = None,
    **kwargs: Any,
) -> GenerateDecoderOnlyOutput | torch.Tensor:
    """`model.generate(inputs, **kwargs)`, drafted by `assistant_model`; the output is the target's own.

    assistant_model: a drafter of `load_drafter`, or a checkpoint folder or Hub id (loaded once, in the target's
        dtype); a `Conversation`, if the drafter should remember the text between calls; a `Learning`, if it should
        learn from the text; a `Hierarchy` of several.
    failfast_config: the chunk rule's numbers and the verifier; or pass them by name (`confidence_threshold`,
        `chunk_length`, `max_draft_length`, `verifier`, `draft_temperature`, `length_policy`, `draft_tree`,
        `draft_lookup`, `draft_reuse`, `self_selection`, `exact`, `overlap`). Default: the drafter's own
        (`drafter.config`).
        `length_policy` and `verifier` take a name or an object: see `FailFastConfig`.
    drafter_errors: what to do if the drafter raises an error, runs out of memory or returns NaN: `plain` warns,
        decodes the rest plainly and counts it in the output's `speculation`; `raise` raises the error.
    drafter_timeout: seconds after which a draft counts as an error too; None: no limit.
    kwargs: every argument of `generate`; with `return_dict_in_generate=True` the output has one more field,
        `speculation` (`SpecDecodingStats`), which a notebook shows as the coloured text if `tokenizer=` is among them.

    Raises ValueError naming any argument or model that is not supported.
    """
    kwargs = with_cache_name(kwargs)
    drafter, config = _drafter_and_config(model, assistant_model, failfast_config, kwargs)
    config = config.settled(can_branch=can_branch(model, drafter, kwargs))
    policy = _length_policy(config, model, drafter)
    check_arguments(model, kwargs)

    def decode(_: PreTrainedModel, input_ids: torch.Tensor, tokenizer: Any = None, **prepared: Any) -> Any:
        return failfast_decoding(
            model,
            input_ids,
            drafter=drafter,
            policy=policy,
            config=config,
            drafter_errors=drafter_errors,
            drafter_timeout=drafter_timeout,
            tokenizer=tokenizer,
            **prepared,
        )

    with _held(drafter):
        return _view(model).generate(inputs, custom_generate=decode, **kwargs)


def assisted_generate(
    model: PreTrainedModel,
    inputs: torch.Tensor | None = None,
    *,
    assistant_model: DiffusionDrafter | str | Path | None = None,
    failfast_config: FailFastConfig | None = None,
    **kwargs: Any,
) -> GenerateDecoderOnlyOutput | GenerateEncoderDecoderOutput | torch.Tensor:
    """Like `hf_failfast.generate`, but in transformers' own assisted loop with a `FailFastCandidateGenerator`.

    For targets whose cache the slots cannot hold (encoder-decoders, convolution layers), and as the reference for our
    own loop. Its limits are transformers'. Raises ValueError on a target with a recurrent state.
    """
    kwargs = with_cache_name(kwargs)
    drafter, config = _drafter_and_config(model, assistant_model, failfast_config, kwargs)
    check_chain(config)
    policy = _length_policy(config, model, drafter)
    generators: list[FailFastCandidateGenerator] = []

    def make_generator(
        generation_config: Any, logits_processor: LogitsProcessorList, **_: Any
    ) -> FailFastCandidateGenerator:
        eos_token_ids = generation_config._eos_token_tensor
        warp = draft_warp(config, generation_config, logits_processor)
        generators.append(
            FailFastCandidateGenerator(drafter, model, policy, generation_config.max_length, eos_token_ids, warp)
        )
        return generators[0]

    def decode(view: PreTrainedModel, input_ids: torch.Tensor, **prepared: Any) -> Any:
        check_own_loop(model, prepared["generation_config"].max_length)
        return GenerationMixin._assisted_decoding(view, input_ids, **prepared)

    view = _view(model)
    view._get_candidate_generator = make_generator
    with _held(drafter):
        output = view.generate(inputs, custom_generate=decode, **kwargs)
    if isinstance(output, ModelOutput):
        output["speculation"] = generators[0].stats
    return output


def _drafter_and_config(
    model: PreTrainedModel,
    assistant_model: DiffusionDrafter | str | Path | None,
    failfast_config: FailFastConfig | None,
    kwargs: dict[str, Any],
) -> tuple[DiffusionDrafter, FailFastConfig]:
    """Resolves the drafter and the options; takes the latter out of `kwargs`."""
    if isinstance(assistant_model, (str, Path)):
        assistant_model = _load_drafter_once(
            str(assistant_model), dtype=model.dtype, device_map=execution_device(model)
        )
    if not isinstance(assistant_model, DiffusionDrafter):
        raise ValueError(
            "`assistant_model` must be a drafter of `hf_failfast.load_drafter`, a checkpoint folder or a Hub id, "
            f"but is {type(assistant_model).__name__}."
        )
    if assistant_model.made_for is not None:
        assistant_model.made_for.check(model)
    assistant_tokenizer = kwargs.pop("assistant_tokenizer", None)
    if assistant_tokenizer is not None:
        assistant_model = _across_tokenizers(assistant_model, kwargs.get("tokenizer"), assistant_tokenizer)
    options = {name: kwargs.pop(name) for name in FailFastConfig.field_names() if kwargs.get(name) is not None}
    config = failfast_config if failfast_config is not None else assistant_model.config
    if not isinstance(config, FailFastConfig):
        raise ValueError(f"`failfast_config` must be a FailFastConfig, but is {type(config).__name__}.")
    config = config.with_options(options)
    _check_options(config, options)
    check_tree(model, assistant_model, config, kwargs)
    if config.exact:
        check_possible(model)
    check_overlap(model, assistant_model, config)
    check_state(model)
    warn_of_int8_outliers(model)
    return assistant_model, config


def _held(drafter: DiffusionDrafter) -> AbstractContextManager[None]:
    """Reserves a conversation for this call: it serves one call at a time."""
    return drafter.held() if isinstance(drafter, Conversation) else nullcontext()


def _check_options(config: FailFastConfig, options: dict[str, Any]) -> None:
    """Raises ValueError on given options that the length policy does not read."""
    policy = config.length_policy
    read = POLICIES[policy].options if isinstance(policy, str) else ()
    of_policies = {option for each in POLICIES.values() for option in each.options}
    if unused := sorted(set(options) & of_policies - set(read)):
        name = repr(policy) if isinstance(policy, str) else type(policy).__name__
        raise ValueError(f"`length_policy={name}` finds draft lengths itself and has no use for {unused}.")


def _length_policy(config: FailFastConfig, model: PreTrainedModel, drafter: DiffusionDrafter) -> LengthPolicy:
    if not isinstance(config.length_policy, str):
        return cast(LengthPolicy, config.length_policy)
    measured = drafter
    while isinstance(measured, (Conversation, Learning)):
        measured = measured.drafter
    if isinstance(measured, Hierarchy) and config.length_policy != "confidence":
        raise ValueError(
            f"`length_policy={config.length_policy!r}` is for one drafter: a Hierarchy chooses its levels itself, by "
            "measured times, and takes 'confidence' or a LengthPolicy object."
        )

    def measure(num_rows: int, num_tokens: int) -> RoundCosts:
        return measured_costs(model, measured, num_rows, num_tokens, bool(config.most_nodes))

    policy = POLICIES[config.length_policy].for_pair(config, drafter, measure)
    if policy.calibration is not None:
        policy.calibration = known_of(model, measured).calibration
    policy.is_bounded = sum(weights.numel() for weights in model.get_decoder().parameters()) >= FEWEST_WEIGHTS
    return policy


def _across_tokenizers(drafter: DiffusionDrafter, tokenizer: Any, assistant_tokenizer: Any) -> DiffusionDrafter:
    """The drafter for a target of another tokenizer; unchanged if both tokenizers have the same vocabulary."""
    if isinstance(drafter, (Conversation, Learning, Hierarchy)):
        kind = type(drafter).__name__
        raise ValueError(f"A {kind} cannot be combined with `assistant_tokenizer`: pass the drafter itself.")
    if tokenizer is None:
        raise ValueError("`assistant_tokenizer` needs `tokenizer`, the target's, beside it.")
    if tokenizer.get_vocab() == assistant_tokenizer.get_vocab():
        return drafter
    return CrossTokenizerDrafter(drafter, tokenizer, assistant_tokenizer)


def _view(model: PreTrainedModel) -> PreTrainedModel:
    """A shallow copy of the model with one method replaced, so that `generate` prepares a callable's call like those
    of its own methods. Otherwise transformers drops `tokenizer`, `streamer` and `synced_gpus` for callables. The model
    itself does not change, so that other threads may use it."""
    view = copy.copy(model)
    extract = functools.partial(GenerationMixin._extract_generation_mode_kwargs, view)
    view._extract_generation_mode_kwargs = lambda custom_generate, *arguments: extract(None, *arguments)
    return view


class NamedGenerate(str):
    """A `custom_generate` value that is both a name and a function.

    transformers passes a function only part of `generate`'s arguments: it drops the drafter, the streamer and the
    tokenizer. A name it resolves with `load_custom_generate`, and passes everything.
    """

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> GenerateDecoderOnlyOutput | torch.Tensor:
        return _generate(*args, **kwargs)

    __call__.__doc__ = _generate.__doc__


generate = NamedGenerate(NAME)


@functools.cache
def register() -> None:
    """Makes `custom_generate="hf_failfast"` resolve to `generate`; installed code needs no `trust_remote_code`."""
    original: Callable[..., Any] = GenerationMixin.load_custom_generate

    @functools.wraps(original)
    def load_custom_generate(
        self: GenerationMixin, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any
    ) -> Callable[..., Any]:
        if pretrained_model_name_or_path == NAME:
            return generate
        return original(self, pretrained_model_name_or_path, *args, **kwargs)

    GenerationMixin.load_custom_generate = load_custom_generate
