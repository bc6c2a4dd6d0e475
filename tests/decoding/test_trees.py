"""Drafts that are trees: the target's own text, or its own distribution, whatever branches; and what is refused."""

import copy
import logging
from typing import Any

import pytest
import torch
from conftest import DRAFTERS, drafter, failfast, plain, prompt, target, tiny_model
from graph_support import Recorder
from sampling_support import (
    HOTTER,
    VERIFIERS,
    WARPING,
    Pair,
    chi_square,
    draw,
    enumerate_distribution,
    kolmogorov_smirnov,
    sample,
    small_pair,
)
from scripted import ScriptedDrafter
from test_architectures import ARCHITECTURES, CHANGING, NEW, READ_AGAIN, beyond, changing, model_of
from test_batch import LENGTHS, ScriptedRows, alone, batch, padded, reference_of
from test_layer_outputs import ASKED, assert_same
from test_other_targets import RECURRENT
from test_parity import STATELESS, BanByCall
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, QuantizedCache

import hf_failfast
from hf_failfast import Conversation
from hf_failfast.compatibility import CACHE, READS_WHOLE_TEXT_AGAIN
from hf_failfast.decoding import token_choice, trees
from hf_failfast.decoding.lattice import Column
from hf_failfast.decoding.trees import ROOT, TokenTree
from hf_failfast.decoding.verification import Branches, Scores, choose_among
from hf_failfast.engine.runner_pool import RunnerPool
from hf_failfast.engine.slot_cache import SlotCache

TREE: dict[str, Any] = {"draft_tree": 24, "chunk_length": 6, "max_draft_length": 6}
RECORD = {"return_dict_in_generate": True}


def script(reference: torch.Tensor, accept_lengths: Any = (3, 0, 5, 1), rank: int = 1) -> ScriptedDrafter:
    """Where a draft is wrong, the right token is among the alternatives: the tree goes on where the chain ends."""
    return ScriptedDrafter(reference, accept_lengths, confidence=lambda index: 0.6, rank=rank)


def rows_of(references: list[torch.Tensor]) -> ScriptedRows:
    rows = ScriptedRows(
        [script(text, lengths) for text, lengths in zip(references, ([3, 0], [0, 5], [6, 1]), strict=True)]
    )
    rows.rank = 1
    return rows


# Exactness


@pytest.mark.parametrize("nodes", [1, 16, 64])
@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_every_drafter(family: str, kind: str, nodes: int) -> None:
    """Trees of every kind of drafter give the target's own text, and are never shorter than the chain."""
    model, input_ids = target(family), prompt(33)
    reference = plain(model, input_ids, max_new_tokens=30)
    options = TREE | RECORD | {"max_new_tokens": 30}
    chain = failfast(model, input_ids, drafter(kind, family), **options | {"draft_tree": 0})
    output = failfast(model, input_ids, drafter(kind, family), **options | {"draft_tree": nodes})
    assert torch.equal(output.sequences, reference)
    assert output.speculation.rounds <= chain.speculation.rounds
    if nodes > TREE["max_draft_length"]:
        stats = output.speculation
        assert stats.accepted_depth == stats.accepted
        assert 0 < stats.nodes_verified == stats.drafted <= nodes * stats.rounds


def check_texts(name: str, drafting: dict[str, Any]) -> None:
    """An architecture's text stays its own with these options, alone and in a batch."""
    model, options = model_of(name), {"max_new_tokens": NEW}
    references = [plain(model, prompt(length), **options) for length in LENGTHS]
    assert torch.equal(
        failfast(model, prompt(LENGTHS[0]), script(references[0]), **options, **drafting), references[0]
    )
    ids, mask = batch()
    output = failfast(model, ids, rows_of(references), attention_mask=mask, **options, **drafting)
    expected = [reference[0, length:].tolist() for reference, length in zip(references, LENGTHS, strict=True)]
    assert output[:, ids.shape[1] :].tolist() == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str) -> None:
    """Branches are followed on every architecture, alone and in a batch, and the text stays the target's own."""
    model, options = model_of(name), {"max_new_tokens": NEW}
    references = [plain(model, prompt(length), **options) for length in LENGTHS]
    output = failfast(model, prompt(LENGTHS[0]), script(references[0]), **options, **TREE, **RECORD)
    assert torch.equal(output.sequences, references[0])
    assert output.speculation.accepted > NEW / 2  # the chain alone accepts 9 in four rounds
    ids, mask = batch()
    output = failfast(model, ids, rows_of(references), attention_mask=mask, **options, **TREE)
    expected = [reference[0, length:].tolist() for reference, length in zip(references, LENGTHS, strict=True)]
    assert output[:, ids.shape[1] :].tolist() == expected


WINDOWED = ("gpt2", "mistral", "gemma3_text", "cohere2", "ministral3")
WINDOWED += ("llama4_text, chunks", "llama4_text, chunks, eager")


@pytest.mark.parametrize("runner", ["eager", "cuda_graphs"])
@pytest.mark.parametrize("name", WINDOWED)
def test_beyond_windows_and_chunks(name: str, runner: str) -> None:
    """Windows and chunks cut a tree by its positions, which are depths, and not by its slots; with graphs too."""
    model, options = beyond(name), {"max_new_tokens": NEW} | TREE | {"draft_tree": 64}
    references = [plain(model, prompt(length), max_new_tokens=NEW) for length in LENGTHS]
    for length, reference in zip(LENGTHS, references, strict=True):
        proposer = script(reference, rank=3)
        proposer.runners = RunnerPool(runner, Recorder() if runner == "cuda_graphs" else None)
        assert torch.equal(failfast(model, prompt(length), proposer, **options), reference), f"from {length}"
    ids, mask = batch()
    rows = rows_of(references)
    rows.runners = RunnerPool(runner, Recorder() if runner == "cuda_graphs" else None)
    output = failfast(model, ids, rows, attention_mask=mask, **options)
    expected = [reference[0, length:].tolist() for reference, length in zip(references, LENGTHS, strict=True)]
    assert output[:, ids.shape[1] :].tolist() == expected


@pytest.mark.parametrize("name", CHANGING)
def test_rotary_embeddings_change(name: str) -> None:
    """Trees keep to the lengths at which rotary embeddings change."""
    for length in (23, 31, 33):
        if name in READ_AGAIN and length <= 32 and not READS_WHOLE_TEXT_AGAIN:
            continue
        reference = plain(changing(name), prompt(length), max_new_tokens=30)
        output = failfast(changing(name), prompt(length), script(reference), max_new_tokens=30, **TREE)
        assert torch.equal(output, reference), f"from {length}"


def test_graphs_are_replayed() -> None:
    """A tree's forward is captured once and replayed, apart from that of a chain."""
    model, recorder = target("qwen2"), Recorder()
    reference = plain(model, prompt(20), max_new_tokens=40)
    proposer = script(reference)
    proposer.runners = RunnerPool("cuda_graphs", recorder)
    for _ in range(2):
        assert torch.equal(failfast(model, prompt(20), proposer, max_new_tokens=40, **TREE), reference)
        proposer.sessions.clear()
    assert 0 < recorder.captures <= 3
    assert torch.equal(failfast(model, prompt(20), script(reference), max_new_tokens=40), reference)


# Ends, processors, outputs


@pytest.mark.parametrize("name", STATELESS)
def test_processors(name: str) -> None:
    """Processors see the true path, node by node."""
    model, input_ids = target("qwen3"), prompt(15)
    options = {"max_new_tokens": 30} | STATELESS[name]
    reference = plain(model, input_ids, **options)
    output = failfast(model, input_ids, script(reference), **options, **TREE, **RECORD)
    assert torch.equal(output.sequences, reference)
    assert output.speculation.accepted > 15


def test_a_stateful_processor_is_called_once_per_token() -> None:
    """A processor with a state of its own sees each true prefix once, whatever branches were verified."""
    model, input_ids = target("qwen3"), prompt(15)
    expected, actual = BanByCall(), BanByCall()
    reference = plain(model, input_ids, max_new_tokens=30, logits_processor=[expected])
    output = failfast(model, input_ids, script(reference), max_new_tokens=30, logits_processor=[actual], **TREE)
    assert torch.equal(output, reference)
    assert actual.calls == expected.calls == list(range(15, 45))


@pytest.mark.parametrize("walked", [False, True])
@pytest.mark.parametrize("place", [1, 4, 5, 9])
def test_an_end_inside_a_path(place: int, walked: bool) -> None:
    """A text ends at its first end of sequence or stop, on the chain and on a branch, and nothing follows."""
    model, input_ids = target("llama"), prompt(15)
    text = plain(model, input_ids, max_new_tokens=30)
    stop = int(text[0, 15 + place])
    options: dict[str, Any] = {"max_new_tokens": 30, "eos_token_id": stop, "pad_token_id": 0}
    if walked:
        options["repetition_penalty"] = 1.2
    reference = plain(model, input_ids, **options)
    proposer = script(plain(model, input_ids, **{name: v for name, v in options.items() if name != "eos_token_id"}))
    assert torch.equal(failfast(model, input_ids, proposer, **options, **TREE), reference)


@pytest.mark.parametrize("new_tokens", range(1, 9))
def test_lengths(new_tokens: int) -> None:
    """A text has as many tokens as asked for, wherever that cuts a path; the returned cache continues it."""
    model, input_ids = target("mistral"), prompt(20)
    reference = plain(model, input_ids, max_new_tokens=30)
    options = TREE | RECORD | {"max_new_tokens": new_tokens}
    output = failfast(model, input_ids, script(reference), **options)
    assert torch.equal(output.sequences, reference[:, : 20 + new_tokens])
    assert output[CACHE].get_seq_length() == 20 + new_tokens - 1
    continued = plain(model, output.sequences, **{CACHE: output[CACHE]}, max_new_tokens=30 - new_tokens)
    assert torch.equal(continued, reference)


@pytest.mark.parametrize("processors", [{}, {"repetition_penalty": 1.4}])
def test_scores_and_logits(processors: dict[str, float]) -> None:
    """Scores and logits are those of the accepted path."""
    model, input_ids = target("gemma2"), prompt(15)
    options = {"max_new_tokens": 30, "output_scores": True, "output_logits": True} | RECORD
    reference = plain(model, input_ids, **options, **processors)
    output = failfast(model, input_ids, script(reference.sequences), **options, **processors, **TREE)
    assert torch.equal(output.sequences, reference.sequences)
    for name in ("scores", "logits"):
        assert len(output[name]) == 30
        torch.testing.assert_close(torch.cat(output[name]), torch.cat(reference[name]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_hidden_states_and_attentions(family: str) -> None:
    """Hidden states and attentions are those of the accepted path, as plain `generate` returns them."""
    model = tiny_model(family, attn_implementation="eager")
    expected = plain(model, prompt(23), **ASKED)
    output = failfast(model, prompt(23), script(expected.sequences), **ASKED, **TREE)
    assert torch.equal(output.sequences, expected.sequences)
    assert output.speculation.accepted > 10
    assert_same(output, expected)


def test_rows_that_end_early() -> None:
    """Rows end on their own, are padded, and leave the batch; a mask and penalties are honoured."""
    model, (ids, mask) = target("llama"), batch()
    stop = int(reference_of(model)[0][0, LENGTHS[0] + 7])
    options: dict[str, Any] = {"max_new_tokens": 24, "eos_token_id": stop, "pad_token_id": 0}
    expected = padded(alone(model, **options))
    for extra in ({}, RECORD):
        output = failfast(model, ids, rows_of(reference_of(model)), attention_mask=mask, **options, **TREE, **extra)
        found = output.sequences if extra else output
        assert found[:, ids.shape[1] :].tolist() == expected


@pytest.mark.parametrize("kind", ["canvas_shift", "block_shift", "bidirectional"])
def test_turns_of_a_conversation(kind: str) -> None:
    """A conversation's drafter remembers the right text after branches were accepted."""
    model, cache = target("llama"), DynamicCache(config=target("llama").config)
    session = Conversation(drafter(kind, "llama"))
    text = prompt(40)
    for turn in range(3):
        expected = plain(model, text, max_new_tokens=18)
        kept = failfast(model, text, session, max_new_tokens=18, **TREE, **RECORD, **{CACHE: cache})
        assert torch.equal(kept.sequences, expected)
        anew = failfast(model, text, drafter(kind, "llama"), max_new_tokens=18, **TREE, **RECORD)
        assert kept.speculation.records == anew.speculation.records
        text = torch.cat([expected, prompt(7, seed=turn)], dim=1)


# The structure


def test_a_tree_shares_beginnings() -> None:
    """Nodes with the same tokens from the root on are one; bits name ancestors; a path follows the target's tokens."""
    tree = TokenTree()
    chain = tree.add(tree.add(ROOT, 5), 6)
    branch = tree.add(0, 7)
    assert tree.add(0, 6) == chain and len(tree) == 3
    assert (tree.token_ids, tree.depths, tree.ancestors) == ([5, 6, 7], [0, 1, 1], [0b1, 0b11, 0b101])
    assert tree.path([5, 7, 0, 9]) == [0, branch]
    assert tree.path([5, 8, 0, 9]) == [0]
    assert tree.path([4, 7, 0, 9]) == []


def test_the_likeliest_paths_are_added_first() -> None:
    """A tree holds the chain, then the paths of greatest product, of all that could be added."""
    grower = trees.Trees(9)
    confidence, probs = [0.6, 0.5, 0.9], [[0.3, 0.05], [0.4, 0.1], [0.06, 0.04]]
    row = Column([[1, 2, 3], [4, 5, 6], [7, 8, 9]], confidence, probs)
    tree = grower._tree(row, 3)
    assert tree.token_ids[:3] == [1, 4, 7]
    chances = [[own, *rest] for own, rest in zip(confidence, probs, strict=True)]
    every = {}
    for ranks in [(a,) for a in range(3)] + [(a, b) for a in range(3) for b in range(3)]:
        every[ranks] = torch.tensor([chances[depth][rank] for depth, rank in enumerate(ranks)]).prod().item()
    for a in range(3):
        every |= {(a, b, c): every[a, b] * chances[2][c] for b in range(3) for c in range(3)}
    paths = []
    for node in range(3, len(tree)):
        bits = [index for index in range(node + 1) if tree.ancestors[node] >> index & 1]
        paths.append(tuple(row.token_ids[depth].index(tree.token_ids[index]) for depth, index in enumerate(bits)))
    off_chain = sorted((ranks for ranks in every if any(ranks)), key=lambda ranks: -every[ranks])
    assert [pytest.approx(every[path]) for path in paths] == [every[ranks] for ranks in off_chain[: len(paths)]]


def test_slots_are_moved_into_place() -> None:
    """The K/V of a path become the next slots of their sequence; others stay as they are."""
    cache = SlotCache(1, 20, 2)
    states = torch.arange(2 * 12.0).view(2, 1, 12, 1)
    with torch.inference_mode():
        cache.layers[0].update(states.clone(), states.clone())
        cache.advance(12)
    cache.gather([4, 6], [[0, 3, 5], [1, 2]])
    keys = cache.layers[0].keys[:, 0, :12, 0].tolist()
    assert keys[0][:7] == [0, 1, 2, 3, 4, 7, 9]
    assert keys[1][:8] == [12, 13, 14, 15, 16, 17, 19, 20]


# Sampling

SHAPE: dict[str, Any] = {"draft_tree": 12, "chunk_length": 2}
STACKS: dict[str, dict[str, Any]] = {
    "temperature": WARPING,
    "top-k and top-p": {"temperature": 0.8, "top_k": 5, "top_p": 0.9},
    "penalty": {"repetition_penalty": 1.5, "top_k": 6},  # walked
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return small_pair(str(tmp_path_factory.mktemp("drafter")))


def fit(pair: Pair, warping: dict[str, Any], samples: int = 1500, **options: Any) -> float:
    counts = draw(pair, pair.drafter(), samples, **warping, **SHAPE | options)
    return chi_square(counts, enumerate_distribution(pair, **warping))


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("name", STACKS)
def test_samples_follow_the_targets_distribution(pair: Pair, name: str, verifier: str) -> None:
    """Samples through trees fit the enumerated distribution of the target and its processors."""
    assert fit(pair, STACKS[name], **VERIFIERS[verifier]) > 1e-3


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_long_texts_follow_the_targets_distribution(verifier: str, tmp_path: Any) -> None:
    """A text of 400 tokens over 60 ids, with trees of many shapes, follows the distribution, as branches accept
    more."""
    pair = small_pair(str(tmp_path), vocab_size=60)
    torch.manual_seed(1)
    start = torch.randint(59, (1, 12))
    options: dict[str, Any] = {"max_new_tokens": 400, "chunk_length": 3, "max_draft_length": 3} | RECORD | WARPING
    accepted = {}
    for nodes in (0, 16):
        torch.manual_seed(2)
        output = sample(pair, pair.drafter(), start, **options, **VERIFIERS[verifier], draft_tree=nodes)
        accepted[nodes] = output.speculation.accepted / output.speculation.rounds
        assert kolmogorov_smirnov(pair.target, output.sequences, 12, **WARPING) > 1e-3
    assert accepted[16] > accepted[0] + 0.1


def test_a_seed_reproduces_the_samples(pair: Pair) -> None:
    """`torch.manual_seed` makes samples through trees repeatable."""
    for verifier in VERIFIERS.values():
        first, second = (draw(pair, pair.drafter(), 100, **WARPING, **SHAPE, **verifier) for _ in range(2))
        assert torch.equal(first, second)


def forgets_the_residual(scores: Scores, drafted: Branches) -> torch.Tensor:
    """Every child is judged by p itself, as if none had been rejected before it."""
    chosen = torch.full(scores.values.shape[:2], -1)
    for index in range(drafted.token_ids.shape[-1]):
        here = slice(index, index + 1)
        one = Branches(drafted.token_ids[..., here], drafted.probs, drafted.is_drawn[..., here])
        own = choose_among(scores, one)
        is_child = (own == one.token_ids[..., 0]) & (chosen < 0)
        chosen = torch.where(is_child, own, chosen)
    none = Branches(drafted.token_ids[..., :0], drafted.probs, drafted.is_drawn[..., :0])
    return torch.where(chosen < 0, choose_among(scores, none), chosen)


def draws_with_replacement(scores: Scores, drafted: Branches) -> torch.Tensor:
    """q keeps the tokens that were drawn before."""
    p, chosen = scores.values.softmax(dim=-1), torch.full(scores.values.shape[:2], -1)
    q = drafted.probs
    for ids in drafted.token_ids.unbind(-1):
        here = ids.clamp(min=0)[..., None]
        is_tried = ids >= 0
        is_accepted = is_tried & (torch.rand(ids.shape) * q.gather(-1, here)[..., 0] < p.gather(-1, here)[..., 0])
        chosen = torch.where(is_accepted & (chosen < 0), ids, chosen)
        residual = (p - q).clamp(min=0) + 1e-12
        p = torch.where(is_tried[..., None], residual / residual.sum(dim=-1, keepdim=True), p)
    drawn = torch.multinomial(p.flatten(0, 1), 1).view(chosen.shape)
    return torch.where(chosen < 0, drawn, chosen)


def test_the_proof_rejects_a_tree_that_forgets_the_residual(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects a verifier that judges every child by p itself."""
    monkeypatch.setattr(token_choice, "choose_among", forgets_the_residual)
    assert fit(pair, WARPING, **HOTTER) < 1e-6


def test_the_proof_rejects_a_shape_that_peeks(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects trees that leave out drawn tokens which the drafter holds unlikely: the rest are no draws from q."""
    grow = trees.Trees._tree

    def peek(self: Any, row: Any, length: int, suggestions: Any) -> Any:
        kept = next((place for place in range(length) if row.token_ids[place][0] > 3), length)
        return grow(self, row, kept, suggestions)

    monkeypatch.setattr(trees.Trees, "_tree", peek)
    assert fit(pair, WARPING, **HOTTER) < 1e-6


def frequencies(verifier: Any, p: torch.Tensor, q: torch.Tensor, count: int) -> tuple[torch.Tensor, float]:
    """How often each token is chosen where `count` tokens were drawn, and how often the first drawn one."""
    samples, size = 40_000, len(p)
    torch.manual_seed(0)
    scores = Scores(p.log().expand(1, samples, size), torch.arange(size).expand(1, samples, size))
    drawn = torch.multinomial(q.expand(samples, size), count) if count else torch.zeros(samples, 0, dtype=torch.long)
    chosen = verifier(
        scores, Branches(drawn[None], q.expand(1, samples, size), torch.ones_like(drawn[None], dtype=torch.bool))
    )[0]
    agreement = (chosen == drawn[:, 0]).float().mean().item() if count else 0.0
    return torch.bincount(chosen, minlength=size) / samples, agreement


P, Q = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("count", range(4))
def test_choosing_among_draws(count: int) -> None:
    """A token is chosen with its probability, however many were drawn, and a drawn one as often as can be."""
    found, agreement = frequencies(choose_among, P, Q, count)
    torch.testing.assert_close(found, P, atol=0.01, rtol=0.0)
    if count == 1:
        assert agreement == pytest.approx(torch.minimum(P, Q).sum().item(), abs=0.01)


@pytest.mark.parametrize("mutant", [forgets_the_residual, draws_with_replacement])
def test_choosing_wrongly_is_seen(mutant: Any) -> None:
    """The same frequencies reject verifiers that forget the residual, or that the draws are without replacement."""
    found, _ = frequencies(mutant, P, Q, 3)
    assert (found - P).abs().max() > 0.03


# Refusals


@pytest.mark.parametrize("value", [-1, 65, 2.5, True, "16"])
def test_out_of_range(value: Any) -> None:
    """Values that are no integer from 0 to 64 are refused, in the call and in a config."""
    with pytest.raises(ValueError, match="`draft_tree` must be an integer from 0 to 64"):
        failfast(target("llama"), prompt(9), drafter("canvas"), draft_tree=value)
    with pytest.raises(ValueError, match="`draft_tree`"):
        hf_failfast.FailFastConfig(draft_tree=value)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_target(name: str) -> None:
    """Refuses trees on recurrent and hybrid targets, by option, bound and reason."""
    model = tiny_model(name, **RECURRENT[name])
    with pytest.raises(ValueError, match=f"`draft_tree`=8 .* `draft_tree`=0: `{name}` keeps a recurrent"):
        failfast(model, prompt(9), drafter("canvas_shift"), draft_tree=8)


def test_other_things_that_have_no_trees() -> None:
    """Refuses trees with bidirectional targets, quantised caches, drafters without alternatives, own verifiers, and in
    transformers' own loop, before a token is written."""
    model, proposer = target("llama"), drafter("canvas_shift", "llama")
    bidirectional = copy.deepcopy(tiny_model("gemma3_text", **ARCHITECTURES["gemma3_text"]))
    bidirectional.config.use_bidirectional_attention = True
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (bidirectional, proposer, {}, "see later ones"),
        (model, proposer, {"cache_implementation": "quantized"}, "a quantised cache"),
        (model, proposer, {CACHE: QuantizedCache.__new__(QuantizedCache)}, "a quantised cache"),
        (model, ScriptedDrafter(prompt(9)), {}, "a ScriptedDrafter proposes one token per position"),
        (model, proposer, {"verifier": lambda *_: None}, "a function of your own judges a chain"),
    ]
    for of_case, drafter_of_case, options, reason in cases:
        with pytest.raises(ValueError, match=f"`draft_tree`=8 .*{reason}"):
            failfast(of_case, prompt(9), drafter_of_case, draft_tree=8, **options)
    with pytest.raises(ValueError, match="`draft_tree`=8 is not possible with `assisted_generate`"):
        hf_failfast.assisted_generate(model, prompt(9), assistant_model=proposer, draft_tree=8)


@pytest.mark.parametrize("name", ["bloom", "falcon", "gpt_neo", "flex"])
def test_a_target_without_masks_of_its_own(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Falls back to chains, with one log line per target that says why, and keeps the text."""
    models: dict[str, Any] = {
        "bloom": lambda: tiny_model("bloom", n_layer=2, n_head=4),
        "falcon": lambda: tiny_model("falcon", alibi=True, new_decoder_architecture=True, num_kv_heads=2),
        "gpt_neo": lambda: tiny_model("gpt_neo", num_layers=2, num_heads=4, attention_types=[[["global"], 2]]),
        "flex": lambda: tiny_model("llama"),
    }
    model = models[name]()
    reference = plain(model, prompt(12), max_new_tokens=20)
    if name == "flex":  # another name of the same attention, which the loop must not take for SDPA
        AttentionInterface.register("of_the_user", AttentionInterface()["sdpa"])
        AttentionMaskInterface.register("of_the_user", AttentionMaskInterface()["sdpa"])
        model.config._attn_implementation = "of_the_user"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            output = failfast(model, prompt(12), script(reference), max_new_tokens=20, **TREE, **RECORD)
            assert torch.equal(output.sequences, reference)
            assert output.speculation.nodes_verified == 0 < output.speculation.accepted
    messages = [record.message for record in caplog.records if "draft_tree" in record.message]
    assert len(messages) == 1 and "fall back to chains" in messages[0]
