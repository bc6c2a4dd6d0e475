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

from .config import FailFastConfig
from .drafters import DiffusionDrafter, Draft
from .length_policy import LengthPolicy
from .runners import EagerRunner
from .scoring import TokenChoice, draft_temperature
from .stats import RoundRecord, SpecDecodingStats
from .stopping import StopRules
from .support import check_request, draft_bound, left_padding
from .text import GeneratedText
from .verification import verify

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def failfast_decoding(
    model: PreTrainedModel,
    input_ids: torch.Tensor,  # (1, n)
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    drafter: DiffusionDrafter,
    policy: LengthPolicy,
    config: FailFastConfig,
    streamer: BaseStreamer | None = None,
    synced_gpus: bool = False,
    **model_kwargs: Any,
) -> GenerateDecoderOnlyOutput | torch.Tensor:
    """Speculative decoding: plain `generate`'s tokens (greedy) or its distribution of tokens (sampling), several per
    target forward.

    Called by `generate` like one of transformers' own decoding methods, with everything prepared. Each round drafts,
    runs the target once over the tokens it has not seen and the draft, and keeps the longest draft prefix that the
    target would have written, plus the target's own next token. The first round's forward is the prefill.

    Returns the ids (1, n + m), or with `return_dict_in_generate` transformers' output class with one more field,
    `speculation` (`SpecDecodingStats`). Raises ValueError naming whatever is not supported.
    """
    check_request(model, input_ids, generation_config, model_kwargs, synced_gpus)
    started = perf_counter()
    keeps_scores = bool(generation_config.return_dict_in_generate and generation_config.output_scores)
    choice = TokenChoice(logits_processor, generation_config.do_sample, keeps_scores)
    stops = StopRules(stopping_criteria, generation_config.max_length)
    text = GeneratedText(
        input_ids, left_padding(model_kwargs.get("attention_mask")), stops.max_length, generation_config
    )
    session = drafter.start(model, stops.max_length, stops.eos_token_ids)
    session.temperature = draft_temperature(config, generation_config)
    runner = EagerRunner(model, session.target_layers)
    cache = runner.new_cache(stops.max_length)
    past = model_kwargs["past_key_values"]
    if past.get_seq_length():
        cache.load(past, text.padding)
    stats = SpecDecodingStats()
    longest_drafted = draft_bound(model, stops.max_length, text.padding)
    policy.start(1, input_ids.shape[1])
    accept = _accept if choice.is_rowwise and not stops.walked else _accept_by_walking

    finished = False
    while not finished:
        # 1. Draft.
        draft_started = perf_counter()
        draft = session.draft(text.visible, policy, longest_drafted - text.length).to(text.device)

        # 2. Verify: one forward over what the target has not seen yet.
        verify_started = perf_counter()
        seen = cache.get_seq_length()
        window = torch.cat([text.visible[:, seen:], draft.token_ids], dim=1)
        logits = runner(window.to(model.device), cache, rows=len(draft) + 1)
        logits = logits.to(device=text.device, dtype=torch.float32)

        # 3. Accept what the target would have written, up to the first stop.
        accepted, finished = accept(text, draft, logits, choice, stops, stats)
        verify_ended = perf_counter()

        # 4. Stream, and forget what was rejected.
        emitted = text.emit(streamer)
        cache.rollback(text.visible.shape[1] - 1)
        session.accept(accepted)
        policy.observe([accepted])
        if runner.hidden_states is not None:
            session.observe(runner.hidden_states[:, : text.visible.shape[1] - 1 - seen])
        stats.host_reads += draft.host_reads
        stats.observe(RoundRecord(len(draft), accepted, emitted, draft.passes))
        stats.draft_seconds += verify_started - draft_started
        stats.verify_seconds += verify_ended - verify_started

    if streamer is not None:
        streamer.end()
    stats.other_seconds = perf_counter() - started - stats.draft_seconds - stats.verify_seconds
    if generation_config.return_dict_in_generate or getattr(past, "_is_user_defined", False):
        cache.store(past, text.padding)
    if not generation_config.return_dict_in_generate:
        return text.ids
    output = GenerateDecoderOnlyOutput(
        sequences=text.ids,
        scores=text.scores,
        logits=text.logits,
        past_key_values=past,
    )
    output["speculation"] = stats
    return output


def _accept(
    text: GeneratedText,
    draft: Draft,
    logits: torch.Tensor,
    choice: TokenChoice,
    stops: StopRules,
    stats: SpecDecodingStats,
) -> tuple[int, bool]:
    """Appends the accepted tokens and the bonus token; returns (draft tokens kept, whether the text is complete)."""
    scores = choice.scores(text.ids, logits)
    verified = verify(draft.token_ids, choice.choose(scores, draft.token_ids, draft.probs))
    num_accepted, *token_ids = torch.cat([verified.num_accepted, verified.token_ids[0]]).tolist()  # host sync: round
    stats.host_reads += 1
    kept, finished = stops.cut(token_ids[: num_accepted + 1], text.length)
    count = len(kept)
    text.append(verified.token_ids[:, :count], scores.values[:, :count], logits[:, :count])
    return min(num_accepted, count), finished


def _accept_by_walking(
    text: GeneratedText,
    draft: Draft,
    logits: torch.Tensor,
    choice: TokenChoice,
    stops: StopRules,
    stats: SpecDecodingStats,
) -> tuple[int, bool]:
    """As `_accept`, token by token in the order of plain `generate`: process, choose, append, ask the criteria.

    Processors and criteria see each true prefix once and nothing else, so that stateful ones stay exact.
    """
    draft_ids = draft.token_ids[0].tolist()
    stats.host_reads += 1
    for position in range(len(draft) + 1):
        here = slice(position, position + 1)
        raw = logits[:, here]
        scores = choice.scores(text.ids, raw)
        probs = None if draft.probs is None else draft.probs[:, here]
        chosen = choice.choose(scores, draft.token_ids[:, here], probs)
        text.append(chosen, scores.values, raw)
        token_id = int(chosen)  # host sync: the next prefix depends on it
        stats.host_reads += 1
        finished = stops.ends(token_id, text.length)
        if stops.walked:
            finished |= bool(stops.walked(text.ids, text.scores).all())  # host sync: the caller's criteria
            stats.host_reads += 1
        is_confirmed = position < len(draft) and token_id == draft_ids[position]
        if finished or not is_confirmed:
            return position + is_confirmed, finished
    raise AssertionError("the bonus position always returns")
