"""The processes the daemon keeps running: the Ray head, MLflow, the forwarder. Each is adopted if it is there already.

Which they are is kept in the `services` table with pid and start time, so that a daemon that was killed finds its
children again. What runs elsewhere (RAY_ADDRESS, EVENLOAD_MLFLOW_URI) is only reported, neither started nor stopped.
"""

import logging
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator import home as layout
from orchestrator.execution import cluster, lost_places, processes
from orchestrator.execution.cluster import Node
from orchestrator.execution.plan import ServiceState, ServiceView
from orchestrator.execution.processes import ProcessIdentity
from orchestrator.store.session import Database
from orchestrator.tracking import server

logger = logging.getLogger(__name__)

_PROBE_INTERVAL_S = 60.0
_START_PATIENCE_S = 120.0


class Service:
    """One process: its identity, how it is, how to start and end it.

    Args:
        name: as in the `services` table.
        start: starts it; returns its identity, its URL if it is known already, and the child to reap.
        end: ends the process of that identity.
    """

    def __init__(
        self,
        name: str,
        *,
        start: Callable[[], tuple[ProcessIdentity, str | None, "subprocess.Popen[bytes]"]],
        end: Callable[[ProcessIdentity], None],
    ) -> None:
        self.name = name
        self.identity: ProcessIdentity | None = None
        self.url: str | None = None
        self.detail: dict[str, Any] = {}
        self.is_ready = False
        self.is_worn = False
        """See `ServiceView`."""
        self._start = start
        self._end = end
        self._child: subprocess.Popen[bytes] | None = None
        self._num_failures = 0
        self._started_at: float | None = None
        self._reported: tuple[str, str | None, int | None] | None = None

    def adopt(self, database: Database) -> None:
        """Takes over the process that an earlier daemon left running, if it still does."""
        with database.read() as work:
            record = work.services.get(self.name)
        if record is None or record.pid is None or "started_at_s" not in record.detail:
            return
        identity = ProcessIdentity(record.pid, record.detail["started_at_s"])
        if processes.is_alive(identity) and record.state in ("starting", "ready"):
            logger.info("adopted %s, pid %d", self.name, identity.pid)
            self.identity, self.url, self.detail = identity, record.url, dict(record.detail)
            self._started_at = time.monotonic()
        else:
            # Helpers of a process that was killed.
            self._end(identity)

    def begin(self) -> None:
        """Starts the process."""
        self._started_at = time.monotonic()
        self.identity, self.url, self._child = self._start()
        self.detail = {"started_at_s": self.identity.started_at_s}
        logger.info("started %s, pid %d", self.name, self.identity.pid)

    def check(self) -> None:
        """Notices that the process has ended, and ends what is left of its session."""
        if self._child is not None:
            self._child.poll()
        if self.identity is not None and not processes.is_alive(self.identity):
            logger.warning("%s (pid %d) has ended", self.name, self.identity.pid)
            self.finish()
            self._num_failures += 1
        elif self.identity is not None and not self.is_ready and self._since_start_s() > _START_PATIENCE_S:
            logger.warning("%s is not ready after %.0f s; starting it anew", self.name, _START_PATIENCE_S)
            self.finish()
            self._num_failures += 1

    def ready(self) -> None:
        """Notes that the process answers."""
        self.is_ready = True
        self._num_failures = 0

    def finish(self) -> None:
        """Ends the process and everything it started."""
        if self.identity is not None:
            self._end(self.identity)
        if self._child is not None:
            self._child.wait()
        self.identity, self.url, self._child, self.is_ready, self.is_worn = None, None, None, False, False

    def view(self) -> ServiceView:
        """What `plan` sees."""
        if self.identity is None:
            state = ServiceState.ABSENT
        else:
            state = ServiceState.READY if self.is_ready else ServiceState.STARTING
        since = None if self._started_at is None else self._since_start_s()
        return ServiceView(
            name=self.name,
            state=state,
            num_failures=self._num_failures,
            since_start_s=since,
            is_worn=self.is_worn,
        )

    def report(self, database: Database, *, beat: bool) -> None:
        """Writes the service's row if it has changed, else only its heartbeat if `beat`."""
        # Before its first start it waits for its turn.
        is_starting = self.identity is not None or self._num_failures == 0
        state = "ready" if self.is_ready else "starting" if is_starting else "failed"
        pid = None if self.identity is None else self.identity.pid
        now = (state, self.url, pid)
        if now != self._reported:
            database.run(
                lambda work: work.services.report(
                    self.name, state=state, pid=pid, url=self.url, detail=dict(self.detail)
                )
            )
            self._reported = now
        elif beat:
            database.run(lambda work: work.services.beat(self.name))

    def _since_start_s(self) -> float:
        return time.monotonic() - (self._started_at or 0.0)


class Services:
    """All of them, in the order in which they start.

    Args:
        database: of the installation.
        root: the home folder.
        num_cpus: CPUs of the local Ray head.
    """

    def __init__(self, database: Database, root: Path, *, num_cpus: int) -> None:
        self._database = database
        self._root = root
        self._external_ray = os.environ.get("RAY_ADDRESS") or None
        self._external_mlflow = server.external_uri()
        self._executor = ThreadPoolExecutor(max_workers=2)
        self._probe: Future[list[Node]] | None = None
        self._probed_at = 0.0
        self._health: Future[bool] | None = None

        def start_ray() -> tuple[ProcessIdentity, str | None, "subprocess.Popen[bytes]"]:
            head, child = cluster.start_head(root, num_cpus=num_cpus)
            return head.identity, None, child

        def start_mlflow() -> tuple[ProcessIdentity, str | None, "subprocess.Popen[bytes]"]:
            return server.start_server(root)

        def start_forwarder() -> tuple[ProcessIdentity, str | None, "subprocess.Popen[bytes]"]:
            child = processes.start_module(
                "orchestrator.tracking.forwarder",
                [],
                log=layout.logs_folder(root) / "forwarder.log",
                environment=processes.child_environment({"EVENLOAD_HOME": str(root)}),
            )
            identity = processes.identify(child.pid)
            assert identity is not None, "a child that was not waited for has a pid"
            return identity, None, child

        self.ray = Service(
            "ray",
            start=start_ray,
            end=lambda identity: cluster.stop_head(root, cluster.Head(identity, _ray_log(root))),
        )
        self.mlflow = Service("mlflow", start=start_mlflow, end=server.stop_server)
        self.forwarder = Service(
            "forwarder",
            start=start_forwarder,
            end=lambda identity: processes.end_session(identity, grace_s=3.0),
        )

    @property
    def ray_address(self) -> str:
        """`host:port` of the cluster, once it is ready."""
        assert self.ray.url is not None, "Ray is not ready"
        return self.ray.url

    def adopt(self) -> None:
        """Takes over what is running already."""
        if self._external_ray is None:
            self.ray.adopt(self._database)
        else:
            self.ray.url = self._external_ray
        if self._external_mlflow is None:
            self.mlflow.adopt(self._database)
        else:
            self.mlflow.url = self._external_mlflow
        self.forwarder.adopt(self._database)

    def begin(self, name: str) -> None:
        """Starts one by name."""
        {service.name: service for service in self._ours()}[name].begin()

    def end(self, name: str) -> None:
        """Ends one by name, which is to be started anew."""
        logger.warning("ending %s, to start it anew", name)
        {service.name: service for service in self._ours()}[name].finish()

    def check(self) -> None:
        """Looks at all of them without waiting: who has ended, who has become ready."""
        for service in self._ours():
            service.check()
        self._check_ray()
        self._check_mlflow()
        if self.forwarder.identity is not None:
            self.forwarder.ready()

    def views(self) -> list[ServiceView]:
        """What `plan` sees."""
        external = self._external_ray is not None
        views = [service.view() for service in self._ours()]
        if external:
            state = ServiceState.READY if self.ray.is_ready else ServiceState.STARTING
            views.insert(0, ServiceView(name="ray", state=state))
        return views

    def report(self, *, beat: bool) -> None:
        """Writes what has changed to the database."""
        for service in (self.ray, self.mlflow, self.forwarder):
            service.report(self._database, beat=beat)

    def finish(self) -> None:
        """Ends all that is ours, and says so."""
        with ThreadPoolExecutor(max_workers=3) as executor:
            list(executor.map(Service.finish, self._ours()))
        for service in self._ours():
            self._database.run(lambda work, name=service.name: work.services.report(name, state="stopped"))
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _ours(self) -> list[Service]:
        services = [] if self._external_ray is not None else [self.ray]
        services += [] if self._external_mlflow is not None else [self.mlflow]
        return [*services, self.forwarder]

    def _check_ray(self) -> None:
        if self._external_ray is None:
            if self.ray.identity is None:
                return
            if self.ray.url is None:
                self.ray.url = cluster.Head(self.ray.identity, _ray_log(self._root)).address()
            if self.ray.url is not None:
                self.ray.is_worn = lost_places.is_noted(self._root, address=self.ray.url)
        if self._probe is not None and self._probe.done():
            nodes, self._probe = self._probe.result(), None
            self._probed_at = time.monotonic()
            if nodes:
                self.ray.detail["nodes"] = [asdict(node) for node in nodes]
                self.ray.ready()
        # A local head has one node, which does not change.
        is_due = not self.ray.is_ready or (
            self._external_ray is not None and time.monotonic() - self._probed_at > _PROBE_INTERVAL_S
        )
        if is_due and self._probe is None and self.ray.url is not None:
            environment = cluster.ray_environment(self._root)
            self._probe = self._executor.submit(cluster.probe, self.ray.url, environment)

    def _check_mlflow(self) -> None:
        if self._health is not None and self._health.done():
            if self._health.result():
                self.mlflow.ready()
            self._health = None
        if not self.mlflow.is_ready and self.mlflow.url is not None and self._health is None:
            self._health = self._executor.submit(server.is_healthy, self.mlflow.url)


def _ray_log(root: Path) -> Path:
    return layout.logs_folder(root) / "ray.log"
