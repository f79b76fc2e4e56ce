"""`evenload demo`: everything once, from starting the services to the comparison, and again from where it was left."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live

from api.client import Client
from api.documents import read_document
from api.schemas.experiments import ExperimentDetail
from api.tables import comparison_view, follow_view, progress_line
from orchestrator.states import ExperimentState, is_terminal

SPEC = Path("studies") / "000-balancing" / "spec.yaml"
REFRESH_S = 1.0
PLAIN_LINE_S = 10.0
"""Without a terminal, a line so often."""


def submit(client: Client, root: Path, spec: Path) -> tuple[ExperimentDetail, bool]:
    """The demo's experiment and whether it goes on from an earlier time.

    The key says which demo this is: the same until it is over, so that an interrupted demo carries on with it.
    """
    document = read_document(spec)
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
    counter = root / "demo.json"
    number = json.loads(counter.read_text())["number"] if counter.exists() else 1
    while True:
        experiment = client.submit(document, idempotency_key=f"demo-{digest}-{number}")
        if not is_terminal(experiment.state):
            return experiment, sum(experiment.trial_counts.model_dump().values()) > len(experiment.spec["baselines"])
        number += 1
        unfinished = counter.with_suffix(".tmp")
        unfinished.write_text(json.dumps({"number": number}))
        unfinished.replace(counter)


def follow(
    client: Client, console: Console, experiment_id: str, *, tick: Callable[[], None] = lambda: None
) -> ExperimentDetail:
    """Shows an experiment until it is over, and returns it.

    Args:
        tick: called once a second, e.g. to keep services up.
    """
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=False) as live:
            while True:
                tick()
                experiment = client.experiment(experiment_id)
                live.update(follow_view(experiment, client.trials(experiment_id)))
                if is_terminal(experiment.state):
                    return experiment
                time.sleep(REFRESH_S)
    last_line, last_s = "", 0.0
    while True:
        tick()
        experiment = client.experiment(experiment_id)
        line = progress_line(experiment)
        # The ETA changes all the time; a line for it alone is only worth it now and then.
        if line.rpartition(" | ")[0] != last_line or time.monotonic() - last_s > PLAIN_LINE_S:
            console.print(line, soft_wrap=True)
            last_line, last_s = line.rpartition(" | ")[0], time.monotonic()
        if is_terminal(experiment.state):
            console.print(follow_view(experiment, client.trials(experiment_id)))
            return experiment
        time.sleep(REFRESH_S)


def went_well(experiment: ExperimentDetail) -> bool:
    """True if the experiment completed and no trial of it failed."""
    counts = experiment.trial_counts
    return (
        experiment.state is ExperimentState.COMPLETED
        and counts.completed > 0
        and counts.failed == counts.infeasible == counts.cancelled == 0
    )


def show_result(client: Client, console: Console, experiment_id: str) -> None:
    """Prints the comparison."""
    console.print()
    console.print(comparison_view(client.comparison(experiment_id)))
