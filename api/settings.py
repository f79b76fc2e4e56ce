"""What a server process is told from outside."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MAX_BODY_BYTES = 2 * 1024 * 1024
"""A spec is a few kB; nothing the API takes is larger."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one API process.

    Attributes:
        home: the folder where everything is kept.
        database_url: SQLAlchemy URL.
        token: the bearer token; None turns authentication off, which only a loopback address may do.
        owners: name -> bearer token of further people, who may do the same; their experiments are theirs.
        host, port: the address the server listens on.
        allowed_hosts: names that the Host header may carry besides loopback names and `host`, without port.
        webui: the folder of the built dashboard.
        max_body_bytes: larger request bodies are answered with 413 before they are parsed.
        heartbeat_s: seconds between comments on an idle event stream.
        poll_s: seconds between looks at the database for an event stream.
    """

    home: Path
    database_url: str
    token: str | None
    owners: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8080
    allowed_hosts: tuple[str, ...] = ()
    webui: Path = field(default_factory=lambda: Path(__file__).parent / "webui")
    max_body_bytes: int = MAX_BODY_BYTES
    heartbeat_s: float = 15.0
    poll_s: float = 0.5

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"host={self.host!r} is reachable from other machines, which needs a token; or listen on 127.0.0.1"
            )
        if self.token is not None and len(self.token) < 16:
            raise ValueError("the token is shorter than 16 characters; `evenload token --new` makes a good one")

    @property
    def url(self) -> str:
        """Where clients on this machine reach the server."""
        return url_of(self.host, self.port)


def url_of(host: str, port: int) -> str:
    """Where clients on this machine reach a server that listens on `host` and `port`."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host).strip("[]")
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def is_loopback(host: str) -> bool:
    """True if only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
