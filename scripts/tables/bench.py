"""What `make bench` measured."""

from . import markdown, result


def table() -> str:
    document = result("results/bench.json")
    rows = []
    for record in document["results"]:
        length, share = record["mean_acceptance_length"], record.get("time_share")
        rows.append(
            (
                record["method"],
                f"{record['tokens_per_second']:.1f}",
                f"{record['speedup']:.2f}x",
                f"{record['speedup_low']:.2f} to {record['speedup_high']:.2f}",
                None if length is None else f"{length:.2f}",
                None if share is None else " / ".join(f"{100 * value:.0f} %" for value in share.values()),
            )
        )
    header = ("method", "tokens/s", "speedup", "95 % interval", "tokens per forward", "draft / verify / host")
    return markdown(header, rows)
