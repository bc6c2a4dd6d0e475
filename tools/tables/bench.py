"""What `make bench` measured."""

from hf_failfast.experiments.bench_report import cells

from . import markdown, result


def table() -> str:
    header = ("method", "tokens/s", "speedup", "95 % interval", "tokens per forward", "draft / verify / host")
    return markdown(header, [cells(record) for record in result("results/bench.json")["results"]])
