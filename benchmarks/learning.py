"""What learning does to a drafter: tokens per round with and without, on prompts of one kind and in long answers.

    python benchmarks/learning.py

The target answers every prompt once, greedily, up to where the answer falls into a loop. Its text then stands for it:
rounds of decoding are played on it with the drafter's own sessions, and give the tokens per round of real decoding
without the time of its forwards. Of each kind of prompt a new learner takes steps between the requests; then it
drafts for prompts of another kind, which shows what it forgot. In long answers, which are sampled, steps are taken
between rounds. What a step costs is measured beside real rounds.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from store import RESULTS, store
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

import hf_failfast
from hf_failfast import Learning
from hf_failfast.drafters import DiffusionDrafter, DraftRequest
from hf_failfast.engine.ragged import RaggedIds
from hf_failfast.engine.runner import TopLogits
from hf_failfast.measure.bootstrap import ratio_interval
from hf_failfast.measure.provenance import provenance
from hf_failfast.pairs import SMOLLM2, encode_prompt, load_smollm2
from hf_failfast.policies.confidence import ConfidenceThreshold
from hf_failfast.training.data.loops import loop_ends

KINDS = ("code", "spanish", "document")  # of learning_prompts
OTHER = "other"
PROMPTS = Path(__file__).parent / "learning_prompts"
# Long texts are sampled, since greedy ones of this target fall into loops.
LONG_PROMPTS = ("Tell a long story about a lighthouse keeper.", "Write a long travel guide to an island.")
LONG_TOKENS, LONG_TEMPERATURE = 1500, 0.8
QUARTERS = 4
TOP = 16
BATCH = 8
Loader = Callable[[], DiffusionDrafter]


@dataclass(frozen=True)
class Answer:
    """A greedy answer: ids (n,) with the prompt, and the target's most likely tokens (m, TOP) in its places."""

    ids: torch.Tensor
    prompt_length: int
    top: TopLogits


@torch.no_grad()
def answered(target: Any, tokenizer: Any, prompts: Sequence[str], **options: Any) -> list[Answer]:
    """An answer to each prompt, up to its end of sequence or its first loop, in one batch."""
    own = [encode_prompt(tokenizer, prompt)[0] for prompt in prompts]
    ids = pad_sequence(own, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(each) for each in own], batch_first=True, padding_side="left")
    output = target.generate(
        ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **{"do_sample": False} | options
    )
    top = torch.stack(output.logits, dim=1).topk(TOP)
    answers = []
    for row, prompt in enumerate(own):
        new = output.sequences[row, ids.shape[1] :]
        is_end = new == target.generation_config.eos_token_id
        length = int(is_end.long().argmax()) + 1 if bool(is_end.any()) else len(new)
        whole = torch.cat([prompt, new[:length]])
        end = int(loop_ends(whole[None], torch.tensor([len(prompt)]), torch.tensor([len(whole)])))
        kept = TopLogits(*(part[row, : end - len(prompt)] for part in (top.values, top.indices)))
        answers.append(Answer(whole[:end], len(prompt), kept))
    return answers


def no_step() -> None:
    pass


@torch.no_grad()
def rounds(
    target: Any, drafter: DiffusionDrafter, given: Answer, after_round: Callable[[], object] = no_step
) -> list[int]:
    """Tokens of every round of decoding this answer, as the loop would make them."""
    policy = ConfidenceThreshold(drafter.config)
    end, length, counts = len(given.ids), given.prompt_length, []
    session = drafter.start(DraftRequest(target, end))
    policy.start(1, length)
    while length < end:
        draft = session.draft(RaggedIds.full(given.ids[None, :length]), policy, [end - length - 1])
        own = given.ids[length : length + len(draft)]
        accepted = int((draft.token_ids[0, : len(own)] == own).long().cumprod(dim=0).sum())
        start = length - given.prompt_length
        length += accepted + 1
        session.accept([accepted])
        policy.observe([accepted])
        if session.top_logits:
            new = TopLogits(*(part[None, start : start + accepted + 1] for part in given.top))
            session.learn(RaggedIds.full(given.ids[None, :length]), [accepted + 1], new)
            after_round()
        counts.append(accepted + 1)
    return counts


def interval(name: str, numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """A ratio under its name, with its 95 % bootstrap interval over answers."""
    ratio, low, high = ratio_interval(numerators, denominators)
    return {name: round(ratio, 3), "low": round(low, 3), "high": round(high, 3)}


def figure(played: Sequence[Sequence[int]]) -> dict[str, float]:
    """Tokens per round, with its interval."""
    return interval("tokens_per_round", *zip(*((sum(counts), len(counts)) for counts in played), strict=True))


def gain(on: Sequence[Sequence[int]], off: Sequence[Sequence[int]]) -> dict[str, float]:
    """How many times the tokens per round of `off`, answer by answer the same text, with its interval."""
    return interval("ratio", [len(counts) for counts in off], [len(counts) for counts in on])


def of_kind(
    target: Any, learner: Learning, answers: list[Answer], fixed: DiffusionDrafter, steps: int
) -> dict[str, Any]:
    """Requests of one kind, one after the other, with steps between them."""
    off, on = [rounds(target, fixed, each) for each in answers], []
    for given in answers:
        on.append(rounds(target, learner, given))
        learner.learn(max_steps=steps)
    half = len(on) // 2
    return {
        "prompts": len(on),
        "without": figure(off),
        "with": figure(on),
        "gain": gain(on, off),
        "gain_first_half": gain(on[:half], off[:half]),
        "gain_second_half": gain(on[half:], off[half:]),
    }


def long_answers(target: Any, load: Loader, answers: list[Answer], rounds_per_step: int) -> list[dict[str, Any]]:
    """By quarter of the answers: tokens per round, with a step after every `rounds_per_step` rounds and without."""
    on, off = [], []
    for given in answers:
        learner = Learning(load(), learning_share="between requests")
        played: list[int] = []

        def step(learner: Learning = learner, played: list[int] = played) -> None:
            played.append(1)
            if len(played) % rounds_per_step == 0:
                learner.learn(max_steps=1)

        on.append(quarters(rounds(target, learner, given, step)))
        off.append(quarters(rounds(target, load(), given)))
    return [
        {"without": figure(without), "with": figure(learned), "gain": gain(learned, without)}
        for learned, without in zip(zip(*on, strict=True), zip(*off, strict=True), strict=True)
    ]


def quarters(counts: list[int]) -> list[list[int]]:
    """The rounds of each quarter of a text; a round counts where it begins."""
    parts: list[list[int]] = [[] for _ in range(QUARTERS)]
    total, position = sum(counts), 0
    for count in counts:
        parts[QUARTERS * position // total].append(count)
        position += count
    return parts


def main(
    output: Path = RESULTS / "learning.json",
    max_new_tokens: int = 96,
    limit: Annotated[int, typer.Option(help="Prompts of each kind that is learned from.")] = 40,
    kinds: Annotated[list[str], typer.Option(help="Kinds to learn from.")] = list(KINDS),  # noqa: B006
    learning_rate: float = 3e-4,
    steps: Annotated[int, typer.Option(help="Steps after each answer.")] = 2,
    rounds_per_step: Annotated[int, typer.Option(help="Rounds between two steps in long answers.")] = 32,
    long: Annotated[bool, typer.Option(help="Long answers, too.")] = True,
) -> None:
    logging.disable_progress_bar()
    target, tokenizer = load_smollm2(torch.float32)
    packed = hf_failfast.prepack(target)

    def load() -> DiffusionDrafter:
        return hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER, dtype=torch.float32)

    def answers(kind: str, count: int) -> tuple[list[str], list[Answer]]:
        prompts = (PROMPTS / f"{kind}.txt").read_text(encoding="utf-8").splitlines()[:count]
        batches = [prompts[start : start + BATCH] for start in range(0, count, BATCH)]
        found = [answered(target, tokenizer, batch, max_new_tokens=max_new_tokens) for batch in batches]
        return prompts, [each for batch in found for each in batch]

    fixed = load()
    _, others = answers(OTHER, 12)
    others_off = [rounds(target, fixed, each) for each in others]
    learned: dict[str, Any] = {}
    for kind in kinds:
        prompts, given = answers(kind, limit)
        learner = Learning(load(), learning_share="between requests", learning_rate=learning_rate)
        learned[kind] = of_kind(target, learner, given, fixed, steps)
        others_on = [rounds(target, learner.drafter, each) for each in others]
        learned[kind]["other_kind"] = {
            "prompts": len(others),
            "without": figure(others_off),
            "after": figure(others_on),
            "gain": gain(others_on, others_off),
        }
        stats = learner.statistics
        learned[kind]["learning"] = {"learned_steps": stats.learned_steps, "resets": stats.resets}
        learned[kind]["cost"] = cost(target, load(), learner, given, prompts, tokenizer, max_new_tokens)
        print(kind, learned[kind], flush=True)
    document: dict[str, Any] = {
        "target": SMOLLM2,
        "drafter": hf_failfast.BUNDLED_DRAFTER.name,
        "max_new_tokens": max_new_tokens,
        "learning_rate": learning_rate,
        "steps_per_answer": steps,
        "kinds": learned,
    }
    if long:
        torch.manual_seed(0)
        options = {"do_sample": True, "temperature": LONG_TEMPERATURE, "top_k": 0, "min_new_tokens": LONG_TOKENS}
        texts = [
            each
            for prompt in LONG_PROMPTS
            for each in answered(target, tokenizer, [prompt], max_new_tokens=LONG_TOKENS, **options)
        ]
        document["long_answers"] = {
            "tokens": [len(each.ids) - each.prompt_length for each in texts],
            "temperature": LONG_TEMPERATURE,
            "rounds_per_step": rounds_per_step,
            "quarters": long_answers(target, load, texts, rounds_per_step),
        }
    document |= provenance()
    packed.undo()
    store(document, output)


def cost(
    target: Any,
    fixed: DiffusionDrafter,
    learner: Learning,
    answers: Sequence[Answer],
    prompts: Sequence[str],
    tokenizer: Any,
    max_new_tokens: int,
    repeats: int = 3,
) -> dict[str, float]:
    """Milliseconds of a round of real decoding and of a step, taken in turn, medians; and the share of the time that
    a step after every n rounds takes."""
    round_ms, step_ms = [], []
    for prompt, given in list(zip(prompts, answers, strict=True))[:repeats]:
        stats = target.generate(
            encode_prompt(tokenizer, prompt),
            custom_generate="hf_failfast",
            assistant_model=fixed,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=True,
        )["speculation"]
        seconds = stats.draft_seconds + stats.verify_seconds + stats.other_seconds
        round_ms.append(1000 * seconds / stats.rounds)
        rounds(target, learner, given)
        before = learner.statistics.learning_seconds
        taken = learner.learn(max_steps=2)
        step_ms.append(1000 * (learner.statistics.learning_seconds - before) / taken)
    step, one = statistics.median(step_ms), statistics.median(round_ms)
    return {
        "round_ms": round(one, 1),
        "step_ms": round(step, 1),
        "rounds_per_step": round(step / one, 2),
        "rounds_between_steps_at_a_tenth": round(10 * step / one, 1),
    }


if __name__ == "__main__":
    typer.run(main)
