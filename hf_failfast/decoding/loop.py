"""The loop: draft, verify, accept. The only place that knows what a round is."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.generation import BaseStreamer, GenerateDecoderOnlyOutput

from ..compatibility import CACHE, with_cache_name
from ..config import FailFastConfig
from ..drafters import BatchSession, DiffusionDrafter, DrafterErrors, GuardedSession, start
from ..engine.runner import feed
from ..engine.slot_cache import RowStates, SlotCache, store
from ..policies.base import LengthPolicy
from .acceptance import Acceptance
from .layer_outputs import LayerOutputs
from .refusals import check_request, draft_bound
from .sequences import GeneratedText
from .stats import RoundRecord, SpecDecodingStats
from .stopping import StopRules
from .token_choice import TokenChoice, draft_warp

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def failfast_decoding(
    model: PreTrainedModel,
    input_ids: torch.Tensor,  # (B, n)
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    drafter: DiffusionDrafter,
    policy: LengthPolicy,
    config: FailFastConfig,
    drafter_errors: DrafterErrors = "plain",
    drafter_timeout: float | None = None,
    streamer: BaseStreamer | None = None,
    synced_gpus: bool = False,
    **model_kwargs: Any,
) -> GenerateDecoderOnlyOutput | torch.Tensor:
    """Speculative decoding: plain `generate`'s tokens (greedy) or its distribution of tokens (sampling), several per
    target forward.

    Called by `generate` like one of transformers' own decoding methods, with everything prepared. Each round drafts,
    runs the target once over the tokens it has not seen and the draft, and keeps the longest draft prefix that the
    target would have written, plus the target's own next token. The first round's forward is the prefill.

    The rows of a batch draft, accept and end on their own, and get the tokens that they would get alone; a complete
    row leaves the batch. Behind its end `sequences` holds the padding token, and `scores` and `logits` those of a row
    that is certain of it (plain `generate` runs the target on padding there); see `LayerOutputs` for the rest.

    Returns the ids (B, n + m), or with `return_dict_in_generate` transformers' output class with one more field,
    `speculation` (`SpecDecodingStats`). Raises ValueError naming whatever is not supported.
    """
    model_kwargs = with_cache_name(model_kwargs)
    check_request(model, input_ids, generation_config, model_kwargs, synced_gpus)
    started = perf_counter()
    stats = SpecDecodingStats()
    text = GeneratedText(input_ids, model_kwargs.get("attention_mask"), generation_config)
    stops = StopRules(stopping_criteria, generation_config.max_length)
    keeps_scores = bool(generation_config.return_dict_in_generate and generation_config.output_scores)
    choice = TokenChoice(logits_processor, generation_config.do_sample, keeps_scores)
    acceptance = Acceptance(choice, stops, text, stats)
    session = start(drafter, model, stops.max_length, stops.eos_token_ids, text.num_rows)
    session = GuardedSession(session, drafter_errors, drafter_timeout)
    session.warp = draft_warp(config, generation_config, logits_processor)
    past = model_kwargs[CACHE]
    layer_outputs = LayerOutputs(text, generation_config, past)
    runner = drafter.runners.target(model, session.target_layers, layer_outputs.names)
    cache = runner.new_cache(stops.max_length, text.num_rows)
    if past.get_seq_length():
        cache.load(past, [text.columns(row) for row in text.running])
    is_cache_returned = generation_config.return_dict_in_generate or getattr(past, "_is_user_defined", False)
    complete: dict[int, RowStates] | None = {} if is_cache_returned else None
    longest_drafted = [draft_bound(model, stops.max_length, hidden) for hidden in text.num_hidden]
    policy.start(text.num_rows, max(text.known.lengths))

    while text.running:
        # 1. Draft.
        draft_started = perf_counter()
        known = text.known
        room = [0 if text.finished[row] else longest_drafted[row] - text.lengths[row] for row in text.running]
        draft = session.draft_rows(known, policy, room).to(text.device)

        # 2. Verify: one forward over what the target has not seen yet.
        verify_started = perf_counter()
        seen = cache.lengths
        (verified,) = feed(runner, cache, known, draft.token_ids, num_read=len(draft) + 1, head=acceptance.head)

        # 3. Accept what the target would have written, up to the first stop of each row.
        accepted, emitted = acceptance.accept(text, draft, verified)
        verify_ended = perf_counter()
        if acceptance.is_draft_broken:
            session.give_up(ValueError("its confidences are not numbers"))

        # 4. Stream, and forget what was rejected.
        policy.observe(accepted)
        if streamer is not None:
            text.stream(streamer)
        gained = [max(count - 1, 0) for count in emitted]  # the last token's K/V come with the next round
        cached = [length + count for length, count in zip(known.lengths, gained, strict=True)]
        layer_outputs.add(runner.outputs, cache.lengths, seen, known.lengths, emitted)
        session.accept_rows([min(pair) for pair in zip(accepted, gained, strict=True)])
        if runner.hidden_states is not None:
            first = [end - runner.hidden_states.shape[1] for end in cache.lengths]
            spans = zip(runner.hidden_states, first, seen, cached, strict=True)
            session.observe_rows([states[None, start - offset : end - offset] for states, offset, start, end in spans])
        cache.rollback(cached)
        records = zip(draft.lengths, accepted, emitted, strict=True)
        stats.observe(*(RoundRecord(*record, draft.passes) for record in records))
        stats.host_reads += draft.host_reads
        stats.draft_seconds += verify_started - draft_started
        stats.verify_seconds += verify_ended - verify_started
        _dismiss(text, emitted, cache, session, complete)

    if streamer is not None:
        streamer.end()
    stats.drafter_errors = int(session.error is not None)
    stats.other_seconds = perf_counter() - started - stats.draft_seconds - stats.verify_seconds
    if complete is not None:
        rows = range(text.num_rows)
        store(past, [complete[row] for row in rows], [text.columns(row) for row in rows], text.length - 1)
    if not generation_config.return_dict_in_generate:
        return text.ids()
    output = GenerateDecoderOnlyOutput(
        sequences=text.ids(),
        scores=text.scores(),
        logits=text.logits(),
        attentions=layer_outputs.steps("attentions"),
        hidden_states=layer_outputs.steps("hidden_states"),
        **{CACHE: past},
    )
    output["speculation"] = stats
    return output


def _dismiss(
    text: GeneratedText,
    emitted: list[int],
    cache: SlotCache,
    session: BatchSession,
    complete: dict[int, RowStates] | None,
) -> None:
    """Complete rows leave the batch. If their K/V are asked for, these are kept in `complete`; and a row that is not
    among the longest in the end stays for the one pass in which the target reads its last token."""
    owes = [
        complete is not None and count > 0 and bool(text.unfinished or text.lengths[row] < text.length)
        for row, count in zip(text.running, emitted, strict=True)
    ]
    stays = [not text.finished[row] or owing for row, owing in zip(text.running, owes, strict=True)]
    if all(stays):
        return
    staying = [index for index, stay in enumerate(stays) if stay]
    if complete is not None:
        leaving = {row: cache.row(index) for index, row in enumerate(text.running) if not stays[index]}
        # What is not copied keeps the K/V of the whole batch alive.
        complete |= (
            {row: [(k.clone(), v.clone()) for k, v in kv] for row, kv in leaving.items()} if staying else leaving
        )
    text.running = [text.running[index] for index in staying]
    if staying:
        session.keep_rows(staying)
        cache.keep(staying)
