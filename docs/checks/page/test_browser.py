"""What a reader sees in the browser: runs, the run graph, a deployment, and our diagrams."""

import re
from collections.abc import Iterator

import pytest
import requests
from machinery import Server, run, script, server, serving
from pages import PAGES
from pictures import CHROMIUM, browser_page, run_lesson
from playwright.sync_api import Page, expect

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.timeout(900),  # most of it is waiting, on a busy machine
]


@pytest.fixture(scope="session", autouse=True)
def harness() -> None:
    """Start no server without a web page."""


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    """Run a server with its web page, on which lesson 09 is served."""
    with server() as own, serving(own.api_url, script("09"), own.home / "09.log"):
        yield own


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """Run a browser, and return its page."""
    expect.set_options(timeout=120_000)
    with browser_page() as opened:
        yield opened


def test_the_ui_shows_a_triggered_run_its_log_and_its_deployment(
    running: Server, page: Page
) -> None:
    options = ("--wait", "-p", "user_id=103")
    triggered = run(script("12"), *options, seconds=300, PREFECT_API_URL=running.api_url)
    page.goto(f"{running.site}/v2/runs/flow-run/{triggered.stdout.strip()}")
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    expect(page.get_by_text("User 103 is Grace Hopper")).to_be_visible()
    expect(page.get_by_text("Switch to V1 UI")).to_be_visible()  # it is the new page
    page.goto(f"{running.site}/v2/deployments")
    page.get_by_text("user-deployment").first.click()
    expect(page.get_by_text("Ready", exact=True).first).to_be_visible()
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()


def test_lesson_05_shows_its_graph_in_the_new_ui_and_prints_the_old_one(
    running: Server, page: Page
) -> None:
    flow_run_id = run_lesson(script("05"), running.api_url)
    page.goto(running.site)
    expect(page).to_have_url(re.compile("/v2/"))
    page.goto(f"{running.site}/v2/runs/flow-run/{flow_run_id}")
    expect(page.locator("canvas")).to_be_visible()
    page.get_by_role("tab", name="Task Runs").click()
    expect(page.get_by_text("predict_churn").first).to_be_visible()
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
