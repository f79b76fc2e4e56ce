"""Ray Tune as an executor: thin adapters that let a Tuner run what the conductor says.

Tune asks its Searcher for trials and its TrialScheduler for verdicts. Ours answer from the database, through the
conductor. Every Tune trial is one of our runs; Tune's own retries, checkpoints and restore are not used. Everything
inside a Tuner gets pickled, so the adapters leave the conductor behind when they are.

On STOP, Tune lets the function's `tune.report` raise SystemExit(0), which ends the training thread; with
`reuse_actors=True` the next run begins in the same process a hundredth of a second later.
"""

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.tune
import ray.util
from ray._raylet import PlacementGroupID
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.placement_group import PlacementGroup

from orchestrator.execution.conductor import Conductor, Next, stop_run
from orchestrator.spec import Resources
from trainer.config.run import RunReport, RunRequest

ENVIRONMENT = {
    # Tune writes the whole state of the sweep at this interval; we never read it.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A worker that does not end is killed after so many seconds.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # The new output engine prints tables into the log.
    "RAY_AIR_NEW_OUTPUT": "0",
}


_MAX_PROBLEM_LENGTH = 500
_PLACES_FILE = ".places"
"""In the folder of a run of several workers: the id of the placement group that they are in."""


def run_all(conductor: Conductor, *, resources: Resources, max_concurrent: int) -> None:
    """Runs what the conductor gives out until it says that it is finished. Needs a connected Ray."""
    os.environ.update(ENVIRONMENT)
    # It looks for result files that Tune was told not to write.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    # Otherwise Tune asks for the next trial only when the last one's worker has started.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max_concurrent)
    searcher = RunSearcher(conductor)
    if resources.num_workers == 1:
        trainable = ray.tune.with_resources(
            run_here, {"cpu": resources.cpus_per_worker, "gpu": resources.gpus_per_worker}
        )
    else:
        # The workers bring their own resources. The launcher takes none, so that they fit; a request that is wholly
        # empty is refused, so it asks for as little memory as there is.
        trainable = ray.tune.with_resources(run_distributed, ray.tune.PlacementGroupFactory([{"memory": 1}]))
    with tempfile.TemporaryDirectory(prefix="evenload-tune-") as folder:
        ray.tune.Tuner(
            trainable,
            tune_config=ray.tune.TuneConfig(
                search_alg=searcher,
                scheduler=RunScheduler(searcher),
                num_samples=-1,
                reuse_actors=resources.num_workers == 1,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=ray.tune.RunConfig(
                name="runs",
                storage_path=folder,
                verbose=0,
                failure_config=ray.tune.FailureConfig(max_failures=0),
            ),
        ).fit()


class RunSearcher(Searcher):
    """Gives Tune the conductor's runs, and tells the conductor which of them Tune is done with."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self.conductor: Conductor | None = conductor
        self._runs: dict[str, str] = {}
        self._problems: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next run, None to be asked again, FINISHED when there will be no more."""
        answer = self._conductor().next_run()
        if answer is Next.WAIT:
            return None
        if answer is Next.FINISHED:
            return Searcher.FINISHED
        assert isinstance(answer, RunRequest)
        self._runs[trial_id] = answer.run_id
        return {"request": answer.model_dump_json(), "resources": self._conductor().spec.resources.model_dump()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune is done with a run: it ended, was stopped, or its process was lost."""
        problem = self._problems.pop(trial_id, "") if error else None
        self._conductor().ended(self._runs.pop(trial_id), None if problem is None else f"process lost: {problem}")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Reports are taken by the scheduler, which can answer them."""

    def note(self, trial_id: str, problem: str) -> None:
        """Remembers what Tune says about a run's process, until it says that the run is over."""
        self._problems[trial_id] = problem

    def run_of(self, trial_id: str) -> str:
        """The run behind a Tune trial."""
        return self._runs[trial_id]

    def runs(self) -> dict[str, str]:
        """The trials that Tune is not done with and the runs behind them, in the order in which they were given."""
        return dict(self._runs)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the database has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: `Tuner.restore` is not used."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "conductor": None}

    def _conductor(self) -> Conductor:
        assert self.conductor is not None, "a pickled copy was asked for runs"
        return self.conductor


class RunScheduler(FIFOScheduler):
    """Hands each report to the conductor and passes its verdict on."""

    def __init__(self, searcher: RunSearcher) -> None:
        super().__init__()
        self._searcher = searcher
        self._killed: set[str] = set()

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The first trial that waits for a process, or None.

        Tune asks once per turn of its loop, so overdue runs are looked for here. (A callback of Tune's would do as
        well, but has Tune import every logger that it knows, which takes a second.)
        """
        live = {trial.trial_id: trial for trial in tune_controller.get_live_trials()}
        runs = {live[trial_id]: run_id for trial_id, run_id in self._searcher.runs().items() if trial_id in live}
        self._kill_overdue(runs)
        return next((trial for trial in runs if trial.status == Trial.PENDING), None)

    def _kill_overdue(self, runs: Mapping[Any, str]) -> None:
        """Kills processes of runs that were to end by themselves and have not; Tune then notes that they are gone."""
        conductor = self._searcher.conductor
        overdue = set() if conductor is None else set(conductor.overdue()) - self._killed
        for trial, run_id in runs.items():
            process = trial.temporary_state.ray_actor
            if run_id in overdue and process is not None:
                self._killed.add(run_id)
                ray.kill(process)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP if the report's run does not go on, else CONTINUE."""
        conductor = self._searcher.conductor
        assert conductor is not None, "a pickled copy was asked for a verdict"
        report = RunReport.model_validate_json(result["report"])
        if conductor.report(self._searcher.run_of(trial.trial_id), report):
            return TrialScheduler.CONTINUE
        request = RunRequest.model_validate_json(trial.config["request"])
        if request.num_workers == 1:
            return TrialScheduler.STOP
        # STOP would kill the launcher, and Ray Train gives back the places of a killed one only with the help of a
        # dashboard, which is not there. So the workers are asked to end, and the launcher ends after them.
        stop_run(Path(request.folder))
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """The process of a run is gone, or raised what it is not meant to report itself."""
        self._searcher.note(trial.trial_id, _last_line(trial.error_file))
        request = RunRequest.model_validate_json(trial.config["request"])
        if request.num_workers > 1:
            _return_places(Path(request.folder))


def _return_places(folder: Path) -> None:
    """Gives back the places of a run's workers, and ends what is left of them.

    Ray keeps them for as long as the driver lives if the launcher, which asked for them, is killed. A launcher that was
    killed before its workers began has left no note of them; then they come back with the driver's end.
    """
    note = folder / _PLACES_FILE
    if note.exists():
        ray.util.remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(note.read_text()))))


def _last_line(error_file: str | None) -> str:
    """What went wrong, from the traceback that Tune wrote."""
    if error_file is None or not Path(error_file).exists():
        return "no details"
    lines = [line.strip() for line in Path(error_file).read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:_MAX_PROBLEM_LENGTH] if lines else "no details"


def run_here(config: dict[str, Any]) -> None:
    """A run of one worker, in the process that Tune gave it."""
    from trainer import worker

    worker.run(RunRequest.model_validate_json(config["request"]), _tell_tune)


def run_distributed(config: dict[str, Any]) -> None:
    """A run of several workers: launches them with TorchTrainer and passes on what they report.

    Ray Train's own `report` waits for every rank; ours come from one rank at a time, through a mailbox.
    """
    from ray.train.torch import TorchConfig, TorchTrainer

    request = RunRequest.model_validate_json(config["request"])
    resources = config["resources"]
    mailbox: Any = ray.remote(num_cpus=0)(_Mailbox).remote()
    with tempfile.TemporaryDirectory(prefix="evenload-train-") as folder:
        trainer = TorchTrainer(
            _run_rank,
            train_loop_config={"request": config["request"], "mailbox": mailbox},
            scaling_config=ray.train.ScalingConfig(
                num_workers=request.num_workers,
                use_gpu=request.use_gpu,
                resources_per_worker={"CPU": resources["cpus_per_worker"], "GPU": resources["gpus_per_worker"]},
            ),
            torch_config=TorchConfig(backend="nccl" if request.use_gpu else "gloo"),
            run_config=ray.train.RunConfig(name=request.run_id, storage_path=folder),
        )
        fit = _Background(trainer.fit)
        while True:
            text = ray.get(mailbox.receive.remote())
            if text is not None:
                ray.tune.report({"report": text})
                ray.get(mailbox.answer.remote())
            elif not fit.is_alive():
                break
        fit.result()


class _Mailbox:
    """Takes one report at a time to the launcher; the sender goes on when it was answered."""

    def __init__(self) -> None:
        import asyncio

        self._reports: asyncio.Queue[str] = asyncio.Queue()
        self._answers: asyncio.Queue[None] = asyncio.Queue()
        self._turn = asyncio.Lock()

    async def send(self, text: str) -> None:
        async with self._turn:
            await self._reports.put(text)
            await self._answers.get()

    async def receive(self) -> str | None:
        import asyncio

        try:
            return await asyncio.wait_for(self._reports.get(), timeout=0.2)
        except TimeoutError:
            return None

    async def answer(self) -> None:
        await self._answers.put(None)


class _Background(threading.Thread):
    """Calls a function in a thread and keeps what it raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # noqa: BLE001  # raised again by `result`
            self._error = error

    def result(self) -> None:
        """Waits for the end and raises what the function raised."""
        self.join()
        if self._error is not None:
            raise self._error


def _run_rank(config: dict[str, Any]) -> None:
    from trainer import worker

    places = ray.util.get_current_placement_group()
    if ray.train.get_context().get_world_rank() == 0 and places is not None:
        folder = Path(RunRequest.model_validate_json(config["request"]).folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _PLACES_FILE).write_text(places.id.hex())
    mailbox = config["mailbox"]

    def tell(report: RunReport) -> None:
        ray.get(mailbox.send.remote(report.model_dump_json()))

    worker.run(RunRequest.model_validate_json(config["request"]), tell)


def _tell_tune(report: RunReport) -> None:
    ray.tune.report({"report": report.model_dump_json()})
