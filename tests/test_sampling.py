"""Sampling must follow the target's distribution exactly: proven by chi-square, and the proof must reject mutants."""

import itertools

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessorList

import hf_failfast
from hf_failfast import decoding
from hf_failfast.verification import Verification, choose_sampled, verify

VOCABULARY, LENGTH, SAMPLES = 8, 3, 1500

STACKS = {
    "temperature": {"temperature": 1.3, "top_k": 0},
    "top-k and top-p": {"temperature": 0.8, "top_k": 5, "top_p": 0.9},
    "min-p and a penalty on the prefix": {"min_p": 0.05, "top_k": 0, "repetition_penalty": 1.5},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(target, drafter with the target's own weights, prompt): some drafts are likely, some are not."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY + 1,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.7,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    target = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("drafter")
    target.save_pretrained(folder)
    drafter = hf_failfast.load_drafter(folder, attention="causal_canvas", shift=1, mask_token_id=VOCABULARY)
    return target, drafter, torch.tensor([[1, 5, 2]])


def sample(pair, **arguments):
    """One drafted continuation of the prompt."""
    target, drafter, prompt = pair
    return target.generate(prompt, assistant_model=drafter, custom_generate="hf_failfast", do_sample=True, **arguments)


def draw(pair, stack, samples=SAMPLES):
    """Counts (V + 1, V + 1, V + 1) of the sampled continuations."""
    torch.manual_seed(0)
    counts = torch.zeros([VOCABULARY + 1] * LENGTH)
    for _ in range(samples):
        ids = sample(pair, max_new_tokens=LENGTH, chunk_length=2, **stack)
        counts[tuple(ids[0, -LENGTH:].tolist())] += 1
    return counts


def enumerate_distribution(pair, stack):
    """The exact probability of every continuation under the target and the processors of plain `generate`."""
    target, _, prompt = pair
    config = GenerationConfig(do_sample=True, **stack)
    config, _ = target._prepare_generation_config(config)
    processors = target._get_logits_processor(config, input_ids_seq_length=prompt.shape[1], device="cpu")
    continuations = torch.tensor(list(itertools.product(range(VOCABULARY + 1), repeat=LENGTH)))
    sequences = torch.cat([prompt.expand(len(continuations), -1), continuations], dim=1)
    with torch.no_grad():
        logits = target(sequences).logits
    probability = torch.ones(len(continuations), dtype=torch.float64)
    for step in range(LENGTH):
        length = prompt.shape[1] + step
        scores = LogitsProcessorList(processors)(sequences[:, :length], logits[:, length - 1].clone())
        probability *= scores.double().softmax(dim=-1).gather(1, continuations[:, step : step + 1])[:, 0]
    return probability.reshape([VOCABULARY + 1] * LENGTH)


def p_value(counts, probability):
    """Chi-square goodness of fit; outcomes expected fewer than 5 times are pooled, impossible ones reject at once."""
    counts, probability = counts.flatten().double(), probability.flatten()
    if counts[probability < 1e-12].sum() > 0:
        return 0.0
    expected = probability * counts.sum()
    is_common = expected >= 5
    observed = torch.cat([counts[is_common], counts[~is_common].sum()[None]])
    expected = torch.cat([expected[is_common], expected[~is_common].sum()[None]]).clamp(min=1e-9)
    statistic = ((observed - expected) ** 2 / expected).sum()
    degrees = torch.tensor((len(observed) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, statistic / 2))


@pytest.mark.parametrize("name", STACKS)
def test_samples_follow_the_targets_distribution(pair, name):
    counts = draw(pair, STACKS[name])
    assert p_value(counts, enumerate_distribution(pair, STACKS[name])) > 1e-3


def accepts_the_draft_too_often(draft_ids, token_ids):
    """An ensemble: a third of the rejected first draft tokens are kept all the same."""
    if draft_ids.shape[1] and torch.rand(()) < 0.33:
        token_ids = torch.cat([draft_ids[:, :1], token_ids[:, 1:]], dim=1)
    return verify(draft_ids, token_ids)


def never_repeats_the_rejected_token(draft_ids, token_ids):
    """Emits the token of the next row after a rejection, as if the draft had been accepted."""
    verified = verify(draft_ids, token_ids)
    if verified.num_accepted < draft_ids.shape[1]:
        token_ids = token_ids.roll(-1, dims=1)
    return Verification(token_ids, verified.num_accepted)


@pytest.mark.parametrize("mutant", [accepts_the_draft_too_often, never_repeats_the_rejected_token])
def test_the_proof_rejects_mutants(pair, monkeypatch, mutant):
    monkeypatch.setattr(decoding, "verify", mutant)
    counts = draw(pair, STACKS["temperature"])
    assert p_value(counts, enumerate_distribution(pair, STACKS["temperature"])) < 1e-6


def test_the_proof_rejects_a_second_draw(pair, monkeypatch):
    """Drawing again where the first sample does not confirm the draft favours drafted tokens."""
    last_scores = []
    original = decoding.TokenChoice.scores

    def remember(self, prefix_ids, logits):
        last_scores[:] = [original(self, prefix_ids, logits)]
        return last_scores[0]

    def best_of_two(draft_ids, token_ids):
        draws = (verify(draft_ids, token_ids), verify(draft_ids, choose_sampled(last_scores[0])))
        return max(draws, key=lambda verified: int(verified.num_accepted))

    monkeypatch.setattr(decoding.TokenChoice, "scores", remember)
    monkeypatch.setattr(decoding, "verify", best_of_two)
    counts = draw(pair, STACKS["temperature"])
    assert p_value(counts, enumerate_distribution(pair, STACKS["temperature"])) < 1e-6


def test_drafts_are_both_accepted_and_rejected(pair):
    """Otherwise the distribution tests would exercise only half of the rule."""
    torch.manual_seed(0)
    output = sample(pair, max_new_tokens=200, top_k=0, return_dict_in_generate=True)
    assert 0.02 < output.speculation.acceptance_rate < 0.98


def test_a_seed_reproduces_the_samples(pair):
    first, second = (draw(pair, STACKS["temperature"], samples=20) for _ in range(2))
    assert torch.equal(first, second)


def test_choose_sampled_follows_its_scores():
    torch.manual_seed(0)
    scores = torch.tensor([[[0.0, 1.0, -torch.inf], [2.0, 0.0, 0.0]]])
    samples = torch.cat([choose_sampled(scores) for _ in range(2000)])
    for row in range(2):
        counts = torch.bincount(samples[:, row], minlength=3)
        assert p_value(counts, scores[0, row].double().softmax(dim=-1)) > 1e-3


def test_scores_are_those_of_plain_sampling(pair):
    """The recorded scores are the processed ones, the logits the raw ones."""
    torch.manual_seed(0)
    output = sample(
        pair,
        max_new_tokens=12,
        temperature=0.5,
        top_k=3,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    assert len(output.scores) == len(output.logits) == 12
    for scores, logits in zip(output.scores, output.logits, strict=True):
        kept = scores > -torch.inf
        assert kept.sum() == 3
        torch.testing.assert_close(scores[kept], (logits / 0.5)[kept])
