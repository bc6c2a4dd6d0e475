"""How long a draft gets: policies see confidences, never tokens."""

from .base import LengthPolicy
from .confidence import ConfidenceThreshold
from .diffuspec import DiffuSpecLength
from .goodput import Goodput

__all__ = ["POLICIES", "ConfidenceThreshold", "DiffuSpecLength", "Goodput", "LengthPolicy"]

# What `length_policy` may name; it also takes any `LengthPolicy` object.
POLICIES: dict[str, type[LengthPolicy]] = {
    "confidence": ConfidenceThreshold,
    "goodput": Goodput,
    "diffuspec": DiffuSpecLength,
}
