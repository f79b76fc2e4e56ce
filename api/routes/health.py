"""Liveness and readiness; no token needed."""

from fastapi import APIRouter, Response

from api.dependencies import DatabaseOf
from api.schemas.services import Liveness, Readiness
from api.services import readiness

router = APIRouter(tags=["health"])


@router.get("/livez", operation_id="get_liveness")
def get_liveness() -> Liveness:
    """This process answers."""
    return Liveness(status="ok")


@router.get("/readyz", operation_id="get_readiness", responses={503: {"model": Readiness, "description": "Not ready"}})
def get_readiness(database: DatabaseOf, response: Response) -> Readiness:
    """Whether experiments can be submitted and will run, with the state of each service."""
    answer = readiness(database)
    if answer.status != "ready":
        response.status_code = 503
    return answer
