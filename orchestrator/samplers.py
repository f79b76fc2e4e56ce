"""What a spec can say of its sampler: how the next point of the space is chosen. docs/search.md compares them."""

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.section import Section


class RandomSampler(Section):
    """Independent draws."""

    kind: Literal["random"] = "random"


class GridSampler(Section):
    """Every combination once; float domains need a `step`."""

    kind: Literal["grid"] = "grid"


class BruteForceSampler(Section):
    """Every combination once, as the grid has them, in an order drawn from `seed`: any first part is a fair sample."""

    kind: Literal["brute_force"] = "brute_force"


class QMCSampler(Section):
    """Points of a low-discrepancy sequence, scrambled by `seed`: random search that covers the space more evenly.

    Every parameter has a dimension of the sequence; one that does not exist at a point leaves its own unused.
    Source: Bergstra and Bengio 2012 (JMLR 13), section 4.
    """

    kind: Literal["qmc"] = "qmc"
    sequence: Literal["sobol", "halton"] = "sobol"
    """Sobol's is most even at powers of two, Halton's at any number of trials in few dimensions."""


class TPESampler(Section):
    """Tree-structured Parzen estimator. Source: Bergstra et al. 2011 (NeurIPS), section 4; as implemented by Optuna."""

    kind: Literal["tpe"] = "tpe"
    num_startup_trials: int = Field(default=10, ge=1, le=10_000)
    """Random trials before the model is used."""
    multivariate: bool = True
    constant_liar: bool = True
    """Count running trials as bad, so that parallel proposals spread out."""


class GPSampler(Section):
    """Gaussian process (Matern 5/2, one length scale per parameter) with log expected improvement, over the running
    trials too.

    Parameters inside of options are drawn at random. Source: Ament et al. 2023, arXiv:2310.20708; as implemented by
    Optuna.
    """

    kind: Literal["gp"] = "gp"
    num_startup_trials: int = Field(default=10, ge=1, le=10_000)
    """Random trials that have to complete before the model is used."""


class CMAESSampler(Section):
    """Covariance matrix adaptation: a normal distribution over the numeric parameters, moved by one generation after
    another.

    Choices, options and what is inside of them are drawn at random. Source: Hansen 2016, arXiv:1604.00772; as
    implemented by the package cmaes.
    """

    kind: Literal["cmaes"] = "cmaes"
    population_size: int | None = Field(default=None, ge=4, le=10_000)
    """Completed trials of a generation; null: 4 + floor(3 ln d) for d numeric parameters (equation 48)."""


class NSGA2Sampler(Section):
    """A genetic algorithm with elitist selection by dominance.

    Parameters inside of options are drawn at random. Source: Deb et al. 2002, IEEE Transactions on Evolutionary
    Computation 6(2); as implemented by Optuna.
    """

    kind: Literal["nsga2"] = "nsga2"
    population_size: int = Field(default=50, ge=2, le=10_000)
    """Completed trials of a generation; the first one is drawn at random."""


class NSGA3Sampler(Section):
    """NSGA-II for many objectives: of a front that does not fit, those near sparsely taken reference directions stay.

    Parameters inside of options are drawn at random. Source: Deb and Jain 2014, IEEE Transactions on Evolutionary
    Computation 18(4); as implemented by Optuna.
    """

    kind: Literal["nsga3"] = "nsga3"
    population_size: int = Field(default=50, ge=2, le=10_000)
    """Completed trials of a generation; the first one is drawn at random."""
    num_divisions: int = Field(default=3, ge=1, le=100)
    """Parts of each axis between reference points: H divisions make C(M+H-1, H) points for M objectives."""


SamplerConfig = Annotated[
    RandomSampler
    | GridSampler
    | TPESampler
    | QMCSampler
    | GPSampler
    | CMAESSampler
    | NSGA2Sampler
    | NSGA3Sampler
    | BruteForceSampler,
    Field(discriminator="kind"),
]
