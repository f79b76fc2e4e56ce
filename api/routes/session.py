"""The dashboard's session: the page exchanges the token for a cookie that scripts cannot read."""

from fastapi import APIRouter, Response

from api.dependencies import SettingsOf
from api.problems import UNAUTHENTICATED, problems
from api.schemas.wire import Question

router = APIRouter(tags=["session"])


class SessionRequest(Question):
    """The token from the address that `evenload up` printed."""

    token: str


@router.post("/session", status_code=204, operation_id="open_session", responses=problems(UNAUTHENTICATED))
def open_session(request: SessionRequest, settings: SettingsOf, response: Response) -> None:
    """Set the session cookie: HttpOnly, SameSite=Strict."""
    raise NotImplementedError


@router.delete("/session", status_code=204, operation_id="close_session")
def close_session(response: Response) -> None:
    """Remove the session cookie."""
    raise NotImplementedError
