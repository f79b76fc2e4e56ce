"""Sweeps for tests: small specs, and runs that are played from a script instead of trained."""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.execution.conductor import Conductor, Next, Places
from orchestrator.spec import ExperimentSpec
from orchestrator.store.migrate import upgrade
from orchestrator.store.session import Database, open_database
from tests.support.training import STEP_TOKENS, train_config
from trainer.config.run import CheckpointReport, DomainEvaluation, RunReport, RunRequest, RunSummary
from trainer.config.start import ForkStartConfig

ASHA = {"kind": "asha", "min_tokens": 8 * STEP_TOKENS, "reduction_factor": 2}
"""Rungs at steps 8, 16, 32 and so on."""


def sweep_document(*, num_steps: int = 32, base: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """An ASHA sweep over the learning rate with trials of `num_steps` tiny steps; `fields` replace top-level fields.

    Args:
        base: sections merged into the base configuration.
    """
    document: dict[str, Any] = {
        "name": "tiny sweep",
        "base": train_config(num_steps=num_steps, **(base or {})).model_dump(mode="json"),
        "space": {"optimizer.lr": {"float": [1e-4, 3e-2], "log": True}},
        "scheduler": ASHA,
        "num_trials": 5,
    }
    return document | fields


def submit(database: Database, document: dict[str, Any]) -> str:
    """Submits a document and returns the experiment's id."""
    spec = ExperimentSpec.model_validate(document)
    with database.transaction() as work:
        return work.experiments.submit(spec, document=document).experiment.id


def take_over(database: Database, root: Path, experiment_id: str, *, max_concurrent: int = 2) -> Conductor:
    """Claims the experiment from whoever had it, and returns a conductor of the next epoch that has recovered."""
    with database.transaction() as work:
        epoch = work.experiments.get(experiment_id).epoch
        if epoch:
            work.experiments.release(experiment_id, epoch=epoch)
        claimed = work.experiments.claim(experiment_id, owner="test", ttl_s=60)
    assert claimed is not None
    places = Places(max_concurrent=max_concurrent, num_threads=1, use_gpu=False)
    conductor = Conductor(database, root, experiment_id=experiment_id, epoch=claimed, places=places)
    conductor.recover()
    return conductor


def scripted_value(request: RunRequest, tokens: int) -> float:
    """The held-out bits per byte that a scripted run reports: a function of learning rate and tokens, so replayable."""
    return 3.0 + abs(math.log10(request.config.optimizer.lr) + 2.5) + 1e4 / (tokens + 1e4)


def script(request: RunRequest) -> Iterator[RunReport]:
    """The reports of a run that goes well, with checkpoint folders that are really there.

    Like a real run it reports a rung again that lies on the step it resumes from.
    """
    config, folder = request.config, Path(request.folder)
    rung_steps = [config.steps_for_tokens(tokens) for tokens in request.rung_tokens]
    stop_step = None if request.stop_at_tokens is None else config.steps_for_tokens(request.stop_at_tokens)
    step = config.start.step if isinstance(config.start, ForkStartConfig) else 0
    if request.resume_from is not None:
        step = int(request.resume_from.rpartition("-")[2])

    def report(kind: str, **parts: Any) -> RunReport:
        return RunReport.model_validate({"kind": kind, "step": step, "tokens": step * config.step_tokens, **parts})

    def evaluation() -> dict[str, DomainEvaluation]:
        value = scripted_value(request, step * config.step_tokens)
        return {"all": DomainEvaluation(bits_per_byte=value, loss=value)}

    yield report("started")
    for rung in (index for index, rung_step in enumerate(rung_steps) if rung_step == step and step):
        yield report("progress", rung=rung, evaluation=evaluation())
    while step < config.num_steps and step != stop_step:
        step += 1
        for rung in (index for index, rung_step in enumerate(rung_steps) if rung_step == step):
            checkpoint = _checkpoint(folder, step, config.step_tokens)
            yield report("progress", rung=rung, evaluation=evaluation(), checkpoint=checkpoint)
    checkpoint = _checkpoint(folder, step, config.step_tokens)
    if step < config.num_steps:
        yield report("stopped", checkpoint=checkpoint)
        return
    value = scripted_value(request, step * config.step_tokens)
    yield report("finished", evaluation=evaluation(), checkpoint=checkpoint, summary=_summary(value))


def play(conductor: Conductor, *, max_calls: int | None = None) -> int:
    """Plays the conductor's runs side by side, one report each in turn, until all is over or for `max_calls` calls.

    Returns how many calls were made; the experiment is settled if it came to the end.
    """
    calls, runs = 0, {}
    while max_calls is None or calls < max_calls:
        calls += 1
        answer = conductor.next_run()
        if isinstance(answer, RunRequest):
            runs[answer.run_id] = script(answer)
            continue
        if answer is Next.FINISHED and not runs:
            conductor.settle()
            return calls
        assert runs, "the conductor waits and nothing runs"
        for run_id, reports in list(runs.items()):
            if max_calls is not None and calls >= max_calls:
                return calls
            calls += 1
            report = next(reports, None)
            if report is None or not conductor.report(run_id, report):
                conductor.ended(run_id, None)
                del runs[run_id]
    return calls


def table(database: Database, experiment_id: str) -> list[tuple[Any, ...]]:
    """What an experiment came to, without the words and times of how: comparable between experiments."""
    with database.read() as work:
        return [
            (
                trial.number,
                trial.kind,
                trial.batch,
                trial.state,
                trial.cause,
                trial.params,
                trial.objective,
                trial.objective_tokens,
                [(rung.rung, rung.tokens, rung.value, rung.decision, rung.explanation) for rung in trial.rungs],
            )
            for trial in work.trials.history(experiment_id)
        ]


def _checkpoint(folder: Path, step: int, step_tokens: int) -> CheckpointReport:
    path = folder / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True, exist_ok=True)
    content = b"weights"
    (path / "model.safetensors").write_bytes(content)
    files = {"model.safetensors": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}}
    manifest = json.dumps({"files": files}).encode()
    (path / "manifest.json").write_bytes(manifest)
    return CheckpointReport(
        step=step,
        tokens=step * step_tokens,
        folder=str(path),
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        duration_s=0.0,
    )


def _summary(value: float) -> RunSummary:
    return RunSummary(
        final_loss=value,
        initial_bits_per_byte={"all": 8.0},
        bits_per_byte={"all": value},
        worst_max_violation=None,
        worst_max_violation_layer=None,
        min_token_entropy=None,
        min_load_entropy=None,
        max_dead_fraction=None,
        num_spikes=0,
        tokens_per_s=1.0,
        training_duration_s=1.0,
        total_parameters=1,
        active_parameters=1,
        flops_per_token=1.0,
        domain_information=None,
    )


def sqlite_database(folder: Path) -> Iterator[Database]:
    """A migrated database in `folder`, open until it is closed; for fixtures."""
    url = f"sqlite:///{folder / 'evenload.db'}"
    upgrade(url)
    opened = open_database(url)
    yield opened
    opened.close()


def started(conductor: Conductor) -> RunRequest:
    """The conductor's next run, with its worker training."""
    request = conductor.next_run()
    assert isinstance(request, RunRequest)
    assert conductor.report(request.run_id, RunReport(kind="started", step=0, tokens=0))
    return request
