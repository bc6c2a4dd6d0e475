"""Settings of data synthesis and of training, checked where they are made."""

from dataclasses import dataclass
from typing import get_args

from .canvases import Attention

LOSS_WEIGHTS = (
    "cross_entropy_weight",
    "focal_weight",
    "chain_weight",
    "streak_weight",
    "soft_label_weight",
    "regression_weight",
)


def require(name: str, value: float, bound: str, holds: bool) -> None:
    """Raises a ValueError that names the field, its bound and the value unless `holds`."""
    if not holds:
        raise ValueError(f"`{name}` must be {bound}, got {value}.")


@dataclass(frozen=True)
class DataConfig:
    """What decides the prompts and answers; the same values give the same data."""

    questions: int = 2400
    source: str | None = None  # .txt or .jsonl file or name of a `datasets` dataset; None is self-written questions
    records: str = "prompts"  # or texts; of the source: turns to answer, or texts to learn as they are
    field: str | None = None  # of a source's records; None is "prompt" or "text"
    prompt_tokens: int = 512  # a longer prompt is left out
    question_tokens: int = 64  # a self-written question that is not finished by then is dropped
    answer_tokens: int = 192  # longest answer; a text is cut there
    sampled_answers: int = 0  # per question, beside the greedy one, drawn at `answer_temperature`
    answer_temperature: float = 1.0
    store_states: bool = True  # the target's final hidden states; without them training computes what it needs
    batch_size: int = 128  # rows of one `generate` call
    shard_questions: int = 256  # candidates per shard; a killed run loses at most one shard
    temperature: float = 0.9  # of the self-written questions
    top_k: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("questions", "prompt_tokens", "question_tokens", "answer_tokens", "batch_size", "shard_questions")
        for name in (*counts, "top_k"):
            require(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        for name in ("temperature", "answer_temperature"):
            require(name, getattr(self, name), "positive", getattr(self, name) > 0)
        for name in ("sampled_answers", "seed"):
            require(name, getattr(self, name), "at least 0", getattr(self, name) >= 0)
        if self.records not in ("prompts", "texts"):
            raise ValueError(f"`records` must be 'prompts' or 'texts', got {self.records!r}.")
        if self.records == "texts" and (self.source is None or self.sampled_answers):
            raise ValueError("`records` 'texts' needs a `source`, and has no `sampled_answers`.")


@dataclass(frozen=True)
class TrainingConfig:
    """How a drafter is trained; at least one of `steps` and `minutes` ends it. A loss of weight 0 is not computed."""

    steps: int | None = None
    minutes: float | None = None  # of training; data synthesis is not counted
    attention: Attention = "causal_canvas"  # or block_causal: blocks of `canvas_length`, as in Fast-dLLM v2
    conditioned: bool = False  # on the target's hidden states
    initial: str | None = None  # folder of a drafter of the same shape to start from; None is the target's layers
    layers: tuple[int, ...] | None = None  # of the target; None is the first three and the last
    intermediate_size: int | None = None  # MLP neurons kept per layer; None is all
    canvas_length: int = 8  # K, draft positions per pass
    draft_vocabulary: int = 8192  # most frequent ids of the answers that can be drafted; 0 is the full vocabulary
    batch_size: int = 4  # sequences per process and micro-step
    accumulation: int = 1  # micro-steps per optimizer step
    anchors: int = 24  # canvases per sequence, drawn anew every step
    learning_rate: float = 1.5e-3
    warmup_steps: int = 50
    clip: float = 1.0  # gradient norm
    ema_decay: float = 0.0  # of the averaged weights that are evaluated and exported; 0 is none
    cross_entropy_weight: float = 0.3
    focal_weight: float = 0.0  # cross-entropy once more at the first wrong position
    chain_weight: float = 0.0  # expected accepted length on greedy answers
    streak_weight: float = 0.0  # expected accepted length on sampled answers
    soft_label_weight: float = 0.0
    soft_label_top: int = 64  # of the target's tokens
    regression_weight: float = 1.0
    clean_weight: float = 0.5  # of the regression at clean rows, against 1 at canvas rows
    position_decay: float = 4.5  # draft position k weighs exp(-(k - 1) / position_decay); 0 is uniform
    head_fraction: float = 0.5  # of the rows, drawn anew every step: the head is the dear part of a CPU step
    evaluation_steps: int = 200  # evaluates, exports and writes a checkpoint
    held_out_anchors: int = 8  # per held-out answer
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("`steps` or `minutes` must be given, got neither.")
        if self.attention not in get_args(Attention):
            raise ValueError(f"`attention` must be one of {list(get_args(Attention))}, got {self.attention!r}.")
        if self.conditioned and self.attention != "causal_canvas":
            raise ValueError("`conditioned` needs attention 'causal_canvas', got 'block_causal'.")
        require("steps", self.steps or 1, "at least 1", (self.steps or 1) >= 1)
        require("minutes", self.minutes or 1, "positive", (self.minutes or 1) > 0)
        require("canvas_length", self.canvas_length, "at least 2", self.canvas_length >= 2)
        counts = ("batch_size", "accumulation", "anchors", "soft_label_top", "evaluation_steps", "held_out_anchors")
        for name in counts:
            require(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        for name in ("learning_rate", "clip"):
            require(name, getattr(self, name), "positive", getattr(self, name) > 0)
        for name in ("draft_vocabulary", "warmup_steps", "position_decay", "clean_weight", "seed", *LOSS_WEIGHTS):
            require(name, getattr(self, name), "at least 0", getattr(self, name) >= 0)
        require("head_fraction", self.head_fraction, "in (0, 1]", 0 < self.head_fraction <= 1)
        require("ema_decay", self.ema_decay, "in [0, 1)", 0 <= self.ema_decay < 1)
        if not any(getattr(self, name) for name in LOSS_WEIGHTS):
            raise ValueError(f"At least one of {list(LOSS_WEIGHTS)} must be positive, got 0 for all.")

    @property
    def needs_states(self) -> bool:
        """Whether a loss compares with the target's final hidden states."""
        return self.regression_weight > 0 or self.soft_label_weight > 0
