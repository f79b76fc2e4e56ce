"""The dashboard in a real browser, over a really served API and really trained (tiny) models."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import Complaints, addresses, chromium_path, new_page, open_browser, settle, sign_in
from tests.support.seeded_home import SeededHome, seed_home, serve

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(chromium_path() is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]


expect.set_options(timeout=20_000)  # of a busy machine; every wait ends as soon as what it waits for is there


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> SeededHome:
    return seed_home(tmp_path_factory.mktemp("home") / "evenload", num_steps=64, num_trials=4)


@pytest.fixture(scope="module")
def url(home: SeededHome) -> Iterator[str]:
    with serve(home.root) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def complaints() -> Complaints:
    return Complaints()


@pytest.fixture
def page(browser: Browser, url: str, complaints: Complaints) -> Iterator[Page]:
    """A fresh profile whose console errors, failed requests and requests to elsewhere are collected."""
    opened = new_page(browser)
    complaints.watch(opened, url)
    yield opened
    opened.context.close()


def test_one_walks_from_the_list_to_a_comparison(
    page: Page, url: str, home: SeededHome, complaints: Complaints
) -> None:
    page.goto(f"{url}/?token={home.token}")
    expect(page.get_by_role("heading", name="Experiments", exact=True)).to_be_visible()
    assert home.token not in page.url

    page.get_by_role("link", name="balancing, tiny").click()
    expect(page).to_have_url(f"{url}/e/{home.sweep}")
    trials = page.get_by_role("table", name="Trials")
    expect(trials.locator("tbody tr")).to_have_count(5)
    expect(trials.get_by_role("columnheader", name="lr")).to_be_visible()
    expect(page.get_by_role("heading", name="What this does not show")).to_be_visible()
    settle(page)

    rows = trials.locator("tbody tr")
    rows.nth(0).focus()
    page.keyboard.press("Space")
    page.keyboard.press("j")
    page.keyboard.press("Space")
    page.keyboard.press("c")
    expect(page.get_by_role("heading", name="Compare 2 trials")).to_be_visible()
    domains = page.get_by_role("table", name="Bits per byte by domain")
    expect(domains.locator("tbody tr")).to_have_count(7)  # six domains and their mean
    differing = page.get_by_role("table", name="Settings that differ")
    expect(differing.get_by_role("rowheader", name="lr", exact=True)).to_be_visible()
    expect(differing.get_by_role("rowheader", name="seed", exact=True)).to_have_count(0)

    page.get_by_role("button", name="FLOPs").click()
    expect(page).to_have_url(re.compile("x=flops"))
    page.reload()
    expect(page.get_by_role("button", name="FLOPs")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_text("training FLOPs").first).to_be_attached()
    settle(page)
    assert complaints.items == []


def test_the_trial_page_answers_when_and_where(page: Page, url: str, home: SeededHome, complaints: Complaints) -> None:
    sign_in(page, url, home.token)
    page.goto(url + addresses(url, home.token)["run"])
    settle(page)
    for name in ("Training loss", "Gradient norm", "Learning rate"):
        expect(page.get_by_role("region", name=re.compile(name)).locator("canvas").first).to_be_visible()
    health = page.get_by_role("region", name="Router health: layer over time")
    expect(health.get_by_text(re.compile(r"Worst layer over the last tenth: L[12], MaxVio")).first).to_be_visible()
    expect(health.get_by_text("L0 dense")).to_be_visible()

    health.get_by_role("button", name="token entropy").click()
    expect(page).to_have_url(re.compile("metric=router"))
    expect(health.get_by_text(re.compile(r"token entropy .*\(nats\)")).first).to_be_visible()

    experts = page.get_by_role("region", name="Experts: load at one step")
    expect(experts.locator("output")).to_have_text("step 64")
    slider = experts.get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(experts.locator("output")).not_to_have_text("step 64")
    expect(page).to_have_url(re.compile(r"step=\d+"))
    cells = experts.locator("canvas").first
    cells.focus()
    page.keyboard.press("ArrowRight")
    expect(experts.get_by_text(re.compile(r"layer 1, expert 1: .*fair"))).to_be_visible()

    probe = page.get_by_role("region", name="Routing of the probe set")
    expect(probe.locator(".finding")).to_contain_text(re.compile(r"Last measured: .*by chance: even at random"))
    probe.get_by_role("button", name="domains").click()
    expect(page).to_have_url(re.compile("probe=probe%2Fdomain_specialization"))
    expect(probe.get_by_role("button", name=re.compile("labels shuffled"))).to_be_visible()

    scores = page.get_by_role("table", name="Bits per byte by domain").locator("tbody tr")
    expect(scores).to_have_count(7)
    initial, final = (float(scores.last.locator("td").nth(column).inner_text()) for column in (0, 1))
    assert final < initial
    expect(page.get_by_role("table", name=re.compile("Mutual information")).locator("tbody tr")).to_have_count(2)
    assert complaints.items == []


def test_a_diverged_trial_says_why_it_failed(page: Page, url: str, home: SeededHome, complaints: Complaints) -> None:
    sign_in(page, url, home.token)
    page.goto(f"{url}/e/{home.diverging}")
    row = page.get_by_role("table", name="Trials").locator("tbody tr", has_text="failed")
    expect(row).to_contain_text("diverged")
    row.get_by_role("link").click()
    expect(page.get_by_text(re.compile(r"step \d+: loss nan")).first).to_be_visible()
    expect(page.get_by_text(re.compile(r"not finite \(NaN or infinite\)")).first).to_be_visible()
    assert complaints.items == []


def test_spikes_and_alarms_are_listed_and_marked(
    page: Page, url: str, home: SeededHome, complaints: Complaints
) -> None:
    sign_in(page, url, home.token)
    page.goto(f"{url}/e/{home.running}")
    raised = page.get_by_role("region", name="Alarms").locator("tbody tr")
    expect(raised.first).to_contain_text("MaxVio")
    page.get_by_role("table", name="Trials").get_by_role("link", name="trial 0").click()
    panel = page.get_by_role("region", name="Spikes")
    trial = page.url.rsplit("/", 1)[-1]
    spikes = page.request.get(f"{url}/v1/trials/{trial}/spikes").json()["items"]
    assert spikes, "the run without clipping had no spike: choose a higher learning rate for it"
    expect(panel.locator("tbody tr")).to_have_count(len(spikes))
    expect(panel.locator("tbody tr").first).to_contain_text(str(spikes[0]["step"]))
    panel.get_by_role("button", name="Curves").first.click()
    expect(page).to_have_url(re.compile(rf"xr=\d+\.\.\d+&step={spikes[0]['step']}"))
    expect(page.get_by_role("button", name="zoomed: show all").first).to_be_visible()

    panel.get_by_role("button", name="Details").first.click()
    expect(panel.get_by_role("table", name="Router around the spike").locator("tbody tr")).to_have_count(2)
    expect(panel.get_by_text(spikes[0]["previews"][0]["document_ids"][0]).first).to_be_visible()

    alarms = page.request.get(f"{url}/v1/trials/{trial}/alarms").json()["items"]
    num_raised = sum(alarm["change"] == "raised" for alarm in alarms)
    assert num_raised > 0, "the run without clipping raised no alarm: choose a lower threshold for its rule"
    expect(page.get_by_role("region", name="Alarms").locator("tbody tr")).to_have_count(num_raised)
    assert complaints.items == []


def test_a_fork_is_refused_field_by_field_and_then_queued(
    page: Page, url: str, home: SeededHome, complaints: Complaints
) -> None:
    sign_in(page, url, home.token)
    page.goto(f"{url}/e/{home.running}")
    page.get_by_role("table", name="Trials").get_by_role("link", name="trial 0").click()
    page.get_by_role("button", name="Fork from here").first.click()
    dialog = page.get_by_role("dialog", name="Fork from a checkpoint")
    rate = dialog.get_by_role("textbox", name="optimizer.lr", exact=True)
    rate.fill("-1")
    dialog.get_by_role("button", name="Fork with 1 change").click()
    expect(rate).to_have_accessible_description(re.compile("greater than 0"))
    rate.fill("5e-2")
    dialog.get_by_role("button", name="Fork with 1 change").click()
    expect(page).to_have_url(re.compile(f"{url}/e/(?!{home.running})"))
    lineage = page.get_by_text("Forked from trial 0 of without clipping at step 40: optimizer.lr = 0.05")
    expect(lineage).to_be_visible()
    lineage.get_by_role("link", name="trial 0").click()
    made = page.get_by_role("region", name="Checkpoints and forks")
    expect(made.get_by_role("link", name="without clipping, trial 0 from step 40")).to_be_visible()
    assert [item for item in complaints.items if "422" not in item] == []


def test_a_dense_trial_has_no_empty_router_pictures(
    page: Page, url: str, home: SeededHome, complaints: Complaints
) -> None:
    sign_in(page, url, home.token)
    page.goto(f"{url}/e/{home.sweep}")
    page.get_by_role("table", name="Trials").get_by_role("link", name="dense", exact=True).click()
    expect(page.get_by_text("This model is dense: it has no router and no experts.")).to_be_visible()
    settle(page)
    assert complaints.items == []


def test_without_the_token_the_page_asks_for_it_and_keeps_its_address(
    page: Page, url: str, home: SeededHome, complaints: Complaints
) -> None:
    page.goto(f"{url}/e/{home.sweep}")
    dialog = page.get_by_role("dialog", name="Token needed")
    dialog.get_by_label("Token").fill("0123456789abcdef0123456789abcdef")
    dialog.get_by_role("button", name="Open").click()
    expect(dialog.get_by_role("alert")).to_contain_text("token")
    dialog.get_by_label("Token").fill(home.token)
    dialog.get_by_role("button", name="Open").click()
    expect(page.get_by_role("heading", name="balancing, tiny")).to_be_visible()
    expect(page).to_have_url(f"{url}/e/{home.sweep}")
    assert [item for item in complaints.items if "401" not in item] == []


def test_a_page_that_loses_the_api_says_so_and_recovers(page: Page, url: str, home: SeededHome) -> None:
    sign_in(page, url, home.token)
    page.goto(f"{url}/e/{home.running}")
    expect(page.get_by_text("live", exact=True)).to_be_visible()
    page.context.set_offline(True)
    expect(page.get_by_text(re.compile("stale, last update")).first).to_be_visible()
    expect(page.get_by_role("heading", name="without clipping")).to_be_visible()
    page.context.set_offline(False)
    expect(page.get_by_text("live", exact=True)).to_be_visible()


def test_keys_reach_everything(page: Page, url: str, home: SeededHome, complaints: Complaints) -> None:
    sign_in(page, url, home.token)
    expect(page.get_by_role("link", name="balancing, tiny")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("balancing")
    expect(page.get_by_role("table", name="Experiments").locator("tbody tr")).to_have_count(1)
    page.get_by_role("searchbox").blur()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="balancing, tiny")).to_be_visible()
    assert complaints.items == []


@pytest.mark.parametrize("name", ["experiments", "experiment", "run", "compare"])
def test_everything_one_can_press_has_a_name(page: Page, url: str, home: SeededHome, name: str) -> None:
    sign_in(page, url, home.token)
    page.goto(url + addresses(url, home.token)[name])
    settle(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('a, button, input, canvas[tabindex], [role=img]')].filter((element) =>
            !(element.textContent.trim() || element.getAttribute('aria-label') || element.title ||
              element.closest('label') || element.querySelector('img[alt]')))
            .map((element) => element.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("h1").count() == 1


@pytest.mark.parametrize("width", [1440, 420])
def test_no_page_is_wider_than_the_window(browser: Browser, url: str, home: SeededHome, width: int) -> None:
    page = new_page(browser, width=width)
    sign_in(page, url, home.token)
    for path in addresses(url, home.token).values():
        page.goto(url + path)
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    page.context.close()


def test_chosen_experiments_are_commanded_and_cancelling_asks_first(
    page: Page, url: str, home: SeededHome, complaints: Complaints
) -> None:
    sign_in(page, url, home.token)
    rows = page.get_by_role("table", name="Experiments").locator("tbody tr")
    row = rows.filter(has=page.get_by_role("link", name="without clipping", exact=True))
    row.get_by_role("checkbox").check()
    chosen = page.get_by_role("group", name="Selected experiments")
    chosen.get_by_role("button", name="Pause 1").click()
    expect(row.locator(".state")).to_contain_text("pausing")
    chosen.get_by_role("button", name="Priority").click()
    dialog = page.get_by_role("dialog", name="Priority of without clipping")
    dialog.get_by_role("spinbutton").fill("7")
    dialog.get_by_role("button", name="Set").click()
    expect(row).to_contain_text("priority 7")

    chosen.get_by_role("button", name="Cancel 1").click()
    dialog = page.get_by_role("dialog", name="Cancel without clipping?")
    dialog.get_by_role("button", name="Keep running").click()
    expect(row.locator(".state")).to_contain_text("pausing")
    chosen.get_by_role("button", name="Cancel 1").click()
    dialog.get_by_role("button", name="Cancel the experiment").click()
    expect(row.locator(".state")).to_contain_text("cancelling")
    assert complaints.items == []


def test_the_built_files_fit_the_budget() -> None:
    import gzip

    folder = Path(__file__).parents[2] / "api" / "webui"
    files = [file for file in folder.iterdir() if file.suffix in {".html", ".js", ".css"}]
    assert {file.name for file in files} == {"index.html", "app.js", "app.css"}
    assert sum(len(gzip.compress(file.read_bytes())) for file in files) < 350_000
