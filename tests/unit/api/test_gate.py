"""The gate: who it lets through, what it refuses before anything reads it, and the headers of every answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from api.gate import Gate
from api.settings import Settings

LIMIT = 1000


async def echo_length(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the number of bytes of the body."""
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


@pytest.fixture
def client() -> TestClient:
    settings = Settings(
        home=Path(),
        database_url="sqlite:///unused.db",
        token="t" * 32,
        allowed_hosts=("lab.example.org",),
        max_body_bytes=LIMIT,
    )
    return TestClient(Gate(echo_length, settings), base_url="http://127.0.0.1:8080")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8080", "localhost:9", "LOCALHOST", "[::1]", "[::1]:8080", "lab.example.org:443"]
)
def test_known_hosts_pass(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "", "evil.example", "127.0.0.1.evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1@evil",
        "a/?x=", "127.0.0.1:80:80", "127.0.0.1:port", "localhost:", "[::1", "169.254.169.254", "0.0.0.0", "2130706433",
        "localhost.", "xn--lcalhost-55a", " localhost", "localhost/", "lab.example.org.",
    ],
)  # fmt: skip
def test_other_hosts_are_misdirected(client: TestClient, host: str) -> None:
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code == 421
    assert answer.headers["content-type"] == "application/problem+json"


def test_two_host_headers_are_refused(client: TestClient) -> None:
    answer = client.get("/", headers=[("Host", "localhost"), ("Host", "localhost")])
    assert answer.status_code == 421


def json_body(size: int) -> bytes:
    return b'"' + b"x" * (size - 2) + b'"'


def test_a_body_of_the_limit_arrives_whole(client: TestClient) -> None:
    answer = client.post("/", content=json_body(LIMIT), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.text) == (200, str(LIMIT))


def test_a_larger_declared_body_is_refused(client: TestClient) -> None:
    answer = client.post("/", content=json_body(LIMIT + 1), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert "1,001 bytes; at most 1,000" in answer.json()["detail"]


def chunks(num: int) -> Iterator[bytes]:
    for _ in range(num):
        yield b"x" * 100


@pytest.mark.parametrize(("num_chunks", "status"), [(10, 200), (11, 413), (1000, 413)])
def test_chunked_bodies_are_counted(client: TestClient, num_chunks: int, status: int) -> None:
    answer = client.post("/", content=chunks(num_chunks), headers={"Content-Type": "application/json"})
    assert answer.status_code == status


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_a_form_could_send_is_refused(client: TestClient, kind: str) -> None:
    answer = client.post("/", content=b"{}", headers={"Content-Type": kind})
    assert answer.status_code == 415


def test_every_answer_carries_the_security_headers(client: TestClient) -> None:
    for answer in (client.get("/"), client.get("/", headers={"Host": "evil.example"})):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in answer.headers


def test_request_ids_differ_and_stand_in_problems(client: TestClient) -> None:
    first = client.get("/", headers={"Host": "evil.example"})
    second = client.get("/", headers={"Host": "evil.example"})
    assert first.headers["x-request-id"] == first.json()["request_id"]
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
