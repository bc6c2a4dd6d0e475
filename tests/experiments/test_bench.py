"""The benchmark: its document, its figures, replayed acceptance, and the floor it is held against."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, VOCAB_SIZE, drafter, plain, prompt, saved_drafter, target, tiny_model
from transformers import CompileConfig, LlamaForCausalLM
from typer.testing import CliRunner

from hf_failfast.cli.app import app
from hf_failfast.compatibility import COMPILES_ASSISTED
from hf_failfast.experiments.bench import RANDOM_PROMPTS, measure_exact
from hf_failfast.experiments.floor import bandwidth, bytes_per_forward, modelled_pass
from hf_failfast.experiments.replay import ReplayDrafter, load, record, save
from hf_failfast.measure.timing import Prompts

SHORT = ["--max-new-tokens", 12, "--repeats", 1, "--dtype", "float32", "--json"]


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def acceptance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of a real pair."""
    path = tmp_path_factory.mktemp("record") / "acceptance.json"
    texts = record(target("qwen2"), drafter("canvas_shift"), [prompt(9), prompt(12)], 20, chunk_length=6)
    save(path, texts, {"target": "tiny"})
    return path


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a target and a drafter that hold a config and no weights."""
    folders = []
    for name, config in (("target", target("qwen2").config.to_json_string()), ("drafter", None)):
        folder = tmp_path_factory.mktemp(name)
        source = Path(saved_drafter("canvas_shift")) / "config.json"
        (folder / "config.json").write_text(config or source.read_text())
        folders.append(folder)
    return folders[0], folders[1]


def test_record_says_what_it_wrote(tmp_path: Path, folder: Path) -> None:
    """`--record` writes a record that loads again, and prints its path."""
    out = tmp_path / "acceptance.json"
    result = run("--target", folder, "--drafter", folder, "--prompt", "a b", "--record", out, *SHORT)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["record"] == str(out)
    assert load(out)


def test_record_holds_what_was_drafted(acceptance: Path) -> None:
    """The record compares each chunk with the text at its own position: with shift 1 every first token is right."""
    texts = load(acceptance)
    assert [len(text) for text in texts] == [20, 20]
    assert all(right[0] for text in texts for _, right in text)
    assert not all(all(right) for text in texts for _, right in text)
    assert [len(right) for _, right in texts[0][-3:]] == [3, 2, 1]


@pytest.mark.parametrize("options", [{}, {"length_policy": "goodput"}])
def test_a_replay_is_lossless_and_accepts_what_was_recorded(acceptance: Path, options: dict[str, str]) -> None:
    """A replay writes the plain text and accepts exactly the recorded tokens of every draft."""
    texts = load(acceptance)
    answer = plain(target("qwen2"), prompt(9), max_new_tokens=20)
    proposer = ReplayDrafter(drafter("canvas_shift", seed=1), texts, [(9, answer)])
    output = target("qwen2").generate(
        prompt(9), assistant_model=proposer, custom_generate="hf_failfast", do_sample=False, max_new_tokens=20,
        return_dict_in_generate=True, **options,
    )  # fmt: skip
    assert torch.equal(output.sequences, answer)
    position = 0
    for each in output.speculation.records if not options else []:
        right = [*texts[0][position][1], False] if each.drafted else [False]
        assert each.accepted == min(right.index(False), each.drafted)
        position += each.emitted


def test_document_of_a_replay(acceptance: Path, configs: tuple[Path, Path], tmp_path: Path) -> None:
    """The document has every number of every method and says that it is a replay; all figures are drawn."""
    folders = ["--target", configs[0], "--drafter", configs[1]]
    result = run(*folders, "--replay", acceptance, "--plots", tmp_path / "plots", *SHORT)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["replay"] == "acceptance.json"
    records = {each["method"]: each for each in document["results"]}
    ours = ["hf_failfast", "hf_failfast, fixed drafts", "hf_failfast, goodput"]
    assert list(records) == ["plain generate", "HF prompt lookup", *ours]
    for each in records.values():
        assert each["identical"] == each["prompts"] == RANDOM_PROMPTS
        assert each["speedup_low"] <= each["speedup"] <= each["speedup_high"]
    for name in ours:
        assert sum(records[name]["time_share"].values()) == pytest.approx(1, abs=1e-3)
        assert sum(records[name]["accepted_lengths"]) == records[name]["rounds"]
    others = max(each["speedup"] for name, each in records.items() if name not in ours)
    assert document["default_speedup_over_best_hf"] == pytest.approx(records[ours[0]]["speedup"] / others, abs=1e-3)
    best = max(records[name]["speedup"] for name in ours)
    assert document["speedup_over_best_hf"] == pytest.approx(best / others, abs=1e-3)
    assert document["costs_ms"]["verify"]["0"] > 0
    assert document["floor"]["forward_over_floor"] > 1
    assert {"command", "commit", "versions", "hardware"} <= set(document)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "accepted.svg", "speedup.svg", "time.svg", "verify.svg",
    ]  # fmt: skip
    assert "replayed acceptance" in (tmp_path / "plots" / "speedup.svg").read_text()


def test_exact_forwards(folder: Path) -> None:
    """`--exact` adds the forwards that round each token as if it were alone, without drafts and with them."""
    arguments = ["--target", folder, "--drafter", folder, "--prompt", "a b", *SHORT[:4], "--dtype", "bfloat16"]
    plainly = run(*arguments, "--json")
    assert json.loads(plainly.stdout)["exact"] is None
    result = run(*arguments, "--exact")
    assert result.exit_code == 0, result.output
    assert "1 of 1 are those of the same forwards without drafts" in " ".join(result.stdout.split())
    found = json.loads(result.stdout.strip().splitlines()[-1])["exact"]
    assert [each["method"] for each in found["results"]] == [
        "plain generate, exact",
        "hf_failfast, exact",
        "plain generate",
    ]
    assert [each["identical"] for each in found["results"][:2]] == [1, 1]
    assert found["refused"] is None


def test_targets_without_exact_forwards() -> None:
    """The benchmark says why there are none."""
    prompts = [Prompts.greedy(prompt(5), 4)]
    found = measure_exact(tiny_model("gemma2"), drafter("canvas_shift"), {}, prompts, 1, lambda done: None)
    assert found["results"] == []
    assert "`attn_implementation`='eager'" in found["refused"]


def test_the_table_says_that_it_is_a_replay(acceptance: Path, configs: tuple[Path, Path]) -> None:
    result = run("--target", configs[0], "--drafter", configs[1], "--replay", acceptance, *SHORT[:-1])
    assert result.exit_code == 0, result.output
    assert "REPLAY: the forwards are real" in result.stdout
    assert "times what its" in result.stdout
    assert "Over the fastest of transformers' own methods" in result.stdout
    assert json.loads(result.stdout.strip().splitlines()[-1])["replay"] == "acceptance.json"


def test_assisted_by_an_autoregressive_model(folder: Path) -> None:
    """The assisted method runs the draft model and writes the plain text."""
    calls = []
    forward = LlamaForCausalLM.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return forward(self, *args, **kwargs)

    pair = ["--target", folder, "--drafter", folder, "--prompt", "a b", "--prompt", "x y z"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "forward", counted)
        result = run(*pair, "--assistant", folder, *SHORT)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["assistant"] == str(folder)
    records = {each["method"]: each for each in document["results"]}
    assert records["HF assisted"]["identical"] == records["HF assisted"]["prompts"] == 2
    assert len({id(model) for model in calls}) == 3, "target, drafter and assistant"


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Makes `generate` compile with a backend of the test's own."""
    return lambda own: monkeypatch.setattr(
        "hf_failfast.measure.methods.CompileConfig", lambda: CompileConfig(backend=own)
    )


def compiled(backend: Any, folder: Path) -> tuple[str, dict[str, Any], dict[str, Any], list[Any]]:
    """Output, document, records by method, and the graphs that were compiled, of a benchmark with `--compiled`."""
    graphs = []

    def counted(graph: Any, inputs: Any, **_: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    backend(counted)
    pair = ["--target", folder, "--drafter", folder, "--prompt", "a b", "--prompt", "x y z a b c d"]
    result = run(*pair, "--compiled", *SHORT[:-1])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout.strip().splitlines()[-1])
    records = {each["method"]: each for each in document["results"]}
    return result.stdout, document, records, graphs


def test_plain_generate_compiled(backend: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU one compilation serves all prompts, and the text stays the plain one."""
    monkeypatch.setattr("hf_failfast.measure.methods.COMPILES_ASSISTED", False)
    output, document, records, graphs = compiled(backend, folder)
    assert re.search(r"plain generate, compiled: \d+ s to compile", output)
    assert records["plain generate, compiled"]["identical"] == 2
    assert document["compiled"]["first_call_seconds"] > 0
    assert len(graphs) == 1


@pytest.mark.skipif(not COMPILES_ASSISTED, reason="transformers before 5.24 compiles plain `generate` only")
@pytest.mark.exhaustive
def test_prompt_lookup_compiled(backend: Any, folder: Path) -> None:
    """The compiled method writes the plain text, and is timed as a method of its own."""
    _, document, records, graphs = compiled(backend, folder)
    assert records["HF prompt lookup, compiled"]["identical"] == 2
    assert document["compiled_hf"]["HF prompt lookup, compiled"]["first_call_seconds"] > 0
    assert len(graphs) > 1, "only plain `generate` was compiled"


def test_a_failed_compilation_is_a_note(backend: Any, folder: Path) -> None:
    """Without a C++ compiler the benchmark goes on without that method and says why."""

    def broken(graph: Any, inputs: Any, **_: Any) -> Any:
        raise RuntimeError("No working C++ compiler\n\nand much more")

    backend(broken)
    result = run("--target", folder, "--drafter", folder, "--prompt", "a b", "--compiled", *SHORT[:-1])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout.strip().splitlines()[-1])
    assert "plain generate, compiled" not in [each["method"] for each in document["results"]]
    assert document["compiled"]["error"].endswith("RuntimeError: No working C++ compiler")
    said = " ".join(result.stdout.split())
    assert f"plain generate, compiled was not timed: {document['compiled']['error']}" in said


def test_models_without_weights_are_not_timed_as_if_they_had_some(configs: tuple[Path, Path]) -> None:
    result = run("--target", configs[0], "--drafter", configs[1], *SHORT)
    assert result.exit_code == 1
    assert "has no weights; timing it needs a recorded acceptance" in result.stderr


@pytest.mark.parametrize("content", ["{}", '{"texts": []}', '{"texts": [[[[0.5], []]]]}', '{"texts": 3}', "[1]"])
def test_a_file_that_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "no.json").write_text(content)
    with pytest.raises(ValueError, match="`replay` must name a JSON file with `texts`"):
        load(tmp_path / "no.json")


def test_plots_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A missing matplotlib is named before anything is timed."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    result = run("--plots", tmp_path, *SHORT)
    assert result.exit_code == 1
    assert 'pip install "hf_failfast[plots]"' in result.stderr


def test_bytes_of_a_forward() -> None:
    """Counts a tied head once, an embedding that is only looked up not at all, and K/V of the context."""
    tied, untied = (tiny_model("llama", tie_word_embeddings=tie) for tie in (True, False))
    body = sum(value.nbytes for value in untied.model.layers.parameters()) + untied.model.norm.weight.nbytes
    table = VOCAB_SIZE * 32 * 4
    assert bytes_per_forward(tied, 0) == bytes_per_forward(untied, 0) == body + table
    assert bytes_per_forward(tied, 10) - bytes_per_forward(tied, 0) == 2 * 10 * 2 * 2 * 8 * 4


def test_bandwidth() -> None:
    """The measured bandwidth is between 100 MB and 2 TB per second."""
    assert 1e8 < bandwidth(torch.device("cpu")) < 2e12


def test_the_model_of_a_pass() -> None:
    """The modelled time of a captured pass is near every one that was measured on a GPU; fewer launches take less."""
    document = json.loads((REPOSITORY / "results" / "gpu-nvidia-h200.json").read_text())
    ratios = []
    for passes in (document["1.5B"], document["7B"]["passes"]):
        for times in passes.values():
            if isinstance(times, dict) and "captured_ms" in times:
                modelled = 1e3 * modelled_pass(28, times["floor_ms"] / 1e3)
                ratios.append(modelled / times.get("captured_layers_ms", times["captured_ms"]))
                assert times["floor_ms"] < 1e3 * modelled_pass(28, times["floor_ms"] / 1e3, "fused") < modelled
    assert len(ratios) == 8
    assert all(0.75 < ratio < 1.25 for ratio in ratios), ratios
