"""Who may call: the bearer token of the installation, or the cookie that the dashboard got for it.

Authentication is a dependency of every router under /v1, so it applies to the route that was matched; it never looks at
the request's URL, which a Host header can bend (Starlette "BadHost", CVE-2026-48710).
"""

import hashlib
import hmac
import os
import re
import secrets
import time
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request, Response
from starlette.datastructures import Headers

from api.dependencies import SettingsOf
from api.problems import FORBIDDEN, UNAUTHENTICATED, RequestRefused
from api.settings import Settings

TOKEN_BYTES = 32
SESSION_DURATION_S = 7 * 24 * 3600
LOCAL = "local"
"""The owner of what comes with the installation's own token, or without any."""
OWNER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def new_token() -> str:
    """A fresh token with 256 random bits."""
    return "evl_" + secrets.token_urlsafe(TOKEN_BYTES)


def ensure_token(path: Path) -> str:
    """The token in the file `path`, made (0600) if it is missing. Two processes that start at once agree on one."""
    if not path.exists():
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(new_token() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(unfinished, path)  # fails if another process was faster, whose token then counts
        except FileExistsError:
            pass
        finally:
            unfinished.unlink()
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    token = path.read_text().strip()
    if not token:
        raise ValueError(f"the token file {path} is empty; delete it to get a new token at the next start")
    return token


def replace_token(path: Path) -> str:
    """Writes a new token to `path` and returns it; sessions and clients of the old one end when the API restarts."""
    path.unlink(missing_ok=True)
    return ensure_token(path)


def owner_tokens(folder: Path) -> dict[str, str]:
    """Name -> token of the files in `folder`, which need not exist."""
    return {path.name: ensure_token(path) for path in sorted(folder.glob("*"))} if folder.is_dir() else {}


def ensure_owner(folder: Path, name: str) -> str:
    """The token of the owner `name`, made if it is missing; raises ValueError for a name that cannot be one."""
    if not OWNER_NAME.fullmatch(name) or name == LOCAL:
        raise ValueError(f"an owner is named with a-z, 0-9, - and _, and not {LOCAL!r}; got {name!r}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return ensure_token(folder / name)


def owner_of(settings: Settings, token: str) -> str | None:
    """Whose token it is: `local` for the installation's own, a name, or None for nobody's."""
    known = {**settings.owners, LOCAL: settings.token or ""}
    # All are compared, so that the time it takes tells nothing.
    found = [name for name, expected in known.items() if _same(token, expected)]
    return found[0] if found and token else None


def cookie_name(settings: Settings) -> str:
    """Cookies are shared between the ports of a host, so each port has a cookie of its own."""
    return f"evenload_session_{settings.port}"


def _same(given: str, expected: str) -> bool:
    # Digests have one length, so that the comparison does not tell the token's.
    return hmac.compare_digest(hashlib.sha256(given.encode()).digest(), hashlib.sha256(expected.encode()).digest())


def session_value(token: str, expires_s: int) -> str:
    """A cookie that stands for `token` until `expires_s` (seconds since 1970); nothing is kept on the server."""
    signature = hmac.new(token.encode(), f"evenload session {expires_s}".encode(), hashlib.sha256).hexdigest()
    return f"{expires_s}.{signature}"


def is_session(value: str, token: str, *, now_s: float) -> bool:
    """True if `session_value` made `value` for `token`, and it has not expired."""
    expires, _, _ = value.partition(".")
    if not (expires.isascii() and expires.isdigit() and len(expires) <= 12):
        return False
    return _same(value, session_value(token, int(expires))) and now_s < int(expires)


def _unauthenticated(detail: str) -> RequestRefused:
    return RequestRefused(UNAUTHENTICATED, detail, headers={"WWW-Authenticate": 'Bearer realm="evenload"'})


def require_same_site(headers: Headers) -> None:
    """Refuses a request that a browser sent on behalf of another site's page.

    `Sec-Fetch-Site` is set by browsers and cannot be set by pages; where it is missing (old browsers), `Origin` has to
    name this very host.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        if site in ("same-origin", "none"):
            return
    elif headers.get("origin") in (f"http://{headers.get('host')}", f"https://{headers.get('host')}"):
        return
    raise RequestRefused(
        FORBIDDEN,
        "A session cookie only counts for requests of the dashboard's own page; programs send the bearer token.",
    )


def _is_from_browser(headers: Headers) -> bool:
    return "sec-fetch-site" in headers or "origin" in headers


def authenticate(request: Request, settings: SettingsOf) -> str:
    """The owner whose token, or whose session's cookie, the request carries; raises if it carries none."""
    if settings.token is None:
        if request.method not in SAFE_METHODS and _is_from_browser(request.headers):
            require_same_site(request.headers)
        return LOCAL
    authorization = request.headers.get("authorization")
    if authorization is not None:
        scheme, _, given = authorization.partition(" ")
        owner = owner_of(settings, given.strip()) if scheme.lower() == "bearer" else None
        if owner is None:
            raise _unauthenticated("The token is not the one of this server; `evenload token` prints it.")
        return owner
    session = request.cookies.get(cookie_name(settings))
    if session is None:
        raise _unauthenticated(
            "Send `Authorization: Bearer <token>`; `evenload token` prints the token and the dashboard's address."
        )
    known = {LOCAL: settings.token, **settings.owners}
    owners = [name for name, token in known.items() if is_session(session, token, now_s=time.time())]
    if not owners:
        raise _unauthenticated("The session is over; open the address that `evenload up` or `evenload token` prints.")
    if request.method not in SAFE_METHODS:
        require_same_site(request.headers)
    return owners[0]


Owner = Annotated[str, Depends(authenticate)]


def start_session(request: Request, response: Response, settings: Settings, *, token: str) -> None:
    """Sets the session cookie on `response` if `token` is the server's; raises otherwise."""
    if _is_from_browser(request.headers):
        require_same_site(request.headers)
    if settings.token is not None and owner_of(settings, token) is None:
        raise _unauthenticated("The token is not the one of this server; `evenload token` prints it.")
    value = session_value(token if settings.token else "", int(time.time()) + SESSION_DURATION_S)
    response.set_cookie(
        cookie_name(settings),
        value,
        max_age=SESSION_DURATION_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
        path="/",
    )


def end_session(response: Response, settings: Settings) -> None:
    """Removes the session cookie."""
    response.delete_cookie(cookie_name(settings), path="/", httponly=True, samesite="strict")
