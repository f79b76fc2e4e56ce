"""Points of a low-discrepancy sequence: each parameter reads its place off a dimension of its own."""

import warnings
from collections.abc import Iterator

from orchestrator.samplers import QMCSampler
from orchestrator.search.draw import derived_seed, value_at
from orchestrator.search.space import active, parameters
from orchestrator.spec import ExperimentSpec, Scalar


def qmc_points(spec: ExperimentSpec, sampler: QMCSampler, first: int) -> Iterator[dict[str, Scalar]]:
    """The points of the sequence that `spec.seed` scrambles, from number `first` (0-based) on, without end.

    The scrambling is Owen's of Sobol's sequence (scipy: a random linear matrix and a digital shift), and random digit
    permutations of Halton's.
    """
    import numpy as np
    from scipy.stats import qmc

    space = parameters(spec)
    kind = qmc.Sobol if sampler.sequence == "sobol" else qmc.Halton
    engine = kind(len(space), scramble=True, rng=np.random.default_rng(derived_seed(spec.seed, sampler.sequence)))
    if first:
        engine.fast_forward(first)
    while True:
        with warnings.catch_warnings():
            # Sobol's balance is that of the whole sequence; it is asked point by point here.
            warnings.simplefilter("ignore", UserWarning)
            uniforms = engine.random(1)[0]
        point: dict[str, Scalar] = {}
        for parameter, uniform in zip(space, uniforms, strict=True):
            if active(parameter, point):
                point[parameter.name] = value_at(parameter.domain, min(float(uniform), 1 - 2**-53))
        yield point
