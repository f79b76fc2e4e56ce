"""The driver: one process per running experiment. It owns the Tuner, keeps the lease, and may be killed at any moment.

`python -m orchestrator.execution.driver EXPERIMENT_ID --epoch N --address HOST:PORT`

Exit status: 0 when the experiment is over or was left for the next driver, 76 when a newer driver has taken over, 77
when Ray has lost places and its head has to be started anew.
"""

import argparse
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from orchestrator import home as layout
from orchestrator.capacity import NodeCapacity, need_of
from orchestrator.errors import Fenced, StoreUnavailable
from orchestrator.execution import lost_places, processes
from orchestrator.execution.cluster import Node
from orchestrator.execution.conductor import Conductor, Places, Stopping
from orchestrator.spec import ExperimentSpec, Resources
from orchestrator.states import ExperimentState
from orchestrator.store.session import Database, database_url, open_database

logger = logging.getLogger(__name__)

LEASE_TTL_S = 15.0
_WATCH_INTERVAL_S = 1.0
_STOP_DEADLINE_S = 10.0
"""From asking runs to stop until they are stopped without having answered, unless the user says how long."""
_EXIT_FENCED = 76
_EXIT_PLACES_LOST = 77
_LOSS_PATIENCE_S = 20.0
"""What a driver that was killed held is free again long before, and its successor has its lease for longer."""
_LOSS_INTERVAL_S = 20.0
_DRIVEN = (ExperimentState.RUNNING, ExperimentState.PAUSING, ExperimentState.CANCELLING)


def places(spec: ExperimentSpec, nodes: Sequence[Node]) -> Places | None:
    """How many trials of `spec` run at a time on `nodes`; None if not even one fits.

    The workers of one trial may be on different nodes; each worker is on one. Ray does not count the workers of a
    distributed trial against the trial, so this does.
    """
    resources: Resources = spec.resources
    memory_gib = need_of(spec).memory_gib
    workers = 0
    for node in nodes:
        fit = int(node.cpus / resources.cpus_per_worker + 1e-9)
        if resources.gpus_per_worker:
            fit = min(fit, int(node.gpus / resources.gpus_per_worker + 1e-9))
        if memory_gib and node.memory_gib:
            fit = min(fit, int(node.memory_gib / memory_gib + 1e-9))
        workers += fit
    max_concurrent = workers // resources.num_workers
    if spec.max_parallel_trials is not None:
        max_concurrent = min(max_concurrent, spec.max_parallel_trials)
    if max_concurrent < 1:
        return None
    return Places(
        max_concurrent=max_concurrent,
        num_threads=max(1, int(resources.cpus_per_worker)),
        use_gpu=resources.gpus_per_worker > 0,
        nodes=tuple(NodeCapacity(cpus=node.cpus, gpus=node.gpus, memory_gib=node.memory_gib) for node in nodes),
    )


def pid_file(root: Path, experiment_id: str) -> Path:
    """Where a driver says who it is."""
    return root / layout.experiment_folder(experiment_id) / "driver.json"


def drive(root: Path, *, experiment_id: str, epoch: int, address: str) -> None:
    """Drives one experiment to its end, or until it is told to stop."""
    file = pid_file(root, experiment_id)
    identity = processes.identify(os.getpid())
    assert identity is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps({**asdict(identity), "epoch": epoch}))
    temporary.replace(file)

    database = open_database(database_url(root))
    with database.read() as work:
        spec = ExperimentSpec.model_validate(work.experiments.get(experiment_id).spec)

    import ray

    from orchestrator.execution import tune

    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    # Set after Ray's own, which would end the process at once.
    terminated = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    nodes = [
        Node(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            memory_gib=node["Resources"].get("memory", 0.0) / 1024**3,
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    room = places(spec, nodes)
    if room is None:
        reason = f"a trial needs {asdict(need_of(spec))}; the cluster has {[asdict(node) for node in nodes]}"
        database.run(
            lambda work: work.experiments.settle(
                experiment_id, epoch=epoch, state=ExperimentState.FAILED, reason=reason
            )
        )
        return
    if not os.environ.get("RAY_ADDRESS"):
        _leave_worn_head(database, root, experiment_id=experiment_id, address=address)
    conductor = Conductor(database, root, experiment_id=experiment_id, epoch=epoch, places=room)
    conductor.recover()
    watch = threading.Thread(target=_watch, args=(conductor, terminated), daemon=True)
    watch.start()
    if not os.environ.get("RAY_ADDRESS"):
        threading.Thread(target=_watch_places, args=(conductor, database, root, address), daemon=True).start()
    tune.run_all(conductor, resources=spec.resources, max_concurrent=room.max_concurrent)
    lost_places.settle_groups()
    conductor.settle()
    logger.info("the driver of %s ends", experiment_id)
    # Ray's threads and the watch end with the process; an orderly shutdown of them would only take longer.
    logging.shutdown()
    os._exit(0)


def _leave_worn_head(database: Database, root: Path, *, experiment_id: str, address: str) -> None:
    """Ends the process if the head has lost places and nobody else uses it, so that the daemon can start it anew."""
    lost = lost_places.lasting_loss(_LOSS_PATIENCE_S)
    if not lost:
        return
    logger.error("%s", lost_places.in_words(lost))
    lost_places.leave_note(root, address=address, lost=lost)
    if _may_leave(database, experiment_id):
        os._exit(_EXIT_PLACES_LOST)


def _watch_places(conductor: Conductor, database: Database, root: Path, address: str) -> None:
    """Looks for lost places while runs wait to start; in a thread of its own, as a head that is gone never answers."""
    while True:
        time.sleep(_LOSS_INTERVAL_S)
        try:
            lost = lost_places.lasting_loss(_LOSS_PATIENCE_S) if conductor.starting_runs() else {}
            waiting = conductor.starting_runs()
            if not lost or not waiting:
                continue
            logger.error("%s", lost_places.in_words(lost))
            conductor.explain(waiting, lost_places.in_words(lost))
            lost_places.leave_note(root, address=address, lost=lost)
            if len(waiting) == len(conductor.live_runs()) and _may_leave(database, conductor.experiment_id):
                os._exit(_EXIT_PLACES_LOST)
        except (Fenced, StoreUnavailable) as error:
            logger.warning("%s", error)  # the other thread does what is to be done about it


def _may_leave(database: Database, experiment_id: str) -> bool:
    """Whether the head can be started anew: there is an orchestrator to do it, and no other experiment has a driver."""
    with database.read() as work:
        driven = {record.id for state in _DRIVEN for record in work.experiments.list(limit=200, state=state).items}
        others = driven - set(work.experiments.claimable()) - {experiment_id}
        return work.queue.standings().is_served and not others


def _watch(conductor: Conductor, terminated: threading.Event) -> None:
    """Once a second: lease, progress, spikes, wishes. Ends the process when its epoch or its time is over."""
    stopping_since: float | None = None
    last_renewal = time.monotonic()
    while True:
        try:
            state = conductor.watch(ttl_s=LEASE_TTL_S)
            last_renewal = time.monotonic()
        except Fenced as error:
            logger.error("fenced off: %s", error)
            os._exit(_EXIT_FENCED)
        except StoreUnavailable as error:
            logger.warning("the lease could not be renewed: %s", error)
            state = None
        if time.monotonic() - last_renewal > 4 * LEASE_TTL_S:
            os._exit(1)
        why = None
        if state is ExperimentState.CANCELLING:
            why = Stopping.CANCEL
        elif terminated.is_set():
            why = Stopping.SHUTDOWN
        elif state is ExperimentState.PAUSING:
            why = Stopping.PAUSE
        if why is not None:
            conductor.stop(why)
            stopping_since = stopping_since or time.monotonic()
            within_s = conductor.stop_within_s
            if within_s is None or why is Stopping.SHUTDOWN:
                within_s = _STOP_DEADLINE_S
            if time.monotonic() - stopping_since >= within_s:
                logger.warning("runs did not stop within %.0f s; ending without them", within_s)
                conductor.settle()
                # Processes of trials end with the process that owns them.
                os._exit(0)
        terminated.wait(_WATCH_INTERVAL_S) if stopping_since is None else time.sleep(0.2)


def main() -> None:
    """Parses the command line and drives."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.execution.driver")
    parser.add_argument("experiment_id")
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--address", required=True, help="of the Ray cluster")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    drive(
        layout.home(),
        experiment_id=arguments.experiment_id,
        epoch=arguments.epoch,
        address=arguments.address,
    )


if __name__ == "__main__":
    main()
