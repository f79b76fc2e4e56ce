"""Errors of the Python client.

EvenloadError
+-- ClientError
    +-- ServerUnreachable     nothing answers at the address
    +-- RequestFailed         the server answered with a problem
        +-- SpecRefused       the spec is not acceptable; `problem.errors` names every field
        +-- NoSuchThing       there is no experiment, trial or run of that id
        +-- NotAuthorised     the token is missing or wrong
"""

from api.schemas.problems import Problem
from trainer.errors import EvenloadError


class ClientError(EvenloadError):
    """A call of the client did not succeed."""


class ServerUnreachable(ClientError):
    """Nothing answers at the address; `evenload up` starts a server."""


class RequestFailed(ClientError):
    """The server answered with a problem, kept in `problem`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(f"{problem.title}: {problem.detail}")


class SpecRefused(RequestFailed):
    """The spec is not acceptable."""


class NoSuchThing(RequestFailed):
    """There is no experiment, trial or run of that id."""


class NotAuthorised(RequestFailed):
    """The token is missing or wrong."""


def from_problem(problem: Problem) -> RequestFailed:
    """The error that stands for an answer of the server."""
    name = problem.type.rpartition(":")[2]
    kinds = {"spec-rejected": SpecRefused, "not-found": NoSuchThing, "unauthenticated": NotAuthorised}
    return kinds.get(name, RequestFailed)(problem)
