"""Tokens on disk, session cookies, and requests from other sites."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from api import auth
from api.problems import RequestRefused


def test_the_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    token = auth.ensure_token(file)
    assert auth.ensure_token(file) == token
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(token) >= 43  # 256 bits in base 64
    assert [entry.name for entry in tmp_path.iterdir()] == ["token"]


def test_processes_that_start_together_agree_on_the_token(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(lambda _: auth.ensure_token(tmp_path / "token"), range(32)))
    assert len(tokens) == 1


def test_a_token_that_others_can_read_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "token"
    auth.ensure_token(file)
    file.chmod(0o644)
    auth.ensure_token(file)
    assert file.stat().st_mode & 0o777 == 0o600


def test_an_empty_token_file_is_an_error_not_an_open_door(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        auth.ensure_token(tmp_path / "token")


def test_a_session_counts_for_its_token_until_it_expires() -> None:
    now = time.time()
    session = auth.session_value("a" * 32, int(now) + 10)
    assert auth.is_session(session, "a" * 32, now_s=now)
    assert not auth.is_session(session, "b" * 32, now_s=now)
    assert not auth.is_session(session, "a" * 32, now_s=now + 11)


@pytest.mark.parametrize(
    "forged", ["", ".", "9999999999.", "9999999999.abc", "x.y", "99999999999999999999.z", "\u0663.a"]
)
def test_forged_sessions_do_not_count(forged: str) -> None:
    assert not auth.is_session(forged, "a" * 32, now_s=0)


def test_a_session_cannot_be_extended() -> None:
    expires, _, signature = auth.session_value("a" * 32, 1000).partition(".")
    assert not auth.is_session(f"{int(expires) + 1}.{signature}", "a" * 32, now_s=0)


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"origin": "http://localhost:8080", "host": "localhost:8080"},
        {"sec-fetch-site": "same-origin", "origin": "http://localhost:8080", "host": "localhost:8080"},
    ],
)
def test_requests_of_the_own_page_pass(headers: dict[str, str]) -> None:
    auth.require_same_site(Headers(headers))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost:8080"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": ""},
        {"sec-fetch-site": "cross-site", "origin": "http://localhost:8080", "host": "localhost:8080"},
        {"origin": "http://localhost:3000", "host": "localhost:8080"},
        {"origin": "null", "host": "localhost:8080"},
        {"origin": "http://localhost:8080.evil", "host": "localhost:8080"},
    ],
)
def test_requests_of_other_pages_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(RequestRefused):
        auth.require_same_site(Headers(headers))
