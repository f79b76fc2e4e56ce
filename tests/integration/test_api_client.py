"""The Python client and the command line against a server that really listens."""

import json
import math
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from api.address import publish_address
from api.auth import ensure_token
from api.client import Client
from api.errors import NoSuchThing, NotAuthorised, RequestFailed, ServerUnreachable, SpecRefused
from orchestrator.states import ExperimentState
from tests.support import lab as labs
from tests.support.api import Installation, installation
from tests.support.specs import experiment_document


@contextmanager
def listening(lab: Installation) -> Iterator[str]:
    """Serves the app of `lab` on a port of its own; yields the address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(lab.app, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, str]]:
    home = tmp_path_factory.mktemp("home")
    token = ensure_token(home / "token")
    with installation(home, token=token) as lab, listening(lab) as url:
        publish_address(home, url)
        yield lab, url


@pytest.fixture
def client(server: tuple[Installation, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("EVENLOAD_HOME", str(server[0].home))
    with Client() as client:
        yield client


def test_a_client_of_the_same_home_finds_address_and_token(client: Client, server: tuple[Installation, str]) -> None:
    assert client.url == server[1]
    assert client.experiments(limit=1) is not None


def test_environment_variables_go_before_the_home(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    monkeypatch.setenv("EVENLOAD_TOKEN", "evl_another-token-than-the-servers")
    with Client() as stranger, pytest.raises(NotAuthorised):
        stranger.experiments()
    monkeypatch.setenv("EVENLOAD_URL", "http://127.0.0.1:9")
    with Client() as lost, pytest.raises(ServerUnreachable, match="evenload up"):
        lost.experiments()


def test_a_spec_is_submitted_from_a_mapping_or_a_file(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(json.dumps(experiment_document(name="from a file")))
    assert client.submit(file).name == "from a file"
    assert client.submit(experiment_document(name="from a mapping")).name == "from a mapping"


def test_a_key_makes_submitting_repeatable(client: Client) -> None:
    first = client.submit(experiment_document(), idempotency_key="k1")
    assert client.submit(experiment_document(), idempotency_key="k1").id == first.id
    assert client.submit(experiment_document()).id != first.id


def test_a_refused_spec_carries_every_problem(client: Client) -> None:
    document = experiment_document(num_trials=0)
    document["base"]["optimizer"]["lr"] = math.nan
    with pytest.raises(SpecRefused) as refused:
        client.validate(document)
    assert [error.pointer for error in refused.value.problem.errors] == ["/base/optimizer/lr"]
    document["base"]["optimizer"]["lr"] = 0.1
    with pytest.raises(SpecRefused) as refused:
        client.submit(document)
    assert [error.pointer for error in refused.value.problem.errors] == ["/num_trials"]


def test_what_is_not_there_is_an_error_of_its_own(client: Client) -> None:
    for call in (client.experiment, client.trials, client.comparison, client.cancel, client.trial, client.loads):
        with pytest.raises(NoSuchThing):
            call("exp_0")
    with pytest.raises(NoSuchThing):
        client.experiment("../../livez")  # an id stays one segment of the path


def test_a_list_goes_on_over_pages(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [client.submit(experiment_document()).id for _ in range(3)]
    listed = [one.id for one in client.list_experiments()]
    assert listed[:3] == ids[::-1]
    assert len(set(listed)) == len(listed)


def test_watching_ends_with_the_experiment(client: Client, server: tuple[Installation, str]) -> None:
    experiment = client.submit(experiment_document())

    def cancel() -> None:
        with Client(server[1]) as other:
            other.cancel(experiment.id)

    cancelling = threading.Timer(0.2, cancel)
    cancelling.start()
    events = list(client.watch(experiment.id))
    cancelling.join()
    assert [event.data["to"] for event in events if event.kind == "experiment.state"] == ["queued", "cancelled"]
    assert [event.id for event in events] == sorted({event.id for event in events})
    assert list(client.watch(experiment.id, after=events[-2].id)) == events[-1:]


def test_waiting_returns_the_end_or_raises(client: Client) -> None:
    experiment = client.submit(experiment_document())
    with pytest.raises(TimeoutError):
        client.wait(experiment.id, timeout_s=0.05, poll_s=0.01)
    client.cancel(experiment.id)
    assert client.wait(experiment.id).state is ExperimentState.CANCELLED


@contextmanager
def broken_server(answers: list[bytes]) -> Iterator[str]:
    """A server that sends each of `answers` to one connection and hangs up."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()

    def serve() -> None:
        for answer in answers:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(answer)
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def sse(*events: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + "".join(events).encode()


def event(number: int) -> str:
    data: dict[str, Any] = {
        "id": number, "at_ms": 1, "kind": "spike", "experiment_id": "e", "trial_id": None, "run_id": None, "data": {},
    }  # fmt: skip
    return f": ping\n\nevent: spike\ndata: {json.dumps(data)}\nid: {number}\n\n"


def test_a_broken_stream_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    half = event(2)[: len(event(2)) // 2]
    answers = [sse(event(1), half), b"", sse(event(2), event(3), "event: end\ndata: {}\n\n")]
    with broken_server(answers) as url, Client(url, token="t" * 16) as client:
        assert [one.id for one in client.watch("e")] == [1, 2, 3]


def test_an_answer_of_something_else_is_said_to_be_one() -> None:
    page = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\noops"
    with (
        broken_server([page]) as url,
        Client(url, token="t" * 16) as client,
        pytest.raises(RequestFailed, match="not evenload"),
    ):
        client.services()


def test_the_command_line_answers_with_a_status_and_no_traceback(
    server: tuple[Installation, str], tmp_path: Path
) -> None:
    home = server[0].home
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: [")
    for arguments, status, said in (
        (("list",), 0, ""),
        (("show", "exp_0"), 1, "there is no experiment"),
        (("submit", str(bad)), 1, "not valid YAML"),
        (("submit", str(tmp_path / "none.yaml")), 1, "No such file"),
        (("nonsense",), 2, "No such command"),
        (("down",), 0, ""),
    ):
        result = labs.evenload(home, *arguments)
        assert result.returncode == status, (arguments, result)
        assert said in result.stderr
        assert "Traceback" not in result.stderr


def test_documents_of_spikes_are_asked_for_by_client_and_command(
    client: Client, server: tuple[Installation, str]
) -> None:
    experiment = client.submit(experiment_document(name="no spikes yet")).id
    found = client.implicated_documents(experiment, min_trials=3)
    assert (found.items, found.num_trials, found.min_trials, found.everywhere) == ([], 0, 3, False)
    told = labs.evenload(server[0].home, "spikes", experiment, "--min-trials", "3", "--everywhere", "--json")
    assert json.loads(told.stdout) == found.model_dump(mode="json") | {"everywhere": True}
    in_words = labs.evenload(server[0].home, "spikes", experiment).stdout
    assert "No document was in spikes of 2 trials or more." in in_words


def test_token_prints_the_token_alone(server: tuple[Installation, str]) -> None:
    home, url = server[0].home, server[1]
    result = labs.evenload(home, "token")
    token = (home / "token").read_text().strip()
    assert result.stdout.strip() == token
    assert f"{url}/?token={token}" in result.stderr


@pytest.mark.parametrize("arguments", [("--host", "0.0.0.0", "--no-token"), ("--host", "192.0.2.1", "--no-token")])
def test_an_open_address_without_a_token_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    up = labs.evenload(tmp_path, "up", *arguments)
    assert up.returncode == 1
    assert "127.0.0.1" in up.stderr
    server = subprocess.run(
        [sys.executable, "-m", "api", *arguments],
        env=labs.environment(tmp_path), cwd=labs.CHECKOUT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert server.returncode == 78
    assert "needs a token" in server.stderr


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = labs.evenload(tmp_path, "up", "--port", str(taken.getsockname()[1]))
    assert result.returncode == 1
    assert "--port" in result.stderr


def test_commands_without_a_service_reach_the_trainer(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()  # a folder of that name where the user happens to be
    (tmp_path / "trainer" / "__init__.py").write_text("raise SystemExit(99)")
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps(experiment_document()))
    result = labs.evenload(tmp_path, "params", str(spec), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["total"] > json.loads(result.stdout)["active"]
