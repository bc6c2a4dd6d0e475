"""The one figure that README and docs name, with its command and machine: of `make bench`, or of a GPU's rounds."""

from hf_failfast.measure.methods import TITLES
from hf_failfast.pairs import WEIGHTS_NOTE

from . import result
from .gpu import DOCUMENT


def table(kind: str = "bench") -> str:
    """A sentence. kind: `bench`, or `gpu`."""
    return _gpu() if kind == "gpu" else _bench()


def _bench() -> str:
    document = result("results/bench.json")
    ours = next(row for row in document["results"] if row["method"] == TITLES["failfast"])
    hardware = document["hardware"]
    interval = f"{ours['speedup_low']:.2f} to {ours['speedup_high']:.2f}"
    packed = " with packed weights, plain decoding too," if document["prepacked"] else ""
    machine = f"{hardware['threads']} cores of an {hardware['processor']}"
    return (
        f"{ours['speedup']:.2f}x plain `generate` (95 % interval {interval}) and "
        f"{document['default_speedup_over_best_hf']:.2f}x the best of transformers' own methods: {document['target']} "
        f"in {document['dtype']}{packed} on {machine}, {ours['prompts']} prompts, {document['max_new_tokens']} new "
        f"tokens each. That is `{document['command']}` at commit {document['commit'][:10]} with transformers "
        f"{document['versions']['transformers']}; {WEIGHTS_NOTE}."
    )


def _gpu() -> str:
    document = result(DOCUMENT)
    rounds = document["7B"]["rounds at 6.55 tokens"]["captured"]
    over_plain, over_eager = (
        f"{rounds[f'{key}, 3 passes']:.1f} to {rounds[f'{key}, 1 passes']:.1f}x"
        for key in ("over_plain", "over_eager_plain")
    )
    return (
        f"On one {document['hardware']['gpu']}, a 7B target and a 1.5B drafter of random weights, in rounds that "
        "replay the paper's acceptance of 6.55 tokens with three drafter passes to one: "
        f"{over_plain} plain decoding from the same CUDA graphs, {over_eager} plain decoding without graphs. No whole "
        "generations: see [docs/gpu.md](docs/gpu.md)."
    )
