"""What a reader sees in the browser: runs, the run graph, a deployment, and our diagrams."""

import base64
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from machinery import Server, run, script, server, serving
from pages import PAGES
from pictures import CHROMIUM, browser_page, rest, run_lesson
from playwright.sync_api import Page, expect

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.timeout(900),  # most of it is waiting, on a busy machine
]

# The number of bands of green rows in a picture: the bars of a run graph, one below the other.
COUNT_BARS = """async source => {
  const picture = new Image();
  picture.src = source;
  await picture.decode();
  const {width, height} = picture;
  const canvas = new OffscreenCanvas(width, height).getContext('2d');
  canvas.drawImage(picture, 0, 0);
  let bars = 0, before = false;
  for (let y = 0; y < height; y++) {
    const row = canvas.getImageData(0, y, width, 1).data;
    let green = 0;
    for (let i = 0; i < row.length; i += 4)
      green += row[i + 1] > row[i] + 60 && row[i + 1] > row[i + 2] + 40;
    bars += green > 10 && !before;
    before = green > 10;
  }
  return bars;
}"""


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


def test_the_address_that_lesson_12_prints_shows_the_run_and_its_log(
    running: Server, page: Page
) -> None:
    options = ("--wait", "-p", "user_id=103")
    told = run(script("12"), *options, seconds=300, PREFECT_API_URL=running.api_url)
    page.goto(re.findall(r"http\S+/runs/flow-run/\S+", told.stdout + told.stderr)[0])
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    expect(page.get_by_text("User 103 is Grace Hopper")).to_be_visible()
    expect(page.get_by_text("Switch to V1 UI")).to_be_visible()  # it is the new page
    page.goto(f"{running.site}/v2/deployments")
    page.get_by_text("user-deployment").first.click()
    expect(page.get_by_text("Ready", exact=True).first).to_be_visible()
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()


def test_lesson_05_shows_its_graph_on_the_new_page_and_prints_the_old_one(
    running: Server, page: Page
) -> None:
    flow_run_id = run_lesson(script("05"), running.api_url)
    page.goto(running.site)
    expect(page).to_have_url(re.compile("/v2/"))
    page.goto(f"{running.site}/v2/runs/flow-run/{flow_run_id}")
    box = page.locator("canvas").bounding_box(timeout=120_000)
    assert box
    rest(page)
    clip = {"x": box["x"], "y": box["y"], "width": box["width"], "height": box["height"] - 40}
    picture = base64.b64encode(page.screenshot(clip=clip)).decode()  # type: ignore[arg-type]
    bars = page.evaluate(COUNT_BARS, f"data:image/png;base64,{picture}")
    assert bars == 4, f"the run graph of lesson 05 has {bars} bars, one below the other"
    page.goto(f"{running.site}/runs/flow-run/{flow_run_id}")
    expect(page.get_by_text("Switch to V2 UI")).to_be_visible()


def test_every_diagram_can_be_drawn(page: Page, tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, to fetch Mermaid")
    subprocess.run([npm, "pack", "--silent", "mermaid@11"], cwd=tmp_path, check=True)
    (archive,) = tmp_path.glob("mermaid-*.tgz")
    with tarfile.open(archive) as packed:
        packed.extract("package/dist/mermaid.min.js", tmp_path, filter="data")
    page.goto("about:blank")
    page.add_script_tag(path=tmp_path / "package" / "dist" / "mermaid.min.js")
    drawn = 0
    for path in PAGES:
        for diagram in re.findall(r"(?ms)^```mermaid\n(.*?)^```$", path.read_text("utf-8")):
            drawn += 1
            svg = page.evaluate("text => mermaid.render('it', text).then(it => it.svg)", diagram)
            for name in re.findall(r"\b[a-z]+_[a-z_]+\b", diagram):
                assert name in svg, f"{path.name}: {name} is not in the drawing of\n{diagram}"
    assert drawn, "there is no diagram"
