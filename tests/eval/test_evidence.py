"""`make evidence` on models of two layers: every method, lossless, with plain decoding's accuracy."""

import json

import pytest

pytest.importorskip("lm_eval")

from eval_support import save_models

from tools import evidence
from tools.tables import evidence as tables


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("models")
    folders = save_models(folder)
    out = folder / "evidence.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "smollm2_folder", lambda: folders["target"])
        methods = {
            name: options | ({"assistant": folders["drafter"]} if "assistant" in options else {})
            for name, options in evidence.METHODS.items()
        }
        patch.setattr(evidence, "METHODS", methods)
        evidence.main(limit=1, max_new_tokens=12, float32_limit=1, dtype="float32", out=out)
    document = json.loads(out.read_text())
    assert document["float32"] == {"answers": 4, "identical": 1.0}
    assert {"command", "commit", "versions", "hardware", "setting"} <= set(document)
    return document["rows"]


def test_every_method_is_measured_on_every_task(rows: list[dict]) -> None:
    methods = list(evidence.METHODS)
    assert [(row["method"], row["task"]) for row in rows] == [(m, task) for m in methods for task in tables.TASKS]
    assert all(row["answers"] == (4 if row["task"] == "all" else 1) for row in rows)


def test_every_method_has_plain_decoding_s_tokens_and_scores(rows: list[dict]) -> None:
    plain = {row["task"]: row for row in rows if row["method"] == "plain"}
    for row in rows:
        if row["method"] != "plain":
            assert row["identical"] == 1 and row["speedup"] > 0
            for name in ("pass@1", "exact_match", "field_accuracy", "rougeL"):
                assert row.get(name) == plain[row["task"]].get(name)
    assert {"pass@1", "exact_match", "rougeL"} <= set().union(*plain.values())


def test_the_tables_show_them_all(rows: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = {"threads": 2, "load": 2.0}
    monkeypatch.setattr(tables, "result", lambda path: {"rows": rows, "hardware": hardware})
    assert "tokens/s" in tables.table("speed")
    hardware["load"] = 9.0
    assert "tokens/s" not in tables.table("speed")
    speed, accuracy = tables.table("speed").splitlines(), tables.table("accuracy").splitlines()
    assert len(accuracy) == len(speed) + 1 == 2 + len(evidence.METHODS)
    assert all(name in "".join(accuracy) for name in ("HumanEval pass@1", "0.00"))
