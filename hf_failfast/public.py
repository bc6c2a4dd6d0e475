"""The public names, which need torch."""

from .config import FailFastConfig
from .decoding.hierarchy import Hierarchy
from .decoding.loop import failfast_decoding
from .decoding.stats import SpecDecodingStats
from .decoding.transformers_loop import FailFastCandidateGenerator
from .drafters import BUNDLED_DRAFTER, Conversation, DiffusionDrafter, DrafterSpec, Learning, load_drafter
from .engine.cpu.grouped_attention import grouped_attention
from .engine.cpu.packed_weights import prepack
from .engine.exact.forwards import exact_forwards
from .generate import assisted_generate, generate
from .policies.base import LengthPolicy
from .policies.confidence import ConfidenceThreshold, FixedLength

__all__ = [
    "BUNDLED_DRAFTER",
    "ConfidenceThreshold",
    "Conversation",
    "DiffusionDrafter",
    "DrafterSpec",
    "FailFastCandidateGenerator",
    "FailFastConfig",
    "FixedLength",
    "Hierarchy",
    "Learning",
    "LengthPolicy",
    "SpecDecodingStats",
    "assisted_generate",
    "exact_forwards",
    "failfast_decoding",
    "generate",
    "grouped_attention",
    "load_drafter",
    "prepack",
]
