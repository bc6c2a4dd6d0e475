"""The options of FailFast, validated once."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# What `length_policy` may name: see `policies.POLICIES`.
LENGTH_POLICIES = ("confidence", "goodput", "diffuspec")
# What `verifier` may name: see `decoding.verification`.
VERIFIERS = ("sample_and_match", "rejection")
# The most nodes of a `draft_tree`: one bit of an integer says of each whether a token sees it.
MOST_NODES = 64
# The tokens that `goodput` lets the text suggest at most.
LONGEST_TAIL = 32
# (scores, draft ids (B, k), the distributions (B, k, V) they were drawn from or None) -> the target's tokens (B, m):
# see `decoding.verification`.
Verifier = Callable[[Any, "torch.Tensor", "torch.Tensor | None"], "torch.Tensor"]


@dataclass(frozen=True)
class FailFastConfig:
    """How long drafts get, and how samples verify them. Defaults: FailFast (arXiv 2512.20573), section 5.

    confidence_threshold: tau in [0, 1]; the draft grows while every confidence of its newest chunk is >= tau.
    chunk_length: N >= 1, the tokens one drafting step adds.
    max_draft_length: N_max >= 1, the cap on the tokens of one draft; it also cuts a chunk that would exceed it.
    verifier: what the target's samples do with a draft; greedy decoding needs none. Both named ones give exactly the
        target's distribution. `sample_and_match`: the drafter proposes its most likely tokens, and those that equal
        the target's own samples stay. `rejection`: the drafter's tokens are samples too, and speculative sampling
        (arXiv 2211.17192; with diffusion drafters SpecDiff, arXiv 2408.05636) accepts them by min(1, p / q). Drafters
        that cannot sample (`mode="reference"`, another tokenizer) have a one-hot q, for which the two are the same.
        Or your own function, with the signature of those in `decoding.verification`: its drafts are samples, and the
        tokens it returns are the text.
    draft_temperature: > 0, of the drafter's q; None: the request's `temperature`. The request's top-k, top-p and other
        warpers shape q as they shape p. For verifiers whose drafts are samples.
    length_policy: `confidence`, the rule of these three numbers; or `goodput`, which needs none of them: it measures
        what drafting and verifying cost on this machine and learns what confidence is worth (`policies.goodput`); or
        `diffuspec` (arXiv 2510.02358), drafts of one chunk of N to N_max tokens by what was drafted and accepted of
        late (`policies.diffuspec`), in which the best path through the drafter's candidates takes the place of its
        most likely tokens (`decoding.path_search`). Or a `LengthPolicy` object.
        `goodput` also chooses, round by round, among trees, tails and reuse where they are left out (None); with the
        others, left out means off.
    draft_tree: 0, or up to 64: how many tokens a round verifies as a tree that has the draft as its stem and branches
        to the drafter's other likely tokens (`decoding.trees`). A draft of as many tokens stays a chain.
    draft_lookup: 0, or up to 64: how many tokens the text so far may add to a draft, if it has the draft's sure end
        in it (`decoding.lookup`). In a tree they are a branch.
    self_selection: K, from 1 (off) to 64: K drafts of one pass, the drafter's own and others sampled from the same
        distributions at several temperatures, are verified together as paths of a tree of `draft_tree` nodes, or 64;
        the longest accepted one stays (SpecDiff-2, arXiv 2511.00606). Not for drafts that are samples themselves.
    draft_reuse: whether the rest of a rejected draft is proposed again where it meets the text (`decoding.reuse`).
    exact: whether the target's forwards round each token as if it were alone, so that in every dtype the text is,
        bit for bit, the one that the same forwards write without drafts (`engine.exact`). For chains, on a CPU.
    overlap: whether the next draft is made while the target verifies this one, for the case that all of it is accepted
        (`drafters.wrappers.overlap`); for `length_policy="confidence"`, and best on two devices.
    """

    confidence_threshold: float = 0.45
    chunk_length: int = 10
    max_draft_length: int = 60
    verifier: str | Verifier = "sample_and_match"
    draft_temperature: float | None = None
    length_policy: str | object = "confidence"
    draft_tree: int | None = None
    draft_lookup: int | None = None
    draft_reuse: bool | None = None
    self_selection: int = 1
    exact: bool = False
    overlap: bool = False

    def __post_init__(self) -> None:
        tau = self.confidence_threshold
        if isinstance(tau, bool) or not isinstance(tau, Real) or math.isnan(tau) or not 0 <= tau <= 1:
            raise ValueError(f"`confidence_threshold` must be a number in [0, 1], but is {tau!r}.")
        for name in ("chunk_length", "max_draft_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ValueError(f"`{name}` must be an integer >= 1, but is {value!r}.")
        if not callable(self.verifier) and self.verifier not in VERIFIERS:
            raise ValueError(
                f"`verifier` must be one of {list(VERIFIERS)}, but is {self.verifier!r}; a function is taken, too."
            )
        policy = self.length_policy
        is_object = hasattr(policy, "should_extend") and not isinstance(policy, type)
        if not is_object and policy not in LENGTH_POLICIES:
            raise ValueError(
                f"`length_policy` must be one of {list(LENGTH_POLICIES)}, but is {policy!r}; an object of a "
                "LengthPolicy is taken, too."
            )
        self._check_strategies()
        self._check_draft_temperature()

    def _check_draft_temperature(self) -> None:
        value = self.draft_temperature
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
            raise ValueError(f"`draft_temperature` must be a finite number > 0 or None, but is {value!r}.")
        if not self.draws_drafts:
            raise ValueError(
                f"`draft_temperature`={value!r} needs `verifier='rejection'`, but that is {self.verifier!r}."
            )
        if self.searches_paths:
            raise ValueError(
                f"`draft_temperature`={value!r} needs drafts that are samples, but `length_policy='diffuspec'` "
                "searches a path through the drafter's most likely tokens."
            )

    def _check_strategies(self) -> None:
        for name, lowest in (("draft_tree", 0), ("draft_lookup", 0), ("self_selection", 1)):
            value: Any = getattr(self, name)
            if value is None and name != "self_selection":
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or not lowest <= int(value) <= MOST_NODES:
                raise ValueError(f"`{name}` must be an integer from {lowest} to {MOST_NODES}, but is {value!r}.")
        if self.self_selection > 1 and self.draws_drafts:
            raise ValueError(
                f"`self_selection`={self.self_selection} needs `verifier='sample_and_match'`, whose drafts are no "
                f"samples, but that is {self.verifier!r}."
            )
        for name in ("draft_reuse", "exact", "overlap"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (value is None and name == "draft_reuse"):
                raise ValueError(f"`{name}` must be True or False, but is {value!r}.")
        is_other_rule = isinstance(self.length_policy, str) and self.length_policy != "confidence"
        if self.overlap and (is_other_rule or self.exact):
            other = "exact" if self.exact else "length_policy"
            needed = "`exact`=False" if self.exact else "`length_policy`='confidence'"
            raise ValueError(
                f"`overlap`=True needs {needed}, but that is {getattr(self, other)!r}: a draft is made before the "
                "round before it is over."
            )
        if self.exact and self.most_nodes:
            name = "draft_tree" if self.draft_tree else "self_selection"
            raise ValueError(
                f"`exact`=True needs chains, but `{name}` is {getattr(self, name)}: the tokens of a tree do not stand "
                "where they would without drafts, so that attention adds them up in another order."
            )
        if self.draft_tree and self.verifier not in VERIFIERS:
            raise ValueError(
                f"`draft_tree`={self.draft_tree} needs one of the verifiers {list(VERIFIERS)}: a function of your own "
                "judges a chain."
            )

    def settled(self, can_branch: bool) -> "FailFastConfig":
        """The same with a value for every strategy that was left out: what `goodput` may choose up to, else off.

        can_branch: whether the target can verify trees, and the drafter make them.
        """
        chooses = self.length_policy == "goodput"
        branches = chooses and can_branch and not self.exact and self.verifier in VERIFIERS
        left_out: dict[str, Any] = {
            "draft_tree": MOST_NODES if branches else 0,
            "draft_lookup": LONGEST_TAIL if chooses else 0,
            "draft_reuse": chooses,
        }
        return replace(self, **{name: value for name, value in left_out.items() if getattr(self, name) is None})

    @property
    def most_nodes(self) -> int:
        """Tokens of a tree at most; 0 where drafts are chains."""
        return self.draft_tree or (MOST_NODES if self.self_selection > 1 else 0)

    @property
    def searches_paths(self) -> bool:
        """Whether drafts become paths through the drafter's candidates; a tree verifies these candidates instead."""
        return self.length_policy == "diffuspec" and not self.most_nodes

    @property
    def proposes_more(self) -> bool:
        """Whether rounds propose other tokens than the drafter's own drafts."""
        return bool(self.most_nodes or self.draft_lookup or self.draft_reuse or self.searches_paths)

    @property
    def draws_drafts(self) -> bool:
        """Whether the verifier wants the drafter's tokens to be samples when the target's are."""
        return self.verifier != "sample_and_match"

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The option names a caller may pass as keywords."""
        return tuple(field.name for field in fields(cls))

    def with_options(self, options: Mapping[str, Any]) -> "FailFastConfig":
        """A copy with the given options changed. Raises ValueError on an unknown name or an out-of-range value."""
        unknown = sorted(set(options) - set(self.field_names()))
        if unknown:
            raise ValueError(f"Unknown FailFast option {unknown}; the options are {list(self.field_names())}.")
        return replace(self, **options)
