"""What `make bench` measured."""

from hf_failfast.cli.output.bench import cells

from . import markdown, result


def table() -> str:
    header = ("method", "tokens/s", "speedup", "95 % interval", "mean acceptance length", "draft / verify / host")
    return markdown(header, [cells(record) for record in result("results/bench.json")["results"]])
