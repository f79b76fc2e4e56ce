"""What every request passes before any route sees it: request id, Host check, body limit, security headers.

Plain ASGI, because it has to answer before a body is read and must not buffer streams. It decides nothing by path.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import MISDIRECTED, NOT_JSON_TYPE, SLOW_BODY, TOO_LARGE, Kind, problem_response
from api.settings import Settings

BODY_TIMEOUT_S = 30.0
DRAIN_BYTES, DRAIN_S = 128 * 1024 * 1024, 5.0
"""How much of a refused body is still taken in, so that the client gets to read the answer instead of a broken pipe."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._max_body_bytes = settings.max_body_bytes
        self._hosts = {
            "127.0.0.1",
            "localhost",
            "[::1]",
            settings.host.lower(),
            *map(str.lower, settings.allowed_hosts),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        scope["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        async def refuse(kind: Kind, detail: str) -> None:
            await _answer_and_drain(scope, receive, send_with_headers, kind, detail)

        headers = Headers(scope=scope)
        if not self._is_known_host(headers.getlist("host")):
            await refuse(
                MISDIRECTED,
                "The Host header names another server; use 127.0.0.1, localhost or a name given to --allow-host.",
            )
            return
        length = headers.get("content-length")
        if length is not None and int(length) > self._max_body_bytes:
            await refuse(TOO_LARGE, self._too_large(f"{int(length):,} bytes"))
            return
        if length in (None, "0") and "transfer-encoding" not in headers:
            await self._app(scope, receive, send_with_headers)
            return
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            await refuse(NOT_JSON_TYPE, "Send the body as JSON, with the header `Content-Type: application/json`.")
            return
        try:
            body = await asyncio.wait_for(self._read(receive), BODY_TIMEOUT_S)
        except TimeoutError:
            await refuse(SLOW_BODY, f"The body did not arrive within {BODY_TIMEOUT_S:g} s.")
            return
        if body is None:
            await refuse(TOO_LARGE, self._too_large("more"))
            return
        await self._app(scope, _replay(body, receive), send_with_headers)

    def _too_large(self, given: str) -> str:
        return f"The body has {given}; at most {self._max_body_bytes:,} bytes are taken. Nothing was stored."

    def _is_known_host(self, given: list[str]) -> bool:
        if len(given) != 1:
            return False
        name, separator, port = given[0].lower().rpartition(":")
        if not separator or given[0].endswith("]"):
            name, port = given[0].lower(), "0"
        return port.isascii() and port.isdigit() and name in self._hosts

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, or None once it is larger than allowed."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > self._max_body_bytes:
                return None
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


async def _answer_and_drain(scope: Scope, receive: Receive, send: Send, kind: Kind, detail: str) -> None:
    """Sends the whole answer at once, then takes in what the client is still sending before the connection closes."""
    response = problem_response(
        kind, detail, path=scope["path"], request_id=scope["request_id"], headers={"Connection": "close"}
    )
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    # A client that waits for "100 Continue" has not sent anything, and asking for more would make it.
    if "expect" not in Headers(scope=scope):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_drain(receive), DRAIN_S)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    size, started = 0, time.monotonic()
    while size < DRAIN_BYTES and time.monotonic() - started < DRAIN_S:
        message = await receive()
        size += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
