"""Every decoding method by its name, and one answer of each."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, CompileConfig, PreTrainedModel, StaticCache

from ..compatibility import CACHE, COMPILES_ASSISTED
from ..config import FailFastConfig
from ..drafters import DiffusionDrafter, load_drafter_for
from ..drafters.bodies.borrowed import SharedBody
from ..drafters.masked.session import MaskedDrafter
from ..drafters.spec import SECTION
from ..engine.causal_lm import execution_device
from ..engine.cuda.capture import CudaGraphs
from ..engine.runner_pool import RunnerName, RunnerPool
from .exact_stops import ExactStops
from .no_drafts import NoDrafts
from .records import SpeedRecord, counts_of
from .timing import Prompts, Stopwatch

PROMPT_LOOKUP_TOKENS = 10

# What tables call the methods.
TITLES = {
    "plain": "plain generate",
    "assisted": "HF assisted",
    "prompt_lookup": "HF prompt lookup",
    "failfast": "hf_failfast",
    "fixed": "hf_failfast, fixed drafts",
    "goodput": "hf_failfast, goodput",
}

CAPTURED_PLAIN = f"{TITLES['plain']}, CUDA graphs"


def title(name: str, is_compiled: bool = False, is_exact: bool = False) -> str:
    """What tables call the method of that name."""
    return TITLES[name] + (", compiled" if is_compiled else "") + (", exact" if is_exact else "")


@dataclass(frozen=True)
class Method:
    """A method's arguments of `generate`.

    one_row: the method takes one prompt at a time, so that a batch is answered row by row.
    counts_forwards: transformers tells nothing of its drafting, so that forwards are counted from outside.
    static_slots: of a compiled method, the slots of its static cache; compilation is for that number of slots.
    is_captured: plain decoding by this package's loop, replayed as CUDA graphs.
    is_exact: the target's forwards round each token as if it were alone (`engine.exact`).
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    one_row: bool = True
    counts_forwards: bool = False
    static_slots: int | None = None
    is_captured: bool = False
    is_exact: bool = False

    @property
    def title(self) -> str:
        return CAPTURED_PLAIN if self.is_captured else title(self.name, self.static_slots is not None, self.is_exact)

    def run(self, model: PreTrainedModel, prompts: Prompts) -> list[SpeedRecord]:
        """The batch's answers in order, timed."""
        num_rows, prompt_length = prompts.ids.shape
        if self.one_row and num_rows > 1:
            return [record for index in range(num_rows) for record in self.run(model, prompts.row(index))]
        stops = ExactStops(prompts.stop, _eos_token_ids(model), prompt_length, num_rows)
        assistant = self.arguments.get("assistant_model")
        with _counted(model, self.counts_forwards) as rounds, _counted(assistant, self.counts_forwards) as passes:
            watch = Stopwatch(prompts.ids.device)
            output = model.generate(
                input_ids=prompts.ids,
                attention_mask=prompts.attention_mask,
                max_new_tokens=prompts.max_length - prompt_length,  # wins over what the target has saved
                stopping_criteria=[stops] if prompts.stop else [],
                **{"use_cache": True}
                | self._static_cache(model)
                | self.arguments
                | prompts.generation_kwargs
                | {"return_dict_in_generate": True},
            )
            seconds, memory = watch.read()
        counts: dict[str, Any] = {}
        if self.counts_forwards:
            counts = {"rounds": rounds[0], "drafter_passes": passes[0] if assistant else None}
        elif self.name != "plain" and (stats := output.get("speculation")) is not None:
            counts = counts_of(stats)
        return [
            SpeedRecord(self.name, seconds / num_rows, len(ids), memory, token_ids=tuple(ids), **counts)
            for ids in stops.cut(output.sequences)
        ]

    def _static_cache(self, model: PreTrainedModel) -> dict[str, Any]:
        if self.static_slots is None:
            return {}
        config = model.config.get_text_config(decoder=True)
        return {CACHE: StaticCache(config=config, max_cache_len=self.static_slots)}


def _eos_token_ids(model: PreTrainedModel) -> list[int]:
    ids = model.generation_config.eos_token_id
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


@contextmanager
def _counted(model: Any, is_wanted: bool) -> Iterator[list[int]]:
    """A list whose one entry is the number of forwards that the model has made inside."""
    count = [0]
    if not is_wanted or model is None:
        yield count
        return

    def add(*_: object) -> None:
        count[0] += 1

    handle = model.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        handle.remove()


PLAIN = Method("plain", one_row=False)


def plain(runner: RunnerName = "eager", graphs: CudaGraphs | None = None) -> Method:
    """Plain decoding: `eager` is transformers' own `generate`; the other names are this package's loop without drafts,
    whose forwards `RunnerPool` replays as graphs. graphs: None for CUDA's."""
    if runner == "eager":
        return PLAIN
    drafter = NoDrafts(RunnerPool(runner, graphs))
    arguments = {"custom_generate": "hf_failfast", "assistant_model": drafter}
    return Method("plain", arguments, one_row=False, is_captured=True)


def plain_exact() -> Method:
    """Plain decoding with exact forwards, by this package's loop."""
    arguments = drafted(NoDrafts(RunnerPool("eager")), FailFastConfig(exact=True)).arguments
    return Method("plain", arguments, one_row=False, is_exact=True)


def plain_of(config: FailFastConfig) -> Method:
    """The plain decoding whose text drafted decoding with this config writes."""
    return plain_exact() if config.exact else PLAIN


def plain_forms(device: torch.device) -> list[Method]:
    """The forms of plain decoding beside `PLAIN` that speedups on this device are held against."""
    return [plain("cuda_graphs")] if CudaGraphs().is_available(device) else []


def prompt_lookup(num_tokens: int | None = None) -> Method:
    """transformers' n-gram drafts of that many tokens."""
    arguments = {"prompt_lookup_num_tokens": num_tokens or PROMPT_LOOKUP_TOKENS}
    return Method("prompt_lookup", arguments, counts_forwards=True)


def assisted(assistant: PreTrainedModel, num_tokens: int | None = None) -> Method:
    """transformers' assisted generation with drafts of that many tokens; None: as the assistant's config has it."""
    if num_tokens is not None:
        assistant.generation_config.num_assistant_tokens = num_tokens
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
    return Method("assisted", {"assistant_model": assistant}, counts_forwards=True)


def drafted(drafter: DiffusionDrafter, config: FailFastConfig, name: str = "failfast") -> Method:
    """This package's decoding with a drafter and the config's length policy."""
    arguments = {"custom_generate": "hf_failfast", "assistant_model": drafter, "failfast_config": config}
    return Method(name, arguments, is_exact=config.exact)


def fixed(drafter: DiffusionDrafter, config: FailFastConfig) -> Method:
    """Drafts of the config's chunk length: a cap of one chunk leaves nothing to extend."""
    one_chunk = {"max_draft_length": config.chunk_length, "length_policy": "confidence"}
    return drafted(drafter, config.with_options(one_chunk), "fixed")


def hf_methods(assistant: PreTrainedModel | None) -> list[Method]:
    """transformers' own methods, plain decoding first. assistant: an autoregressive draft model."""
    return [PLAIN, *([] if assistant is None else [assisted(assistant)]), prompt_lookup()]


def all_methods(
    drafter: DiffusionDrafter,
    options: dict[str, Any],
    assistant: PreTrainedModel | None = None,
    compiled: Sequence[Method] = (),
) -> list[Method]:
    """transformers' own methods, each beside its compiled form if there is one, then this package's.

    compiled: and captured plain decoding.
    options: FailFast's, where the drafter's own are not wanted.
    """
    config = drafter.config.with_options(options)
    goodput = drafter.config.with_options({"length_policy": "goodput"})
    theirs = [[method, *(each for each in compiled if each.name == method.name)] for method in hf_methods(assistant)]
    ours = [drafted(drafter, config), fixed(drafter, config), drafted(drafter, goodput, "goodput")]
    return [*sum(theirs, []), *ours]


def compiled_methods(
    target: PreTrainedModel, prompts: Sequence[Prompts], assistant: PreTrainedModel | None = None
) -> tuple[list[Method], dict[str, dict[str, Any]]]:
    """transformers' own methods under `torch.compile`, captured as graphs on CUDA, without those that cannot be
    compiled; and by title what came of compiling each, for JSON.

    transformers before 5.24 compiles plain `generate` only. The caches have room for every prompt, so that one
    compilation serves all.
    """
    config = CompileConfig()
    config._compile_all_devices = True  # `generate` by itself compiles on accelerators only
    methods: list[Method] = []
    found: dict[str, dict[str, Any]] = {}
    for plain in hf_methods(assistant) if COMPILES_ASSISTED else [PLAIN]:
        # Long enough for verifications of several widths: each may be compiled anew.
        first = prompts[0].up_to(24 if plain.arguments else 3)
        arguments = plain.arguments | {"compile_config": config}
        slots = max(prompt.max_length for prompt in prompts)
        method = replace(plain, arguments=arguments, counts_forwards=False, static_slots=slots)
        try:
            [record] = method.run(target, first)
        except Exception as error:  # whatever a compiler, or its absence, may raise
            first_paragraph = " ".join(str(error).partition("\n\n")[0].split())
            found[method.title] = {"error": f"{type(error).__name__}: {first_paragraph}"}
        else:
            found[method.title] = {"first_call_seconds": round(record.seconds, 1)}
            methods.append(method)
    return methods, found


def load_assistant(name: str, target: PreTrainedModel) -> PreTrainedModel:
    """The draft model of transformers' assisted generation, in the target's dtype and on its device.

    name: a causal LM, or a drafter of this package that reads as one. Raises ValueError on another drafter: as a
    checkpoint most of them would load, with random weights where they borrow the target's.
    """
    if not hasattr(AutoConfig.from_pretrained(name), SECTION):
        placement: dict[str, Any] = {"dtype": target.dtype, "device_map": {"": execution_device(target)}}
        return AutoModelForCausalLM.from_pretrained(name, **placement).eval()
    return autoregressive_twin(load_drafter_for(target, name), target)


def is_autoregressive(drafter: DiffusionDrafter) -> bool:
    """Whether the drafter's first token of a chunk is an autoregressive model's.

    A causal canvas with shift 1 attends causally to known tokens, and the last of them predicts the next: without
    masks it is an autoregressive model, of the same weights and training.
    """
    return isinstance(drafter, MaskedDrafter) and (drafter.spec.attention, drafter.spec.shift) == ("causal_canvas", 1)


def autoregressive_twin(drafter: DiffusionDrafter, target: PreTrainedModel) -> PreTrainedModel:
    """The drafter as an ordinary causal LM, by reference: its layers, with the target's embedding and head where it
    borrows them. Raises ValueError on a drafter that does not read as one."""
    if not is_autoregressive(drafter):
        raise ValueError("This drafter cannot be read autoregressively: that takes a causal canvas with shift 1.")
    assert isinstance(drafter, MaskedDrafter)
    if not isinstance(drafter.model, SharedBody):
        return drafter.model
    drafter.model.attach(target)  # refuses a target of another width
    with torch.device("meta"):
        twin: PreTrainedModel = AutoModelForCausalLM.from_config(drafter.model.config, dtype=target.dtype)
    decoder = copy.copy(drafter.model.decoder)
    decoder._modules = dict(decoder._modules)
    decoder.set_input_embeddings(target.get_input_embeddings())
    setattr(twin, twin.base_model_prefix, decoder)
    twin.set_output_embeddings(target.get_output_embeddings())
    return twin.eval()
