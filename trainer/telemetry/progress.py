"""progress.json: how far a run is, for lists and live lines. Rewritten at most once a second; nothing depends on it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.durable import replace_file

PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Progress:
    """The last logged step of a run; router figures are None for a dense model.

    Attributes:
        step, num_steps, tokens, budget_tokens: how far training is.
        loss: training loss of the step, nats/token; None before the first.
        tokens_per_s: over the last logging interval.
        max_violation, max_violation_layer: of the worst layer.
        token_entropy: of the lowest layer, nats.
        dead_fraction: of the worst layer.
        bits_per_byte: last held-out mean over domains.
        num_spikes: loss and gradient spikes so far.
        eta_s: seconds of training left at this speed.
        updated_at_ms: unix time.
    """

    step: int
    num_steps: int
    tokens: int
    budget_tokens: int
    loss: float | None
    tokens_per_s: float
    max_violation: float | None
    max_violation_layer: int | None
    token_entropy: float | None
    dead_fraction: float | None
    bits_per_byte: float | None
    num_spikes: int
    eta_s: float | None
    updated_at_ms: int


def write_progress(folder: Path, progress: Progress) -> None:
    """Replace the run's progress.json."""
    replace_file(folder / PROGRESS_FILE, json.dumps(asdict(progress)).encode())


def read_progress(folder: Path) -> Progress | None:
    """Return the run's progress; None before the first."""
    try:
        return Progress(**json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
