"""The tables of docs/reference.md: each cell comes from Prefect, a lesson, or a run of it.

pytest docs/checks/page/test_reference.py --write changed writes the cells.
"""

import ast
import asyncio
import datetime
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import metadata, version
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import prefect.settings
import prefect.states
import requests
from machinery import (
    ROOT,
    background,
    environment,
    free_port,
    read_terminal,
    run,
    script,
    terminal,
)
from pages import table_keys
from prefect import Flow, flow, get_client, task
from prefect.cache_policies import INPUTS
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed
from recorded import wait_until

Compare = Callable[..., None]
NOWHERE = "http://127.0.0.1:1/api"  # no server answers there


def api_url() -> str:
    """Return the URL of the harness's API."""
    return str(PREFECT_API_URL.value())


def shown(value: Any) -> str:
    """Return a setting's value as a cell."""
    if isinstance(value, datetime.timedelta):
        return f"{value.days} days" if value.days else f"{value.seconds}"
    return ", ".join(sorted(value)) if isinstance(value, set) else f"{value}".removesuffix(".0")


def test_versions(compare: Compare) -> None:
    classifiers = metadata("prefect").get_all("Classifier") or []
    minors = [int(it.rsplit(".", 1)[1]) for it in classifiers if re.search(r":: 3\.\d+$", it)]
    compare("versions", {"prefect": (version("prefect"), f"3.{min(minors)} to 3.{max(minors)}")})


def test_defaults(compare: Compare) -> None:
    keys = table_keys("defaults")
    unknown = [it for it in keys if not hasattr(prefect.settings, it.split()[0])]
    assert not unknown, f"reference.md, defaults: Prefect has no setting {unknown}"
    code = "import os; del os.environ['PREFECT_SERVER_ANALYTICS_ENABLED']; import prefect.settings"
    here = f"[str(getattr(prefect.settings, key.split()[0]).value()) for key in {keys}]"
    values = ast.literal_eval(run("-c", f"{code}; print({here})").stdout)
    seen = {}
    for key, value in zip(keys, values, strict=True):
        default = getattr(prefect.settings, key.split()[0]).default()
        seen[key] = (shown(default), value if value != str(default) else "")
    compare("defaults", seen)


def test_arguments(compare: Compare) -> None:
    owners: dict[str, Any] = {".serve": Flow.serve, "@task": prefect.Task.__init__}
    seen = {}
    for key in table_keys("arguments"):
        owner, _, name = key.split()[0].rstrip(")").partition("(")
        if name:
            seen[key] = shown(inspect.signature(owners[owner]).parameters[name].default)
        else:
            told = re.findall(r"TIMEOUT_SECONDS = (\d+)", script("12").read_text(encoding="utf-8"))
            seen[key] = told[0]
    compare("arguments", seen)


def test_settings_that_the_lessons_read(compare: Compare) -> None:
    seen: dict[str, str] = {}
    for number in ("10", "11", "12"):
        for name in set(re.findall(r'"(PREFECT_\w+)"', script(number).read_text(encoding="utf-8"))):
            seen[name] = ", ".join([*filter(None, [seen.get(name)]), number])
    compare("settings", seen)


def test_which_server(tmp_path: Path, compare: Compare) -> None:
    def url(number: str, **settings: Any) -> str:
        words = ["user-flow/x"] if number > "10" else ["0c0772af-7dfb-4b3e-b89f-72a8e73b34e2"]
        code = "from prefect.settings import PREFECT_API_URL as url; print(url.value())"
        options = ["--timeout", "1"] if number == "12" else []
        program: list[Any] = ["-c", code] if number == "01" else [script(number), *words, *options]
        told = run(*program, cwd=tmp_path, PREFECT_HOME=str(tmp_path), **settings)
        found = re.findall(r"http://127.0.0.1:(\d+)", told.stdout + told.stderr)
        return {"1": "this one", "4200": "port 4200"}[found[0]] if found else "a temporary server"

    def urls(**settings: Any) -> tuple[str, str]:
        triggers = {url(number, **settings) for number in ("10", "11", "12")}
        return url("01", **settings), " or ".join(sorted(triggers))

    seen = {"environment": urls(PREFECT_API_URL=NOWHERE), "no place": urls()}
    (tmp_path / ".env").write_text(f"PREFECT_API_URL={NOWHERE}")
    compare("which-server", seen | {".env": urls()})


def test_a_server_that_is_started_in_a_terminal(tmp_path: Path, compare: Compare) -> None:
    """Give the profile `local` another port than 4200, which may be in use."""
    port = str(free_port())
    home = tmp_path / "home"
    home.mkdir()
    template = (Path(prefect.settings.__file__).parent / "profiles.toml").read_text("utf-8")
    (home / "profiles.toml").write_text(template.replace("4200", port), "utf-8")
    settings: dict[str, Any] = {"PREFECT_HOME": str(home), "PREFECT_SERVER_API_PORT": port}
    known = environment(**settings, TERM="xterm")
    known.pop("CI", None)  # Prefect asks nobody there
    logs = (tmp_path / f"{number}.log" for number in count())

    def prefect_cli(*words: str) -> str:
        log = next(logs)
        with terminal(log) as tty:
            command = [sys.executable, "-m", "prefect", *words]
            subprocess.run(
                command, check=True, cwd=tmp_path, env=known, stdin=tty, stdout=tty, stderr=tty
            )
        return read_terminal(log)

    def outcome(command: str) -> tuple[str, str, str]:
        printed = prefect_cli(*command.split()[1:])
        switched = re.findall(r"Switched to profile '\w+'", printed)
        told = run("-m", "prefect", "config", "view", cwd=tmp_path, **settings).stdout
        code = "from prefect.settings import PREFECT_API_URL as url; print(url.value())"
        url = run("-c", code, cwd=tmp_path, **settings).stdout.strip().replace(port, "4200")
        (active,) = re.findall(r"PREFECT_PROFILE='(\w+)'", told)
        return "".join(switched), active, "none" if url == "None" else url

    keys = table_keys("terminal")
    try:
        seen = {}
        for key in keys:
            seen[key] = outcome(key)
            if "--no-prompt" in key:
                prefect_cli("server", "stop")
    finally:
        run("-m", "prefect", "server", "stop", cwd=tmp_path, **settings)
    compare("terminal", seen)


def deploy(name: str, **options: Any) -> str:
    """Create the deployment NAME/d of a flow with a parameter, which nothing serves."""

    def takes(user_id: int = 101) -> None: ...

    deployable: Any = flow(name=name)(takes)
    return str(deployable.to_deployment("d", **options).apply())


def post(deployment_id: str, **body: Any) -> requests.Response:
    """Ask for a flow run, again while SQLite is busy; return the answer."""
    url = f"{api_url()}/deployments/{deployment_id}/create_flow_run"

    def answer() -> list[requests.Response]:
        response = requests.post(url, json=body, timeout=60)
        return [response] if response.status_code != 503 else []

    return wait_until("an answer that is not 503", answer)[0]


def test_what_the_api_answers(compare: Compare) -> None:
    deployment_id = deploy("answers")
    answers = {
        "new": post(deployment_id, idempotency_key="k"),
        "same again": post(deployment_id, idempotency_key="k", parameters={"user_id": 102}),
        "type": post(deployment_id, parameters={"user_id": "Ada"}),
        "name": post(deployment_id, parameters={"userid": 1}),
        "id": post("0c0772af-7dfb-4b3e-b89f-72a8e73b34e2"),
    }
    assert answers["new"].json()["id"] == answers["same again"].json()["id"]
    seen = {
        key: (it.status_code, it.json()["state"]["name"] if it.ok else "no run")
        for key, it in answers.items()
    }
    compare("answers", seen)


def test_states(compare: Compare) -> None:
    once: Any = task(cache_policy=INPUTS, persist_result=True)(lambda number: number)

    @task(timeout_seconds=0.1)
    async def sleep() -> None:
        await asyncio.sleep(3)

    slow: Any = sleep

    states: dict[Any, State[Any]] = {}

    @flow
    def odd_ends() -> None:
        twice = [once(1, return_state=True) for _ in "12"]
        needs = once.submit(task(lambda: 1 // 0).submit())
        needs.wait()
        odd = [twice[1], needs.state, asyncio.run(slow(return_state=True))]
        states.update({it.name: it for it in odd})

    odd_ends()
    seen = {}
    for name in table_keys("states"):
        state = states.get(name) or getattr(prefect.states, name)()
        assert state.name == name
        seen[name] = (state.type.value, "yes" if state.is_final() else "no")
    compare("states", seen)


def test_exit_codes(compare: Compare) -> None:
    deployment_id, name = deploy("codes"), "codes/d"

    def codes(ten: list[str], eleven: list[str], twelve: list[str]) -> tuple[int, ...]:
        programs = {"10": ten, "11": eleven, "12": [*twelve, "--timeout", "5"]}
        told = [
            run(script(it), *words, PREFECT_API_URL=api_url()) for it, words in programs.items()
        ]
        return tuple(it.returncode for it in told)

    def waits(key: str, state: State[Any] | None) -> tuple[str, str, int]:
        words = (script("12"), name, "--timeout", "5", "--idempotency-key", key)
        flow_run_id = UUID(post(deployment_id, idempotency_key=key).json()["id"])
        if state:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(flow_run_id, state, force=True)
        return "", "", run(*words, "--wait", PREFECT_API_URL=api_url()).returncode

    away, refused = ["--api-url", NOWHERE], ["-p", "user_id=Ada"]
    nobody = "0c0772af-7dfb-4b3e-b89f-72a8e73b34e2"
    seen = {
        "accepted": codes([deployment_id], [name], [name]),
        "Completed --wait": waits("completed", Completed()),
        "Failed --wait": waits("failed", Failed()),
        "--timeout --wait": waits("goes on", None),
        "--unknown": codes(["--unknown"], ["--unknown"], ["--unknown"]),
        "codes/e": codes([nobody], ["codes/e"], ["codes/e"]),
        "-p": (*codes([deployment_id, *refused], [name, *refused], [name, *refused]),),
        "--api-url": codes([deployment_id, *away], [name, *away], [name, *away]),
    }
    compare("exit-codes", seen)


def test_ways_to_trigger(tmp_path: Path, compare: Compare) -> None:
    """Trigger in each way, fail the new flow run, and read what the way makes of it."""
    deploy("ways")
    twelve = f"__import__({script('12').stem!r}).trigger('ways/d')['state']['name']"
    url = api_url()
    programs: dict[str, list[Any]] = {
        "lesson 12 --wait": [script("12"), "ways/d", "--wait"],
        "trigger(...)": ["-c", f"print({twelve})"],
        "prefect deployment run NAME --watch": [
            *("-m", "prefect", "deployment", "run", "ways/d", "--watch")
        ],
        "run_deployment(...)": [
            "-c",
            "from prefect.deployments import run_deployment as it; print(it('ways/d').state_name)",
        ],
    }
    known: set[UUID] = set()

    def new_runs() -> list[UUID]:
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=["ways"]))
            )
        return [it.id for it in found if it.id not in known]

    def outcome(key: str) -> tuple[str, str]:
        log = tmp_path / f"{len(known)}.log"
        words = ("-X", "importtime", *programs[key])
        with background(*words, cwd=ROOT, log=log, PREFECT_API_URL=url) as process:
            (flow_run_id,) = wait_until(f"{key} triggers a run", new_runs, 120)
            known.add(flow_run_id)
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(flow_run_id, Failed(), force=True)
            code = process.wait(120)
        text = log.read_text(encoding="utf-8")
        imports = "yes" if re.search(r"(?m)\| +prefect$", text) else "no"
        printed = [it for it in text.splitlines() if not it.startswith("import time:")]
        end = f"exit code {code}" if "(" not in key else f"it returns a {printed[-1]} run"
        return imports, end

    compare("ways", {key: outcome(key) for key in programs})
