"""Optimizers and their parameter groups."""

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.section import Section, kind_defaults_to

ParameterRole = Literal["dense", "router", "expert", "embedding"]
"""Every parameter has one role. `dense` is what is none of the others: attention, dense MLPs, shared experts, norms."""

LearningRate = Annotated[float, Field(gt=0, le=10)]


class RateOverrides(Section):
    """Learning rate and decay of a parameter group; a missing value is the optimizer's own."""

    lr_scale: float = Field(default=1.0, gt=0, le=1000)
    """Factor on the optimizer's learning rate."""
    weight_decay: float | None = Field(default=None, ge=0, le=10)


class RouterRateOverrides(RateOverrides):
    """As the others, but routers are not decayed unless asked for: decay pulls their logits towards uniform routing."""

    weight_decay: float | None = Field(default=0.0, ge=0, le=10)


class GroupOverrides(RateOverrides):
    """What a parameter group does differently; a missing value is the optimizer's own."""

    beta1: float | None = Field(default=None, ge=0, lt=1)
    beta2: float | None = Field(default=None, ge=0, lt=1)


class RouterOverrides(GroupOverrides):
    """As the others, but routers are not decayed unless asked for: decay pulls their logits towards uniform routing."""

    weight_decay: float | None = Field(default=0.0, ge=0, le=10)


class MomentumOverrides(RateOverrides):
    """What a group of orthogonalised matrices does differently; a missing value is the optimizer's own."""

    momentum: float | None = Field(default=None, ge=0, lt=1)


class AdamWConfig(Section):
    """AdamW with one group per parameter role.

    Norm gains are never decayed. Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """

    kind: Literal["adamw"] = "adamw"
    lr: LearningRate
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0, le=1e-2)
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    dense: GroupOverrides = GroupOverrides()
    router: RouterOverrides = RouterOverrides()
    expert: GroupOverrides = GroupOverrides()
    embedding: GroupOverrides = GroupOverrides()


class MuonConfig(Section):
    """Muon for the matrices of dense layers and of each expert, AdamW for embeddings, routers and all vectors.

    An update is scaled to the size AdamW's would have, so both share one learning rate and one decay.
    Source: Jordan et al. 2024 (Muon); scale: Liu et al. 2025 (Moonlight), arXiv:2502.16982, section 2.2.
    """

    kind: Literal["muon"] = "muon"
    lr: LearningRate
    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    num_iterations: int = Field(default=5, ge=1, le=20)
    """Newton-Schulz iterations per step."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Of AdamW."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Of AdamW."""
    eps: float = Field(default=1e-8, gt=0, le=1e-2)
    """Of AdamW."""
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    dense: MomentumOverrides = MomentumOverrides()
    router: RouterOverrides = RouterOverrides()
    expert: MomentumOverrides = MomentumOverrides()
    embedding: GroupOverrides = GroupOverrides()


class LionConfig(Section):
    """Lion: the sign of an interpolated momentum, one state per parameter.

    Every weight moves by the whole learning rate, so it wants 3 to 10 times less of it than AdamW, and as much more
    decay. Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2.
    """

    kind: Literal["lion"] = "lion"
    lr: LearningRate
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Share of the old momentum in the update."""
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """Share of the old momentum in the new one."""
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    dense: GroupOverrides = GroupOverrides()
    router: RouterOverrides = RouterOverrides()
    expert: GroupOverrides = GroupOverrides()
    embedding: GroupOverrides = GroupOverrides()


class AdafactorConfig(Section):
    """Adafactor: second moments as a row and a column per matrix, updates relative to the size of the weights.

    `lr` is relative: an update changes a weight matrix by about that share of its root mean square.
    Source: Shazeer and Stern 2018, arXiv:1804.04235, algorithm 4 without momentum.
    """

    kind: Literal["adafactor"] = "adafactor"
    lr: LearningRate
    decay_exponent: float = Field(default=0.8, gt=0, le=1)
    """The second moments' decay at step t is 1 - t**-decay_exponent."""
    clip_threshold: float = Field(default=1.0, gt=0, le=100)
    """Largest root mean square of an update before the learning rate."""
    min_weight_rms: float = Field(default=1e-3, gt=0, le=1)
    """Size that smaller weights are taken to have, so that those at zero can leave it."""
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    dense: RateOverrides = RateOverrides()
    router: RouterRateOverrides = RouterRateOverrides()
    expert: RateOverrides = RateOverrides()
    embedding: RateOverrides = RateOverrides()


class SOAPConfig(Section):
    """SOAP: AdamW in the eigenbasis of Shampoo's preconditioner, for the matrices of dense layers and of each expert.

    Embeddings, routers and all vectors are left to AdamW, with the same betas. An M x N matrix keeps 2*M*N numbers as
    in AdamW and 2*M*M + 2*N*N more. Source: Vyas et al. 2024, arXiv:2409.11321, algorithm 3, whose defaults these are.
    """

    kind: Literal["soap"] = "soap"
    lr: LearningRate
    beta1: float = Field(default=0.95, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Of the second moments, and of the matrices whose eigenvectors are the bases."""
    eps: float = Field(default=1e-8, gt=0, le=1e-2)
    refresh_every: int = Field(default=10, ge=1, le=100_000)
    """Steps between refreshes of the bases."""
    max_dim: int = Field(default=8192, ge=1, le=1_000_000)
    """Longest side of a matrix that gets a basis; a longer one stays as it is."""
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    dense: GroupOverrides = GroupOverrides()
    router: RouterOverrides = RouterOverrides()
    expert: GroupOverrides = GroupOverrides()
    embedding: GroupOverrides = GroupOverrides()


class ShampooConfig(Section):
    """Shampoo, its steps as long as AdamW's, for the matrices of dense layers and of each expert.

    Embeddings, routers and all vectors are left to AdamW, with the same betas. An M x N matrix keeps 2*M*N numbers as
    in AdamW and 2*M*M + 2*N*N more. Sources: Gupta et al. 2018, arXiv:1802.09568; Shi et al. 2023 (Distributed
    Shampoo), arXiv:2309.06497.
    """

    kind: Literal["shampoo"] = "shampoo"
    lr: LearningRate
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Of the second moments that set a step's length, and of the matrices whose roots set its direction."""
    eps: float = Field(default=1e-8, gt=0, le=1e-2)
    root_eps: float = Field(default=1e-6, gt=0, le=1)
    """Share of the largest eigenvalue that is added to all of them before the root."""
    refresh_every: int = Field(default=10, ge=1, le=100_000)
    """Steps between refreshes of the roots."""
    max_dim: int = Field(default=8192, ge=1, le=1_000_000)
    """Longest side of a matrix that gets a root; a longer one stays as it is."""
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    dense: GroupOverrides = GroupOverrides()
    router: RouterOverrides = RouterOverrides()
    expert: GroupOverrides = GroupOverrides()
    embedding: GroupOverrides = GroupOverrides()


class AdamWRule(RateOverrides):
    """AdamW for one role; see AdamWConfig."""

    kind: Literal["adamw"] = "adamw"
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0, le=1e-2)


class MuonRule(RateOverrides):
    """Muon for the matrices of one role, AdamW with its defaults for the role's vectors; see MuonConfig."""

    kind: Literal["muon"] = "muon"
    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    num_iterations: int = Field(default=5, ge=1, le=20)


class LionRule(RateOverrides):
    """Lion for one role; see LionConfig."""

    kind: Literal["lion"] = "lion"
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)


class AdafactorRule(RateOverrides):
    """Adafactor for one role; see AdafactorConfig."""

    kind: Literal["adafactor"] = "adafactor"
    decay_exponent: float = Field(default=0.8, gt=0, le=1)
    clip_threshold: float = Field(default=1.0, gt=0, le=100)
    min_weight_rms: float = Field(default=1e-3, gt=0, le=1)


class SOAPRule(RateOverrides):
    """SOAP for the matrices of one role, AdamW for the role's vectors; see SOAPConfig."""

    kind: Literal["soap"] = "soap"
    beta1: float = Field(default=0.95, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0, le=1e-2)
    refresh_every: int = Field(default=10, ge=1, le=100_000)
    max_dim: int = Field(default=8192, ge=1, le=1_000_000)


class ShampooRule(RateOverrides):
    """Shampoo for the matrices of one role, AdamW for the role's vectors; see ShampooConfig."""

    kind: Literal["shampoo"] = "shampoo"
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0, le=1e-2)
    root_eps: float = Field(default=1e-6, gt=0, le=1)
    refresh_every: int = Field(default=10, ge=1, le=100_000)
    max_dim: int = Field(default=8192, ge=1, le=1_000_000)


OptimizerRule = Annotated[
    AdamWRule | MuonRule | LionRule | AdafactorRule | SOAPRule | ShampooRule,
    Field(discriminator="kind"),
    kind_defaults_to("adamw"),
]


class ByRoleConfig(Section):
    """Several optimizers at once: each role of parameters has its own, under one schedule.

    A role's learning rate is `lr` times its `lr_scale`: the kinds want rates of different sizes, see their configs.
    """

    kind: Literal["by_role"] = "by_role"
    lr: LearningRate
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    """Of roles that have none of their own; a router without one is not decayed."""
    dense: OptimizerRule = AdamWRule()
    router: OptimizerRule = AdamWRule()
    expert: OptimizerRule = AdamWRule()
    embedding: OptimizerRule = AdamWRule()


class PatternGroup(Section):
    """The parameters whose names match a pattern, and how they are updated."""

    pattern: str = Field(min_length=1, max_length=200)
    """Of the whole name, as in a shell: `*` stands for anything, dots included, `?` for one character, `[ab]` for one
    of these. `blocks.0.*`, `*.experts.*`, `*.router.weight`."""
    rule: OptimizerRule = AdamWRule()


class ByPatternConfig(Section):
    """Several optimizers at once: each parameter follows the rule of the first pattern that its name matches.

    Rates and decay as in `by_role`. A pattern that decides about no parameter that is trained is refused.
    """

    kind: Literal["by_pattern"] = "by_pattern"
    lr: LearningRate
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    """Of rules that have none of their own; routers under such a rule are not decayed."""
    groups: Annotated[tuple[PatternGroup, ...], Field(max_length=16)] = ()
    default: OptimizerRule = AdamWRule()
    """Of the parameters that match no pattern."""


OptimizerConfig = Annotated[
    AdamWConfig
    | MuonConfig
    | LionConfig
    | AdafactorConfig
    | SOAPConfig
    | ShampooConfig
    | ByRoleConfig
    | ByPatternConfig,
    Field(discriminator="kind"),
    kind_defaults_to("adamw"),
]
