"""A pair small enough to enumerate, and the statistics that compare samples with a distribution."""

import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import tiny_model
from scipy import stats
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

import hf_failfast
from hf_failfast.decoding.suffixes import Match, SuffixAutomaton
from hf_failfast.drafters import DiffusionDrafter

SIZE, LENGTH = 9, 3  # the small pair's vocabulary, mask token included, and the number of tokens enumerated
ROWS = 100  # samples per call; each ends and is accepted on its own
PROMPT = torch.tensor([[1, 5, 2]])

WARPING: dict[str, Any] = {"temperature": 1.3, "top_k": 0}
VERIFIERS: dict[str, dict[str, Any]] = {
    "sample_and_match": {"verifier": "sample_and_match"},
    "rejection": {"verifier": "rejection"},
    "rejection of hotter drafts": {"verifier": "rejection", "draft_temperature": 2.5},  # q far from p
}
HOTTER = VERIFIERS["rejection of hotter drafts"]


class Pair(NamedTuple):
    """A target, and drafters made of its own weights: some of their drafts are likely, some not."""

    target: PreTrainedModel
    folder: str

    def drafter(self, **options: Any) -> DiffusionDrafter:
        spec = {"attention": "causal_canvas", "shift": 1, "mask_token_id": self.target.config.vocab_size - 1}
        return hf_failfast.load_drafter(self.folder, **(spec | options))


def small_pair(folder: str, vocab_size: int = SIZE) -> Pair:
    sizes = {"vocab_size": vocab_size, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    target = tiny_model("llama", 3, **sizes, num_attention_heads=2, initializer_range=0.7)
    target.save_pretrained(folder)
    return Pair(target, folder)


def suggest_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every text suggest some of the pair's likely tokens, which depend on all of it."""
    likely = (3, 8, 4, 1)

    def following(self: Any, tail: list[int], count: int) -> Match:
        seed = 3 * sum(self.text) + 5 * sum(tail)
        return Match(4, [likely[(seed + index) % 4] for index in range(count)])

    monkeypatch.setattr(SuffixAutomaton, "following", following)


def sample(pair: Pair, drafter: DiffusionDrafter, prompt: torch.Tensor = PROMPT, **arguments: Any) -> Any:
    """Drafted continuations of the prompt."""
    return pair.target.generate(
        prompt, assistant_model=drafter, custom_generate="hf_failfast", do_sample=True, **arguments
    )


def draw(pair: Pair, drafter: DiffusionDrafter, samples: int, **arguments: Any) -> torch.Tensor:
    """Counts (SIZE, SIZE, SIZE) of sampled continuations of LENGTH tokens."""
    torch.manual_seed(0)
    options = {"max_new_tokens": LENGTH, "chunk_length": 2, "num_return_sequences": ROWS} | arguments
    counts = torch.zeros([SIZE] * LENGTH)
    for _ in range(samples // ROWS):
        for row in sample(pair, drafter, **options):
            counts[tuple(row[-LENGTH:].tolist())] += 1
    return counts


def processors_of(target: Any, prompt: torch.Tensor, own: Any = None, **arguments: Any) -> LogitsProcessorList:
    """The processors that plain `generate` makes of sampling arguments; `own`: arguments that are processors."""
    config, _ = target._prepare_generation_config(GenerationConfig(do_sample=True, **arguments))
    target._prepare_special_tokens(config, True, device="cpu")
    return target._get_logits_processor(config, input_ids_seq_length=prompt.shape[1], device="cpu", **(own or {}))


def enumerate_distribution(pair: Pair, **arguments: Any) -> torch.Tensor:
    """The exact probability of every continuation under the target and the processors of plain `generate`."""
    processors = processors_of(pair.target, PROMPT, **arguments)
    continuations = torch.tensor(list(itertools.product(range(SIZE), repeat=LENGTH)))
    sequences = torch.cat([PROMPT.expand(len(continuations), -1), continuations], dim=1)
    with torch.no_grad():
        logits = pair.target(sequences).logits
    probability = torch.ones(len(continuations), dtype=torch.float64)
    for step in range(LENGTH):
        length = PROMPT.shape[1] + step
        scores = processors(sequences[:, :length], logits[:, length - 1].clone())
        probability *= scores.double().softmax(dim=-1).gather(1, continuations[:, step : step + 1])[:, 0]
    return probability.reshape([SIZE] * LENGTH)


def chi_square(counts: torch.Tensor, probability: torch.Tensor) -> float:
    """p value of the fit; outcomes expected fewer than 5 times are pooled, impossible ones reject at once."""
    counts, probability = counts.flatten().double(), probability.flatten().double()
    if counts[probability < 1e-12].sum() > 0:
        return 0.0
    expected = probability * counts.sum()
    is_common = expected >= 5
    observed = torch.cat([counts[is_common], counts[~is_common].sum()[None]])
    expected = torch.cat([expected[is_common], expected[~is_common].sum()[None]])
    if expected[-1] < 1e-9:
        observed, expected = observed[:-1], expected[:-1]
    return float(stats.chisquare(observed.numpy(), (expected / expected.sum() * observed.sum()).numpy()).pvalue)


def kolmogorov_smirnov(target: Any, ids: torch.Tensor, start: int, **arguments: Any) -> float:
    """p value of the randomised probability integral transform of the tokens (1, n) from `start` on.

    The tokens are ordered from likely to unlikely, and a token's value is drawn uniformly from its own step of the
    distribution function. These values are uniform if the text was sampled from the distribution.
    """
    processors = processors_of(target, ids[:, :start], **arguments)
    with torch.no_grad():
        logits = target(ids).logits
    generator = np.random.default_rng(0)
    shares = []
    for position in range(start, ids.shape[1]):
        scores = processors(ids[:, :position], logits[:, position - 1].clone())
        probability = scores[0].double().softmax(dim=-1)
        own = probability[ids[0, position]]
        shares.append(float(probability[probability > own].sum() + generator.random() * own))
    return float(stats.kstest(shares, "uniform").pvalue)
