"""Routers: how a token's logits over the experts become its experts and their weights."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from trainer.config.section import Section, kind_defaults_to

_NEVER_LEARNS = "it never learns which tokens can do without their experts"
_NOT_BY_SCORE = "its choice is not that of the best scores, whose quantiles the method takes"


class RouterSection(Section):
    """What every router's config has besides its fields."""

    is_learned: ClassVar[bool] = True
    """Whether the choice depends on weights that training moves, so that a balancing method can act on it."""

    looks_ahead: ClassVar[bool] = False
    """Whether in training a token's experts depend on later tokens, so that the training loss may be flattered."""

    refuses_capacity: ClassVar[str | None] = None
    """Why experts cannot be given a capacity (`moe.capacity`), or None if they can."""

    refuses_null_experts: ClassVar[str | None] = None
    """Why there can be no null experts (`moe.num_null_experts`), or None if there can."""

    def check_fit(self, *, num_experts: int, top_k: int) -> None:
        """Raises ValueError, naming the field, if this router cannot choose `top_k` of `num_experts`."""
        del num_experts, top_k

    def refuses_balancing(self, kind: str) -> str | None:
        """Returns why balancing methods of this kind cannot act on this learned router, or None if they can."""
        del kind
        return None

    @property
    def evaluates_ahead(self) -> bool:
        """Whether in evaluation too, so that held-out figures may be flattered as well."""
        return False

    def experts_per_token(self, top_k: int) -> float:
        """Returns the experts a token has on average."""
        return float(top_k)


class LearnedRouterSection(RouterSection):
    """A router that scores the experts by a linear map of the token."""

    score: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    """Divide the chosen experts' scores by their sum; of softmax scores that is the softmax over the chosen alone."""
    scale: float = Field(default=1.0, gt=0, le=100)
    """Factor on the weights after normalising (DeepSeek's routed scaling factor)."""
    bias: bool = False
    """A learned bias per expert on the logits (gpt-oss, arXiv:2508.10925); unlike a selection bias it also weighs."""
    input_jitter: float = Field(default=0.0, ge=0, lt=1)
    """In training, multiply what the router sees by uniform noise within 1 +/- this (Fedus et al. 2021,
    arXiv:2101.03961, appendix C: 0.01); the experts see the token as it is."""
    logit_noise: float = Field(default=0.0, ge=0, le=100)
    """In training, add Gaussian noise of this standard deviation over the number of logits to the logits (Riquelme et
    al. 2021, V-MoE, arXiv:2106.05974, section 2: 1), before anything is made of them."""


class TopKRouterConfig(LearnedRouterSection):
    """Token choice: every token takes its `top_k` best experts.

    Source: Shazeer et al. 2017, arXiv:1701.06538; sigmoid scores: DeepSeek-V3, arXiv:2412.19437, eq. 12-16.
    """

    kind: Literal["top_k"] = "top_k"


class GroupLimitedRouterConfig(LearnedRouterSection):
    """Token choice within the best groups of experts, as when each group lives on a node of its own.

    The experts stand in `num_groups` groups of equal size; a token takes its `top_k` best experts of its
    `groups_per_token` best groups.

    Source: DeepSeek-V2, arXiv:2405.04434, section 2.2.2 (a group counts as its best expert); DeepSeek-V3,
    arXiv:2412.19437, section 2.1.2 (as the sum of its best two, for 8 experts in 4 groups).
    """

    refuses_null_experts: ClassVar[str | None] = "a null expert stands in no group"

    kind: Literal["group_limited"] = "group_limited"
    num_groups: int = Field(ge=1, le=1024)
    groups_per_token: int = Field(ge=1, le=1024)
    group_score: Literal["best", "best_two"] = "best_two"
    """What a group counts as: its best score, or the sum of its best two."""

    def check_fit(self, *, num_experts: int, top_k: int) -> None:
        if num_experts % self.num_groups:
            raise ValueError(
                f"router.num_groups={self.num_groups} does not divide num_experts={num_experts}; choose a divisor"
            )
        group_size = num_experts // self.num_groups
        if self.groups_per_token > self.num_groups:
            raise ValueError(
                f"router.groups_per_token={self.groups_per_token} exceeds num_groups={self.num_groups}; lower it"
            )
        if self.group_score == "best_two" and group_size < 2:
            raise ValueError(
                f"router.group_score=best_two needs groups of 2 experts or more, num_groups={self.num_groups} makes "
                "them one expert each; use best, or fewer groups"
            )
        if self.groups_per_token * group_size < top_k:
            raise ValueError(
                f"router.groups_per_token={self.groups_per_token} groups of {group_size} experts hold fewer than "
                f"top_k={top_k}; raise it"
            )

    def refuses_balancing(self, kind: str) -> str | None:
        return _NOT_BY_SCORE if kind == "quantile_balancing" else None


class SinkhornRouterConfig(LearnedRouterSection):
    """Token choice by an assignment whose load is even: in training the scores of a micro-batch are balanced first.

    In training a choice therefore depends on all tokens of the micro-batch, later ones included; evaluation chooses
    by the scores alone. The weights are those of the scores in both.

    Source: S-BASE of Clark et al. 2022, arXiv:2202.01169.
    """

    looks_ahead: ClassVar[bool] = True

    kind: Literal["sinkhorn"] = "sinkhorn"
    num_iterations: int = Field(default=8, ge=1, le=100)
    """Times that loads and then tokens are normalised."""

    def refuses_balancing(self, kind: str) -> str | None:
        return _NOT_BY_SCORE if kind == "quantile_balancing" else None


class ExpertChoiceRouterConfig(LearnedRouterSection):
    """Expert choice: every expert takes its C best tokens of a group, so the load is even by construction.

    C = ceil(capacity_factor * S * top_k / num_experts) for a group of S tokens: a token has capacity_factor * top_k
    experts on average, possibly none, possibly all. Whether an expert takes a token depends on the other tokens of
    the group, later ones included: a model trained so knows something of the future, and cannot generate text.
    `predictor` stands in for the choice where that matters; without it evaluation looks ahead as well, among the
    tokens of each sequence.

    Source: Zhou et al. 2022, arXiv:2202.09368, section 3.2; what looking ahead does to the loss: Wang et al. 2024,
    arXiv:2408.15664, section 5.2.
    """

    looks_ahead: ClassVar[bool] = True

    refuses_capacity: ClassVar[str | None] = "it has one of its own, router.capacity_factor, and drops nothing"
    refuses_null_experts: ClassVar[str | None] = "a null expert would take tokens that others also take"

    kind: Literal["expert_choice"] = "expert_choice"
    normalize: bool = False
    """Has to be false: the weights are the scores. A token that one expert took would always have a weight of 1."""
    capacity_factor: float = Field(default=1.0, gt=0, le=64)
    """Experts per token, on average, in units of `top_k`."""
    scope: Literal["micro_batch", "sequence"] = "micro_batch"
    """The group that an expert chooses from in training: the tokens of a micro-batch, or of each sequence in it."""
    predictor: bool = False
    """Also train a linear map of the token to tell which experts will take it, and evaluate with that: an expert then
    takes the tokens it is predicted to take with a probability above one half, at most 4 times the average number of
    experts per token. No gradient of it reaches the rest of the model.

    Source: Raposo et al. 2024 (Mixture-of-Depths), arXiv:2404.02258, section 3.5, the second method."""
    predictor_coefficient: float = Field(default=0.01, gt=0, le=10)
    """Factor on the predictor's loss, the binary cross entropy in nats, mean over tokens, experts and layers. Small,
    so that it counts little in the norm that gradients are clipped by; Adam does not mind the scale."""

    @field_validator("normalize")
    @classmethod
    def _weighs_with_scores(cls, normalize: bool) -> bool:
        if normalize:
            raise ValueError("normalize=true would weigh every token alike that one expert took; leave it out")
        return normalize

    def check_fit(self, *, num_experts: int, top_k: int) -> None:
        if self.experts_per_token(top_k) > num_experts:
            raise ValueError(
                f"router.capacity_factor={self.capacity_factor:g} gives a token {self.experts_per_token(top_k):g} "
                f"experts on average at top_k={top_k}, more than num_experts={num_experts}; lower it to at most "
                f"{num_experts / top_k:g}"
            )

    def refuses_balancing(self, kind: str) -> str | None:
        uneven = self.scope == "micro_batch"  # within one sequence
        if kind == "router_z_loss" or (kind == "sequence_balancing_loss" and uneven):
            return None
        return "every expert takes equally many tokens as it is"

    @property
    def evaluates_ahead(self) -> bool:
        return not self.predictor

    def experts_per_token(self, top_k: int) -> float:
        return self.capacity_factor * top_k

    def capacity(self, group_size: int, *, num_experts: int, top_k: int) -> int:
        """Returns C, the tokens each expert takes of a group of `group_size`: 1 to `group_size`."""
        # 0.1 * 30 is 3.0000000000000004, which is no reason to take a fourth token.
        tokens = math.ceil(self.experts_per_token(top_k) * group_size / num_experts - 1e-9)
        return min(max(tokens, 1), group_size)


class HashRouterConfig(RouterSection):
    """Every token of the vocabulary has its `top_k` experts from the start, by a hash; their weights are equal.

    Source: Roller et al. 2021, arXiv:2106.04426, random hash.
    """

    is_learned: ClassVar[bool] = False

    refuses_capacity: ClassVar[str | None] = _NEVER_LEARNS
    refuses_null_experts: ClassVar[str | None] = _NEVER_LEARNS

    kind: Literal["hash"] = "hash"
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Another seed is another hash."""


class RandomRouterConfig(RouterSection):
    """`top_k` random experts for every token, drawn anew each time, of equal weight: the control of all the others."""

    is_learned: ClassVar[bool] = False

    refuses_capacity: ClassVar[str | None] = _NEVER_LEARNS
    refuses_null_experts: ClassVar[str | None] = _NEVER_LEARNS

    kind: Literal["random"] = "random"


RouterConfig = Annotated[
    TopKRouterConfig
    | GroupLimitedRouterConfig
    | SinkhornRouterConfig
    | ExpertChoiceRouterConfig
    | HashRouterConfig
    | RandomRouterConfig,
    Field(discriminator="kind"),
    kind_defaults_to("top_k"),
]
