"""Who gets in: every route there is, with every kind of credentials; sessions of browsers; other sites."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.routing import BaseRoute

from api import auth
from api.app import create_app
from api.settings import Settings
from tests.support.api import BASE_URL, TOKEN, Installation, installation

PUBLIC = {
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("POST", "/v1/session"),
    ("DELETE", "/v1/session"),
    ("GET", "/{path:path}"),
}
"""Everything that answers without a token; the last one serves the files of the dashboard."""


def endpoints() -> list[tuple[str, str]]:
    """Method and path of every route of the app, taken from the live route table and from the OpenAPI document."""
    app = create_app(Settings(home=Path(), database_url="sqlite:///unused.db", token=TOKEN))
    found: set[tuple[str, str]] = set()

    def walk(routes: list[BaseRoute], prefix: str = "") -> None:
        for route in routes:
            if isinstance(route, APIRoute):
                found.update((method, prefix + route.path) for method in route.methods)
            elif hasattr(route, "original_router"):
                context: Any = route
                walk(context.original_router.routes, prefix + context.include_context.prefix)
            else:
                raise AssertionError(f"{route!r} is a kind of route that this test does not know")

    walk(app.routes)
    documented = {(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item}
    assert documented <= found
    return sorted(found)


ENDPOINTS = endpoints()
PROTECTED = [endpoint for endpoint in ENDPOINTS if endpoint not in PUBLIC]


def concrete(path: str) -> str:
    return path.replace("{experiment_id}", "exp_1").replace("{trial_id}", "trl_1").replace("{run_id}", "run_1")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installation(tmp_path_factory.mktemp("home")) as ready:
        yield ready


def test_the_list_of_public_routes_is_complete() -> None:
    assert set(ENDPOINTS) >= PUBLIC
    assert len(PROTECTED) >= 20


CREDENTIALS: dict[str, dict[str, str]] = {
    "none": {},
    "wrong": {"Authorization": "Bearer evl_" + "x" * 43},
    "prefix": {"Authorization": f"Bearer {TOKEN[:-1]}"},
    "longer": {"Authorization": f"Bearer {TOKEN}x"},
    "empty": {"Authorization": "Bearer "},
    "basic": {"Authorization": f"Basic {TOKEN}"},
    "bare": {"Authorization": TOKEN},
    "cookie-of-the-token": {"Cookie": f"evenload_session_8080={TOKEN}", "Sec-Fetch-Site": "same-origin"},
    "forged-cookie": {"Cookie": "evenload_session_8080=9999999999.00", "Sec-Fetch-Site": "same-origin"},
}


@pytest.mark.parametrize(("method", "path"), PROTECTED)
def test_no_route_answers_without_the_token(lab: Installation, method: str, path: str) -> None:
    body = {"json": {}} if method == "POST" else {}
    for kind, headers in CREDENTIALS.items():
        answer = lab.client(headers=headers).request(method, concrete(path), **body)
        assert answer.status_code == 401, kind
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["type"].endswith("unauthenticated")
    answer = lab.client().request(method, concrete(path), **body)
    assert answer.status_code != 401


def test_health_is_public_and_says_what_is_missing(lab: Installation) -> None:
    client = lab.client(headers={})
    assert client.get("/livez").json() == {"status": "ok"}
    answer = client.get("/readyz")
    assert answer.status_code == 503
    states = {service["name"]: service["state"] for service in answer.json()["services"]}
    assert states == {"database": "ready", "orchestrator": "missing", "ray": "missing", "mlflow": "missing"}


def test_readiness_follows_the_services(tmp_path: Path) -> None:
    with installation(tmp_path) as lab:
        for name in ("orchestrator", "ray", "mlflow"):
            with lab.database.transaction() as work:
                work.services.report(name, state="ready")
        assert lab.client().get("/readyz").status_code == 200
        with lab.database.transaction() as work:
            work.services.report("ray", state="starting")
        answer = lab.client().get("/readyz")
        assert answer.status_code == 503
        assert {"name": "ray", "state": "starting", "detail": ""} in answer.json()["services"]


def session_client(lab: Installation, **headers: str) -> TestClient:
    client = lab.client(headers={"Sec-Fetch-Site": "same-origin", **headers})
    assert client.post("/v1/session", json={"token": TOKEN}).status_code == 204
    return client


def test_the_page_exchanges_the_token_for_a_cookie_that_scripts_cannot_read(lab: Installation) -> None:
    client = lab.client(headers={"Sec-Fetch-Site": "same-origin"})
    answer = client.post("/v1/session", json={"token": TOKEN})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert TOKEN not in cookie
    assert client.get("/v1/experiments").status_code == 200
    assert client.delete("/v1/session").status_code == 204
    assert client.get("/v1/experiments").status_code == 401


def test_a_wrong_token_opens_no_session(lab: Installation) -> None:
    answer = lab.client(headers={}).post("/v1/session", json={"token": TOKEN[:-1]})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


def test_an_expired_session_is_over(lab: Installation) -> None:
    expired = auth.session_value(TOKEN, int(time.time()) - 1)
    answer = lab.client(headers={"Cookie": f"evenload_session_8080={expired}"}).get("/v1/experiments")
    assert answer.status_code == 401
    assert "session is over" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 404),
        ({"Origin": BASE_URL}, 404),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": BASE_URL}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 403),
    ],
)
def test_a_cookie_only_writes_for_its_own_page(lab: Installation, headers: dict[str, str], status: int) -> None:
    cookies = session_client(lab).cookies
    client = lab.client(headers=headers, cookies=cookies)
    assert client.post("/v1/experiments/exp_1:cancel").status_code == status
    assert client.get("/v1/experiments").status_code == 200  # reading has no effect that a site could want


def test_the_token_itself_writes_from_anywhere(lab: Installation) -> None:
    answer = lab.client().post("/v1/experiments/exp_1:cancel", headers={"Origin": "http://evil.example"})
    assert answer.status_code == 404


def test_another_site_cannot_log_a_browser_in(lab: Installation) -> None:
    client = lab.client(headers={"Sec-Fetch-Site": "cross-site"})
    assert client.post("/v1/session", json={"token": TOKEN}).status_code == 403


def test_without_a_token_browsers_of_other_sites_still_cannot_write(tmp_path: Path) -> None:
    with installation(tmp_path, token=None) as lab:
        assert lab.client(headers={}).get("/v1/experiments").status_code == 200
        assert lab.client(headers={}).post("/v1/experiments/exp_1:cancel").status_code == 404
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
            assert lab.client(headers=headers).post("/v1/experiments/exp_1:cancel").status_code == 403


@pytest.mark.parametrize(
    "path",
    ["/v1//experiments", "/v1/experiments/", "/v1/%65xperiments", "/V1/experiments", "/x/../v1/experiments",
     "/v1/experiments;a", "/livez/../v1/experiments", "/v1%2fexperiments", "/./v1/experiments"],
)  # fmt: skip
def test_no_spelling_of_a_path_gets_around_the_token(lab: Installation, path: str) -> None:
    answer = lab.client(headers={}).get(path, follow_redirects=False)
    assert "items" not in answer.text
    assert answer.status_code in (200, 307, 401, 404)
    if answer.status_code == 200:
        assert answer.headers["content-type"].startswith("text/html")  # the dashboard's page, which is public


def test_a_host_header_cannot_bend_the_path(lab: Installation) -> None:
    for host in ("localhost/livez?", "127.0.0.1:8080/livez?x=", "localhost#", "localhost\\livez"):
        answer = lab.client(headers={"Host": host}).get("/v1/experiments")
        assert answer.status_code == 421


def test_files_outside_the_dashboard_are_never_served(tmp_path: Path) -> None:
    with installation(tmp_path) as lab:
        lab.settings.webui.mkdir()
        (lab.settings.webui / "index.html").write_text("<!doctype html><title>page</title>")
        (lab.settings.webui / "app.js").write_text("1")
        (tmp_path / "token").write_text("canary")
        client = lab.client(headers={})
        for path in (
            "/../token",
            "/%2e%2e/token",
            "/..%2ftoken",
            "//token",
            "/token",
            f"/{tmp_path}/token",
            "/app.js/../../token",
        ):
            assert "canary" not in client.get(path).text
        assert client.get("/app.js").headers["content-type"].startswith("text/javascript")
        assert client.get("/e/exp_1").text == (lab.settings.webui / "index.html").read_text()
        assert client.get("/missing.js").status_code == 404


def test_the_dashboard_is_sent_once_per_version(tmp_path: Path) -> None:
    with installation(tmp_path) as lab:
        lab.settings.webui.mkdir()
        page = lab.settings.webui / "index.html"
        page.write_text("<!doctype html>1")
        client = lab.client(headers={})
        first = client.get("/")
        assert first.headers["cache-control"] == "no-cache"
        again = client.get("/", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.text) == (304, "")
        page.write_text("<!doctype html>2")
        assert client.get("/", headers={"If-None-Match": first.headers["etag"]}).text == page.read_text()


def test_without_a_dashboard_the_page_says_what_to_run(tmp_path: Path) -> None:
    with installation(tmp_path) as lab:
        assert "npm run build" in lab.client(headers={}).get("/").text
