"""Compares a generated call with plain `generate` of the same arguments."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import torch
from conftest import prompt
from generated_calls import (
    CACHES,
    HIDDEN,
    PAD,
    PROCESSORS,
    REFUSALS,
    SAMPLING,
    STRATEGIES,
    TURN,
    Call,
    Columns,
    EndsWith,
    Guesses,
    Looks,
    is_beyond_plain,
    make_drafter,
    stopping,
)
from generated_families import model_of
from graph_support import Recorder
from transformers import PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput

from hf_failfast.compatibility import CACHE
from hf_failfast.drafters import DiffusionDrafter
from hf_failfast.engine.slot_cache import storing_layers

outcomes: Counter[str] = Counter()
# Numbers of the confidence rule that another length policy does not read.
UNREAD = {
    "diffuspec": ("confidence_threshold",),
    "goodput": ("confidence_threshold", "chunk_length", "max_draft_length"),
}
CLOSE = {"atol": 2e-3, "rtol": 1e-3}
BESIDE_A_TABLE = (IndexError, RuntimeError)  # what plain `generate` ends with where positions come from a table


class Prompts(NamedTuple):
    """Prompts of one width, and which of their tokens are visible, (B, n) each."""

    ids: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, call: Call) -> "Prompts":
        rows = [prompt(length, seed)[0] for seed, length in enumerate(call.lengths)]
        width = max(call.lengths) + HIDDEN * (call.padding == "holes")
        ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
        for row, tokens in enumerate(rows):
            columns = torch.arange(width)[-len(tokens) :]
            if call.padding == "right":
                columns = torch.arange(len(tokens))
            if call.padding == "holes":
                columns = torch.cat([columns[:1] - HIDDEN, columns[1:]])
            ids[row, columns] = tokens
            mask[row, columns] = 1
        return cls(ids, mask)

    @property
    def width(self) -> int:
        return self.ids.shape[1]

    def padded_left(self) -> "Prompts":
        """The same visible tokens, all at the right end."""
        order = self.mask.argsort(dim=1, stable=True)
        return Prompts(self.ids.gather(1, order), self.mask.gather(1, order))

    def append(self, tokens: torch.Tensor) -> "Prompts":
        return Prompts(torch.cat([self.ids, tokens], dim=1), torch.cat([self.mask, torch.ones_like(tokens)], dim=1))

    def texts(self, new: torch.Tensor) -> list[torch.Tensor]:
        """The visible tokens of each row with the new ones, (1, n) each."""
        rows = zip(self.ids, self.mask, new, strict=True)
        return [torch.cat([ids[mask.bool()], more])[None] for ids, mask, more in rows]


@dataclass
class Way:
    """One of the two ways to decode a call: its model, prompts and cache, the last options, and how it ended."""

    model: PreTrainedModel
    prompts: Prompts
    cache: dict[str, Any]
    options: dict[str, Any]
    output: Any = None
    error: Exception | None = None

    @classmethod
    def of(cls, call: Call, prompts: Prompts) -> "Way":
        model = model_of(call.family, call.attention)
        kind = (call.cache or "").split(", ")[-1]
        return cls(model, prompts, CACHES[kind](model, call.longest) if kind else {}, {})

    def decode(self, **options: Any) -> None:
        """Runs `generate`, and keeps its error."""
        self.options = options
        try:
            self.output = generate(self.model, self.prompts, **self.cache, **options)
        except Exception as error:
            self.error = error

    @property
    def new(self) -> torch.Tensor:
        """The new tokens (B, m)."""
        is_dict = isinstance(self.output, GenerateDecoderOnlyOutput)
        ids: torch.Tensor = self.output.sequences if is_dict else self.output
        return ids[:, self.prompts.width :]

    def states(self) -> Any:
        """The K/V that the caller has after the call; None if it gets none."""
        if CACHE in self.cache:
            return self.cache[CACHE]
        return self.output[CACHE] if isinstance(self.output, GenerateDecoderOnlyOutput) else None

    def columns(self, row: int, end: int) -> list[int]:
        """The columns of a row's visible tokens, `end` new ones among them."""
        width = self.prompts.width
        return [*self.prompts.mask[row].nonzero()[:, 0].tolist(), *range(width, width + end)]


def generate(model: PreTrainedModel, prompts: Prompts, **options: Any) -> Any:
    return model.generate(prompts.ids, attention_mask=prompts.mask, pad_token_id=PAD, **options)


def compare(call: Call) -> None:
    """Compares the call with plain `generate`: the same tokens, scores, layers, K/V, streams and calls of the caller's
    objects, or the same end. What is refused is refused for a reason of the list, before the first token.

    Plain `generate` gets the prompts padded on the left, the only side that it reads rightly.
    """
    prompts = Prompts.of(call)
    ours, theirs = Way.of(call, prompts), Way.of(call, prompts.padded_left())
    new = greedy(call, theirs.prompts)
    drafter = make_drafter(call, theirs.prompts.texts(new))
    if call.continues:
        if not take_a_turn(call, ours, theirs, drafter):
            return
        new = greedy(call, theirs.prompts)
        if isinstance(drafter, Guesses):
            drafter.texts = theirs.prompts.texts(new)
    torch.manual_seed(0)
    ours.decode(**arguments(call, ours.prompts, new), **drafting(call, drafter))
    with drawn(ours.new) if call.sampling and ours.error is None else nullcontext():
        theirs.decode(
            **arguments(call, theirs.prompts, new) | {"return_dict_in_generate": True, "output_scores": True}
        )
    if isinstance(drafter.runners.graphs, Recorder):
        outcomes["captured"] += drafter.runners.graphs.captures > 0
    if has_ended(call, ours, theirs):
        return
    if compare_tokens(call, ours, theirs):
        compare_outputs(call, ours, theirs)
        compare_states(ours, theirs)
        compare_objects(ours, theirs)


# The calls


def greedy(call: Call, prompts: Prompts) -> torch.Tensor:
    """The continuations (B, m) without any stop; of no length where plain `generate` cannot write them."""
    options = processors(call) | {"max_new_tokens": call.max_new_tokens, "do_sample": False}
    try:
        return generate(model_of(call.family, call.attention), prompts, **options)[:, prompts.width :]
    except BESIDE_A_TABLE:
        return prompts.ids[:, :0]


def processors(call: Call) -> dict[str, Any]:
    return {name: value for chosen in call.processors for name, value in PROCESSORS[chosen]().items()}


def arguments(call: Call, prompts: Prompts, new: torch.Tensor) -> dict[str, Any]:
    """The call's arguments, its own objects among them made anew.

    new: the plain texts, which say what tokens end a row.
    """
    options = processors(call) | {
        "do_sample": call.sampling is not None,
        "min_new_tokens": call.min_new_tokens or None,
    }
    if call.counts_prompt:
        options["max_length"] = prompts.width + call.max_new_tokens
    else:
        options["max_new_tokens"] = call.max_new_tokens
    if call.sampling is not None:
        options |= SAMPLING[call.sampling]
    if new.shape[1]:
        options["eos_token_id"] = sorted({int(new[row, place]) for row, place in call.ends}) or None
        options |= stopping(call, new.tolist())
    if call.returned is not None:
        options |= {"return_dict_in_generate": True} | {f"output_{name}": True for name in call.returned}
    if call.streams:
        options["streamer"] = Columns()
    return options


def drafting(call: Call, drafter: DiffusionDrafter) -> dict[str, Any]:
    options = {"custom_generate": "hf_failfast", "assistant_model": drafter, "confidence_threshold": 0.05}
    options |= {"chunk_length": 3, "max_draft_length": call.draft_length}
    if call.strategy is not None:
        options |= STRATEGIES[call.strategy]
    for name in UNREAD.get(options.get("length_policy", ""), ()):
        del options[name]
    return options | {"drafter_errors": "plain" if call.drafter == "fails" else "raise"}


def take_a_turn(call: Call, ours: Way, theirs: Way, drafter: DiffusionDrafter) -> bool:
    """The earlier call, whose cache this one continues. Returns whether there is something to continue."""
    assert call.cache is not None
    options = {"max_new_tokens": call.max_new_tokens, "do_sample": False}
    ours.decode(**options, **(drafting(call, drafter) if call.cache.startswith("drafted") else {}))
    theirs.decode(**options, return_dict_in_generate=True, output_scores=True)
    if has_ended(call, ours, theirs) or not compare_tokens(call, ours, theirs):
        return False
    turn = torch.cat([ours.new, torch.cat([prompt(TURN, seed) for seed in range(len(call.lengths))])], dim=1)
    ours.prompts, theirs.prompts = ours.prompts.append(turn), theirs.prompts.append(turn)
    return True


@contextmanager
def drawn(tokens: torch.Tensor) -> Iterator[None]:
    """In this context plain sampling draws these tokens (B, m), if it is possible at all to draw them."""
    columns = iter(tokens.T)

    def multinomial(probs: torch.Tensor, num_samples: int) -> torch.Tensor:
        return next(columns, probs.argmax(dim=-1))[:, None]

    with mock.patch.object(torch, "multinomial", multinomial):
        yield


# The comparison


def has_ended(call: Call, ours: Way, theirs: Way) -> bool:
    """Whether the call has ended with an error, which the plain one shares or the list of refusals knows."""
    if ours.error is None and theirs.error is None:
        return False
    if isinstance(ours.error, ValueError):
        message = str(ours.error)
        reasons = [is_due(call) for pattern, is_due in REFUSALS.items() if re.search(pattern, message)]
        if not any(reasons):
            raise AssertionError("refused for a reason that is not in the list") from ours.error
        streamer = ours.options.get("streamer")
        assert streamer is None or len(streamer.values) <= 1, "refused after the first token"
        outcomes["refused"] += 1
        return True
    if ours.error is None and is_beyond_plain(call):
        outcomes["beyond plain"] += 1
        return True
    if not isinstance(ours.error, BESIDE_A_TABLE) or not isinstance(theirs.error, BESIDE_A_TABLE):
        raise AssertionError(f"drafted: {ours.error!r}, plain: {theirs.error!r}") from ours.error or theirs.error
    outcomes["ended beside a table"] += 1
    return True


def compare_tokens(call: Call, ours: Way, theirs: Way) -> bool:
    """The new tokens are the same. Returns False if two tokens are equally likely, where rounding may decide."""
    expected, scores = theirs.new, theirs.output.scores
    drawn_from = torch.stack(scores, dim=1)
    both = min(ours.new.shape[1], expected.shape[1])
    differs = (ours.new[:, :both] != expected[:, :both]).nonzero()
    for row, step in differs[differs[:, 1].argsort(stable=True)][:1].tolist():
        values = drawn_from[row, step]
        if values[expected[row, step]] - values[ours.new[row, step]] < 1e-3:
            outcomes["tied"] += 1
            return False
    assert ours.new.tolist() == expected.tolist()
    assert ours.new.dtype == expected.dtype
    outcomes["equal"] += 1
    if isinstance(ours.output, GenerateDecoderOnlyOutput):
        stats = ours.output.speculation
        outcomes["accepted"] += stats.accepted
        assert stats.drafter_errors == 0 or call.drafter == "fails"
    return True


def ends(way: Way) -> list[int]:
    """How many new tokens each row has before its padding, or fewer."""
    is_token = way.new != PAD
    return [int(row.nonzero()[-1]) + 1 if row.any() else 0 for row in is_token]


def compare_outputs(call: Call, ours: Way, theirs: Way) -> None:
    """Scores, hidden states and attentions of every row's own steps and visible tokens."""
    for name in call.returned or ():
        actual, expected = ours.output[name], theirs.output[name]
        assert len(actual) == len(expected)
        for row, end in enumerate(ends(theirs)):
            for step in range(min(end, len(expected))):
                if name in ("scores", "logits"):
                    torch.testing.assert_close(actual[step][row], expected[step][row], **CLOSE)
                    continue
                shown = [way.columns(row, step) for way in (ours, theirs)]
                width = ours.prompts.width + step
                for pair in zip(actual[step], expected[step], strict=True):
                    own = [
                        of_visible(name, layer[row], columns, width)
                        for layer, columns in zip(pair, shown, strict=True)
                    ]
                    torch.testing.assert_close(*own, **CLOSE)


def of_visible(name: str, layer: torch.Tensor, columns: list[int], width: int) -> torch.Tensor:
    """The part of a row's hidden states (q, hidden) or attentions (heads, q, s) that belongs to visible tokens.

    columns: the visible ones among all `width`; the layer holds the last q or s of all.
    """

    def held(size: int) -> list[int]:
        return [column - width + size for column in columns if column >= width - size]

    if name == "hidden_states":
        return layer[held(layer.shape[0])]
    return layer[:, held(layer.shape[1])][:, :, held(layer.shape[2])]


def compare_states(ours: Way, theirs: Way) -> None:
    """The K/V of every row's own visible tokens, in the caller's cache or the returned one."""
    actual, expected = ours.states(), theirs.states()
    if actual is None:
        return
    length = int(expected.get_seq_length())
    assert int(actual.get_seq_length()) == length
    for mine, other in zip(storing_layers(actual), storing_layers(expected), strict=True):
        assert mine.keys.shape == other.keys.shape
        first = max(length - mine.keys.shape[2], 0)  # the oldest column of a window
        for row, end in enumerate(ends(theirs)):
            shown = [[c - first for c in way.columns(row, end) if first <= c < length] for way in (ours, theirs)]
            both = min(map(len, shown))  # another place of the padding shifts the start of a window
            mine_at, other_at = ([*columns[len(columns) - both :]] for columns in shown)
            torch.testing.assert_close(mine.keys[row, :, mine_at], other.keys[row, :, other_at], **CLOSE)
            torch.testing.assert_close(mine.values[row, :, mine_at], other.values[row, :, other_at], **CLOSE)


def compare_objects(ours: Way, theirs: Way) -> None:
    """Streamers, criteria and processors of the caller were told the same."""
    streamers = [way.options.get("streamer") for way in (ours, theirs)]
    if isinstance(streamers[0], Columns) and isinstance(streamers[1], Columns):
        told = [torch.cat([value.flatten() for value in each.values[1:]]).tolist() for each in streamers]
        assert told[0] == told[1]
        assert streamers[0].is_ended
    for name, kind in (("stopping_criteria", EndsWith), ("logits_processor", Looks)):
        own, other = (way.options.get(name, ()) for way in (ours, theirs))
        for mine, their in zip(own, other, strict=True):
            assert isinstance(mine, kind)
            assert mine.seen == their.seen
