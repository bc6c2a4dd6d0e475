"""The loop: propose, verify, accept, commit. The only place that knows what a round is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from transformers import Cache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import BaseStreamer, GenerateDecoderOnlyOutput

from ..compatibility import CACHE, with_cache_name
from ..config import FailFastConfig
from ..drafters import DiffusionDrafter, Draft, DrafterErrors, DraftRequest, FallbackSession, OverlapSession
from ..engine.kernels.reference import RowOutcome
from ..engine.positions import position_table, rope_change
from ..engine.runner import EagerRunner, Forward, Head, TopLogits, WithTopLogits
from ..engine.slot_cache import RowStates, SharedSlots, SlotCache, store
from ..engine.window import Window
from ..policies.base import LengthPolicy
from ..policies.confidence import ConfidenceThreshold
from .acceptance import Acceptance
from .layer_outputs import LayerOutputs, asked_layers
from .proposals import Proposals
from .refusals import check_request
from .sequences import Sequences
from .stats import RoundRecord, SpecDecodingStats
from .stopping import DraftRoom, StopRules
from .strategy_refusals import check_takes_back, takes_trees
from .suggestion import Proposal
from .token_choice import TokenChoice, draft_warp
from .trees import TreeDraft
from .written import Written

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def failfast_decoding(
    model: PreTrainedModel,
    input_ids: torch.Tensor,  # (B, n)
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **arguments: Any,
) -> GenerateDecoderOnlyOutput | torch.Tensor:
    """Speculative decoding: plain `generate`'s tokens (greedy) or its distribution of tokens (sampling), several per
    target forward.

    Called by `generate` like one of transformers' own decoding methods, with everything prepared. Each round drafts,
    runs the target once over the tokens it has not seen and the draft, and keeps the longest draft prefix that the
    target would have written, plus the target's own next token. The first round's forward is the prefill.

    The sequences of a batch draft, accept and end on their own, and get the tokens that they would get alone; a
    complete one leaves the batch. After its end `sequences` holds the padding token, to which `scores` and `logits`
    give all probability (plain `generate` runs the target on padding there); see `LayerOutputs` for the rest.

    arguments: see `prepare`.

    Returns the ids (B, n + m), or with `return_dict_in_generate` transformers' output class with one more field,
    `speculation` (`SpecDecodingStats`). Raises ValueError naming whatever is not supported.
    """
    generation = prepare(model, input_ids, logits_processor, stopping_criteria, generation_config, **arguments)
    try:
        while generation.is_running:
            draft = propose(generation)
            verified = verify(generation, draft)
            outcome = accept(generation, draft, verified)
            commit(generation, draft, verified, outcome)
    finally:
        generation.session.close()
    return finish(generation)


@dataclass
class Generation:
    """The state of one call.

    rooms: per sequence, how far drafts may go.
    table: positions that the target has an embedding of; None: any.
    read_again_from: the length beyond which the target reads the whole text again, once; None: it never does.
    head: what the target's forward returns: what `acceptance` needs, and what the session asks for.
    past: the caller's cache. At the end it gets the K/V of what the rounds have read, unless `complete` is None.
    complete: K/V of the sequences that have left the batch.
    """

    sequences: Sequences
    policy: LengthPolicy
    session: FallbackSession
    runner: EagerRunner
    cache: SlotCache
    acceptance: Acceptance
    head: Head
    layer_outputs: LayerOutputs | None  # None: the caller asked for none
    rooms: list[DraftRoom]
    table: int | None
    read_again_from: int | None
    past: Cache
    complete: dict[int, RowStates] | None
    returns_dict: bool
    streamer: BaseStreamer | None
    tokenizer: Any
    stats: SpecDecodingStats
    proposals: Proposals | None = None  # None: the drafter's drafts are all that is proposed
    started: float = field(default_factory=perf_counter)
    proposed: float = 0.0  # when the round's draft was ready
    drafting: float = 0.0  # how long that took; 0 in a plain round

    @property
    def is_running(self) -> bool:
        """Whether another round follows."""
        return bool(self.sequences.running)


class Verified(NamedTuple):
    """The result of a round's target forward."""

    forward: Forward
    seen: list[int]  # tokens of each sequence that the target had read before
    known: list[int]  # tokens of each sequence before the round


def prepare(
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
    tokenizer: Any = None,
    synced_gpus: bool = False,
    **model_kwargs: Any,
) -> Generation:
    """The state of a generation before its first round.

    drafter_errors, drafter_timeout: see `FallbackSession`. tokenizer: what the statistics show the text with.
    model_kwargs: as `generate` prepares them, the cache among them.

    Raises ValueError naming whatever is not supported.
    """
    model_kwargs = with_cache_name(model_kwargs)
    check_request(model, input_ids, generation_config, model_kwargs, synced_gpus)
    started = perf_counter()
    returns_dict = bool(generation_config.return_dict_in_generate)
    sequences = Sequences(input_ids, model_kwargs.get("attention_mask"), generation_config)
    keeps_scores = bool(returns_dict and generation_config.output_scores)
    choice = TokenChoice(logits_processor, generation_config.do_sample, keeps_scores, config.verifier)
    stops = StopRules(stopping_criteria, generation_config.max_length, sequences.num_rows, choice.is_row_independent)
    warp = draft_warp(config, generation_config, logits_processor)
    proposals = None
    if config.proposes_more:
        has_trees = bool(config.most_nodes) and takes_trees(model, stops.max_length)
        proposals = Proposals.of(config, stops, has_trees, policy.calibration)
    num_alternatives = 0 if proposals is None else proposals.num_alternatives
    # A draft that is abandoned at a timeout would go on writing in the target's slots; one that is made ahead would
    # write in them while the target does.
    slots = SharedSlots() if drafter_timeout is None and not config.overlap else None
    capacity, num_rows = stops.max_length, sequences.num_rows
    request = DraftRequest(model, capacity, num_rows, stops.eos_token_ids, warp, num_alternatives, slots)
    started_session = drafter.start(request)
    if config.overlap:
        check_takes_back(drafter, started_session)
        started_session = OverlapSession(started_session, cast(ConfidenceThreshold, policy), drafter_timeout)
    session = FallbackSession(started_session, drafter_errors, drafter_timeout)
    past = model_kwargs[CACHE]
    asked = asked_layers(generation_config)
    runner = drafter.runners.target(model, session.target_layers, asked, config.exact)
    cache = runner.new_cache(capacity, num_rows)
    if slots is not None:
        slots.show(cache)
    if past.get_seq_length():
        cache.load(past, [sequences.columns(row) for row in sequences.running])
    policy.start(sequences.num_rows, max(sequences.known.lengths))
    text_config = model.config.get_text_config(decoder=True)
    change = rope_change(text_config)
    stats = SpecDecodingStats()
    acceptance = Acceptance(choice, stops, sequences, stats)
    head = WithTopLogits(acceptance.head, session.top_logits) if session.top_logits else acceptance.head
    return Generation(
        sequences=sequences,
        policy=policy,
        session=session,
        runner=runner,
        cache=cache,
        acceptance=acceptance,
        head=head,
        layer_outputs=LayerOutputs(sequences, asked, past) if asked else None,
        rooms=[DraftRoom.of(model, stops.max_length, hidden) for hidden in sequences.num_hidden],
        table=position_table(text_config),
        read_again_from=change.length if change is not None and change.reads_again else None,
        past=past,
        complete={} if returns_dict or getattr(past, "_is_user_defined", False) else None,
        returns_dict=returns_dict,
        streamer=streamer,
        tokenizer=tokenizer,
        stats=stats,
        proposals=proposals,
        started=started,
    )


def propose(generation: Generation) -> Draft:
    """The round's draft, on the device that verifies it."""
    started = perf_counter()
    sequences = generation.sequences
    room = [
        0 if sequences.finished[row] else generation.rooms[row].after(sequences.lengths[row])
        for row in sequences.running
    ]
    policy, proposals = generation.policy, generation.proposals
    if proposals is not None and policy.calibration is not None:
        policy.offered(proposals.without_draft(sequences.known, sequences.running, room, policy.prices))
    draft = generation.session.draft(sequences.known, policy, room).to(sequences.device)
    if proposals is not None:
        draft = proposals.extend(draft, sequences.known, sequences.running, room, policy.prices)
        policy.proposed(draft.lengths, isinstance(draft, TreeDraft))
    generation.proposed = perf_counter()
    generation.drafting = generation.proposed - started if draft.passes or len(draft) else 0.0
    generation.stats.draft_seconds += generation.proposed - started
    return draft


def verify(generation: Generation, draft: Draft) -> Verified:
    """One target forward over what the target has not read yet, the draft included."""
    started = perf_counter()
    known, cache = generation.sequences.known, generation.cache
    seen, table = cache.lengths, generation.table
    if table is not None and len(seen) > 1 and max(known.lengths) > table:  # of one row the target says so itself
        raise IndexError(
            f"index out of range: a text of {max(known.lengths)} tokens for a target of {table} positions"
        )
    if generation.read_again_from is not None and max(seen) <= generation.read_again_from < max(known.lengths):
        cache.rollback(0)
    tree = draft.shape if isinstance(draft, TreeDraft) else None
    window = Window.over(known, draft.token_ids, cache.lengths, num_read=len(draft) + 1, tree=tree)
    forward = generation.runner.run(window, cache, generation.head)
    if not cache.is_checked:
        cache.check()
    generation.stats.verify_seconds += perf_counter() - started
    return Verified(forward, seen, known.lengths)


def accept(generation: Generation, draft: Draft, verified: Verified) -> list[RowOutcome]:
    """Appends to each sequence what the target would have written, up to its first stop."""
    started = perf_counter()
    choices = verified.forward.outputs[0]
    outcome = generation.acceptance.accept(generation.sequences, draft, choices)
    generation.stats.verify_seconds += perf_counter() - started
    return outcome


def commit(generation: Generation, draft: Draft, verified: Verified, outcome: Sequence[RowOutcome]) -> None:
    """Streams new tokens, tells drafter, policy and records what was accepted, and forgets what was rejected."""
    sequences, session, cache = generation.sequences, generation.session, generation.cache
    if any(row.broken for row in outcome):
        session.give_up(ValueError("its confidences are not numbers"))
    confirmed, kept = [row.accepted for row in outcome], [row.kept for row in outcome]
    if generation.proposals is not None:
        generation.proposals.observe(draft, outcome, generation.stats)
    if isinstance(draft, Proposal):
        confirmed = draft.confirmed(outcome)
        more = [row.accepted - count for count, row in zip(confirmed, outcome, strict=True)]
        generation.policy.overtaken(more)
        own = draft.accepted_own(outcome)
        kept = [min(count, row.cached) for count, row in zip(own, outcome, strict=True)]
    if isinstance(draft, TreeDraft):
        verified = _in_line(generation, verified, outcome)
    generation.policy.observe(confirmed)
    if generation.streamer is not None:
        sequences.stream(generation.streamer)
    cached = [length + row.cached for length, row in zip(verified.known, outcome, strict=True)]
    emitted = [row.emitted for row in outcome]
    if generation.layer_outputs is not None:
        generation.layer_outputs.add(verified.forward.recorded, cache.lengths, verified.seen, verified.known, emitted)
    session.accept(kept)
    if isinstance(draft, Proposal):
        session.overtaken([row.cached - count for row, count in zip(outcome, kept, strict=True)])
    hidden_states = verified.forward.hidden_states
    if hidden_states is not None:
        first = [end - hidden_states.shape[1] for end in cache.lengths]
        spans = zip(hidden_states, first, verified.seen, cached, strict=True)
        session.observe([states[None, start - offset : end - offset] for states, offset, start, end in spans])
    cache.rollback(cached)
    rows = zip(draft.lengths, outcome, strict=True)
    generation.stats.observe(*(RoundRecord(k, row.accepted, row.emitted, draft.passes) for k, row in rows))
    generation.stats.host_reads += draft.host_reads
    generation.policy.spent(generation.drafting, perf_counter() - generation.proposed, emitted)
    if session.top_logits:  # lessons have a budget of their own, and are no cost of the round
        session.learn(sequences.known, emitted, _top_logits(draft, verified, outcome))
    _dismiss(generation, emitted)


def _top_logits(draft: Draft, verified: Verified, outcome: Sequence[RowOutcome]) -> TopLogits:
    """What the target found likely in the places of the tokens that the round emitted."""
    top = TopLogits(*verified.forward.outputs[1:])
    return top.along([row.path or () for row in outcome]) if isinstance(draft, TreeDraft) else top


def _in_line(generation: Generation, verified: Verified, outcome: Sequence[RowOutcome]) -> Verified:
    """Makes a chain of what was accepted of a tree: in the cache, and in what the forward returned."""
    paths = [row.path or () for row in outcome]
    generation.cache.gather(verified.known, paths)
    forward = verified.forward.gather(verified.known, generation.cache.lengths, paths)
    return verified._replace(forward=forward)


def _dismiss(generation: Generation, emitted: list[int]) -> None:
    """Removes complete sequences from the batch. If their K/V are asked for, `complete` keeps them, and a sequence
    that may end shorter than others stays for one more pass, in which the target reads its last token."""
    sequences, complete = generation.sequences, generation.complete
    stays = [
        not sequences.finished[row]
        or (
            complete is not None
            and count > 0
            and bool(sequences.unfinished or sequences.lengths[row] < sequences.length)
        )
        for row, count in zip(sequences.running, emitted, strict=True)
    ]
    if all(stays):
        return
    staying = [place for place, stay in enumerate(stays) if stay]
    if complete is not None:
        leaving = {row: generation.cache.row(place) for place, row in enumerate(sequences.running) if not stays[place]}
        # Views would keep the K/V of the whole batch alive.
        complete |= (
            {row: [(k.clone(), v.clone()) for k, v in kv] for row, kv in leaving.items()} if staying else leaving
        )
    sequences.running = [sequences.running[place] for place in staying]
    if staying:
        generation.session.keep(staying)
        generation.cache.keep(staying)


def finish(generation: Generation) -> GenerateDecoderOnlyOutput | torch.Tensor:
    """Ends the stream, fills the caller's cache, and builds what `generate` returns."""
    sequences, stats, past = generation.sequences, generation.stats, generation.past
    layers = generation.layer_outputs
    if generation.streamer is not None:
        generation.streamer.end()
    stats.runner = generation.runner.description
    stats.drafter_errors = int(generation.session.error is not None)
    stats.learned_steps = generation.session.learned_steps
    stats.overlap_hits = generation.session.overlap_hits
    stats.other_seconds = perf_counter() - generation.started - stats.draft_seconds - stats.verify_seconds
    if generation.complete is not None:
        rows = range(sequences.num_rows)
        states = [generation.complete[row] for row in rows]
        store(past, states, [sequences.columns(row) for row in rows], sequences.length - 1)
    ids = sequences.ids().clone()  # without the columns to spare, which a pickle would carry
    if not generation.returns_dict:
        return ids
    output = GenerateDecoderOnlyOutput(
        sequences=ids,
        scores=sequences.scores(),
        logits=sequences.logits(),
        attentions=layers and layers.steps("attentions"),
        hidden_states=layers and layers.steps("hidden_states"),
        **{CACHE: past},
    )
    if sequences.num_rows == 1:
        stats.written = Written(ids[0, sequences.prompt_length :].cpu(), generation.tokenizer)
    output["speculation"] = stats
    return output
