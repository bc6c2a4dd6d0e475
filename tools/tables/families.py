"""The table of drafter families, from the rows that load them."""

from hf_failfast.drafters.checkpoints.families import ANY_LORA, FAMILIES, Family

from . import markdown

BY_ARGUMENTS = (
    "any causal LM",
    "that of its tokenizer",
    "as you pass it",
    None,
    None,
    '`load_drafter(id, attention="bidirectional", shift=True, mask_token_id=...)`',
)


def table() -> str:
    """One line per family, in the order of the table."""
    rows = [
        (one.ids, one.targets, _how(family), one.chunk, one.checked, f"`{one.call}`")
        for family in (*FAMILIES, ANY_LORA)
        if (one := family.listing) is not None
    ]
    header = ("Hub id", "targets (tokenizer)", "family", "chunk per pass", "checked", "call")
    return markdown(header, [*rows, BY_ARGUMENTS])


def _how(family: Family) -> str:
    """The family's name and how it drafts."""
    if family.reads_hidden_states:
        return f"{family.name}: reads the target's hidden states"
    kinds = {
        "causal": "causal",
        "causal_canvas": "causal text, canvas",
        "anchored_canvas": "causal text, canvas with an anchor",
        "block_causal": "blocks",
        "bidirectional": "bidirectional",
    }
    kind = kinds[family.spec["attention"]]
    if family.body == "lora":
        kind = f"the target itself with a LoRA, {kind}"
    if family.spec.get("noise") == "random":
        kind += ", random tokens"
    return f"{family.name}: {kind}" + (", shift" if family.spec.get("shift") else "")
