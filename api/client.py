"""The Python client: `Client().submit("spec.yaml")`. Needs httpx and pydantic only, no torch.

from api.client import Client

client = Client()  # of the same EVENLOAD_HOME as the server, or of EVENLOAD_URL and EVENLOAD_TOKEN
experiment = client.submit("studies/000-balancing/spec.yaml")
client.wait(experiment.id)
for row in client.comparison(experiment.id).rows:
    print(row.rank, row.params, row.objective)
"""

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from api.address import DEFAULT_URL, known_address
from api.errors import RequestFailed, ServerUnreachable, from_problem
from api.schemas.comparison import Comparison
from api.schemas.control import BulkAnswers, CommandList, QueueRead
from api.schemas.events import Event, EventPage
from api.schemas.experiments import ExperimentDetail, ExperimentPage, ExperimentSummary, Validation
from api.schemas.implicated import ImplicatedDocuments
from api.schemas.problems import Problem
from api.schemas.router import RouterLoads
from api.schemas.search import AnalysisRead
from api.schemas.series import AlarmList, EvaluationList, Series, SpikeList
from api.schemas.services import Readiness, ServiceList
from api.schemas.trials import CheckpointList, Diff, ForkList, RunList, TrialDetail, TrialPage, TrialRead
from orchestrator import home
from orchestrator.states import is_terminal

M = TypeVar("M", bound=BaseModel)

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 30.0
NUM_ATTEMPTS = 4
LARGEST_PAUSE_S = 10.0


class Client:
    """Talks to one server. Every method raises ServerUnreachable or RequestFailed.

    Args:
        url: the server's address; EVENLOAD_URL, else where the server of the home folder listens.
        token: the bearer token; EVENLOAD_TOKEN, else the one in the home folder.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self.url = (url or os.environ.get("EVENLOAD_URL") or known_address(home.home()) or DEFAULT_URL).rstrip("/")
        token = token or os.environ.get("EVENLOAD_TOKEN")
        if token is None:
            file = home.token_path(home.home())
            token = file.read_text().strip() if file.exists() else None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=False,  # a proxy of the environment has no business with a server on this machine
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    # Experiments

    def submit(
        self, spec: Mapping[str, Any] | str | os.PathLike[str], *, idempotency_key: str | None = None
    ) -> ExperimentDetail:
        """Queue an experiment.

        Args:
            spec: the document, or the path of a YAML or JSON file.
            idempotency_key: submitting again with the same key and spec gives the same experiment. Without one, a
                fresh key still makes the retries of this one call safe.

        Raises:
            SpecRefused: with one entry in `problem.errors` per field that is wrong.
        """
        headers = {"Idempotency-Key": idempotency_key or f"client-{uuid.uuid4()}"}
        return self._call(ExperimentDetail, "POST", "/v1/experiments", content=_body(spec), headers=headers, retry=True)

    def validate(self, spec: Mapping[str, Any] | str | os.PathLike[str]) -> Validation:
        """What submitting the spec would mean; nothing is stored. Raises SpecRefused like `submit`."""
        return self._call(Validation, "POST", "/v1/experiments:validate", content=_body(spec), retry=True)

    def experiments(self, *, limit: int = 50, cursor: str | None = None) -> ExperimentPage:
        """One page of experiments, newest first."""
        return self._call(ExperimentPage, "GET", "/v1/experiments", params={"limit": limit, "cursor": cursor})

    def list_experiments(self) -> Iterator[ExperimentSummary]:
        """All experiments, newest first, fetched page by page."""
        cursor: str | None = None
        while True:
            page = self.experiments(limit=200, cursor=cursor)
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def experiment(self, experiment_id: str) -> ExperimentDetail:
        """One experiment."""
        return self._call(ExperimentDetail, "GET", f"/v1/experiments/{_segment(experiment_id)}")

    def pause(self, experiment_id: str, *, deadline_s: float | None = None) -> ExperimentDetail:
        """Stop for now; running trials write a checkpoint, within `deadline_s` (by default 60 s)."""
        return self._verb(ExperimentDetail, "experiments", experiment_id, "pause", _deadline(deadline_s))

    def resume(self, experiment_id: str) -> ExperimentDetail:
        """Go on with a paused experiment."""
        return self._verb(ExperimentDetail, "experiments", experiment_id, "resume")

    def cancel(self, experiment_id: str, *, deadline_s: float | None = None) -> ExperimentDetail:
        """End an experiment; running trials write a checkpoint, within `deadline_s` (by default 30 s)."""
        return self._verb(ExperimentDetail, "experiments", experiment_id, "cancel", _deadline(deadline_s))

    def kill(self, experiment_id: str) -> ExperimentDetail:
        """End an experiment now, without checkpoints."""
        return self._verb(ExperimentDetail, "experiments", experiment_id, "kill")

    def prioritize(self, experiment_id: str, priority: int) -> ExperimentDetail:
        """Change an experiment's priority, -100 to 100; free places go to the highest first."""
        return self._verb(ExperimentDetail, "experiments", experiment_id, "prioritize", {"priority": priority})

    def control(
        self,
        verb: Literal["pause", "resume", "cancel", "kill", "prioritize"],
        *,
        ids: Sequence[str] | None = None,
        states: Sequence[str] | None = None,
        owner: str | None = None,
        name_contains: str | None = None,
        **more: Any,
    ) -> BulkAnswers:
        """Do one thing to many experiments; each is answered for.

        Args:
            ids: which, or, without them, those that the others select; without `states`, of those that have not ended.
            more: `deadline_s` or `priority`, as for one.
        """
        chosen: dict[str, Any] = {"states": states, "owner": owner, "name_contains": name_contains}
        which = {"filter": chosen} if ids is None else {"ids": list(ids)}
        content = _json({**which, **more})
        return self._call(BulkAnswers, "POST", f"/v1/experiments:{verb}", content=content, retry=True)

    def commands(self, experiment_id: str) -> CommandList:
        """What users wished for an experiment and its trials, and what became of it."""
        return self._call(CommandList, "GET", f"/v1/experiments/{_segment(experiment_id)}/commands")

    def queue(self) -> QueueRead:
        """Who waits for places of the cluster and why, in the order in which they are given out."""
        return self._call(QueueRead, "GET", "/v1/queue")

    def comparison(self, experiment_id: str) -> Comparison:
        """The trials side by side, best first."""
        return self._call(Comparison, "GET", f"/v1/experiments/{_segment(experiment_id)}/comparison")

    def extend(
        self, experiment_id: str, *, num_trials: int, space: Mapping[str, Any] | None = None
    ) -> ExperimentDetail:
        """Queue an ended experiment again with more trials; asking again for the same changes nothing.

        Args:
            num_trials: trials of the search in all.
            space: dotted path -> domain that takes the place of the present one, or stands beside it.
        """
        content = json.dumps({"num_trials": num_trials, "space": dict(space or {})}).encode()
        path = f"/v1/experiments/{_segment(experiment_id)}:extend"
        return self._call(ExperimentDetail, "POST", path, content=content, retry=True)

    def analysis(self, experiment_id: str, *, timeout_s: float = 0.0, poll_s: float = 1.0) -> AnalysisRead:
        """Best so far, Pareto front, slices, importance: the newest there is.

        Args:
            timeout_s: how long to wait for a current one.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            path = f"/v1/experiments/{_segment(experiment_id)}/analysis"
            answer = self._call(AnalysisRead, "GET", path)
            if answer.state == "current" or answer.problem or time.monotonic() + poll_s > deadline:
                return answer
            time.sleep(poll_s)

    def wait(self, experiment_id: str, *, timeout_s: float | None = None, poll_s: float = 1.0) -> ExperimentDetail:
        """The experiment once it is over; raises TimeoutError after `timeout_s` seconds."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            experiment = self.experiment(experiment_id)
            if is_terminal(experiment.state):
                return experiment
            if deadline is not None and time.monotonic() + poll_s > deadline:
                raise TimeoutError(f"experiment {experiment_id} is still {experiment.state} after {timeout_s} s")
            time.sleep(poll_s)

    def events(self, experiment_id: str, *, after: int = 0, limit: int = 200) -> EventPage:
        """Events with an id above `after`, oldest first."""
        path = f"/v1/experiments/{_segment(experiment_id)}/events"
        return self._call(EventPage, "GET", path, params={"after": after, "limit": limit})

    def watch(self, experiment_id: str, *, after: int = 0) -> Iterator[Event]:
        """Events as they happen, from the one after `after` until the experiment is over.

        A broken connection is taken up again where it ended: no event is missed or given twice.
        """
        path = f"/v1/experiments/{_segment(experiment_id)}/events"
        pause_s = 0.5
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
            try:
                with self._http.stream("GET", path, headers=headers) as response:
                    if response.status_code != 200:
                        response.read()
                        raise _failure(response)
                    for name, data in _server_sent(response.iter_lines()):
                        if name == "end":
                            return
                        event = Event.model_validate_json(data)
                        after, pause_s = event.id, 0.5
                        yield event
            except httpx.TransportError as error:
                if pause_s > LARGEST_PAUSE_S:
                    raise self._unreachable(error) from error
            time.sleep(pause_s)
            pause_s *= 2

    # Trials and runs

    def trials(self, experiment_id: str) -> list[TrialRead]:
        """All trials in order of their number."""
        rows: list[TrialRead] = []
        cursor: str | None = None
        while True:
            params = {"limit": 1000, "cursor": cursor}
            page = self._call(TrialPage, "GET", f"/v1/experiments/{_segment(experiment_id)}/trials", params=params)
            rows += page.items
            cursor = page.next_cursor
            if cursor is None:
                return rows

    def experiment_runs(self, experiment_id: str) -> RunList:
        """Every run of every trial, in order of trial and run."""
        return self._call(RunList, "GET", f"/v1/experiments/{_segment(experiment_id)}/runs")

    def trial(self, trial_id: str) -> TrialDetail:
        """One trial with its configuration."""
        return self._call(TrialDetail, "GET", f"/v1/trials/{_segment(trial_id)}")

    def add_trial(
        self,
        experiment_id: str,
        params: Mapping[str, Any],
        *,
        label: str | None = None,
        idempotency_key: str | None = None,
    ) -> TrialDetail:
        """Add a point by hand; what `params` leave out is drawn at random. The key is as for `submit`.

        Raises:
            SpecRefused: with one entry in `problem.errors` per value that is not allowed.
        """
        headers = {"Idempotency-Key": idempotency_key or f"client-{uuid.uuid4()}"}
        content = _json({"params": dict(params), "label": label})
        path = f"/v1/experiments/{_segment(experiment_id)}/trials"
        return self._call(TrialDetail, "POST", path, content=content, headers=headers, retry=True)

    def stop_trial(self, trial_id: str, *, deadline_s: float | None = None) -> TrialDetail:
        """End one trial with what it came to, killed after `deadline_s` (by default 60 s); the experiment goes on."""
        return self._verb(TrialDetail, "trials", trial_id, "stop", _deadline(deadline_s))

    def retry_trial(self, trial_id: str) -> TrialDetail:
        """Try a failed trial again; returns the new trial, the same one each time."""
        return self._verb(TrialDetail, "trials", trial_id, "retry")

    def control_trials(self, verb: Literal["stop", "retry"], *, ids: Sequence[str], **more: Any) -> BulkAnswers:
        """Stop or retry many trials; each is answered for. `more`: to stop them, `deadline_s` as for one."""
        content = _json({"ids": list(ids), **more})
        return self._call(BulkAnswers, "POST", f"/v1/trials:{verb}", content=content, retry=True)

    def runs(self, trial_id: str) -> RunList:
        """All runs of a trial."""
        return self._call(RunList, "GET", f"/v1/trials/{_segment(trial_id)}/runs")

    def diff(self, trials: Sequence[str]) -> Diff:
        """Only the configuration values that differ."""
        return self._call(Diff, "POST", "/v1/trials:diff", content=_json({"trials": list(trials)}))

    def checkpoints(self, trial_id: str) -> CheckpointList:
        """The checkpoints of a trial that are kept."""
        return self._call(CheckpointList, "GET", f"/v1/trials/{_segment(trial_id)}/checkpoints")

    def forks(self, trial_id: str) -> ForkList:
        """The experiments forked from a trial."""
        return self._call(ForkList, "GET", f"/v1/trials/{_segment(trial_id)}/forks")

    def fork(
        self,
        run_id: str,
        *,
        step: int,
        changes: Mapping[str, Any] | None = None,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> ExperimentDetail:
        """Queue an experiment of one trial that goes on from a checkpoint of a run.

        Args:
            run_id: the run.
            step: of a checkpoint that is kept.
            changes: dotted path into the configuration -> value that differs, e.g. `{"optimizer.lr": 1e-4}`.
            name: of the new experiment; None derives one.
            idempotency_key: as for `submit`.

        Raises:
            SpecRefused: with one entry in `problem.errors` per value that a fork cannot have.
        """
        headers = {"Idempotency-Key": idempotency_key or f"client-{uuid.uuid4()}"}
        content = _json({"step": step, "set": dict(changes or {}), "name": name})
        path = f"/v1/runs/{_segment(run_id)}:fork"
        return self._call(ExperimentDetail, "POST", path, content=content, headers=headers, retry=True)

    # Telemetry

    def series(
        self,
        keys: Sequence[str],
        *,
        trials: Sequence[str] = (),
        runs: Sequence[str] = (),
        x: Literal["step", "tokens", "time", "flops"] = "step",
        points: int = 500,
        x_range: tuple[float, float] | None = None,
        layers: Literal["worst", "mean", "each"] = "worst",
    ) -> Series:
        """Metrics on a common grid: minimum, last value and maximum of each bucket."""
        request = {
            "trials": list(trials),
            "runs": list(runs),
            "keys": list(keys),
            "x": x,
            "points": points,
            "x_range": x_range,
            "layers": layers,
        }
        return self._call(Series, "POST", "/v1/series:query", content=_json(request))

    def loads(self, trial_id: str, *, step: int | None = None) -> RouterLoads:
        """Exact tokens per layer and expert in one step, the newest if `step` is None."""
        return self._call(RouterLoads, "GET", f"/v1/trials/{_segment(trial_id)}/router/loads", params={"step": step})

    def spikes(self, trial_id: str) -> SpikeList:
        """Loss and gradient spikes."""
        return self._call(SpikeList, "GET", f"/v1/trials/{_segment(trial_id)}/spikes")

    def implicated_documents(
        self, experiment_id: str, *, min_trials: int = 2, everywhere: bool = False
    ) -> ImplicatedDocuments:
        """Documents in the batches of spikes of several trials, beside what chance alone would give."""
        params = {"min_trials": min_trials, "everywhere": everywhere}
        path = f"/v1/experiments/{_segment(experiment_id)}/implicated-documents"
        return self._call(ImplicatedDocuments, "GET", path, params=params)

    def alarms(self, trial_id: str) -> AlarmList:
        """Alarms of the config's rules, raised and cleared."""
        return self._call(AlarmList, "GET", f"/v1/trials/{_segment(trial_id)}/alarms")

    def evaluations(self, trial_id: str) -> EvaluationList:
        """Held-out bits per byte and loss per corpus."""
        return self._call(EvaluationList, "GET", f"/v1/trials/{_segment(trial_id)}/evaluations")

    # The installation

    def services(self) -> ServiceList:
        """Processes of the installation as they last reported."""
        return self._call(ServiceList, "GET", "/v1/services")

    def readiness(self) -> Readiness:
        """Whether experiments can be submitted and will run."""
        try:
            response = self._http.get("/readyz")
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.status_code not in (200, 503):
            raise _failure(response)
        return _parsed(Readiness, response)

    def _verb(self, model: type[M], kind: str, id: str, verb: str, request: Mapping[str, Any] | None = None) -> M:
        """One thing done to one experiment or trial. Safe to send again: it has no second effect."""
        content = None if request is None else _json(dict(request))
        return self._call(model, "POST", f"/v1/{kind}/{_segment(id)}:{verb}", content=content, retry=True)

    def _call(
        self,
        model: type[M],
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        retry: bool = False,
    ) -> M:
        given = {name: value for name, value in (params or {}).items() if value is not None}
        sent = {**(headers or {}), **({"Content-Type": "application/json"} if content is not None else {})}
        attempts = NUM_ATTEMPTS if retry or method == "GET" else 1
        for attempt in range(1, attempts + 1):
            try:
                response = self._http.request(method, path, params=given, content=content, headers=sent)
            except httpx.ConnectError as error:
                raise self._unreachable(error) from error
            except httpx.TransportError as error:
                if attempt == attempts:
                    raise self._unreachable(error) from error
            else:
                if response.is_success:
                    return _parsed(model, response)
                if response.status_code != 503 or attempt == attempts:
                    raise _failure(response)
            time.sleep(0.25 * 2**attempt)
        raise AssertionError("the last attempt returned or raised")

    def _unreachable(self, error: Exception) -> ServerUnreachable:
        reason = str(error) or type(error).__name__
        return ServerUnreachable(
            f"no server answers at {self.url} ({reason}); start one with `evenload up`, or set EVENLOAD_URL"
        )


def _deadline(deadline_s: float | None) -> dict[str, float] | None:
    return None if deadline_s is None else {"deadline_s": deadline_s}


def _json(value: Any) -> bytes:
    # NaN is sent as it is: the server names the field it stands in.
    return json.dumps(value).encode()


def _body(spec: Mapping[str, Any] | str | os.PathLike[str]) -> bytes:
    if isinstance(spec, Mapping):
        return _json(dict(spec))
    from api.documents import read_document

    return _json(read_document(Path(spec)))


def _segment(identifier: str) -> str:
    from urllib.parse import quote

    return quote(identifier, safe="")


def _parsed(model: type[M], response: httpx.Response) -> M:
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise RequestFailed(_unreadable(response, f"the answer is not a {model.__name__}: {error}")) from error


def _failure(response: httpx.Response) -> RequestFailed:
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        return from_problem(Problem.model_validate_json(response.content))
    return RequestFailed(_unreadable(response, f"{response.status_code} from something that is not evenload"))


def _unreadable(response: httpx.Response, detail: str) -> Problem:
    return Problem(
        type="urn:evenload:problem:unreadable-answer",
        title="The answer cannot be understood",
        status=response.status_code,
        detail=detail,
        instance=str(response.request.url.path),
        request_id=response.headers.get("x-request-id", ""),
        errors=[],
    )


def _server_sent(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """(event name, data) of each event with data in a text/event-stream."""
    name, data = "message", list[str]()
    for line in lines:
        if not line:
            if data:
                yield name, "\n".join(data)
            name, data = "message", []
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line.startswith("event:"):
            name = line[6:].strip()
