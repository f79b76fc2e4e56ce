"""Expert loads of a trial: exact counts at one step, and their history as a small byte array.

Letters: `S` steps, `P` points in time, `L` MoE layers, `E` experts.
"""

from dataclasses import dataclass

import numpy as np

from orchestrator.tracking.chunks import columns, pieces
from orchestrator.tracking.series import Source

_FAIR = 128
_PER_OCTAVE = 32


@dataclass(frozen=True, kw_only=True)
class LoadSnapshot:
    """Tokens sent to each expert in one step.

    Attributes:
        run_id: the run that recorded it.
        step, tokens: where it was taken.
        layers: [L] indices in the whole model.
        counts: [L][E].
    """

    run_id: str
    step: int
    tokens: int
    layers: list[int]
    counts: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class LoadHistory:
    """Loads over time as bytes.

    Attributes:
        steps: [P] the last step of each stretch.
        tokens: [P] training tokens seen by then.
        layers: [L] indices in the whole model.
        num_experts: E.
        codes: P * L * E bytes in that order: 0 is an expert that got no token at all, else
            128 + 32 * log2(load / fair), rounded and clipped to 1..255; fair is the mean load of the layer's experts.
            Covers 1/16 to 16 times fair.
    """

    steps: list[int]
    tokens: list[int]
    layers: list[int]
    num_experts: int
    codes: bytes


def loads_at(source: Source, step: int | None = None) -> LoadSnapshot | None:
    """The loads at `step`, else at the last one before it; None: the newest. None if nothing was recorded by then."""
    steps = columns(source.folders, "router", [])["step"]
    earlier = steps if step is None else steps[steps <= step]
    if not len(earlier):
        return None
    at = int(earlier.max())
    for run, piece in zip(reversed(source.runs), reversed(pieces(source.folders)), strict=True):
        if piece.before is not None and at >= piece.before:
            continue
        table = columns([piece.folder], "router", ["tokens", "layer", "router/load"], steps=(at, at))
        rows = table["step"] == at
        if rows.any():
            return LoadSnapshot(
                run_id=run.run_id,
                step=at,
                tokens=int(table["tokens"][rows][0]),
                layers=table["layer"][rows].astype(int).tolist(),
                counts=table["router/load"][rows].astype(int).tolist(),
            )
    return None


def load_history(source: Source, *, points: int = 300) -> LoadHistory | None:
    """The loads summed over at most `points` equal stretches of steps; None if there are none.

    Raises:
        ValueError: the number of points is not valid.
    """
    if points < 1:
        raise ValueError(f"points={points} is below 1; ask for at least one")
    table = columns(source.folders, "router", ["tokens", "layer", "router/load"])
    if not len(table["step"]):
        return None
    layers = np.unique(table["layer"]).astype(int)
    first_rows = np.flatnonzero(table["layer"] == layers[0])
    steps, tokens = table["step"][first_rows], table["tokens"][first_rows]
    loads_SLE = table["router/load"].reshape(len(steps), len(layers), -1).astype(np.int64)
    starts = np.unique(np.linspace(0, len(steps), min(points, len(steps)), endpoint=False).astype(int))
    ends = np.append(starts[1:], len(steps)) - 1
    loads_PLE = np.add.reduceat(loads_SLE, starts, axis=0)
    return LoadHistory(
        steps=steps[ends].astype(int).tolist(),
        tokens=tokens[ends].astype(int).tolist(),
        layers=layers.tolist(),
        num_experts=loads_PLE.shape[-1],
        codes=encode_loads(loads_PLE).tobytes(),
    )


def encode_loads(loads_PLE: np.ndarray) -> np.ndarray:
    """The byte codes of `LoadHistory`, uint8 of the same shape. Loads are whole numbers, experts last."""
    fair_PL1 = loads_PLE.mean(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        octaves_PLE = np.log2(loads_PLE / fair_PL1)
    codes_PLE = np.clip(np.rint(_FAIR + _PER_OCTAVE * octaves_PLE), 1, 255)
    return np.where(loads_PLE == 0, 0, codes_PLE).astype(np.uint8)
