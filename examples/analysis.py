"""A notebook as a script: where a draft ends, how sure the drafter was, and what tau does. Editors run its cells."""

# %% A pair and one answer, traced round by round
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from hf_failfast.measure.tracing import trace
from hf_failfast.pairs import encode_prompt, load_pair

target, drafter, out = [*sys.argv[1:], None, None, None][:3]
folder = Path(out or ".")
pair = load_pair(target, drafter, "auto", "cpu")
prompt = encode_prompt(pair.tokenizer, "List ten countries in Europe with their capitals.")
traced = trace(pair.target, prompt, pair.drafter, max_new_tokens=96, do_sample=False)
traced.stats.as_dict()

# %% Drafted against accepted, round by round
figure, (rounds, calibration, sweep) = plt.subplots(1, 3, figsize=(13, 3.5))
numbers = range(1, len(traced.rounds) + 1)
rounds.bar(numbers, [len(each.draft_ids) for each in traced.rounds], color="lightgrey", label="drafted")
rounds.bar(numbers, [each.accepted for each in traced.rounds], color="seagreen", label="accepted")
rounds.set(xlabel="round", ylabel="tokens")
rounds.legend()

# %% Is the drafter right to be sure?
judged = sorted(pair for each in traced.rounds for pair in each.judged)
bins = [judged[start : start + max(1, len(judged) // 8)] for start in range(0, len(judged), max(1, len(judged) // 8))]
calibration.plot([0, 1], [0, 1], color="lightgrey")
calibration.plot(
    [sum(confidence for confidence, _ in each) / len(each) for each in bins],
    [sum(accepted for _, accepted in each) / len(each) for each in bins],
    "o-",
    color="seagreen",
)
calibration.set(xlabel="confidence", ylabel="share accepted")

# %% The threshold: tokens per round and passes per round
thresholds = [0.1, 0.3, 0.5, 0.7, 0.9]
stats = [
    trace(pair.target, prompt, pair.drafter, max_new_tokens=96, do_sample=False, confidence_threshold=threshold).stats
    for threshold in thresholds
]
sweep.plot(thresholds, [each.mean_acceptance_length for each in stats], "o-", color="seagreen", label="tokens")
sweep.plot(thresholds, [each.drafter_passes / each.rounds for each in stats], "o-", color="grey", label="passes")
sweep.set(xlabel="tau", ylabel="per round")
sweep.legend()

# %% Kept
figure.tight_layout()
figure.savefig(folder / "analysis.svg")
