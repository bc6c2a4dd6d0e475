"""The figure of a drafter: simulated decoding is real decoding, answers do not loop, prompts were never trained on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import failfast
from sessions import draft_of, session_of
from training_support import (
    PROVENANCE,
    greedy_answers,
    random_examples,
    talkative_target,
    text_and_image_target,
    tiny_target,
    tiny_tokenizer,
)

from hf_failfast import load_drafter
from hf_failfast.policies.confidence import FixedLength
from hf_failfast.training.batches import aligned
from hf_failfast.training.config import DataConfig, TrainingConfig
from hf_failfast.training.data.answers import Writer
from hf_failfast.training.data.loops import LONGEST_PERIOD, RUN, loop_ends, without_loops
from hf_failfast.training.data.shards import Example
from hf_failfast.training.data.synthesis import load_data, load_examples, read_manifest, synthesise
from hf_failfast.training.data.unseen import ANSWER_TOKENS, BEGINNINGS, PROMPTS, unseen_examples
from hf_failfast.training.decoding import answers_of, decoded, decoding_figures
from hf_failfast.training.objective import held_out_drafts
from hf_failfast.training.trainer import Trainer

K, TOKENS = 4, 20
CONFIG = TrainingConfig(
    steps=30, layers=(0, 3), canvas_length=K, batch_size=6, anchors=12, learning_rate=2e-2, warmup_steps=5,
    draft_vocabulary=0, cross_entropy_weight=1.0, evaluation_steps=30,
)  # fmt: skip
KINDS = {
    "standalone": CONFIG,
    "conditioned": replace(CONFIG, conditioned=True),
    "dflash": replace(CONFIG, form="dflash"),
}


def overfitted(folder: Path, config: TrainingConfig) -> Trainer:
    examples = greedy_answers(6, TOKENS)
    trainer = Trainer(tiny_target(), (examples, examples[:2]), config, folder, PROVENANCE, examples)
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_simulated_rounds_are_those_of_real_decoding(kind: str, tmp_path: Path) -> None:
    trainer = overfitted(tmp_path, KINDS[kind])
    target, drafter = tiny_target(), load_drafter(tmp_path, dtype=torch.float32)
    matches, starts = exported_matches(trainer)
    simulated = answers_of(matches, starts, trainer.unseen, drafts_at_once=kind == "standalone")
    for example, answer in zip(trainer.unseen, simulated, strict=True):
        found = failfast(
            target,
            example.tokens[None, : example.prompt_length],
            drafter,
            max_new_tokens=2 * TOKENS,  # at the end of a call drafts are shorter
            length_policy=FixedLength(K),
            return_dict_in_generate=True,
        )
        rounds = [record.emitted for record in found.speculation.records][: len(answer.accepted)]
        assert [count + 1 for count in answer.accepted[:-1]] == rounds[:-1]
        assert sum(rounds[:-1]) < answer.tokens <= sum(rounds)
    lengths = [count for answer in simulated for count in answer.accepted]
    assert max(lengths) >= 2 and len(set(lengths)) >= 3  # the rounds differ


def exported_matches(trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    """[answers, tokens, K] of the exported weights, without the trainer's autocast; and where the drafts start."""
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter.copy_(parameter.bfloat16())
    canvases, starts = trainer.plan.every(trainer.unseen)
    batch = aligned(trainer.unseen, canvases, trainer.draft_index)
    batch = batch if trainer.teacher is None else trainer.teacher(batch)
    return held_out_drafts(trainer.drafter, batch).matches.unflatten(0, starts.shape), starts


SLIDING = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}
SLIDING_TARGETS = {
    "mistral": lambda: tiny_target("mistral", sliding_window=5),
    "gemma3_text": lambda: tiny_target("gemma3_text", **SLIDING),
    "gemma3": lambda: text_and_image_target(**SLIDING),
}


@pytest.mark.parametrize("name", SLIDING_TARGETS)
def test_simulated_drafts_see_as_far_back_as_the_layers(name: str, tmp_path: Path) -> None:
    """Targets with sliding windows: in training a layer sees no more of the text than it does in drafting."""
    target = SLIDING_TARGETS[name]()
    examples = [replace(example, hidden=None) for example in random_examples(6)]  # their tokens are hard to learn
    trainer = Trainer(target, (examples, examples[:2]), CONFIG, tmp_path, PROVENANCE, examples)
    trainer.train()
    drafter = load_drafter(tmp_path, dtype=torch.float32)
    matches, _ = exported_matches(trainer)
    right = wrong = 0
    for row, example in zip(matches, trainer.unseen, strict=True):
        for written in range(example.answer_length - K):
            known = example.prompt_length + written
            draft = draft_of(session_of(drafter, target, 64), example.tokens[None, :known], FixedLength(K), K)
            drafted = draft.token_ids[0] == example.tokens[known : known + K]
            assert row[written].tolist() == drafted.tolist()
            right, wrong = right + int(drafted.sum()), wrong + int((~drafted).sum())
    assert right > 20 and wrong > 20


def test_simulated_blocks_are_those_of_a_session(tmp_path: Path) -> None:
    trainer = overfitted(tmp_path, replace(CONFIG, attention="block_causal"))
    target, drafter = tiny_target(), load_drafter(tmp_path, dtype=torch.float32)
    matches, starts = exported_matches(trainer)
    compared = 0
    for row, start, example in zip(matches, starts.tolist(), trainer.unseen, strict=True):
        for written in range(example.answer_length):
            known = example.prompt_length + written
            left = K - known % K
            draft = draft_of(session_of(drafter, target, 64), example.tokens[None, :known], FixedLength(left), left)
            wanted = example.tokens[known : known + left]
            right = draft.token_ids[0, : len(wanted)] == wanted
            assert row[written, start[written] :][: len(wanted)].tolist() == right.tolist()
            compared += int(right.sum())
    assert compared > 20


def test_rounds_by_hand() -> None:
    rows = [[1, 1], [0, 1], [1, 0], [1, 1], [0, 0], [1, 0]]
    matches = torch.tensor(rows, dtype=torch.bool)
    assert decoded(matches, 6).accepted == [2, 2]  # after 0 and 3 tokens
    assert decoded(matches, 6, drafts_at_once=False).accepted == [0, 0, 1, 0, 1]
    assert decoded(matches[:5], 5).accepted == [2, 2]
    figures = decoding_figures([decoded(matches, 6), decoded(matches, 6, drafts_at_once=False)], 2)
    assert figures["mean_acceptance_length"] == pytest.approx(12 / 7, abs=1e-4)
    assert figures["acceptance_by_position"] == [pytest.approx(4 / 7, abs=1e-4), pytest.approx(2 / 7, abs=1e-4)]
    assert (figures["answers"], figures["tokens"], figures["rounds"]) == (2, 12, 7)
    assert figures["low"] == pytest.approx(6 / 5) and figures["high"] == pytest.approx(3)


# Loops


def brute_force_end(tokens: list[int], prompt: int) -> int:
    for end in range(prompt + RUN, len(tokens) + 1):
        for period in range(1, LONGEST_PERIOD + 1):
            run = range(end - RUN, end)
            if run[0] - period >= prompt and all(tokens[i] == tokens[i - period] for i in run):
                return end
    return len(tokens)


def test_answers_end_where_they_have_begun_to_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, prompts = [], []
    for period in (1, 2, 7, 16, 39, 40, 41, 60):
        pattern = torch.randint(0, 50, (period,), generator=generator)
        start = torch.randint(50, 90, (5 + period % 3,), generator=generator)
        rows.append(torch.cat([start, pattern, pattern, pattern, pattern[:9]])[:150])
        prompts.append(3)
    rows.append(torch.arange(40))  # never
    rows.append(torch.zeros(30, dtype=torch.long))  # a prompt's own loop is not the answer's
    prompts += [3, 29]
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    ends = loop_ends(padded, torch.tensor(prompts), lengths).tolist()
    assert ends == [brute_force_end(row.tolist(), prompt) for row, prompt in zip(rows, prompts, strict=True)]
    assert ends[4] < len(rows[4]) and ends[6:] == [len(row) for row in rows[6:]]


def test_states_are_cut_with_their_answer() -> None:
    looping = Example(torch.tensor([9, 8, *[1, 2] * 30]), 2, torch.arange(60.0)[:, None])
    (cut,) = without_loops([looping])
    assert cut.answer_length == 2 + RUN == len(cut.hidden)
    assert without_loops([cut])[0].answer_length == cut.answer_length


def test_loops_are_cut_from_data_and_their_share_is_told(tmp_path: Path) -> None:
    config = DataConfig(questions=40, answer_tokens=64, shard_questions=64, question_tokens=16, store_states=False)
    synthesise(talkative_target(), tiny_tokenizer(), config, tmp_path, "tiny")
    data = load_data(tmp_path)
    written = sum(shard["answer_tokens"] for shard in read_manifest(tmp_path)["shards"])
    kept = sum(example.answer_length for side in data[:2] for example in side)
    assert data.loops == pytest.approx(1 - kept / written)
    assert load_examples(tmp_path)[0][0].tokens.tolist() == data.training[0].tokens.tolist()


# Prompts that training never sees


def test_unseen_prompts_are_answered_once_and_never_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, tokenizer = talkative_target(), tiny_tokenizer()
    source = tmp_path / "prompts.txt"
    source.write_text(PROMPTS[0] + "\nAnother prompt?\n")
    config = DataConfig(prompts=str(source), answer_tokens=8)
    manifest = synthesise(target, tokenizer, config, tmp_path / "data", "tiny")
    assert manifest["left_out"]["repeated"] == 1 and manifest["shards"][0]["questions"] == 1

    first = unseen_examples(target, tokenizer, config, tmp_path / "data", "tiny")
    assert len(first) == len(PROMPTS) and max(example.answer_length for example in first) <= ANSWER_TOKENS
    shown = tokenizer.decode(first[-1].tokens[: first[-1].prompt_length])
    assert shown.count("<user>") == 3  # a conversation of two turns, with the first answer between them
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "greedy_answers", None)
        again = unseen_examples(target, tokenizer, config, tmp_path / "data", "tiny")
    assert [e.tokens.tolist() for e in again] == [e.tokens.tolist() for e in first]

    own = tmp_path / "unseen.jsonl"
    own.write_text(json.dumps({"prompt": "Mine?"}) + "\n")
    (mine,) = unseen_examples(target, tokenizer, replace(config, unseen=str(own)), tmp_path / "data", "tiny")
    assert tokenizer.decode(mine.tokens[: mine.prompt_length]) == "<user>Mine?<end><assistant>"
    own.write_text("\n")
    with pytest.raises(ValueError, match="`unseen` must hold a usable prompt, but .*unseen.jsonl have none"):
        unseen_examples(target, tokenizer, replace(config, unseen=str(own)), tmp_path / "data", "tiny")


def test_a_target_without_a_chat_template_is_measured_on_beginnings(tmp_path: Path) -> None:
    """Questions are for targets that answer; a base model continues texts, and training makes none of these."""
    target, tokenizer = talkative_target(), tiny_tokenizer(template=None)
    examples = unseen_examples(target, tokenizer, DataConfig(), tmp_path, "tiny")
    found = [tokenizer.decode(example.tokens[: example.prompt_length]) for example in examples]
    assert found == [f"<s>{text}" for text in BEGINNINGS]
    assert len(set(BEGINNINGS)) == len(PROMPTS) == 64
