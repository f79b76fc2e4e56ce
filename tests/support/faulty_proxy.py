"""An HTTP proxy on TCP that fails on demand: it refuses, stays silent, dawdles, errs, resets, or loses the answer.

It has the server close each connection after one request, so that every request can meet a fault of its own.
"""

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Self

_CHUNK_BYTES = 65_536
_IDLE_S = 0.05
_SLOW_S = 0.05
_ERROR = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
    b"fault"
)


class Fault(StrEnum):
    """What becomes of a request."""

    NONE = "none"
    """It is passed on."""
    REFUSE = "refuse"
    """Its connection is reset before anything was read."""
    BLACK_HOLE = "black_hole"
    """It is taken, reaches nobody, and nothing ever comes back."""
    SLOW = "slow"
    """It is passed on after a while, and so is its answer."""
    ERROR = "error"
    """It is answered with status 500 and reaches nobody."""
    RESET = "reset"
    """Its connection is reset when the server has half of it."""
    LOSE_ANSWER = "lose_answer"
    """It is carried out, and its connection reset in place of an answer: the client cannot know."""
    HOLD_ANSWER = "hold_answer"
    """It is carried out, and the answer never comes."""


class FaultyProxy:
    """Listens on a free port of this machine and passes requests on to the server at `upstream` (host and port)."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self._fault_of: Callable[[int], Fault] = lambda _: Fault.NONE
        self._num_requests = 0
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_IDLE_S)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self.met: Counter[Fault] = Counter()
        """How many requests met which fault."""
        self.on_passed: Callable[[bytes], None] = lambda _: None
        """Called with every request when the server has all of it, and may be in the middle of what it asks for."""

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()

    @contextmanager
    def failing(self, fault: Fault, *, first: int = 0, last: int | None = None) -> Iterator[None]:
        """Inside of the block the requests `first` to `last`, counted from 0 at its start, meet the fault."""
        self._num_requests = 0
        self._fault_of = lambda index: fault if first <= index and (last is None or index <= last) else Fault.NONE
        try:
            yield
        finally:
            self._fault_of = lambda _: Fault.NONE

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            fault = self._fault_of(self._num_requests)
            self._num_requests += 1
            self.met[fault] += 1
            threading.Thread(target=self._serve, args=(client, fault), daemon=True).start()

    def _serve(self, client: socket.socket, fault: Fault) -> None:
        # Whoever hangs up first ends it.
        with suppress(OSError), client:
            if fault is Fault.REFUSE:
                return _reset(client)
            request = _read_request(client, host=f"{self._upstream[0]}:{self._upstream[1]}".encode())
            if fault is Fault.BLACK_HOLE:
                return self._hold(client)
            if fault is Fault.ERROR:
                return client.sendall(_ERROR)
            if fault is Fault.SLOW:
                time.sleep(_SLOW_S)
            with socket.create_connection(self._upstream) as server:
                if fault is Fault.RESET:
                    server.sendall(request[: len(request) // 2])
                    _reset(server)
                    return _reset(client)
                server.sendall(request)
                self.on_passed(request)
                answer = _read_all(server)
            if fault is Fault.LOSE_ANSWER:
                return _reset(client)
            if fault is Fault.HOLD_ANSWER:
                return self._hold(client)
            if fault is Fault.SLOW:
                time.sleep(_SLOW_S)
            client.sendall(answer)
        return None

    def _hold(self, client: socket.socket) -> None:
        """Says nothing until the client hangs up."""
        client.settimeout(_IDLE_S)
        while not self._stop.is_set():
            with suppress(TimeoutError):
                if not client.recv(_CHUNK_BYTES):
                    return


def _read_request(connection: socket.socket, *, host: bytes) -> bytes:
    """One request with its body, as if made to `host`, which is asked to close the connection after the answer."""
    request = b""
    while b"\r\n\r\n" not in request and (piece := connection.recv(_CHUNK_BYTES)):
        request += piece
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"host:"))]
    lengths = [int(line.partition(b":")[2]) for line in lines if line.lower().startswith(b"content-length:")]
    is_chunked = any(line.lower().startswith(b"transfer-encoding:") for line in lines)
    while (is_chunked and not body.endswith(b"0\r\n\r\n")) or (lengths and len(body) < lengths[0]):
        piece = connection.recv(_CHUNK_BYTES)
        if not piece:
            break
        body += piece
    return b"\r\n".join([*lines, b"Host: " + host, b"Connection: close"]) + b"\r\n\r\n" + body


def _read_all(connection: socket.socket) -> bytes:
    answer = b""
    while piece := connection.recv(_CHUNK_BYTES):
        answer += piece
    return answer


def _reset(connection: socket.socket) -> None:
    """Closes with RST, as the socket of a process that was killed with data unread."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
