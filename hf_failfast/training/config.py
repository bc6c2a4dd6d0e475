"""Settings of data synthesis and of training, checked where they are made; most are options of `hf-failfast train`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..drafters.spec import LEAST_WINDOW, OWN_WINDOW
from .options import option

Attention = Literal["causal_canvas", "block_causal"]
Form = Literal["canvas", "dflash"]
Layout = Literal["z-lab", "speculators"]
Optimizer = Literal["adamw", "adamw8bit"]
DRAFT_VOCABULARY = 8192
CanvasAttention = Literal["causal_canvas", "block_causal", "causal"]  # the last is that of a LoRA
LOSS_WEIGHTS = (
    "cross_entropy_weight",
    "focal_weight",
    "chain_weight",
    "streak_weight",
    "soft_label_weight",
    "regression_weight",
)
MOST_RANK = 1024
# The settings of drafters that have layers of their own.
NOT_OF_LORA = (
    "form",
    "attention",
    "conditioned",
    "layers",
    "intermediate_size",
    "draft_vocabulary",
    "coverage",
    "drafter_window",
)
SELF_WRITTEN, NATURAL = "self-written", "natural"
SEED = "Decides the data and the training."  # one option of both


def require(name: str, value: float, bound: str, holds: bool) -> None:
    """Raises a ValueError that names the field, its bound and the value unless `holds`."""
    if not holds:
        raise ValueError(f"`{name}` must be {bound}, got {value}.")


def named_sources(names: Sequence[str]) -> str | tuple[str, ...] | None:
    """One source as it is, several as a mixture."""
    return tuple(names) if len(names) > 1 else next(iter(names), None)


def layer_numbers(text: str) -> tuple[int, ...]:
    """Layer numbers separated by commas. Raises ValueError on anything else."""
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ValueError(f"`layers` must be layer numbers separated by commas, such as 0,1,2,29, but is {text!r}.")
    return tuple(int(part) for part in text.split(","))


@dataclass(frozen=True)
class DataConfig:
    """What decides the prompts and answers; the same values give the same data."""

    # Several are mixed, a shard of each in turn.
    source: str | tuple[str, ...] | None = option(
        None,
        "self-written, natural, or as --prompts; given more than once, they are mixed.",
        shown=SELF_WRITTEN,
        kind=list[str],
        read=named_sources,
    )
    prompts: str | None = option(None, "A .txt or .jsonl file, or a dataset's name.", shown="none")
    # Training leaves them out.
    unseen: str | None = option(None, "As --prompts: what decoding is measured on.", shown="64 of the package's own")
    records: str = option("prompts", "What the source holds: prompts to answer, or texts.")
    field: str | None = option(None, "Where a record's text is.", shown="prompt or text")
    questions: int = option(2400, "Prompts to answer.", shown="enough for the steps, at most 2400")
    answer_tokens: int = option(192, "Longest answer; texts are cut there.")
    prompt_tokens: int = option(512, "Longer prompts are left out.")
    question_tokens: int = 64  # a self-written question that is not finished by then is dropped
    sampled_answers: int = option(0, "Drawn answers per question beside the greedy one.")
    answer_temperature: float = option(1.0, "Of the sampled answers.")
    # Without them training computes what it needs.
    store_states: bool = option(True, "Keep the target's final hidden states with the data.")
    batch_size: int = option(128, "Questions answered at once.", name="synthesis_batch_size")
    shard_questions: int = 256  # candidates per shard; a killed run loses at most one shard
    temperature: float = 0.9  # of the self-written questions
    top_k: int = 64
    seed: int = option(0, SEED)

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
        if self.prompts is not None and self.source is not None:
            raise ValueError(f"`prompts` takes the place of `source`, got {self.prompts!r} beside {self.source!r}.")
        if isinstance(self.source, tuple) and not 1 < len(self.source) == len(set(self.source)):
            raise ValueError(f"`source` must name one source or several different ones, got {self.source!r}.")
        if self.records == "texts" and (any(part.file is None for part in self.parts) or self.sampled_answers):
            raise ValueError("`records` 'texts' needs a `source`, and has no `sampled_answers`.")

    @property
    def parts(self) -> "tuple[DataConfig, ...]":
        """The settings of each source of a mixture; of one source these."""
        if not isinstance(self.source, tuple):
            return (self,)
        return tuple(replace(self, source=name) for name in self.source)

    @property
    def origin(self) -> str:
        """Who writes the prompts of one source: SELF_WRITTEN, NATURAL, or where `file` has them."""
        assert not isinstance(self.source, tuple)
        return self.prompts or self.source or SELF_WRITTEN

    @property
    def file(self) -> str | None:
        """The file or dataset that holds the prompts or texts, if one does."""
        return None if self.origin in (SELF_WRITTEN, NATURAL) else self.origin


@dataclass(frozen=True)
class TrainingConfig:
    """How a drafter is trained; at least one of `steps` and `minutes` ends it. A loss of weight 0 is not computed."""

    steps: int | None = option(None, "Training ends after this many steps.")
    # Data synthesis is not counted.
    minutes: float | None = option(None, "Training ends after this many minutes.", shown="60 without steps")
    form: Form = option("canvas", "canvas, or dflash for DFlash's own format.", kind=str)
    # Nothing in another form.
    layout: Layout = option("z-lab", "Of a dflash checkpoint: z-lab or speculators.", kind=str)
    attention: Attention = option("causal_canvas", "causal_canvas or block_causal.", kind=str)
    conditioned: bool = option(False, "Let the drafter read the target's hidden states.")
    lora: bool = option(False, "Train a LoRA with which the target drafts for itself.")
    lora_rank: int = option(32, "Rank of its updates; nothing without --lora.")
    # Nothing where the drafter is not conditioned.
    input_fusion: bool = option(True, "A conditioned drafter's input holds the target's states too.")
    extended: float = option(0.25, "Of a conditioned drafter's canvases: those that continue a draft.")
    initial: str | None = option(
        None, "Folder of a drafter to start from.", shown="the target's layers", kind=Path, read=str
    )
    layers: tuple[int, ...] | None = option(
        None,
        "Layers of the target, such as 0,1,2,29.",
        shown="the first three and the last; the last four if conditioned or dflash",
        kind=str,
        read=layer_numbers,
    )
    intermediate_size: int | None = option(None, "MLP neurons kept in every layer.", shown="all")
    canvas_length: int = option(8, "Draft positions per pass; the block of block_causal.")
    # In training and in drafting.
    drafter_window: int = option(OWN_WINDOW, "The most tokens of a text that the drafter sees; 0 for all.")
    # The most frequent ids of the answers: the head is the dearest part of a small drafter.
    draft_vocabulary: int | None = option(
        None, "Ids the drafter can propose; 0 for all.", shown="8192; all in z-lab's layout"
    )
    coverage: float | None = option(
        None, "Share of the answers' tokens that these ids must hold, such as 0.985.", shown="by --draft-vocabulary"
    )
    batch_size: int = option(4, "Sequences per process and micro-step.")
    accumulation: int = option(1, "Micro-steps per optimizer step.")
    anchors: int = option(24, "Canvases per sequence and step.")
    optimizer: Optimizer = option("adamw", "adamw, or adamw8bit for a third of the checkpoint.", kind=str)
    learning_rate: float = option(1.5e-3, "Peak learning rate.")
    warmup_steps: int = 50
    clip: float = 1.0  # gradient norm
    ema_decay: float = option(0.0, "Of averaged weights; 0 for none.")  # these are evaluated and exported
    cross_entropy_weight: float = option(0.3, "Of the cross-entropy with the answers.")
    focal_weight: float = option(0.0, "Of the cross-entropy at the first wrong position.")
    chain_weight: float = option(0.0, "Of the expected accepted length, greedy answers.")
    streak_weight: float = option(0.0, "Of the expected accepted length, sampled answers.")
    soft_label_weight: float = option(0.0, "Of the divergence from the target's top tokens.")
    soft_label_top: int = 64  # of the target's tokens
    # In place of the position decay.
    reach_alpha: float | None = option(
        None, "Weighs the cross-entropy by the chance that a position is reached, such as 0.5.", shown="by position"
    )
    regression_weight: float = option(1.0, "Of the regression to the target's hidden states.")
    clean_weight: float = 0.5  # of the regression at clean rows, against 1 at canvas rows
    position_decay: float = option(4.5, "g of the weights exp(-(k - 1) / g); 0 for equal ones.")
    head_fraction: float = 0.5  # of the rows, drawn anew every step: the head is the dear part of a CPU step
    evaluation_steps: int = option(200, "Steps between evaluations and checkpoints.")
    held_out_anchors: int = 8  # per held-out answer
    seed: int = option(0, SEED)

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("`steps` or `minutes` must be given, got neither.")
        if self.attention not in get_args(Attention):
            raise ValueError(f"`attention` must be one of {list(get_args(Attention))}, got {self.attention!r}.")
        self._check_form()
        if self.conditioned and self.attention != "causal_canvas":
            raise ValueError("`conditioned` needs attention 'causal_canvas', got 'block_causal'.")
        self._check_lora()
        if self.steps is not None:
            require("steps", self.steps, "at least 1", self.steps >= 1)
        if self.minutes is not None:
            require("minutes", self.minutes, "positive", self.minutes > 0)
        require("canvas_length", self.canvas_length, "at least 2", self.canvas_length >= 2)
        window = self.drafter_window
        require("drafter_window", window, f"0 or at least {LEAST_WINDOW}", window == 0 or window >= LEAST_WINDOW)
        counts = ("batch_size", "accumulation", "anchors", "soft_label_top", "evaluation_steps", "held_out_anchors")
        for name in counts:
            require(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        for name in ("learning_rate", "clip"):
            require(name, getattr(self, name), "positive", getattr(self, name) > 0)
        for name in ("warmup_steps", "position_decay", "clean_weight", "seed", *LOSS_WEIGHTS):
            require(name, getattr(self, name), "at least 0", getattr(self, name) >= 0)
        require("extended", self.extended, "in [0, 1)", 0 <= self.extended < 1)
        for name in ("coverage", "reach_alpha"):
            share = getattr(self, name)
            require(name, share, "in [0, 1]", share is None or 0 <= share <= 1)
        require("head_fraction", self.head_fraction, "in (0, 1]", 0 < self.head_fraction <= 1)
        require("ema_decay", self.ema_decay, "in [0, 1)", 0 <= self.ema_decay < 1)

    def _check_form(self) -> None:
        known_values = {"form": get_args(Form), "layout": get_args(Layout), "optimizer": get_args(Optimizer)}
        for name, known in known_values.items():
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {list(known)}, got {getattr(self, name)!r}.")
        if self.form == "dflash" and (self.conditioned or self.attention != "causal_canvas"):
            raise ValueError(
                "`form` 'dflash' has its own way to read states and blocks: no `conditioned`, `attention`."
            )
        if self.form == "dflash" and self.drafter_window != OWN_WINDOW:
            raise ValueError(
                f"`drafter_window` needs `form` 'canvas', got {self.drafter_window}: DFlash reads the whole text."
            )
        if self.form != "dflash" and self.layout != "z-lab":
            raise ValueError(f"`layout` {self.layout!r} needs `form` 'dflash'.")
        if self.has_whole_head and (self.coverage is not None or self.draft_vocabulary):
            raise ValueError(
                "`draft_vocabulary` and `coverage` need `layout` 'speculators': in z-lab's the head is the target's."
            )
        require("draft_vocabulary", self.vocabulary_size, "at least 0", self.vocabulary_size >= 0)

    @property
    def has_whole_head(self) -> bool:
        """Whether the checkpoint's format knows no head but the target's."""
        return self.form == "dflash" and self.layout == "z-lab"

    @property
    def vocabulary_size(self) -> int:
        """`draft_vocabulary`, or what follows from the form where it is not given."""
        if self.draft_vocabulary is not None:
            return self.draft_vocabulary
        return 0 if self.has_whole_head else DRAFT_VOCABULARY

    def settings(self) -> dict[str, Any]:
        """As a checkpoint and training.json keep them."""
        return asdict(self) | {"draft_vocabulary": self.vocabulary_size}

    @property
    def window(self) -> int:
        """The most tokens of a text that the drafter sees, in training as in drafting; 0: all."""
        return self.drafter_window if self.form == "canvas" and not self.lora else 0

    @property
    def reads_states(self) -> bool:
        """Whether the drafter reads hidden states of the target, and so drafts from the second round on."""
        return self.conditioned or self.form == "dflash"

    def _check_lora(self) -> None:
        """Raises ValueError on a rank out of its range, and for a LoRA on a setting of drafters with own layers."""
        require("lora_rank", self.lora_rank, f"in [1, {MOST_RANK}]", 1 <= self.lora_rank <= MOST_RANK)
        for each in fields(self):
            value = getattr(self, each.name)
            if self.lora and each.name in NOT_OF_LORA and value != each.default:
                raise ValueError(f"`{each.name}` does not fit `lora`, whose layers are the target's, got {value!r}.")

    @property
    def canvas_attention(self) -> CanvasAttention:
        """What a canvas sees. A LoRA's is causal, so that a draft may be shorter than those it was trained on, and any
        attention implementation of the target will do."""
        return "causal" if self.lora else self.attention

    @property
    def needs_states(self) -> bool:
        """Whether a loss compares with the target's final hidden states."""
        return self.regression_weight > 0 or self.soft_label_weight > 0
