"""Where a server may listen with and without a token."""

from pathlib import Path
from typing import Any

import pytest

from api.settings import Settings, is_loopback


def settings(**fields: Any) -> Settings:
    return Settings(**{"home": Path(), "database_url": "sqlite:///unused.db", "token": "t" * 32} | fields)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"])
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    assert settings(host=host, token=None).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "lab.example.org", "", "127.0.0.1.evil.example", "1"])
def test_any_other_address_needs_one(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ValueError, match="needs a token"):
        settings(host=host, token=None)
    assert settings(host=host).host == host


def test_a_short_token_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter than 16"):
        settings(token="secret")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:8080"),
        ("::1", "http://[::1]:8080"),
        ("lab.example.org", "http://lab.example.org:8080"),
    ],
)
def test_clients_are_sent_where_the_server_listens(host: str, url: str) -> None:
    assert settings(host=host).url == url
