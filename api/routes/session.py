"""The dashboard's session: the page exchanges the token for a cookie that scripts cannot read."""

from fastapi import APIRouter, Request, Response

from api.auth import end_session, start_session
from api.dependencies import SettingsOf
from api.problems import FORBIDDEN, UNAUTHENTICATED, problems
from api.schemas.wire import Question

router = APIRouter(tags=["session"])


class SessionRequest(Question):
    """The token from the address that `evenload up` printed."""

    token: str


@router.post("/session", status_code=204, operation_id="open_session", responses=problems(UNAUTHENTICATED, FORBIDDEN))
def open_session(given: SessionRequest, request: Request, settings: SettingsOf, response: Response) -> None:
    """Set the session cookie: HttpOnly, SameSite=Strict."""
    start_session(request, response, settings, token=given.token)


@router.delete("/session", status_code=204, operation_id="close_session", responses=problems(FORBIDDEN))
def close_session(settings: SettingsOf, response: Response) -> None:
    """Remove the session cookie."""
    end_session(response, settings)
