"""What casting to a narrow format loses: the `quantization/` metrics of the catalogue, of one whole optimizer step.

Letters: `O` operands (activation, weight, gradient), `C` counts (nonzero, zeroed, saturated). Leading axes (steps,
layers) are arbitrary and kept.
"""

import numpy as np
from numpy.typing import NDArray

from trainer.metrics.catalog import QUANTIZATION_SCALARS


def quantization_losses(counts_OC: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return every metric of `catalog.QUANTIZATION_SCALARS`, name -> float64 [...]; 0 where nothing was cast.

    Args:
        counts_OC: [..., 3, 3], counts of `kernels.quantize.COUNT_NAMES` for each of its `OPERAND_NAMES`.
    """
    nonzero_O = np.maximum(counts_OC[..., :, 0], 1.0)
    fractions = (counts_OC[..., :, 1] / nonzero_O, counts_OC[..., :, 2] / nonzero_O)
    values = [fraction_O[..., operand] for operand in range(3) for fraction_O in fractions]
    return dict(zip(QUANTIZATION_SCALARS, values, strict=True))
