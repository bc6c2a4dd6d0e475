"""What packed weights and grouped attention bring on a CPU, of `results/cpu.json`: forwards, or answers."""

from . import markdown, result

DTYPES = ("bfloat16", "float32")


def table(kind: str) -> str:
    document = result("results/cpu.json")
    return _forwards(document) if kind == "forwards" else _answers(document)


def _forwards(document: dict) -> str:
    widths = list(next(iter(document["bfloat16"]["forward_ms"]["ordinary weights"].values())))
    rows = []
    for dtype in DTYPES:
        forwards = document[dtype]["forward_ms"]
        for context in forwards["ordinary weights"]:
            for name, by_context in forwards.items():
                rows.append((dtype, context, name, *(f"{by_context[context][width]:.1f}" for width in widths)))
    header = ("milliseconds of a forward", "tokens before", "", *(f"rows: {width}" for width in widths))
    return markdown(header, rows)


def _answers(document: dict) -> str:
    by_dtype = [{row["method"]: row for row in document[dtype]["results"]} for dtype in DTYPES]
    rows = [
        (method, *(f"{rows[method]['tokens_per_second']:.1f}, {rows[method]['speedup']:.2f}x" for rows in by_dtype))
        for method in by_dtype[0]
    ]
    return markdown(("tokens/s, speedup over the first line", *DTYPES), rows)
