"""The lm-eval model and tasks on models of two layers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from eval_support import evaluate_tasks, save_models

from hf_failfast.engine.cpu.packed_weights import is_prepacked
from hf_failfast.eval.model import HFFailFastLM
from hf_failfast.eval.task import SpeedResponse
from hf_failfast.measure.records import difference_margin, record_of

TASK = "failfast_arithmetic"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """Two threads on busy cores wait for each other at every layer of these models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def load(folders: dict[str, str]) -> Any:
    def load(method: str = "failfast", **arguments: Any) -> HFFailFastLM:
        if method in ("failfast", "fixed", "assisted"):
            arguments["assistant"] = folders["assistant" if method == "assisted" else "drafter"]
        return HFFailFastLM(folders["target"], method=method, device="cpu", dtype="float32", **arguments)

    return load


@pytest.fixture(scope="session")
def plain_texts(load: Any) -> list[str]:
    return responses(evaluate_tasks(load("plain"), [TASK]))


def responses(results: dict[str, Any]) -> list[str]:
    samples = [sample for sample in results["samples"][TASK] if sample["filter"] == "last-number"]
    return [sample["resps"][0][0] for sample in samples]


@pytest.mark.parametrize("method", ["failfast", "fixed", "assisted", "prompt_lookup"])
def test_every_method_answers_as_plain_and_has_speed_rows(method: str, load: Any, plain_texts: list[str]) -> None:
    results = evaluate_tasks(load(method, compare_plain=True), [TASK])
    row = results["results"][TASK]
    assert responses(results) == plain_texts
    assert row["identical,speed"] == 1.0
    assert row["first_difference_margin,speed"] == "N/A"
    assert row["speedup_ci95_low,speed"] <= row["speedup,speed"] <= row["speedup_ci95_high,speed"]
    assert row["macro_speedup_ci95_low,speed"] <= row["macro_speedup,speed"] <= row["macro_speedup_ci95_high,speed"]
    assert row["mean_acceptance_length,speed"] >= 1
    assert row["tokens_per_second,speed"] > 0
    assert "exact_match,last-number" in row


@pytest.mark.parametrize("method", ["failfast", "assisted", "plain"])
def test_packed_weights_serve_every_method(method: str, load: Any, plain_texts: list[str]) -> None:
    """The target's layers and the draft model's are packed, and the answers stay."""
    model = load(method, compare_plain=method != "plain", prepack=True)
    assistant = model.method.arguments.get("assistant_model")
    assert is_prepacked(model.model) and (assistant is None or is_prepacked(assistant))
    results = evaluate_tasks(model, [TASK])
    assert responses(results) == plain_texts
    assert results["results"][TASK].get("identical,speed", 1.0) == 1.0


def test_failfast_rows_add_up_with_the_records(load: Any) -> None:
    results = evaluate_tasks(load(compare_plain=True), [TASK])
    row = results["results"][TASK]
    records = [s["filtered_resps"][0] for s in results["samples"][TASK] if s["filter"] == "speed"]
    totals = {key: sum(record[key] for record in records) for key in ("new_tokens", "rounds", "seconds", "accepted")}
    assert row["mean_acceptance_length,speed"] == pytest.approx(totals["new_tokens"] / totals["rounds"])
    assert row["tokens_per_second,speed"] == pytest.approx(totals["new_tokens"] / totals["seconds"])
    shares = [row[f"{part}_share,speed"] for part in ("draft", "verify", "other")]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0
    assert totals["accepted"] > 0 and row["modelled_speedup,speed"] > 0
    facts = results["config"]["hf_failfast"]
    assert (facts["options"]["method"], facts["options"]["chunk_length"]) == ("failfast", 4)
    assert json.loads(str(SpeedResponse(records[0]))) == records[0]
    assert facts["speed"][TASK]["answers"] == 3
    json.dumps(results["results"], allow_nan=False)


def test_plain_has_no_drafting_rows(load: Any) -> None:
    row = evaluate_tasks(load("plain"), [TASK])["results"][TASK]
    assert "tokens_per_second,speed" in row
    assert not {"speedup,speed", "acceptance_rate,speed", "mean_acceptance_length,speed"} & set(row)


def test_given_latencies_give_the_papers_model(load: Any) -> None:
    """Speedup = tokens x target / (passes x draft + rounds x target), nothing timed."""
    model = load(target_latency_ms=24.7, drafter_latency_ms=6.1)
    results = evaluate_tasks(model, [TASK])
    records = [s["filtered_resps"][0] for s in results["samples"][TASK] if s["filter"] == "speed"]
    tokens, passes, rounds = (sum(r[key] for r in records) for key in ("new_tokens", "drafter_passes", "rounds"))
    expected = tokens * 24.7 / (passes * 6.1 + rounds * 24.7)
    assert results["results"][TASK]["modelled_speedup,speed"] == pytest.approx(expected)


def test_batches_keep_texts_and_records_with_their_requests(load: Any, plain_texts: list[str]) -> None:
    for method in ("plain", "failfast"):
        results = evaluate_tasks(load(method, batch_size=2, compare_plain=True), [TASK])
        assert responses(results) == plain_texts
        assert results["results"][TASK]["identical,speed"] == 1.0


def test_arguments_that_ask_for_more_output(load: Any, plain_texts: list[str]) -> None:
    """`gen_kwargs` may ask for outputs that scoring has no use for."""
    asked = {"max_gen_toks": 16, "return_dict_in_generate": True, "output_scores": True, "use_cache": True}
    for method in ("plain", "failfast"):
        results = evaluate_tasks(load(method), [TASK], gen_kwargs=asked)
        assert responses(results) == plain_texts


def test_stop_strings_inside_a_draft_are_not_overrun(load: Any, plain_texts: list[str]) -> None:
    """Every method stops at a stop string inside a draft, with plain decoding's token count."""
    stop = plain_texts[0][3]
    counts = {}
    for method in ("plain", "assisted", "prompt_lookup", "failfast"):
        results = evaluate_tasks(load(method), [TASK], gen_kwargs={"max_gen_toks": 16, "until": [stop]})
        records = [s["filtered_resps"][0] for s in results["samples"][TASK] if s["filter"] == "speed"]
        counts[method] = ([record["new_tokens"] for record in records], responses(results))
    assert counts["plain"][0][0] <= 4
    assert all(count == counts["plain"] for count in counts.values())


def test_cached_answers_have_no_speed(load: Any, tmp_path: Path, plain_texts: list[str]) -> None:
    cache = str(tmp_path / "cache")
    first = evaluate_tasks(load(), [TASK], use_cache=cache)
    again = evaluate_tasks(load(), [TASK], use_cache=cache)
    more = evaluate_tasks(load(), [TASK], use_cache=cache, limit=4)
    assert responses(first) == responses(again) == plain_texts
    assert not any(key.endswith(",speed") for key in again["results"][TASK])
    assert more["config"]["hf_failfast"]["speed"][TASK]["answers"] == 1
    assert more["results"][TASK]["tokens_per_second,speed"] > 0


def test_predict_only_keeps_speed(load: Any) -> None:
    row = evaluate_tasks(load(), [TASK], predict_only=True)["results"][TASK]
    assert row["tokens_per_second,speed"] > 0
    assert "exact_match,last-number" not in row


def test_chat_template_reaches_the_model(load: Any) -> None:
    sample = evaluate_tasks(load(), [TASK], apply_chat_template=True, limit=1)["samples"][TASK][0]
    assert sample["arguments"][0][0].startswith("<u>") and sample["arguments"][0][0].endswith("<a>")


def test_a_group_averages_its_tasks(load: Any) -> None:
    model = load(compare_plain=True)
    results = evaluate_tasks(model, ["failfast_offline"], limit=1, confirm_run_unsafe_code=True)
    group = results["groups"]["failfast_offline"]
    tasks = results["group_subtasks"]["failfast_offline"]
    speedups = [results["results"][task]["speedup,speed"] for task in tasks]
    assert len(tasks) == 4
    assert group["speedup,speed"] == pytest.approx(sum(speedups) / 4)
    assert group["identical,speed"] == 1.0
    assert results["results"]["failfast_humaneval"]["pass@1,none"] == 0
    assert "rougeL,none" in results["results"]["failfast_summaries"]


def test_prompts_of_a_file(load: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"turns": ["one", "two"], "category": "math"}\n\n{"prompt": "three"}\n')
    results = evaluate_tasks(load(), ["failfast_prompts"], metadata={"prompts": str(path)})
    assert results["n-samples"]["failfast_prompts"]["original"] == 2
    assert results["results"]["failfast_prompts"]["tokens_per_second,speed"] > 0


def test_loglikelihoods_are_lm_evals(load: Any, folders: dict[str, str]) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    requests = [Instance("loglikelihood", {}, ("two and two is", " four"), 0)]
    stock = HFLM(folders["target"], device="cpu", dtype="float32")
    assert load().loglikelihood(requests) == stock.loglikelihood(requests)


def test_repeats_and_padding_requests() -> None:
    """A request's repeats are combined; the answers that lm-eval asks for only to even out processes are not."""
    from lm_eval.api.instance import Instance

    from hf_failfast.measure.records import SpeedRecord, attach

    request = Instance("generate_until", {}, ("x", {}), 0, metadata=("task", 0, 2))
    for seconds in (1.0, 2.0, 40.0):
        attach(request, SpeedRecord("failfast", seconds, 10, 5.0, identical=True))
    record = record_of(request)
    assert record is not None
    assert (record.seconds, record.new_tokens, record.peak_memory_mib, record.identical) == (3.0, 20, 5.0, True)


@pytest.mark.parametrize("flag", ["load_in_4bit", "load_in_8bit"])
def test_quantised_targets(flag: str, load: Any) -> None:
    """lm-eval's quantisation flags reach transformers 5, and drafting stays lossless."""
    pytest.importorskip("bitsandbytes")
    results = evaluate_tasks(load(compare_plain=True, **{flag: True}), [TASK], limit=2)
    assert results["results"][TASK]["identical,speed"] == 1.0


def test_margin_of_a_first_difference(load: Any) -> None:
    """The gap between the target's two best logits at the first position where two answers differ."""
    model = load("plain").model
    prompt = torch.tensor([[5, 6, 7]])
    best, second = model(torch.tensor([[5, 6, 7, 8]])).logits[0, -1].topk(2).values.tolist()
    assert difference_margin(model, prompt, [8, 9], [8, 10, 11]) == pytest.approx(best - second)
    assert difference_margin(model, prompt, [8], [8, 10]) == pytest.approx(best - second)


def test_stock_hf_model_generates_through_the_repository(
    folders: dict[str, str], plain_texts: list[str], tmp_path: Path
) -> None:
    """`--model hf --gen_kwargs custom_generate=<repository>`: the drafter arrives as a string; accuracy rows only.

    The entry is copied without its requirements, so that the package need not be installed.
    """
    from lm_eval.models.huggingface import HFLM

    (tmp_path / "custom_generate").mkdir()
    shutil.copy(Path(__file__).parents[2] / "custom_generate" / "generate.py", tmp_path / "custom_generate")
    arguments = {
        "max_gen_toks": 16,
        "custom_generate": str(tmp_path),
        "assistant_model": folders["drafter"],
        "trust_remote_code": True,
    }
    stock = HFLM(folders["target"], device="cpu", dtype="float32")
    results = evaluate_tasks(stock, [TASK], gen_kwargs=arguments)
    assert responses(results) == plain_texts
    assert not any(key.endswith(",speed") for key in results["results"][TASK])


def test_bad_arguments_are_refused_before_loading(folders: dict[str, str]) -> None:
    for arguments, message in (
        ({"method": "magic"}, "`method` must be one of"),
        ({"method": "plain", "device_map": "auto"}, "`device_map` needs `parallelize=True`"),
        ({"method": "plain", "bnb_4bit_quant_type": "nf4"}, "need `load_in_4bit=True`"),
    ):
        with pytest.raises(ValueError, match=message):
            HFFailFastLM("no-such-folder", **arguments)


def test_automatic_batches_cannot_be_measured(load: Any) -> None:
    with pytest.raises(ValueError, match="`batch_size` must be an integer"):
        evaluate_tasks(load("plain", batch_size="auto"), [TASK], limit=1)


def test_a_drafter_that_does_not_fit_is_refused_as_it_is_loaded(folders: dict[str, str], tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    other = tmp_path / "other"
    shutil.copytree(folders["target"], other)
    config = LlamaConfig.from_pretrained(folders["target"])
    config.vocab_size = 900
    LlamaForCausalLM(config).save_pretrained(other)
    with pytest.raises(ValueError, match="same tokenizer"):
        HFFailFastLM(str(other), assistant=folders["drafter"], device="cpu", dtype="float32")
