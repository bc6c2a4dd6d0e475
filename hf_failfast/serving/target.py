"""What a drafter needs of the target that a server has loaded: its config, and its embedding and head if it borrows
them. The weights are the server's own, not copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def outline(config: PreTrainedConfig) -> PreTrainedModel:
    """A causal LM of transformers without weights: shapes, and the classes of embedding and head."""
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config.get_text_config(decoder=True)).eval()


def lend_embeddings(target: PreTrainedModel, served: nn.Module) -> None:
    """Puts the served model's embedding and head into the outline.

    Raises ValueError if the server keeps them in a form that a drafter cannot read (packed, quantised, or only a part
    of the vocabulary, as with tensor parallelism).
    """
    by_class = dict(_vocabulary_layers(served))
    embedding = by_class.get("VocabParallelEmbedding")
    head = by_class.get("ParallelLMHead", embedding)
    mine = target.get_input_embeddings()
    rows, width = mine.weight.shape
    mine.weight = _rows(embedding, "embedding", rows, width)
    output = target.get_output_embeddings()
    output.weight = mine.weight if head is embedding else _rows(head, "head", rows, width)
    bias = getattr(head, "bias", None)
    if output.bias is not None and bias is not None:
        output.bias = nn.Parameter(bias.detach()[:rows], requires_grad=False)


def _vocabulary_layers(served: nn.Module) -> list[tuple[str, nn.Module]]:
    """vLLM's layers over the vocabulary, by the name of the nearest of its two classes."""
    names = ("ParallelLMHead", "VocabParallelEmbedding")  # the first is a subclass of the second
    found = []
    for module in served.modules():
        bases = [base.__name__ for base in type(module).__mro__]
        kind = next((name for name in names if name in bases), None)
        if kind is not None:
            found.append((kind, module))
    return found[::-1]  # of several, the first stays: an encoder's come later


def _rows(layer: Any, what: str, rows: int, width: int) -> nn.Parameter:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point() or weight.ndim != 2:
        raise ValueError(
            f"The drafter borrows the target's {what}, which vLLM keeps in a form that cannot be read (packed or "
            "quantised). Serve a target whose embedding and head are not quantised."
        )
    if weight.shape[0] < rows or weight.shape[1] != width:
        raise ValueError(
            f"The drafter borrows the target's {what} of {rows} rows and width {width}, but this process of vLLM "
            f"holds {weight.shape[0]} of width {weight.shape[1]}: serve with `tensor_parallel_size=1`."
        )
    return nn.Parameter(weight.detach()[:rows], requires_grad=False)
