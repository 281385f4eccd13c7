"""Take the pictures of Prefect's web page again: python docs/take_pictures.py.

Starts a server, runs lessons 05, 07, 08 and 09 on it, and photographs what it shows with headless
Chromium (Debian: apt-get install chromium). Needs what requirements.txt installs and nothing else.
"""

import base64
import itertools
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from websockets.sync.client import connect
from websockets.sync.connection import Connection

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support import (  # noqa: E402
    Api,
    Server,
    background,
    clean_environment,
    replace_environment,
    run_script,
    script_path,
    wait_until,
)

IMAGES = ROOT / "docs" / "images"
WIDTH, HEIGHT, MARGIN = 1100, 900, 12
REST_SECONDS = 3
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Where an element of the page is.
RECTANGLE = "(({x, y, width, height}) => ({x, y, width, height}))(%s.getBoundingClientRect())"

# The smallest part of the page that has all the texts.
PART = """(texts => {
  const parts = [...document.querySelectorAll('body *')];
  const found = parts.filter(part => texts.every(text => part.innerText?.includes(text))).at(-1);
  return found ? RECTANGLE : null;
})(%s)""".replace("RECTANGLE", RECTANGLE % "found")


class Page:
    """A page of a headless browser, driven over the Chrome DevTools protocol."""

    def __init__(self, connection: Connection) -> None:
        """Use the browser behind this connection, in light colours."""
        self.connection = connection
        self.numbers = itertools.count(1)
        media = [{"name": "prefers-color-scheme", "value": "light"}]
        self.call("Emulation.setEmulatedMedia", features=media)
        self.resize(WIDTH, HEIGHT)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        self.connection.send(json.dumps(message))
        while True:
            answer: dict[str, Any] = json.loads(self.connection.recv(timeout=30))
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def resize(self, width: int, height: int) -> None:
        """Make the page this large, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def value(self, expression: str) -> Any:
        """Return what the JavaScript expression is worth on the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Return the first true value of the JavaScript expression."""
        return wait_until(f"the page shows {expression}", lambda: self.value(expression), 60)

    def open(self, url: str) -> None:
        """Go to the URL."""
        self.call("Page.navigate", url=url)

    def rest(self) -> None:
        """Return when the page has not changed for REST_SECONDS: a run graph is an animation."""
        last, since = "", time.monotonic()

        def rests() -> bool:
            nonlocal last, since
            now = self.call("Page.captureScreenshot", format="png")["data"]
            if now != last:
                last, since = now, time.monotonic()
            return time.monotonic() - since > REST_SECONDS

        wait_until("the page comes to rest", rests, 60)

    def part(self, *texts: str) -> dict[str, float]:
        """Return the rectangle of the smallest part of the page that has all the texts."""
        return dict(self.wait(PART % json.dumps(texts)))

    def save(self, name: str, **clip: float) -> None:
        """Save the rectangle of the page under docs/images/: x, y, width and height in pixels."""
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT, "scale": 1, **clip}
        data = self.call("Page.captureScreenshot", format="png", clip=clip)["data"]
        IMAGES.mkdir(exist_ok=True)
        (IMAGES / name).write_bytes(base64.b64decode(data))
        print(f"docs/images/{name}: {(IMAGES / name).stat().st_size // 1000} KB")


@contextmanager
def browser() -> Iterator[Page]:
    """Run headless Chromium with a profile of its own, and yield its page."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        sys.exit("No Chromium on the PATH; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-proxy-server",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            "--remote-debugging-port=0",
            "about:blank",
        ]
        with background(command, Path(profile) / "log"):
            told = Path(profile) / "DevToolsActivePort"
            wait_until(
                "the browser says where it listens",
                lambda: told.is_file() and told.stat().st_size,
                60,
            )
            port = told.read_text().split()[0]
            (tab, *_) = wait_until("the browser has a tab", lambda: tabs(port), 60)
            with connect(tab["webSocketDebuggerUrl"], max_size=None, proxy=None) as connection:
                yield Page(connection)


def tabs(port: str) -> list[dict[str, Any]]:
    """Return the tabs of the browser that listens on this port."""
    with requests.Session() as session:
        session.trust_env = False
        found = session.get(f"http://127.0.0.1:{port}/json/list", timeout=10).json()
    return [tab for tab in found if tab["type"] == "page"]


def with_margin(part: dict[str, float]) -> dict[str, float]:
    """Return the rectangle with a margin around it."""
    x, y, width, height = (part[key] for key in ("x", "y", "width", "height"))
    return {
        "x": x - MARGIN,
        "y": y - MARGIN,
        "width": width + 2 * MARGIN,
        "height": height + 2 * MARGIN,
    }


def take_graph(page: Page, url: str, name: str) -> None:
    """Save the head of a flow run's page and its run graph."""
    page.open(url)
    page.wait("document.querySelector('canvas') !== null")
    page.rest()
    graph = with_margin(page.value(RECTANGLE % "document.querySelector('canvas')"))
    page.save(name, **{**graph, "y": 0, "height": graph["y"] + graph["height"]})


def take_logs(page: Page, url: str, name: str) -> None:
    """Save the logs of lesson 07's flow run."""
    page.resize(WIDTH, 2 * HEIGHT)
    page.open(url)
    texts = ("Beginning flow run", "Finished: user 101", "Finished in state")
    page.part(*texts)
    page.rest()
    page.save(name, **with_margin(page.part(*texts)))
    page.resize(WIDTH, HEIGHT)


def take_deployment(page: Page, url: str, name: str) -> None:
    """Save the upper part of the page of lesson 09's deployment."""
    page.open(url)
    page.part("Completed", "Ready", "Entrypoint")
    page.rest()
    head = page.part("Deployments", "user-deployment", "Run")
    page.save(name, **{**with_margin(head), "y": 0, "height": 562})


@contextmanager
def recorded() -> Iterator[Api]:
    """Run a server on which the lessons have run, and lesson 09 is served."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        running = Server(Path(home))
        # Its web page asks port 4200 otherwise, whatever the server's own port is.
        running.settings["PREFECT_SERVER_UI_API_URL"] = running.api_url
        settings: dict[str, Any] = {"PREFECT_API_URL": running.api_url, "PREFECT_HOME": home}
        command = [sys.executable, str(script_path("09"))]
        try:
            running.start()
            with background(command, Path(home) / "09.log", stop=signal.SIGINT, **settings):
                with ThreadPoolExecutor() as pool:
                    lessons = [script_path(number) for number in ("05", "07", "08")]
                    runs = list(pool.map(lambda path: run_script(path, **settings), lessons))
                for user_id in (102, 103):
                    options = ("--wait", "-p", f"user_id={user_id}")
                    runs.append(run_script(script_path("12"), *options, **settings))
                for run in runs:
                    assert run.returncode == 0, run.stdout + run.stderr
                yield Api(running.api_url)
        finally:
            running.stop()


def main() -> None:
    """Take every picture."""
    replace_environment(clean_environment())
    with recorded() as api, browser() as page:
        site = api.url.removesuffix("/api") + "/v2"
        flow_names = {flow["id"]: flow["name"] for flow in api.post("/flows/filter", {})}
        runs = {flow_names[run["flow_id"]]: run["id"] for run in api.flow_runs()}
        (deployment,) = api.post("/deployments/filter", {})
        take_graph(page, f"{site}/runs/flow-run/{runs['mixed-flow']}", "05_run_graph.png")
        take_logs(page, f"{site}/runs/flow-run/{runs['logging-flow']}", "07_logs.png")
        take_graph(page, f"{site}/runs/flow-run/{runs['pipeline-flow']}", "08_run_graph.png")
        page_of_deployment = f"{site}/deployments/deployment/{deployment['id']}"
        take_deployment(page, page_of_deployment, "09_deployment.png")


if __name__ == "__main__":
    main()
