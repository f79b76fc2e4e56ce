"""Which layers are of which kind, as our configs say it: the first few apart, then every so many. Torch-free."""

from collections.abc import Sequence
from typing import NamedTuple


class ExpertPattern(NamedTuple):
    """`moe.num_dense_layers` and `moe.every`."""

    num_dense_layers: int
    every: int


def expert_pattern(is_dense: Sequence[bool]) -> ExpertPattern | None:
    """Returns the smallest pattern with experts in exactly the layers that are not dense; None if there is none."""
    sparse = [layer for layer, dense in enumerate(is_dense) if not dense]
    if not sparse:
        return None
    # Experts are in the last layer of each `every`, so one layer of experts alone has to keep the next one out.
    every = sparse[1] - sparse[0] if len(sparse) > 1 else len(is_dense) - sparse[0]
    pattern = ExpertPattern(sparse[0] - every + 1, every)
    if pattern.num_dense_layers < 0:
        return None
    layers = range(pattern.num_dense_layers, len(is_dense))
    expected = [layer for layer in layers if (layer - pattern.num_dense_layers + 1) % every == 0]
    return pattern if expected == sparse else None


def global_every(is_global: Sequence[bool]) -> int | None:
    """Returns the smallest `global_attention.every` of which exactly these layers are; None if there is none.

    Counted from 1 every `every`-th layer is global, and so is the last.
    """
    num_layers = len(is_global)
    for every in range(1, num_layers + 1):
        if list(is_global) == [layer % every == 0 or layer == num_layers for layer in range(1, num_layers + 1)]:
            return every
    return None
