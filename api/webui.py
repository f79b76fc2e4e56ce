"""Serves the built dashboard: a handful of files with an ETag each, and index.html for the page's own addresses."""

import hashlib
from pathlib import Path

from fastapi import FastAPI, Request, Response

from api.problems import NOT_FOUND, RequestRefused

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".json": "application/json",
}

MISSING_PAGE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>evenload</title></head>
<body><h1>evenload</h1>
<p>The API runs. The dashboard has not been built into this installation.</p>
<p>In a checkout, run <code>npm ci &amp;&amp; npm run build</code> in the folder <code>dashboards</code>,
then reload this page.</p>
</body></html>
"""


def install(app: FastAPI, folder: Path) -> None:
    """Adds the routes of the dashboard in `folder` to `app`; to be called after all other routes."""

    def answer(content: bytes, suffix: str, request: Request) -> Response:
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if etag in known:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=MEDIA_TYPES[suffix])

    @app.get("/{path:path}", include_in_schema=False, name="webui")
    def get_webui(path: str, request: Request) -> Response:
        """A file of the dashboard, or its page for any address that is the dashboard's own."""
        if path.startswith("v1/") or path == "v1":
            raise RequestRefused(
                NOT_FOUND, f"There is no route {request.scope['path']}; docs/openapi.json lists them all."
            )
        # Only names that a listing of the folder holds are ever opened: no path of a client reaches the file system.
        files = (
            {
                str(file.relative_to(folder)): file
                for file in folder.rglob("*")
                if file.is_file() and file.suffix in MEDIA_TYPES
            }
            if folder.is_dir()
            else {}
        )
        chosen = files.get(path)
        if chosen is None and "." in path.rsplit("/", 1)[-1]:
            raise RequestRefused(NOT_FOUND, f"The dashboard has no file {path!r}.")
        chosen = chosen or files.get("index.html")
        if chosen is None:
            return answer(MISSING_PAGE, ".html", request)
        return answer(chosen.read_bytes(), chosen.suffix, request)
