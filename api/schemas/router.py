"""Router telemetry: metric x layer x grid, loads of one step, and the history of loads."""

from typing import Literal

from api.schemas.series import X
from api.schemas.wire import Answer


class RouterMetric(Answer):
    """One router metric: `[layer][grid]`, null where a bucket holds no row."""

    key: str
    min: list[list[float | None]]
    last: list[list[float | None]]
    max: list[list[float | None]]


class RouterGrid(Answer):
    """Router metrics of every MoE layer over training."""

    trial_id: str
    x: X
    x_unit: str
    grid: list[float]
    raw: bool
    """Every recorded step is in the grid, and min, last and max are the same values."""
    layers: list[int]
    """Indices in the whole model of the MoE layers, ascending; the first axis of each metric."""
    num_layers: int
    """Layers of the whole model, dense ones included."""
    num_experts: int | None
    top_k: int | None
    metrics: list[RouterMetric]


class RouterLoads(Answer):
    """Exact counts of one optimizer step."""

    trial_id: str
    run_id: str
    step: int
    """The step shown: the newest recorded one that is not after the one asked for."""
    tokens: int
    """Training tokens seen up to and with this step."""
    step_tokens: int
    """Tokens routed in the step; times top_k it is the sum of each layer's counts."""
    top_k: int
    num_experts: int
    layers: list[int]
    counts: list[list[int]]
    """`[layer][expert]`, tokens sent to the expert over all workers and micro-batches."""


class LoadHistoryMeta(Answer):
    """What the bytes of a load history mean.

    The answer is one binary document: uint32 little-endian length n, n bytes of this JSON, then
    `num_frames * len(layers) * num_experts` bytes in that order. A byte is 0 if the expert got no token, else
    `128 + 32 * log2(load / fair)`, rounded and clamped to 1..255. Loads are summed over the frame, and `fair` is the
    mean load of the layer's experts in them.
    """

    trial_id: str
    encoding: Literal["u8-log2"]
    num_frames: int
    steps: list[int]
    """The last step of each frame."""
    tokens: list[int]
    layers: list[int]
    num_experts: int
    top_k: int | None
