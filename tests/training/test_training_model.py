"""The drafter in training: packed canvases equal each canvas alone, for every kind of drafter."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from training_support import VOCABULARY, tiny_target
from transformers import AutoConfig, AutoModelForCausalLM

from hf_failfast.training.batches import CanvasPlan, batch_indices, collate, draft_index
from hf_failfast.training.canvases import Canvases
from hf_failfast.training.config import CanvasAttention
from hf_failfast.training.data.shards import Example
from hf_failfast.training.losses import IGNORE
from hf_failfast.training.model import CanvasDrafter, covered_share, covering_size, frequent_tokens


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text"])
def test_packed_canvases_equal_each_canvas_after_its_own_prefix(model_type: str) -> None:
    drafter = CanvasDrafter(tiny_target(model_type), [0, 1, 3]).eval()
    torch.nn.init.normal_(drafter.mask_embedding)
    tokens = torch.randint(5, VOCABULARY, (2, 12))
    anchors = torch.tensor([[0, 7, 3], [10, 5, 5]])
    with torch.no_grad():
        clean, masks = drafter(Canvases(tokens, anchors, canvas_length=4))
        for row in range(2):
            for canvas, anchor in enumerate(anchors[row].tolist()):
                prefix = drafter.body.get_input_embeddings()(tokens[row : row + 1, : anchor + 1])
                window = torch.cat([prefix, drafter.mask_embedding.expand(1, 3, -1)], dim=1)
                visible = torch.ones(anchor + 4, anchor + 4).tril().bool()
                visible[anchor + 1 :] = True
                mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
                alone = drafter.body(inputs_embeds=window, attention_mask=mask[None, None]).last_hidden_state[0]
                torch.testing.assert_close(clean[row, : anchor + 1], alone[: anchor + 1], atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(masks[row, canvas], alone[anchor + 1 :], atol=1e-5, rtol=1e-5)


def test_clean_rows_of_a_drafter_with_every_layer_are_the_target() -> None:
    target = tiny_target()
    drafter = CanvasDrafter(target, [0, 1, 2, 3])
    tokens = torch.randint(5, VOCABULARY, (1, 9))
    with torch.no_grad():
        clean, _ = drafter(Canvases(tokens, torch.tensor([[4]]), canvas_length=3))
        torch.testing.assert_close(drafter.logits(clean), target(tokens).logits, atol=1e-5, rtol=1e-5)


def test_drafter_refuses_targets_and_layers_it_cannot_copy() -> None:
    config = AutoConfig.for_model("gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=32)
    with pytest.raises(ValueError, match="GPT2LMHeadModel"):
        CanvasDrafter(AutoModelForCausalLM.from_config(config), [0])
    with pytest.raises(ValueError, match=r"`layers` must be between 0 and 3, got \[0, 4\]"):
        CanvasDrafter(tiny_target(), [0, 4])


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("gemma4_text", {"global_head_dim": 8}),
        ("gemma4_text", {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 2, "global_head_dim": 8}),
        ("gemma3n_text", {"laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4}),
    ],
)
def test_layers_that_read_more_than_the_one_before_are_refused(model_type: str, options: dict[str, Any]) -> None:
    """Gemma 3n and small Gemma 4: embeddings of their own for each layer, and K/V of earlier layers."""
    types = {"layer_types": ["sliding_attention", "full_attention"] * 2}
    sizes = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
    target = tiny_target(model_type, **types | sizes | options)
    with pytest.raises(ValueError, match=r"`target` must have layers .* with `(hidden|num)_\w+` [28]\."):
        CanvasDrafter(target, [0, 3])


def test_reduced_vocabulary_keeps_frequent_ids_and_maps_the_rest_to_ignore() -> None:
    answers = [torch.tensor([9, 9, 9, 7, 7]), torch.tensor([5, 6, 7])]
    kept = frequent_tokens(answers, size=4, always=[3])
    assert kept.tolist() == [3, 5, 7, 9]  # 5 and 6 are equally frequent: the lower id stays
    assert frequent_tokens(answers, size=7, always=[3]).tolist() == [0, 1, 3, 5, 6, 7, 9]
    index = draft_index(kept, vocabulary=12)
    assert index[[3, 5, 7, 9]].tolist() == [0, 1, 2, 3]
    assert index[[0, 6, 11]].tolist() == [IGNORE] * 3
    target = tiny_target()
    drafter = CanvasDrafter(target, [0], kept)
    hidden = torch.randn(2, 32)
    torch.testing.assert_close(drafter.logits(hidden), target.lm_head(hidden)[:, kept])


def test_row_r_is_trained_on_token_r_plus_one() -> None:
    tokens = torch.tensor([10, 11, 12, 13, 14])
    example = Example(tokens, 2, torch.arange(3.0)[:, None])
    batch = collate([example], CanvasPlan("causal_canvas", 2, 2), torch.arange(20))
    assert batch.canvases.anchors.tolist() == [[1, 2]]
    assert batch.labels[0].tolist() == [IGNORE, 12, 13, 14, IGNORE, IGNORE, IGNORE]
    assert batch.wanted[0, 1:4, 0].tolist() == [0.0, 1.0, 2.0]
    assert batch.drafted(batch.labels).tolist() == [[[12, 13], [13, 14]]]


def test_every_epoch_uses_every_example_once() -> None:
    lengths = [3, 9, 4, 8, 5, 7]
    epochs = [[batch_indices(lengths, 2, 0, step) for step in range(first, first + 3)] for first in (0, 3)]
    for epoch in epochs:
        assert sorted(sum(epoch, [])) == list(range(6))
        assert sorted(epoch) == [[0, 2], [3, 1], [4, 5]]  # neighbours in length
    assert epochs[0] != epochs[1]


def test_even_anchors_leave_room_for_whole_canvases() -> None:
    example = Example(torch.arange(20), 5, torch.zeros(15, 2))
    assert CanvasPlan("causal_canvas", 5, 3).even([example]).tolist() == [[4, 9, 14]]


# Conditioned and block-causal drafters


def test_a_conditioned_drafter_with_one_layer_reads_the_targets_own_past() -> None:
    """A conditioned drafter of all layers has the target's final states at the clean rows."""
    target = tiny_target()
    drafter = CanvasDrafter(target, [0, 1, 2, 3])
    tokens = torch.randint(5, VOCABULARY, (2, 9))
    with torch.no_grad():
        output = target(tokens, output_hidden_states=True)
        features = torch.stack(output.hidden_states[:4], dim=2)
        clean, _ = drafter(Canvases(tokens, torch.tensor([[4], [0]]), canvas_length=3), features)
    torch.testing.assert_close(clean, output.hidden_states[-1], atol=1e-5, rtol=1e-5)


def test_conditioned_packed_canvases_equal_each_canvas_alone() -> None:
    target = tiny_target()
    drafter = CanvasDrafter(target, [0, 3]).eval()
    torch.nn.init.normal_(drafter.mask_embedding)
    tokens = torch.randint(5, VOCABULARY, (1, 12))
    anchors = torch.tensor([[7, 3]])
    with torch.no_grad():
        states = target(tokens, output_hidden_states=True).hidden_states
        features = torch.stack([states[0], states[3]], dim=2)
        clean, masks = drafter(Canvases(tokens, anchors, canvas_length=4), features)
        for canvas, anchor in enumerate([7, 3]):
            one = Canvases(tokens[:, : anchor + 1], torch.tensor([[anchor]]), canvas_length=4)
            # Other states from the anchor on must change nothing: they do not exist when it is drafted from.
            changed = features[:, : anchor + 1].clone()
            changed[:, anchor:] = 9.0
            alone_clean, alone_masks = drafter(one, changed)
            torch.testing.assert_close(masks[:, canvas], alone_masks[:, 0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(clean[:, anchor], alone_clean[:, anchor], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["causal_canvas", "block_causal", "causal"])
def test_a_window_hides_what_is_further_back(attention: CanvasAttention) -> None:
    """A row sees the clean positions that it sees without a window, but the last 5 up to its own end of them."""
    tokens, anchors = torch.zeros(1, 12, dtype=torch.long), torch.tensor([[7, 3, 11]])
    whole = Canvases(tokens, anchors, 4, attention)
    near = replace(whole, window=5)
    seen = whole.attention_mask()[0, 0, :, :12]
    from_the_end = seen.flip(1).cumsum(dim=1).flip(1)
    assert torch.equal(near.attention_mask()[0, 0, :, :12], seen & (from_the_end <= 5))
    assert torch.equal(near.attention_mask()[..., 12:], whole.attention_mask()[..., 12:])
    assert torch.equal(replace(whole, window=12).attention_mask(), whole.attention_mask())


def test_a_window_of_a_conditioned_drafter() -> None:
    """States of the last 5 tokens, the row's own or its anchor's place among them; each state sees 5, too."""
    tokens, anchors = torch.zeros(1, 12, dtype=torch.long), torch.tensor([[7]])
    mask = Canvases(tokens, anchors, 4, window=5).conditioned_attention_mask()[0, 0]
    assert mask[9, :12].nonzero()[:, 0].tolist() == [5, 6, 7, 8, 9]
    assert mask[12 + 9, :24].nonzero()[:, 0].tolist() == [5, 6, 7, 8, 12 + 9]
    assert mask[24, :24].nonzero()[:, 0].tolist() == [3, 4, 5, 6, 12 + 7]


def test_packed_blocks_equal_each_block_after_its_own_prefix() -> None:
    drafter = CanvasDrafter(tiny_target(), [0, 1, 3]).eval()
    torch.nn.init.normal_(drafter.mask_embedding)
    tokens = torch.randint(5, VOCABULARY, (1, 12))
    anchors = torch.tensor([[7, 3]])
    revealed = torch.tensor([[[True, False, False, True], [False, False, True, False]]])
    with torch.no_grad():
        clean, blocks = drafter(Canvases(tokens, anchors, 4, "block_causal", revealed))
        for canvas, anchor in enumerate([7, 3]):
            embedded = drafter.body.get_input_embeddings()(tokens[:, : anchor + 5])
            hidden = torch.zeros(anchor + 5, dtype=torch.bool)
            hidden[anchor + 1 :] = ~revealed[0, canvas]
            window = torch.where(hidden[None, :, None], drafter.mask_embedding, embedded)
            positions = torch.arange(anchor + 5)
            visible = positions < (positions[:, None] // 4 + 1) * 4
            alone = drafter.body(inputs_embeds=window, attention_mask=visible[None, None]).last_hidden_state
            torch.testing.assert_close(clean[0, : anchor + 1], alone[0, : anchor + 1], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(blocks[0, canvas], alone[0, anchor + 1 :], atol=1e-5, rtol=1e-5)


def test_blocks_begin_at_multiples_and_reveal_the_prompt() -> None:
    example = Example(torch.arange(22), 6, torch.zeros(16, 2))
    plan = CanvasPlan("block_causal", 4, 50)
    batch = collate([example], plan, torch.arange(30), torch.Generator().manual_seed(0))
    anchors = batch.canvases.anchors[0]
    assert set(anchors.tolist()) == {3, 7, 11, 15, 19}  # blocks 4-7 (half prompt) to 20-23 (half beyond the end)
    revealed = batch.canvases.revealed[0]
    assert revealed[anchors == 3][:, :2].all()
    assert not revealed[anchors == 19][:, 2:].any()
    shares = revealed[anchors == 7].float().mean(dim=1)
    assert shares.min() < 0.3 < 0.7 < shares.max()
    assert plan.even([example]).unique().tolist() == [7, 11, 15]


def test_narrowed_drafter_keeps_the_strongest_neurons() -> None:
    target = tiny_target()
    target.model.layers[0].mlp.down_proj.weight.data[:, ::2] *= 1e-4
    drafter = CanvasDrafter(target, [0], intermediate_size=24)
    kept = drafter.body.layers[0].mlp
    torch.testing.assert_close(kept.gate_proj.weight, target.model.layers[0].mlp.gate_proj.weight[1::2])
    torch.testing.assert_close(kept.down_proj.weight, target.model.layers[0].mlp.down_proj.weight[:, 1::2])
    assert drafter.body.config.intermediate_size == 24
    with pytest.raises(ValueError, match="`intermediate_size` must be between 1 and 48, got 49"):
        CanvasDrafter(target, [0], intermediate_size=49)


def test_drafter_refuses_a_hybrid_target() -> None:
    config = AutoConfig.for_model(
        "lfm2", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
        layer_types=["conv", "full_attention"], intermediate_size=48,
    )  # fmt: skip
    with pytest.raises(ValueError, match="`target` must .*Lfm2ForCausalLM"):
        CanvasDrafter(AutoModelForCausalLM.from_config(config), [0])


def test_extended_canvases_begin_with_known_tokens_that_are_not_trained() -> None:
    examples = [Example(torch.arange(5, 65), 4, None) for _ in range(8)]
    plan = CanvasPlan("causal_canvas", 6, 64, extended=0.5)
    batch = collate(examples, plan, torch.arange(99), torch.Generator().manual_seed(0))
    revealed = batch.canvases.revealed
    assert revealed is not None and revealed.shape == (8, 64, 5)
    known = revealed.sum(dim=-1)
    assert torch.equal(revealed, torch.arange(5) < known[..., None])  # the first ones
    assert known.unique().tolist() == [0, 1, 2, 3, 4]
    assert 0.3 < (known > 0).float().mean() < 0.5  # of the extended half a fifth has no known token
    # Masks see the whole canvas, known tokens those before them.
    own = batch.canvases._own_canvas()[0, -64 * 5 :].unflatten(0, (64, 5)).unflatten(2, (64, 5))
    for canvas in range(64):
        seen = own[canvas, :, canvas]
        count = int(known[0, canvas])
        assert seen[count:].all() and torch.equal(seen[:count], torch.ones(count, 5).tril().bool())
        assert int(own[canvas].sum()) == int(seen.sum())  # and no other canvas


def test_aligned_rows_are_those_of_each_example() -> None:
    generator = torch.Generator().manual_seed(3)
    examples = []
    for prompt, length in ((3, 9), (5, 12), (1, 4)):
        tokens = torch.randint(5, 60, (length,), generator=generator)
        examples.append(Example(tokens, prompt, torch.randn(length - prompt, 8, generator=generator)))
    index = draft_index(torch.arange(5, 40), 60)
    batch = collate(examples, CanvasPlan("causal_canvas", 4, 3), index, generator)
    for row, example in enumerate(examples):
        for position in range(batch.labels.shape[1]):
            answers = example.prompt_length <= position + 1 < len(example.tokens)
            assert batch.answer[row, position] == answers
            assert batch.labels[row, position] == (index[example.tokens[position + 1]] if answers else IGNORE)
            state = example.hidden[position + 1 - example.prompt_length] if answers else torch.zeros(8)
            assert torch.equal(batch.wanted[row, position], state)


@pytest.mark.parametrize(("coverage", "size"), [(0.0, 1), (0.4, 1), (0.5, 2), (0.7, 2), (0.71, 3), (1.0, 4)])
def test_a_draft_vocabulary_by_coverage(coverage: float, size: int) -> None:
    answers = [torch.tensor([9, 9, 9, 9, 7, 7, 7]), torch.tensor([5, 6, 6])]
    assert covering_size(answers, coverage, always=[9]) == size
    kept = frequent_tokens(answers, size, always=[9])
    assert covered_share(answers, kept) >= coverage
    assert covering_size(answers, coverage, always=[3]) == size + 1
