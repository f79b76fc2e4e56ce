"""Problem details, RFC 9457, with one entry per offending field."""

from typing import Any

from api.schemas.wire import Answer


class ProblemError(Answer):
    """One field that is wrong."""

    pointer: str
    """JSON pointer (RFC 6901) into the document that was sent; for a query parameter `/query/<name>`."""
    code: str
    """Stable machine-readable word, e.g. `unknown_field`."""
    message: str
    """What was given, what is allowed, what to do."""
    given: Any
    """The offending value, shortened; null if it is missing."""
    allowed: str | None
    """The allowed values or bounds in words."""


class Problem(Answer):
    """`application/problem+json`."""

    type: str
    """A stable URI that names the kind of problem."""
    title: str
    status: int
    detail: str
    """What happened this time and what to do about it."""
    instance: str
    """The request's path."""
    request_id: str
    """Also in the header X-Request-Id and in the server's log."""
    errors: list[ProblemError]
