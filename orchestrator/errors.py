"""Errors of the orchestrator.

EvenloadError
+-- SpecRejected           a submitted spec is not acceptable; carries every problem with a JSON pointer
+-- InfeasiblePoint        a point of the search space that makes no valid TrainConfig
+-- NotFound               no such experiment, trial or run
+-- InvalidCursor          a page cursor that this store did not give out
+-- IdempotencyKeyReused   the same key came with another body
+-- IllegalTransition      a state change outside the table in states.py
+-- Fenced                 the writer's epoch is no longer the current one
+-- StoreUnavailable       the database cannot be reached, is locked, full or read-only
+-- TrackingUnavailable    MLflow cannot be reached
"""

from dataclasses import dataclass
from typing import Any

from trainer.errors import EvenloadError


@dataclass(frozen=True, kw_only=True)
class SpecProblem:
    """One thing wrong with a spec.

    Attributes:
        pointer: JSON pointer (RFC 6901) into the user's own document, e.g. "/base/model/moe/top_k".
        code: stable machine-readable word, e.g. "unknown_field".
        message: what was given, what is allowed, what to do.
        given: the offending value, shortened.
        allowed: the allowed values or bounds in words, or None.
    """

    pointer: str
    code: str
    message: str
    given: Any = None
    allowed: str | None = None


class SpecRejected(EvenloadError):
    """A spec is not acceptable. `problems` names every field that is wrong."""

    def __init__(self, problems: list[SpecProblem]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{problem.pointer}: {problem.message}" for problem in problems))


class InfeasiblePoint(EvenloadError):
    """A point of the search space that makes no valid TrainConfig; the message says why."""


class NotFound(EvenloadError):
    """There is no experiment, trial or run of that id."""


class InvalidCursor(EvenloadError):
    """A page cursor that this store did not give out."""


class IdempotencyKeyReused(EvenloadError):
    """An Idempotency-Key came a second time with another body."""


class IllegalTransition(EvenloadError):
    """A state change that the transition table does not know."""


class Fenced(EvenloadError):
    """A newer driver has taken over; the caller must stop at once."""


class StoreUnavailable(EvenloadError):
    """The database did not take a read or a write; nothing was half-written."""


class TrackingUnavailable(EvenloadError):
    """MLflow did not answer; the forwarder tries again later."""
