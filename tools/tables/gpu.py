"""Passes, or rounds, measured on a GPU beside the model of their time."""

from hf_failfast.experiments.floor import LAUNCHES, modelled_pass

from . import markdown, result

DOCUMENT = "results/gpu-nvidia-h200.json"
LAYERS = {"1.5B": 28, "7B": 28}


def table(kind: str) -> str:
    document = result(DOCUMENT)
    passes = {"1.5B": document["1.5B"], "7B": document["7B"]["passes"]}
    return _passes(passes) if kind == "passes" else _rounds(document["7B"]["rounds at 6.55 tokens"])


def _passes(by_size: dict) -> str:
    rows = []
    for size, passes in by_size.items():
        for name, times in passes.items():
            if not name.endswith(" rows"):
                continue
            today, fused = (1e3 * modelled_pass(LAYERS[size], times["floor_ms"] / 1e3, kind) for kind in LAUNCHES)
            layers = times.get("captured_layers_ms", times["captured_ms"])  # results before there was another form
            measured = (times["floor_ms"], layers, times["eager_ms"])
            rows.append((size, name, *(f"{each:.2f}" for each in (*measured, today, fused))))
    header = ("model", "", "floor", "captured", "eager", "modelled, captured", "modelled, 11 launches a layer")
    return markdown(("milliseconds of a pass", *header[1:]), rows)


def _rounds(rounds: dict) -> str:
    rows = []
    for passes in (1, 2, 3):
        eager, captured = (rounds[kind] for kind in ("eager", "captured"))
        key = f"{passes} passes"
        rows.append(
            (
                passes,
                f"{eager[f'round_ms, {key}']:.1f} ms, {eager[f'over_plain, {key}']:.2f}x",
                f"{captured[f'round_ms, {key}']:.1f} ms, {captured[f'over_plain, {key}']:.2f}x",
                f"{captured[f'over_eager_plain, {key}']:.1f}x",
            )
        )
    header = (
        "drafter passes",
        "eager, over eager plain",
        "captured, over captured plain",
        "captured, over eager plain",
    )
    return markdown(header, rows)
