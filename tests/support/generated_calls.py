"""Calls of `generate` that hypothesis chooses, and what makes each of them right: plain `generate` with the same
arguments."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from conftest import DRAFTERS, TARGETS, VOCAB_SIZE, character_tokenizer, drafter, shared_drafter, target
from generated_families import INSTALLED, TABLES
from graph_support import Recorder
from hypothesis import strategies as st
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    Qwen3Config,
    StaticCache,
    StoppingCriteria,
    WatermarkingConfig,
)
from transformers.generation import BaseStreamer

from hf_failfast import Conversation, FailFastConfig, Hierarchy
from hf_failfast.compatibility import CACHE, READS_WHOLE_TEXT_AGAIN
from hf_failfast.drafters import DiffusionDrafter, DrafterSpec, DraftRequest, DraftSession, PerRow
from hf_failfast.drafters.bodies.borrowed import SharedBody
from hf_failfast.drafters.bodies.dflash import DFlashBody, layer_sights
from hf_failfast.drafters.bodies.fusion import StateFusion
from hf_failfast.drafters.chunks import Chunk, ChunkedSession
from hf_failfast.drafters.conditioned.canvas import ConditionedDrafter
from hf_failfast.drafters.conditioned.dflash import BlockReading, DFlashDrafter
from hf_failfast.drafters.wrappers.cross_tokenizer import CrossTokenizerDrafter
from hf_failfast.engine.ragged import RaggedIds
from hf_failfast.engine.runner_pool import RunnerPool

PAD = 7
LONGEST = 40  # tokens of a prompt
HIDDEN = 2  # tokens of each prompt with holes


@dataclass(frozen=True)
class Call:
    """One call of `generate`. Its text says only what is not the default, so that a failing one is a short program:
    `check(Call(...))`.

    lengths: visible tokens of each prompt. padding: where the others are; `holes` hides some tokens inside.
    processors, sampling, stop: names in the tables below.
    counts_prompt: the length is given as `max_length`.
    returned: `output_*` of the returned dict; None: the call returns ids.
    cache: the one handed in; `plain, ...` and `drafted, ...`: one that an earlier call has filled.
    ends: (row, index) of tokens of the plain texts that end a row.
    strategy: what a round proposes besides drafts, a name in `STRATEGIES`.
    drafter: a name in `DRAFTING`. right: how many tokens of each scripted draft are right, in turn.
    """

    family: str = "llama"
    attention: str = "sdpa"
    lengths: tuple[int, ...] = (5,)
    padding: str = "left"
    max_new_tokens: int = 12
    min_new_tokens: int = 0
    counts_prompt: bool = False
    processors: tuple[str, ...] = ()
    sampling: str | None = None
    stop: str | None = None
    returned: tuple[str, ...] | None = None
    cache: str | None = None
    ends: tuple[tuple[int, int], ...] = ()
    streams: bool = False
    runner: str = "eager"
    strategy: str | None = None
    drafter: str = "scripted"
    right: tuple[int, ...] = (3,)
    draft_length: int = 10

    def __repr__(self) -> str:
        changed = (
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        )
        return f"Call({', '.join(changed)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints."""
        printer.text(repr(self))

    @property
    def longest(self) -> int:
        """The most tokens that a row may get, padding included."""
        width = max(self.lengths) + HIDDEN * (self.padding == "holes")
        return width + (TURN + self.max_new_tokens if self.continues else 0) + self.max_new_tokens

    @property
    def continues(self) -> bool:
        return self.cache is not None and "," in self.cache


# Options of a call


class Looks(LogitsProcessor):
    """Makes each row's last token less likely in all others, and bans others by the number of its calls."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(input_ids.shape))
        scores = scores.clone()
        scores[:, input_ids[:, -1]] -= 2.0
        scores[:, len(self.seen) % 5 :: 5] -= 3.0
        return scores


PROCESSORS: dict[str, Callable[[], dict[str, Any]]] = {
    "repetition_penalty": lambda: {"repetition_penalty": 1.3},
    "no_repeat_ngram_size": lambda: {"no_repeat_ngram_size": 2},
    "encoder_repetition_penalty": lambda: {"encoder_repetition_penalty": 1.5},
    "encoder_no_repeat_ngram_size": lambda: {"encoder_no_repeat_ngram_size": 2},
    "bad_words_ids": lambda: {"bad_words_ids": [[i] for i in range(0, VOCAB_SIZE, 4)] + [[5, 6]]},
    "sequence_bias": lambda: {"sequence_bias": [[[9], 4.0], [[11, 12], -6.0]]},
    "suppress_tokens": lambda: {"suppress_tokens": [*range(0, VOCAB_SIZE, 3)]},
    "begin_suppress_tokens": lambda: {"begin_suppress_tokens": [*range(0, VOCAB_SIZE, 2)]},
    "min_length": lambda: {"min_length": 30},
    "forced_eos_token_id": lambda: {"forced_eos_token_id": 4},
    "remove_invalid_values": lambda: {"remove_invalid_values": True},
    "renormalize_logits": lambda: {"renormalize_logits": True},
    "watermarking_config": lambda: {"watermarking_config": WatermarkingConfig()},
    "guidance_scale": lambda: {"guidance_scale": 1.5},
    "prefix_allowed_tokens_fn": lambda: {"prefix_allowed_tokens_fn": lambda row, ids: range(row, VOCAB_SIZE)},
    "own": lambda: {"logits_processor": LogitsProcessorList([Looks()])},
}
# What depends on the other rows of the batch, or on their padding.
JOINT = ("repetition_penalty", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "guidance_scale")
JOINT += ("prefix_allowed_tokens_fn", "own", "no_repeat_ngram_size", "watermarking_config")

SAMPLING: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7, "top_k": 0},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.6, "temperature": 1.2},
    "min-p": {"min_p": 0.1, "top_k": 0},
    "typical": {"typical_p": 0.7, "top_k": 0},
}


class EndsWith(StoppingCriteria):
    """Remembers which rows are done, and stops when all are."""

    def __init__(self, ids: Sequence[int], num_rows: int) -> None:
        self.ids = set(ids)
        self.done = [False] * num_rows
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> bool:
        self.seen.append(tuple(input_ids.shape))
        for row, last in enumerate(input_ids[:, -1].tolist()):
            self.done[row] |= last in self.ids
        return all(self.done)


class EndsRow(EndsWith):
    """Says of each row whether it is done."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        self.seen.append(tuple(input_ids.shape))
        return torch.tensor([last in self.ids for last in input_ids[:, -1].tolist()])


STOPS = ("strings", "criterion of all rows", "criterion of each row")


def stopping(call: Call, texts: list[list[int]]) -> dict[str, Any]:
    """A stop that the plain texts reach in their middle."""
    ids = [text[len(text) // 2] for text in texts]
    if call.stop is None:
        return {}
    if call.stop == "strings":
        tokenizer = character_tokenizer()
        return {"stop_strings": [tokenizer.decode([token]) for token in ids], "tokenizer": tokenizer}
    kind = EndsWith if call.stop == "criterion of all rows" else EndsRow
    return {"stopping_criteria": [kind(ids, len(call.lengths))]}


STRATEGIES: dict[str, dict[str, Any]] = {
    "tree": {"draft_tree": 16},
    "lookup": {"draft_lookup": 5},
    "reuse": {"draft_reuse": True},
    "self-selection": {"self_selection": 3},
    "diffuspec": {"length_policy": "diffuspec"},
    "goodput": {"length_policy": "goodput"},
    "overlap": {"overlap": True},
    "tree, lookup and reuse": {"draft_tree": 12, "draft_lookup": 5, "draft_reuse": True},
}


class Columns(BaseStreamer):
    """Remembers what it is given."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []
        self.is_ended = False

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value)

    def end(self) -> None:
        self.is_ended = True


# Caches


class OwnCache(DynamicCache):
    """A subclass that holds its K/V as its parent does."""


TURN = 4  # tokens of a second prompt
CACHES: dict[str, Callable[[PreTrainedModel, int], dict[str, Any]]] = {
    "dynamic": lambda model, size: {CACHE: DynamicCache(config=model.config)},
    "without config": lambda model, size: {CACHE: DynamicCache()},
    "subclass": lambda model, size: {CACHE: OwnCache(config=model.config)},
    "static": lambda model, size: {CACHE: StaticCache(config=model.config, max_cache_len=size)},
    "named static": lambda model, size: {"cache_implementation": "static"},
}
FILLED = [f"{method}, {kind}" for method in ("plain", "drafted") for kind in CACHES if kind != "named static"]


# Drafters


class Guesses(DiffusionDrafter):
    """Drafts each row's expected text, wrong from a place on that changes from round to round. After a false prefix
    it is simply wrong."""

    def __init__(self, texts: list[torch.Tensor], right: Sequence[int], fails_in: int | None = None) -> None:
        self.config = FailFastConfig()
        self.texts = texts  # per row (1, n), padding left out
        self.right = right
        self.fails_in = fails_in  # the round that raises an error

    def start(self, request: DraftRequest) -> DraftSession:
        rows = iter(range(len(self.texts)))
        return PerRow.of(request, lambda one: GuessingSession(self, next(rows), one.eos_token_ids))


class GuessingSession(ChunkedSession):
    def __init__(self, drafter: Guesses, row: int, eos_token_ids: torch.Tensor | None) -> None:
        super().__init__(eos_token_ids if row % 2 else None)
        self.drafter, self.text, self.round = drafter, drafter.texts[row], row

    def draft_chunk(self, known: RaggedIds, length: int) -> Chunk:
        (start,), (num_tokens,) = known.lengths, self.lengths
        if self.drafter.fails_in == self.round:
            raise RuntimeError("the drafter fails")
        ids = self.text[:, start : start + length]
        ids = torch.cat([ids, ids.new_zeros(1, length - ids.shape[1])], dim=1)
        wrong = self.drafter.right[self.round % len(self.drafter.right)] - (start - num_tokens)
        if 0 <= wrong < length:
            ids[:, wrong:] = (ids[:, wrong:] + 1) % VOCAB_SIZE
        return Chunk(ids, torch.ones(1, length), 1)

    def accept(self, counts: Sequence[int]) -> None:
        self.round += 1

    def max_draft_length(self, num_tokens: int) -> int:
        return 10**9


@functools.cache
def dflash() -> DFlashDrafter:
    """Reads the hidden states of both layers of a target of width 32."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "head_dim": 8,
        "vocab_size": VOCAB_SIZE,
    }
    config = Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2)
    config._attn_implementation = "sdpa"
    body = DFlashBody(config, 64, layer_sights(config, {})).eval()
    return DFlashDrafter(body, BlockReading((1, 2), 6, VOCAB_SIZE - 1), None, FailFastConfig(chunk_length=4))


@functools.cache
def canvas(fused: bool = False) -> ConditionedDrafter:
    """The layers of the Llama target, over the hidden states that enter those of any target of width 32. With input
    fusion it also has a window."""
    spec = DrafterSpec(attention="causal_canvas", shift=1, mask_token_id=VOCAB_SIZE)
    fusion = StateFusion(2, 32) if fused else None
    body = SharedBody(copy.deepcopy(target("llama").model), torch.full((32,), 0.1), spec, fusion=fusion)
    made = ConditionedDrafter(body.eval(), spec, (0, 1), 6, FailFastConfig(chunk_length=4))
    made.window = 16 if fused else 0
    return made


def masked(kind: str, call: Call) -> DiffusionDrafter:
    """With the target's own weights, where such drafters exist."""
    family = call.family if call.family in TARGETS else "qwen2"
    return copy.copy(drafter(kind, family))


DRAFTING: dict[str, Callable[[Call, list[torch.Tensor]], DiffusionDrafter]] = {
    "scripted": lambda call, texts: Guesses(texts, call.right),
    **{kind: lambda call, texts, kind=kind: masked(kind, call) for kind in DRAFTERS},
    "shared embeddings": lambda call, texts: copy.copy(shared_drafter()),
    "conditioned": lambda call, texts: copy.copy(canvas()),
    "conditioned, fused": lambda call, texts: copy.copy(canvas(fused=True)),
    "dflash": lambda call, texts: copy.copy(dflash()),
    "conversation": lambda call, texts: Conversation(masked("canvas_shift", call)),
    "conversation, conditioned": lambda call, texts: Conversation(copy.copy(canvas())),
    "conversation, conditioned, fused": lambda call, texts: Conversation(copy.copy(canvas(fused=True))),
    "other tokenizer": lambda call, texts: CrossTokenizerDrafter(
        masked("canvas_shift", call), character_tokenizer(), character_tokenizer(1)
    ),
    "hierarchy": lambda call, texts: Hierarchy(["lookup", masked("canvas_shift", call)]),
    "hierarchy of two": lambda call, texts: Hierarchy([masked("block", call), masked("canvas_shift", call)]),
    "hierarchy, conditioned": lambda call, texts: Hierarchy(["lookup", copy.copy(canvas())]),
    "conversation, hierarchy": lambda call, texts: Conversation(Hierarchy(["lookup", masked("canvas_shift", call)])),
    "fails": lambda call, texts: Guesses(texts, call.right, fails_in=2),
}
RUNNERS: dict[str, Callable[[], RunnerPool]] = {
    "eager": lambda: RunnerPool("eager"),
    "graphs": lambda: RunnerPool("cuda_graphs", Recorder()),
}


def make_drafter(call: Call, texts: list[torch.Tensor]) -> DiffusionDrafter:
    made = DRAFTING[call.drafter](call, texts)
    inner = getattr(made, "drafter", made)  # of a wrapper
    inner.runners = RUNNERS[call.runner]()
    for level in getattr(inner, "drafters", ()):
        level.runners = inner.runners
    return made


# Refusals


def is_batch(call: Call) -> bool:
    return len(call.lengths) > 1


def counts_places(call: Call) -> bool:
    kinds = ("gpt_neo", "bart", "mbart", "marian", "trocr", "roformer", "mpt")
    return is_batch(call) and (call.family in kinds or call.family == "llama4, no rotation")


def counts_hidden(call: Call) -> bool:
    kinds = ("gpt_neo", "bart", "mbart", "marian", "trocr", "roformer", "mpt", "llama4, no rotation")
    return call.padding == "holes" and call.family in kinds


def is_longrope(call: Call) -> bool:
    return "longrope" in call.family and call.longest > 32


def is_read_again(call: Call) -> bool:
    return is_longrope(call) and call.family != "longrope"


def asks(call: Call, *names: str) -> bool:
    return call.returned is not None and any(name in call.returned for name in names)


def reads_states(call: Call) -> bool:
    return "conditioned" in call.drafter or call.drafter == "dflash"


def decides_on_lengths(call: Call) -> bool:
    return call.drafter == "other tokenizer" or "hierarchy" in call.drafter


def is_beyond_plain(call: Call) -> bool:
    """Whether plain `generate` itself fails: Falcon's distances do not fit the masks of static caches."""
    return call.family == "falcon, ALiBi" and "static" in (call.cache or "")


# What may be refused: the error, and the calls that may get it.
REFUSALS: dict[str, Callable[[Call], bool]] = {
    "with ALiBi": lambda call: is_batch(call) and call.family in ("bloom", "falcon, ALiBi"),
    "takes the place of a token from the longest row": counts_places,
    "counts hidden tokens as places": counts_hidden,
    "LinearAttentionLayer state|ConvLayer state|LinearAttention layers": lambda call: call.family == "lfm2",
    "batch of .* that change at": lambda call: (
        is_batch(call) and (is_longrope(call) or (call.family == "dynamic NTK" and call.longest > 31))
    ),
    "[Pp]added prompt .* that change at": lambda call: is_read_again(call) and call.padding != "left",
    f"`{CACHE}` of .* tokens .*that change at": lambda call: is_read_again(call) and call.continues,
    "`output_hidden_states` or `output_attentions` .*that change at": lambda call: (
        is_read_again(call) and asks(call, "hidden_states", "attentions")
    ),
    "transformers before 5.20, whose plain": lambda call: not READS_WHOLE_TEXT_AGAIN and is_read_again(call),
    "`output_hidden_states` of `gemma3n_text`": lambda call: call.family == "gemma3n" and asks(call, "hidden_states"),
    "reads the target's hidden states, but those of `gemma3n_text`": lambda call: (
        call.family == "gemma3n" and reads_states(call)
    ),
    "`output_attentions` of .*, whose last layers": lambda call: (
        call.family in ("gemma3n", "gemma4") and asks(call, "attentions")
    ),
    "only 'eager' returns weights": lambda call: call.attention == "sdpa" and asks(call, "attentions"),
    "`output_attentions` with a static cache": lambda call: (
        asks(call, "attentions") and "static" in (call.cache or "")
    ),
    "is not possible, only `(draft_tree|self_selection)`=": lambda call: (
        call.strategy in ("tree", "self-selection", "tree, lookup and reuse")
    ),
    "`length_policy='(diffuspec|goodput)'`": lambda call: (
        call.strategy in ("diffuspec", "goodput") and decides_on_lengths(call)
    ),
    "`overlap`=True is not possible": lambda call: (
        call.strategy == "overlap"
        and (decides_on_lengths(call) or reads_states(call) or call.drafter in ("scripted", "fails"))
    ),
    "A Conversation keeps one text": lambda call: is_batch(call) and "conversation" in call.drafter,
    "prompt of .*`max_position_embeddings`=40": lambda call: call.family in TABLES and call.longest > 40,
    "`sliding_window`=16, which it has no mask for": lambda call: call.family == "moshi" and call.longest > 16,
}


# Strategies

LENGTHS = st.sampled_from([5, 1, 2, 9, 15, 16, 17, 28, 31, 32, 33, 39])
OUTPUTS = ("scores", "logits", "hidden_states", "attentions")
# Processors that look at the columns of the prompt, padding included.
OF_COLUMNS = (*JOINT, "min_length")


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Any call; those with few options are the simplest."""

    def rarely(strategy: st.SearchStrategy[Any], otherwise: Any) -> Any:
        return draw(strategy) if draw(st.integers(0, 3)) == 3 else otherwise

    lengths = draw(st.lists(LENGTHS, min_size=1, max_size=4).map(tuple))
    new = draw(st.sampled_from([12, 1, 2, 20, 30]))
    padding = rarely(st.sampled_from(["right", "holes"]), "left")
    allowed = [name for name in PROCESSORS if padding == "left" or name not in OF_COLUMNS]
    processors = rarely(st.lists(st.sampled_from(allowed), min_size=1, max_size=3, unique=True).map(tuple), ())
    cache = rarely(
        st.sampled_from([*CACHES, *(name for name in FILLED if padding == "left" or "drafted" in name)]), None
    )
    index = st.tuples(st.integers(0, len(lengths) - 1), st.integers(0, new - 1))
    same = st.integers(0, new - 1).map(lambda place: tuple((row, place) for row in range(len(lengths))))
    right = st.lists(st.sampled_from([3, 0, 1, 10]), min_size=1, max_size=4).map(tuple)
    return Call(
        family=draw(st.sampled_from(INSTALLED)),
        attention=draw(st.sampled_from(["sdpa", "eager"])),
        lengths=lengths,
        padding=padding,
        max_new_tokens=new,
        min_new_tokens=rarely(st.integers(1, new), 0),
        strategy=rarely(st.sampled_from([*STRATEGIES]), None),
        counts_prompt=draw(st.booleans()),
        processors=processors,
        sampling=rarely(st.sampled_from([*SAMPLING]), None),
        stop=rarely(st.sampled_from(STOPS), None),
        returned=draw(st.none() | st.lists(st.sampled_from(OUTPUTS), unique=True, max_size=2).map(tuple)),
        cache=cache,
        ends=draw(st.just(()) | st.lists(index, min_size=1, max_size=3).map(tuple) | same),
        streams=draw(st.booleans()),
        runner=rarely(st.just("graphs"), "eager"),
        drafter=draw(st.just("scripted") | st.sampled_from([*DRAFTING])),
        right=draw(right),
        draft_length=draw(st.sampled_from([10, 3, 20])),
    )
