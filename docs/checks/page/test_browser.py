"""What a reader sees in the browser: runs, the run graph, a deployment, and our diagrams.

--write all takes the pictures of docs/images and docs/growing/images again.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from machinery import NAME, ROOT, Server, run, script, server, serving
from pages import LEARNINGS, PAGES, RUN_ID
from playwright.sync_api import Locator, Page, expect, sync_playwright
from recorded import wait_until

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, PROGRAMS)), None)
MARGIN = 6

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.timeout(900),  # most of it is waiting, on a busy machine
]


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    """Run a server with its UI, on which lesson 09 is served."""
    with server() as own, serving(own, script("09"), own.home / "09.log"):
        yield own


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """Run headless Chromium, and return its page, in light colors."""
    expect.set_options(timeout=120_000)
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--no-proxy-server"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        opened = browser.new_page(color_scheme="light", viewport={"width": 1100, "height": 900})
        opened.set_default_timeout(120_000)
        yield opened
        browser.close()


def open_run(at: Server, page: Page, path: Path, tab: str = "") -> str:
    """Run a program on the server, open the page of its flow run, and return the run's id."""
    told = run(path, PREFECT_API_URL=at.api_url)
    assert told.returncode == 0, told.stdout + told.stderr
    flow_run_id = str(RUN_ID.findall(told.stdout + told.stderr)[0])
    page.goto(f"{at.site}/v2/runs/flow-run/{flow_run_id}?tab={tab}")
    return flow_run_id


def trigger(at: Server, page: Page, user_id: int) -> str:
    """Have a run of lesson 09 for this user, open its deployment, and return the run's id."""
    options = ("--wait", "-p", f"user_id={user_id}")
    flow_run_id = run(script("12"), *options, PREFECT_API_URL=at.api_url).stdout
    page.goto(f"{at.site}/v2/deployments")
    page.get_by_text(NAME.partition("/")[2]).first.click()
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    return flow_run_id.split()[0]


def save(page: Page, part: Locator, path: str, **area: float) -> None:
    """Save this part of the page with a margin, or an area of the page, once nothing moves."""

    def rests() -> bool:
        before = page.screenshot()
        page.wait_for_timeout(3000)
        return page.screenshot() == before

    wait_until("the page comes to rest", rests, 120)
    box: Any = part.bounding_box()
    clip = {side: box[side] - MARGIN for side in "xy"}
    clip |= {side: box[side] + 2 * MARGIN for side in ("width", "height")}
    page.screenshot(path=ROOT / "docs" / path, clip=clip | area)  # type: ignore[arg-type]


def test_pictures(running: Server, page: Page, pytestconfig: pytest.Config) -> None:
    """Come first: the picture of the deployment shows its first two runs."""
    if pytestconfig.getoption("write") != "all":
        pytest.skip("takes the pictures, with --write all")
    for user_id in (102, 103):
        trigger(running, page, user_id)
    page.get_by_text("Concurrency Limit").wait_for()
    main = {"x": 256, "y": 0, "width": 844, "height": 568}
    save(page, page.locator("main"), "images/09_deployment.png", **main)
    for number in ("03", "05", "08"):
        open_run(running, page, script(number))
        save(page, page.locator("canvas"), f"images/{number}_run_graph.png", y=0, height=509)
    page.set_viewport_size({"width": 1100, "height": 1800})
    open_run(running, page, script("07"))
    page.get_by_text("Finished in state").last.wait_for()
    save(page, page.get_by_role("tabpanel"), "images/07_logs.png")
    open_run(running, page, ROOT / "docs" / "growing" / "train_churn.py", "Artifacts")
    page.get_by_text("churn-model").first.click()
    page.locator("svg[aria-roledescription=xychart]").wait_for()
    save(page, page.get_by_role("tabpanel"), "growing/images/churn_model.png")


def test_the_ui_shows_a_triggered_run_its_log_and_its_deployment(
    running: Server, page: Page
) -> None:
    flow_run_id = trigger(running, page, 103)
    expect(page.get_by_text("Ready", exact=True).first).to_be_visible()
    page.goto(f"{running.site}/v2/runs/flow-run/{flow_run_id}")
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    expect(page.get_by_text("User 103 is Grace Hopper")).to_be_visible()
    expect(page.get_by_text("Switch to V1 UI")).to_be_visible()  # it is the new UI


def test_lesson_05_shows_its_graph_in_the_new_ui_and_prints_the_old_one(
    running: Server, page: Page
) -> None:
    flow_run_id = open_run(running, page, script("05"))
    name = running.ask("GET", f"/flow_runs/{flow_run_id}")["name"]
    runs, _, tab = re.findall(r"click \*(\w+)\*", LEARNINGS)  # what it says to click
    page.goto(running.site)
    page.get_by_role("link", name=runs, exact=True).click()
    page.get_by_role("link", name=name).first.click()
    page.get_by_role("tab", name=tab).click()
    expect(page.get_by_text("Finished in state").last).to_be_visible()
    expect(page.locator("canvas")).to_be_visible()
    page.get_by_role("tab", name="Task Runs").click()
    expect(page.get_by_text("predict_churn").first).to_be_visible()
    page.goto(running.site)
    expect(page).to_have_url(re.compile("/v2/"))
    page.goto(f"{running.site}/runs/flow-run/{flow_run_id}")
    expect(page.get_by_text("Switch to V2 UI")).to_be_visible()


def test_every_diagram_can_be_drawn(running: Server, page: Page) -> None:
    """Prefect's UI draws the Mermaid diagrams of an artifact: so ours, too, without internet."""
    for path in PAGES:
        for diagram in re.findall(r"(?ms)^```mermaid\n.*?^```$", path.read_text("utf-8")):
            artifact = {"type": "markdown", "key": "diagram", "data": diagram}
            made = requests.post(f"{running.api_url}/artifacts/", json=artifact, timeout=60)
            page.goto(f"{running.site}/v2/artifacts/artifact/{made.json()['id']}")
            drawn = page.locator("svg[aria-roledescription]").first
            expect(drawn).to_be_visible()
            for name in re.findall(r"\b[a-z]+_[a-z_]+\b", diagram):
                expect(drawn).to_contain_text(name)
