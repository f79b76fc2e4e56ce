"""Every error the API answers with, as RFC 9457 problem details. HTTP status codes of our errors live here only."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from api.schemas.problems import Problem, ProblemError
from orchestrator.errors import (
    EvenloadError,
    IdempotencyKeyReused,
    IllegalTransition,
    InvalidCursor,
    NotFound,
    SpecProblem,
    SpecRejected,
    StoreUnavailable,
    TrackingUnavailable,
)

logger = logging.getLogger(__name__)

TYPE_BASE = "urn:evenload:problem:"
MAX_GIVEN_CHARACTERS = 200


@dataclass(frozen=True)
class Kind:
    """One kind of problem: its stable name, HTTP status and title."""

    name: str
    status: int
    title: str


SPEC_REJECTED = Kind("spec-rejected", 422, "The spec is not acceptable")
INVALID_REQUEST = Kind("invalid-request", 422, "The request is not acceptable")
NOT_JSON = Kind("not-json", 400, "The body is not JSON")
NOT_FOUND = Kind("not-found", 404, "There is no such thing")
KEY_REUSED = Kind("idempotency-key-reused", 422, "The idempotency key came before with another body")
ILLEGAL_TRANSITION = Kind("illegal-transition", 409, "The state does not allow this")
STORE_UNAVAILABLE = Kind("store-unavailable", 503, "The database is not available")
TRACKING_UNAVAILABLE = Kind("tracking-unavailable", 503, "MLflow is not available")
UNAUTHENTICATED = Kind("unauthenticated", 401, "A token is needed")
FORBIDDEN = Kind("cross-site", 403, "The request came from another site")
MISDIRECTED = Kind("unknown-host", 421, "This server does not answer to that name")
TOO_LARGE = Kind("body-too-large", 413, "The body is too large")
NOT_JSON_TYPE = Kind("not-json-type", 415, "The body is not declared as JSON")
SLOW_BODY = Kind("slow-body", 408, "The body did not arrive in time")
TOO_MANY_STREAMS = Kind("too-many-streams", 503, "Too many event streams are open")
INTERNAL = Kind("internal", 500, "The server failed")

_BY_ERROR: tuple[tuple[type[EvenloadError], Kind], ...] = (
    (NotFound, NOT_FOUND),
    (IdempotencyKeyReused, KEY_REUSED),
    (IllegalTransition, ILLEGAL_TRANSITION),
    (StoreUnavailable, STORE_UNAVAILABLE),
    (TrackingUnavailable, TRACKING_UNAVAILABLE),
)


class RequestRefused(EvenloadError):
    """The API itself refuses a request, before or beside the orchestrator."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        errors: list[ProblemError] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.detail = detail
        self.errors = errors or []
        self.headers = dict(headers or {})
        super().__init__(detail)


def shortened(value: Any) -> Any:
    """`value` as plain JSON, at most `MAX_GIVEN_CHARACTERS` long."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_GIVEN_CHARACTERS else text[: MAX_GIVEN_CHARACTERS - 3] + "..."


def pointer(location: tuple[int | str, ...]) -> str:
    """JSON pointer (RFC 6901) of a path of keys and indices."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def problem_response(
    kind: Kind,
    detail: str,
    *,
    path: str,
    request_id: str,
    errors: list[ProblemError] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer of media type application/problem+json."""
    problem = Problem(
        type=TYPE_BASE + kind.name,
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=path,
        request_id=request_id,
        errors=errors or [],
    )
    return Response(problem.model_dump_json(), kind.status, dict(headers or {}), media_type="application/problem+json")


def problem_of(error: EvenloadError, *, path: str, request_id: str) -> Problem | None:
    """The problem that an error of the orchestrator is answered with; None if it is not one that a request may meet."""
    for cls, kind in _BY_ERROR:
        if isinstance(error, cls):
            return Problem(
                type=TYPE_BASE + kind.name,
                title=kind.title,
                status=kind.status,
                detail=str(error),
                instance=path,
                request_id=request_id,
                errors=[],
            )
    return None


def _of_spec_problem(problem: SpecProblem) -> ProblemError:
    return ProblemError(
        pointer=problem.pointer,
        code=problem.code,
        message=problem.message,
        given=shortened(problem.given),
        allowed=problem.allowed,
    )


_BOUND_WORDS = {
    "ge": "at least {}",
    "gt": "more than {}",
    "le": "at most {}",
    "lt": "less than {}",
    "multiple_of": "a multiple of {}",
    "min_length": "at least {} long",
    "max_length": "at most {} long",
    "pattern": "text that matches {}",
    "expected": "{}",
}
"""What pydantic says about a bound -> the words of `allowed`."""


def _of_validation_error(error: Mapping[str, Any]) -> ProblemError:
    """One of FastAPI's validation errors, said in our words."""
    location = tuple(error["loc"])
    if error["type"] == "json_invalid":
        message = f"not JSON: {error['ctx']['error']} at character {location[-1]}"
        return ProblemError(pointer="", code="json_invalid", message=message, given=None, allowed="a JSON document")
    if location and location[0] == "body":
        location = location[1:]
    context: Mapping[str, Any] = error.get("ctx", {})
    allowed = ", ".join(_BOUND_WORDS[name].format(bound) for name, bound in context.items() if name in _BOUND_WORDS)
    message = str(error["msg"]).removeprefix("Value error, ")
    given = None
    if error["type"] != "missing":
        given = shortened(error.get("input"))
        message += f", got {given!r}"
    return ProblemError(
        pointer=pointer(location), code=str(error["type"]), message=message, given=given, allowed=allowed or None
    )


def install(app: FastAPI) -> None:
    """Makes `app` answer every error as problem details; no traceback ever reaches a client."""

    def respond(request: Request, kind: Kind, detail: str, **more: Any) -> Response:
        return problem_response(
            kind, detail, path=request.scope["path"], request_id=request.scope.get("request_id", ""), **more
        )

    async def on_spec_rejected(request: Request, error: Exception) -> Response:
        assert isinstance(error, SpecRejected)
        errors = [_of_spec_problem(problem) for problem in error.problems]
        count = "1 problem" if len(errors) == 1 else f"{len(errors)} problems"
        return respond(
            request,
            SPEC_REJECTED,
            f"The spec has {count}; nothing was stored. First: {errors[0].message}",
            errors=errors,
        )

    async def on_refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestRefused)
        return respond(request, error.kind, error.detail, errors=error.errors, headers=error.headers)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        entries = error.errors()
        errors = [_of_validation_error(entry) for entry in entries[:100]]
        kind = NOT_JSON if any(entry["type"] == "json_invalid" for entry in entries) else INVALID_REQUEST
        return respond(request, kind, f"{errors[0].pointer or 'the body'}: {errors[0].message}", errors=errors)

    async def on_invalid_cursor(request: Request, error: Exception) -> Response:
        entry = ProblemError(
            pointer="/query/cursor",
            code="invalid_cursor",
            message=str(error),
            given=shortened(request.query_params.get("cursor")),
            allowed="next_cursor of the page before",
        )
        return respond(request, INVALID_REQUEST, str(error), errors=[entry])

    async def on_evenload(request: Request, error: Exception) -> Response:
        for cls, kind in _BY_ERROR:
            if isinstance(error, cls):
                headers = {"Retry-After": "2"} if kind.status == 503 else None
                return respond(request, kind, str(error), headers=headers)
        return await on_unexpected(request, error)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = (
            NOT_FOUND
            if error.status_code == 404
            else Kind(f"http-{error.status_code}", error.status_code, error.detail)
        )
        detail = f"There is nothing at {request.scope['path']}" if error.status_code == 404 else error.detail
        return respond(request, kind, detail, headers=error.headers)

    async def on_unexpected(request: Request, error: Exception) -> Response:
        logger.error("request failed", exc_info=error, extra={"request_id": request.scope.get("request_id", "")})
        return respond(
            request,
            INTERNAL,
            "This is a bug or a broken installation; the server's log holds more under the request id.",
        )

    app.add_exception_handler(SpecRejected, on_spec_rejected)
    app.add_exception_handler(RequestRefused, on_refused)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(InvalidCursor, on_invalid_cursor)
    app.add_exception_handler(EvenloadError, on_evenload)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_unexpected)


def problems(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: the problems it may answer with, besides those every route has."""
    answers: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        before = answers.get(kind.status)
        description = kind.title if before is None else f"{before['description']}; {kind.title.lower()}"
        answers[kind.status] = {
            "description": description,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    return answers
