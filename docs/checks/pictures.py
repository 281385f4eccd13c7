"""Take the pictures of Prefect's web page again: python docs/checks/pictures.py [FOLDER].

Runs lessons on a server of its own, and photographs what its web page shows of them, for
docs/images or the folder. Needs Chromium (on Debian: apt-get install chromium).
"""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, sync_playwright

sys.path[:0] = [str(Path(__file__).parents[2] / "tests"), str(Path(__file__).parent)]

from machinery import NAME, ROOT, run, script, server, serving  # noqa: E402
from pages import RUN_ID  # noqa: E402
from recorded import wait_until  # noqa: E402

WIDTH, HEIGHT, MARGIN = 1100, 900, 6
REST_SECONDS = 3
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def browser_page() -> Iterator[Page]:
    """Run headless Chromium during the block, and yield its page, in light colours."""
    if CHROMIUM is None:
        sys.exit("No Chromium on the PATH; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--no-proxy-server"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(color_scheme="light")
        page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(120_000)
        yield page
        browser.close()


def run_lesson(path: Path, api_url: str, *arguments: str) -> str:
    """Run a script on the server, and return the id of its flow run."""
    told = run(path, *arguments, seconds=600, PREFECT_API_URL=api_url)
    assert told.returncode == 0, told.stdout + told.stderr
    return str(RUN_ID.findall(told.stdout + told.stderr)[0])


def rest(page: Page) -> None:
    """Return when the page has not changed for REST_SECONDS: a run graph is an animation."""
    last, since = b"", time.monotonic()

    def rests() -> bool:
        nonlocal last, since
        now = page.screenshot()
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > REST_SECONDS

    wait_until("the page comes to rest", rests, 120)


def save(
    page: Page,
    part: Locator,
    path: Path,
    margin: int = MARGIN,
    top: float | None = None,
    bottom: float | None = None,
) -> None:
    """Save this part of the page with a margin, or what is of it from `top` to `bottom`."""
    rest(page)
    box = part.bounding_box()
    assert box, f"what {path.name} is to show is not on the page"
    upper = box["y"] - margin if top is None else top
    lower = box["y"] + box["height"] + margin if bottom is None else bottom
    x, width = box["x"] - margin, box["width"] + 2 * margin
    page.screenshot(path=path, clip={"x": x, "y": upper, "width": width, "height": lower - upper})
    print(f"{path.name}: {path.stat().st_size // 1000} KB")


def main() -> None:
    """Take every picture."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    growing = folder if len(sys.argv) > 1 else ROOT / "docs" / "growing" / "images"
    with server() as running, browser_page() as page:
        for number in ("03", "05", "08"):
            flow_run_id = run_lesson(script(number), running.api_url)
            page.goto(f"{running.site}/v2/runs/flow-run/{flow_run_id}")
            save(page, page.locator("canvas"), folder / f"{number}_run_graph.png", top=0)
        flow_run_id = run_lesson(script("07"), running.api_url)
        page.set_viewport_size({"width": WIDTH, "height": 2 * HEIGHT})
        page.goto(f"{running.site}/v2/runs/flow-run/{flow_run_id}")
        page.get_by_text("Finished in state").last.wait_for()
        save(page, page.get_by_role("tabpanel"), folder / "07_logs.png")
        flow_run_id = run_lesson(ROOT / "docs" / "growing" / "train_churn.py", running.api_url)
        page.goto(f"{running.site}/v2/runs/flow-run/{flow_run_id}?tab=Artifacts")
        page.get_by_text("churn-model").first.click()
        page.locator("svg[aria-roledescription=xychart]").wait_for()
        save(page, page.get_by_role("tabpanel"), growing / "churn_model.png")
        page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        with serving(running.api_url, script("09"), running.home / "09.log"):
            for user_id in (102, 103):
                run_lesson(script("12"), running.api_url, "--wait", "-p", f"user_id={user_id}")
            page.goto(f"{running.site}/v2/deployments")
            page.get_by_text(NAME.partition("/")[2]).first.click()
            page.get_by_text("Concurrency Limit").wait_for()
            save(page, page.locator("main"), folder / "09_deployment.png", 0, top=0, bottom=568)


if __name__ == "__main__":
    main()
