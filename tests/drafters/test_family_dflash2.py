"""DFlash 2 equals the original, and its samples are the target's: q is the selector's, over the candidates."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_support import DATA, check_parity, copy_checkpoint, read_json, save_dflash2
from safetensors.torch import load_file, save_file
from sampling_support import WARPING, Pair, chi_square, draw, enumerate_distribution, small_pair
from sessions import draft_of, session_of
from transformers import AutoModelForCausalLM, PreTrainedModel

import hf_failfast
from hf_failfast import load_drafter
from hf_failfast.decoding.verification import Scores, choose_by_rejection
from hf_failfast.drafters import Draft
from hf_failfast.drafters.bodies.dflash import CandidateSelector, Step
from hf_failfast.drafters.checkpoints.inspection import inspect_checkpoint
from hf_failfast.drafters.conditioned import dflash
from hf_failfast.drafters.conditioned.dflash import DFlashDrafter
from hf_failfast.drafters.denoising import DraftTokens, choose_in_turn
from hf_failfast.policies.confidence import FixedLength

FOLDER = DATA / "dflash" / "case_7"
RUNS = read_json("dflash/case_7/drafts.json")
MASK = 78


def load(**options: Any) -> DFlashDrafter:
    drafter = load_drafter(FOLDER / "checkpoint", **({"dtype": torch.float32} | options))
    assert isinstance(drafter, DFlashDrafter)
    return drafter


@pytest.fixture(scope="module")
def target() -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "target", dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def rounds(run: dict[str, Any], drafter: DFlashDrafter, target: PreTrainedModel) -> list[tuple[dict[str, Any], Draft]]:
    """The original's rounds, each with our draft in its place; without blocks that the original shortens."""
    session = session_of(drafter, target, 128)
    text, seen, length = run["prompt"] + run["new_tokens"], 0, len(run["prompt"])
    found = []
    for one in run["rounds"]:
        length += 1
        states = target(torch.tensor([text[: length - 1]]), output_hidden_states=True).hidden_states
        features = torch.cat([states[layer] for layer in drafter.target_layers], dim=-1)
        session.observe([features[:, seen:]])
        seen = length - 1
        draft = draft_of(session, torch.tensor([text[:length]]), FixedLength(run["block_size"] - 1), 64)
        if one["block"] == run["block_size"]:
            found.append((one, draft))
        session.accept([one["matches"]])
        length += one["matches"]
    return found


@pytest.mark.parametrize("index", range(len(RUNS)))
@torch.no_grad()
def test_the_path_of_the_original(target: PreTrainedModel, index: int) -> None:
    """The selector's walk equals the original's, up to where that proposes the mask token, which ours never does."""
    compared = 0
    for one, draft in rounds(RUNS[index], load(), target):
        expected = one["verified"][1:]
        whole = expected.index(MASK) if MASK in expected else len(expected)
        assert draft.token_ids[0, :whole].tolist() == expected[:whole]
        assert MASK not in draft.token_ids
        compared += whole
    assert compared >= 40


@pytest.mark.parametrize("index", range(len(RUNS)))
@torch.no_grad()
def test_the_logits_of_the_original(target: PreTrainedModel, index: int) -> None:
    """Without its selector the body chooses and is as sure as the original's logits are, cap and factor included."""
    drafter = load()
    drafter.body.candidate_selector = None
    for one, draft in rounds(RUNS[index], drafter, target):
        is_mask = torch.tensor(one["draft_argmax"]) == MASK
        assert draft.token_ids[0][~is_mask].tolist() == [x for x in one["draft_argmax"] if x != MASK]
        expected = torch.tensor(one["confidence"])
        torch.testing.assert_close(draft.confidence[0][~is_mask], expected[~is_mask], atol=1e-4, rtol=0)


@torch.no_grad()
def test_raw_logits(target: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = load_file(FOLDER / "drafts.safetensors")
    seen: list[torch.Tensor] = []
    drafter = load()
    walk = drafter.body.candidate_selector.walk

    def record(hidden: torch.Tensor, logits: torch.Tensor) -> Any:
        seen.append(logits)
        return walk(hidden, logits)

    monkeypatch.setattr(drafter.body.candidate_selector, "walk", record)
    rounds(RUNS[0], drafter, target)
    for number in range(3):
        expected = tensors[f"run.0.round.{number}.draft_logits"]
        torch.testing.assert_close(seen[number][0], expected, atol=1e-4, rtol=0)


def test_both_loops_write_what_the_target_writes(target: PreTrainedModel) -> None:
    stats = check_parity(target, load(), 40)
    assert stats.accepted > 0
    prompt = torch.tensor([RUNS[0]["prompt"]])
    output = target.generate(
        prompt, assistant_model=load(), custom_generate="hf_failfast", max_new_tokens=40, do_sample=False
    )
    assert output[0].tolist() == RUNS[0]["prompt"] + RUNS[0]["new_tokens"]


def test_the_selector_earns_accepted_tokens(target: PreTrainedModel) -> None:
    """On the original's prompts more tokens a round are accepted with the selector than without."""

    def accepted(drafter: DFlashDrafter) -> int:
        total = 0
        for run in RUNS:
            output = target.generate(
                torch.tensor([run["prompt"]]),
                assistant_model=drafter,
                custom_generate="hf_failfast",
                max_new_tokens=40,
                do_sample=False,
                confidence_threshold=0.0,
                return_dict_in_generate=True,
            )
            total += output.speculation.accepted
        return total

    plain = load()
    plain.body.candidate_selector = None
    assert accepted(load()) > 1.2 * accepted(plain)


def test_batches(target: PreTrainedModel) -> None:
    prompts = torch.tensor([RUNS[0]["prompt"][-16:], RUNS[1]["prompt"][-16:]])
    settings = {"max_new_tokens": 16, "do_sample": False, "attention_mask": torch.ones_like(prompts)}
    plain = target.generate(prompts, **settings)
    assert hf_failfast.generate(target, prompts, assistant_model=load(), **settings).tolist() == plain.tolist()


# Loading


@pytest.mark.parametrize("key", ["conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k"])
@pytest.mark.parametrize("inside", [True, False])
def test_its_keys_inside_of_the_section_or_beside_it(key: str, inside: bool, tmp_path: Path) -> None:
    """Each is read in both places, and missed by name in none."""
    config = json.loads((FOLDER / "checkpoint" / "config.json").read_text())
    section = dict(config["dflash_config"])
    value = section.pop(key)
    if inside:
        folder = copy_checkpoint("dflash/case_7/checkpoint", tmp_path / "a", dflash_config=section)
        with pytest.raises(ValueError, match=rf"no \['{key}'\], which a DFlash 2"):
            load_drafter(folder)
    else:
        folder = copy_checkpoint("dflash/case_7/checkpoint", tmp_path / "a", dflash_config=section, **{key: value})
        assert load_drafter(folder).block_size == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_group_size": 7}, "`conv_group_size` must divide the width of 40"),
        ({"conv_kernel_size": 0}, "`conv_kernel_size` be >= 1"),
        ({"conv_kernel_size": 3}, "other shapes in .*conv"),
        ({"selector_top_k": 0}, "`selector_top_k` must be in 1 .. 80, but is 0"),
        ({"selector_top_k": 81}, "`selector_top_k` must be in 1 .. 80, but is 81"),
        ({"selector_rank": 5}, "other shapes in .*candidate_selector"),
        ({"selector_topk": 6}, r"section `dflash_config` has \['selector_topk'\]"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = json.loads((FOLDER / "checkpoint" / "config.json").read_text())
    section = config["dflash_config"] | changes
    folder = copy_checkpoint("dflash/case_7/checkpoint", tmp_path / "a", dflash_config=section)
    with pytest.raises(ValueError, match=message):
        load_drafter(folder)
    with pytest.raises(ValueError, match=message):
        inspect_checkpoint(folder)


def test_inspect_and_dtype(target: PreTrainedModel) -> None:
    found = inspect_checkpoint(FOLDER / "checkpoint", FOLDER / "target")
    assert (found.family, found.chunk_per_pass, found.misfit) == ("DFlash 2", 7, None)
    drafter = load(dtype="auto")
    assert {parameter.dtype for parameter in drafter.body.parameters()} == {torch.bfloat16}
    check_parity(target, drafter, 8)


def test_weights_of_the_first_generation_are_refused(tmp_path: Path) -> None:
    folder = copy_checkpoint("dflash/case_7/checkpoint", tmp_path / "a")
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "conv" not in key and "selector" not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing \['candidate_selector"):
        load_drafter(folder)


# Sampling


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return small_pair(str(tmp_path_factory.mktemp("target")))


@pytest.fixture(scope="module")
def drafter(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> DFlashDrafter:
    folder = save_dflash2(tmp_path_factory.mktemp("dflash2"), pair.target, block_size=3)
    found = load_drafter(folder, dtype=torch.float32)
    assert isinstance(found, DFlashDrafter)
    return found


REJECTION = {"verifier": "rejection", "confidence_threshold": 0.0}


@pytest.mark.parametrize("warping", [WARPING, {"temperature": 0.8, "top_k": 5, "top_p": 0.9}], ids=["hot", "top-p"])
def test_samples_are_the_targets(pair: Pair, drafter: DFlashDrafter, warping: dict[str, Any]) -> None:
    """Whole calls of `generate`."""
    counts = draw(pair, drafter, 600, **warping, **REJECTION)
    assert chi_square(counts, enumerate_distribution(pair, **warping)) > 1e-3


def test_q_is_over_the_candidates(pair: Pair, drafter: DFlashDrafter) -> None:
    """Each drawn token is a candidate, and its q is that of the walk after the tokens drawn before it."""
    compared = 0
    choose = dflash.choose_in_turn

    def record(step: Step, *rest: Any) -> DraftTokens:
        nonlocal compared
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def watched(position: int, previous: torch.Tensor) -> torch.Tensor:
            seen.append((previous, step(position, previous)))
            return seen[-1][1]

        tokens = choose(watched, *rest)
        assert tokens.probs is not None
        for index, (previous, logits) in enumerate(seen):
            assert index == 0 or previous.tolist() == tokens.token_ids[:, index - 1].tolist()
            assert int(logits.isfinite().sum()) == 5  # of nine
            logits = logits.clone()
            logits[:, -1] = -torch.inf  # the mask token, where it is a candidate
            torch.testing.assert_close(tokens.probs[:, index], (logits / 1.3).softmax(dim=-1))
            compared += 1
        return tokens

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dflash, "choose_in_turn", record)
        draw(pair, drafter, 100, **WARPING, **REJECTION)
    assert compared > 100


# The walk and the verification alone, in a batch large enough for mutants to show

ROWS, CHOICES, HEAT = 20_000, 7, 1.4


def warp(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits / HEAT, torch.arange(logits.shape[-1]).expand_as(logits)


def selector() -> CandidateSelector:
    torch.manual_seed(1)
    found = CandidateSelector(CHOICES, width=4, rank=3, num_candidates=4)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter)
    return found


def own_walk(step: Step) -> DraftTokens:
    return choose_in_turn(step, 2, torch.full((ROWS,), 2), CHOICES, None, warp)


def q_without_pairs(step: Step) -> DraftTokens:
    """q as if the second token were chosen after the anchor again."""
    tokens = own_walk(step)
    logits = torch.stack([step(position, torch.full((ROWS,), 2)) for position in range(2)], dim=1)
    return tokens._replace(probs=(logits / HEAT).softmax(dim=-1))


def q_of_the_most_likely(step: Step) -> DraftTokens:
    """q as if the first token had not been drawn."""
    tokens = own_walk(step)
    first = step(0, torch.full((ROWS,), 2))
    logits = torch.stack([first, step(1, first.argmax(dim=-1))], dim=1)
    return tokens._replace(probs=(logits / HEAT).softmax(dim=-1))


def q_before_warping(step: Step) -> DraftTokens:
    tokens = own_walk(step)
    logits = torch.stack([step(0, torch.full((ROWS,), 2)), step(1, tokens.token_ids[:, 0])], dim=1)
    return tokens._replace(probs=logits.softmax(dim=-1))


def fit(walk: Callable[[Step], DraftTokens]) -> float:
    """p value of two tokens, drafted by this walk and verified, under a random target."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(1, 2, 4, generator=generator).expand(ROWS, -1, -1)
    logits = torch.randn(1, 2, CHOICES, generator=generator).expand(ROWS, -1, -1)
    first = torch.randn(CHOICES, generator=generator)  # the target's scores of the first token
    second = torch.randn(CHOICES, CHOICES, generator=generator)  # and of the second one, by the first
    torch.manual_seed(0)
    with torch.no_grad():
        tokens = walk(selector().walk(hidden, logits))
    values = torch.stack([first.expand(ROWS, -1), second[tokens.token_ids[:, 0]]], dim=1)
    ids = torch.arange(CHOICES).expand_as(values)
    own = choose_by_rejection(Scores(values, ids), tokens.token_ids, tokens.probs)
    is_kept = own[:, 0] == tokens.token_ids[:, 0]
    fresh = torch.multinomial(second[own[:, 0]].softmax(dim=-1), num_samples=1)[:, 0]  # of the next round
    emitted = torch.stack([own[:, 0], torch.where(is_kept, own[:, 1], fresh)], dim=1)
    counts = torch.bincount(emitted[:, 0] * CHOICES + emitted[:, 1], minlength=CHOICES**2)
    assert is_kept.any() and not is_kept.all()
    return chi_square(counts, first.double().softmax(dim=-1)[:, None] * second.double().softmax(dim=-1))


def test_the_walk_and_rejection_sampling_are_exact() -> None:
    assert fit(own_walk) > 1e-3


@pytest.mark.parametrize("mutant", [q_without_pairs, q_of_the_most_likely, q_before_warping])
def test_another_q_than_the_walks_is_found_out(mutant: Callable[[Step], DraftTokens]) -> None:
    assert fit(mutant) < 1e-9
