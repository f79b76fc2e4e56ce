"""Headless Chromium over a served evenload: finding it, watching what it complains about, taking pictures.

    python -m tests.support.browser --url URL --token TOKEN --out docs/screenshots

writes experiments.png, experiment.png, run.png and compare.png of the newest experiment that has a ranking.
"""

import argparse
import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
from playwright.sync_api import Browser, Page, Request, Response, sync_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
WIDTH, HEIGHT = 1440, 900
PICTURE_HEIGHTS = {"run": 1360}
"""Where the first screen would leave out what the page is about: here both heatmaps."""
# Retrieving a page of a busy machine may take a while; every wait ends earlier when what it waits for is there.
TIMEOUT_MS = 30_000
Theme = Literal["light", "dark"]


def chromium_path() -> str | None:
    """The browser to use: $EVENLOAD_CHROMIUM, else one on the PATH; None if there is none."""
    named = os.environ.get("EVENLOAD_CHROMIUM")
    if named:
        return named
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium; raises FileNotFoundError where there is none."""
    path = chromium_path()
    if path is None:
        raise FileNotFoundError("no Chromium on the PATH; install it (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Complaints:
    """What a page had to complain about: console errors, uncaught exceptions, failed or refused requests."""

    items: list[str] = field(default_factory=list)

    def watch(self, page: Page, origin: str) -> None:
        """Collects from now on. A request to anywhere but `origin` is a complaint, too."""
        page.on("console", lambda message: self._console(message.type, message.text))
        page.on("pageerror", lambda error: self.items.append(f"exception: {error}"))
        page.on("requestfailed", self._failed)
        page.on("response", self._response)
        page.on("request", lambda request: self._request(request, origin))

    def _console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.items.append(f"console {kind}: {text}")

    def _failed(self, request: Request) -> None:
        # A page that is left abandons what it was still asking for.
        if request.failure is not None and "ERR_ABORTED" not in request.failure:
            self.items.append(f"request failed: {request.method} {request.url}: {request.failure}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self.items.append(f"{response.status}: {response.request.method} {response.url}")

    def _request(self, request: Request, origin: str) -> None:
        if not request.url.startswith((origin, "blob:", "data:")):
            self.items.append(f"request to elsewhere: {request.url}")


def new_page(browser: Browser, *, theme: Theme = "light", width: int = WIDTH, height: int = HEIGHT) -> Page:
    """A page of its own profile: no cookie, nothing stored."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce", locale="en-GB"
    )
    context.set_default_timeout(TIMEOUT_MS)
    return context.new_page()


def sign_in(page: Page, url: str, token: str) -> None:
    """Opens the dashboard the way `evenload up` says it: with the token in the address, which is gone afterwards."""
    page.goto(f"{url}/?token={token}")
    page.get_by_role("heading", name="Experiments", exact=True).wait_for()


def settle(page: Page) -> None:
    """Waits until nothing on the page is still loading and two frames were drawn."""
    page.wait_for_function("() => document.querySelector('[aria-busy=true], .dimmed') === null")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(null))))")


def addresses(url: str, token: str) -> dict[str, str]:
    """The four pages of the newest experiment in which at least two trials completed: name -> path."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as http:
        for experiment in http.get("/v1/experiments").raise_for_status().json()["items"]:
            trials = http.get(f"/v1/experiments/{experiment['id']}/trials").raise_for_status().json()["items"]
            completed = [trial for trial in trials if trial["state"] == "completed" and trial["objective"] is not None]
            if len(completed) >= 2:
                sign = -1 if experiment["objective"]["direction"] == "maximize" else 1
                completed.sort(key=lambda trial: sign * trial["objective"])
                return _addresses(experiment["id"], completed, trials)
    raise LookupError("no experiment has two completed trials; run one to its end first")


def _addresses(
    experiment_id: str, ranked: Sequence[dict[str, Any]], trials: Sequence[dict[str, Any]]
) -> dict[str, str]:
    best = next((trial for trial in ranked if trial["kind"] == "search"), ranked[0])
    baselines = [trial for trial in ranked if trial["kind"] == "baseline"]
    others = [trial for trial in ranked if trial not in baselines and trial is not best]
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    chosen = [trial["id"] for trial in [*baselines[:1], best, *others[:1], *pruned[:1]]]
    return {
        "experiments": "/",
        "experiment": f"/e/{experiment_id}",
        "run": f"/t/{best['id']}",
        "compare": f"/compare?trials={','.join(chosen)}",
    }


def take_screenshots(url: str, token: str, out: Path, *, theme: Theme = "light", whole: bool = False) -> list[Path]:
    """Writes a picture of each of the four pages to `out`; with `whole` of the entire page, not of the first screen."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with open_browser() as browser:
        page = new_page(browser, theme=theme)
        sign_in(page, url, token)
        for name, path in addresses(url, token).items():
            page.set_viewport_size({"width": WIDTH, "height": PICTURE_HEIGHTS.get(name, HEIGHT)})
            page.goto(url + path)
            settle(page)
            file = out / f"{name}.png"
            page.screenshot(path=file, full_page=whole)
            written.append(file)
    return written


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.browser", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--theme", choices=["light", "dark"], default="light")
    parser.add_argument("--whole", action="store_true", help="the entire page instead of the first screen")
    arguments = parser.parse_args()
    take_screenshots(arguments.url, arguments.token, arguments.out, theme=arguments.theme, whole=arguments.whole)


if __name__ == "__main__":
    _main()
