"""The diffusion drafter against its autoregressive twin: acceptance of the ablation, costs of `draft_cost.py`."""

from . import markdown, result


def table() -> str:
    runs = {run["variant"]: run for run in result("results/ablation_from_target.json")["runs"]}
    costs = result("results/draft_cost.json")["milliseconds"]
    rows = []
    for name, variant in {"diffusion": "regression + cross-entropy", "autoregressive": "autoregressive"}.items():
        length, draft = runs[variant]["mean_acceptance_length"], costs[f"{name} draft"]
        per_token = (draft + costs["verification"]) / length
        rows.append(
            (name, f"{length:.3f}", f"{draft:.0f} ms", f"{costs['verification']:.0f} ms", f"{per_token:.0f} ms")
        )
    return markdown(("drafter", "mean acceptance length", "draft of 8", "verification", "per emitted token"), rows)
