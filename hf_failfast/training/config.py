"""Settings of data synthesis and of training, checked where they are made."""

from dataclasses import dataclass


def require(name: str, value: float, bound: str, holds: bool) -> None:
    """Raises a ValueError that names the field, its bound and the value unless `holds`."""
    if not holds:
        raise ValueError(f"`{name}` must be {bound}, got {value}.")


@dataclass(frozen=True)
class DataConfig:
    """What decides the synthesised questions and answers; the same values give the same data."""

    questions: int = 2400
    question_tokens: int = 64  # a question that is not finished by then is dropped
    answer_tokens: int = 192
    batch_size: int = 128  # rows of one `generate` call
    shard_questions: int = 256  # candidates per shard; a killed run loses at most one shard
    temperature: float = 0.9  # of the questions; the answers are greedy
    top_k: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("questions", "question_tokens", "answer_tokens", "batch_size", "shard_questions", "top_k")
        for name in counts:
            require(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        require("temperature", self.temperature, "positive", self.temperature > 0)
        require("seed", self.seed, "at least 0", self.seed >= 0)


@dataclass(frozen=True)
class TrainingConfig:
    """How a drafter is trained; at least one of `steps` and `minutes` ends it."""

    steps: int | None = None
    minutes: float | None = None  # of training; data synthesis is not counted
    layers: tuple[int, ...] | None = None  # of the target; None is the first three and the last
    canvas_length: int = 8  # K, draft positions per pass
    draft_vocabulary: int = 8192  # most frequent ids of the answers that can be drafted; 0 is the full vocabulary
    batch_size: int = 4
    anchors: int = 24  # canvases per sequence, drawn anew every step
    learning_rate: float = 1.5e-3
    warmup_steps: int = 50
    clip: float = 1.0  # gradient norm
    position_decay: float = 4.5  # draft position k weighs exp(-(k - 1) / position_decay)
    cross_entropy_weight: float = 0.3
    cross_entropy_fraction: float = 0.5  # of the rows, drawn anew every step: the head is the dear part of a CPU step
    regression_weight: float = 1.0
    clean_weight: float = 0.5  # of the regression at clean rows, against 1 at mask rows
    evaluation_steps: int = 200  # evaluates, exports and writes a checkpoint
    held_out_anchors: int = 8  # per held-out answer
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("`steps` or `minutes` must be given, got neither.")
        require("steps", self.steps or 1, "at least 1", (self.steps or 1) >= 1)
        require("minutes", self.minutes or 1, "positive", (self.minutes or 1) > 0)
        require("canvas_length", self.canvas_length, "at least 2", self.canvas_length >= 2)
        for name in ("batch_size", "anchors", "evaluation_steps", "held_out_anchors"):
            require(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        for name in ("learning_rate", "clip", "position_decay"):
            require(name, getattr(self, name), "positive", getattr(self, name) > 0)
        weights = ("cross_entropy_weight", "regression_weight", "clean_weight")
        for name in ("draft_vocabulary", "warmup_steps", *weights, "seed"):
            require(name, getattr(self, name), "at least 0", getattr(self, name) >= 0)
        fraction = self.cross_entropy_fraction
        require("cross_entropy_fraction", fraction, "in (0, 1]", 0 < fraction <= 1)
