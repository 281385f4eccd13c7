"""The tables of docs/reference.md: each cell comes from Prefect, a lesson, or a run of it.

pytest docs/checks/page/test_reference.py --write changed writes the cells.
"""

import ast
import asyncio
import datetime
import inspect
import re
from collections.abc import Callable
from importlib.metadata import metadata, version
from pathlib import Path
from typing import Any

import prefect.settings
import prefect.states
import requests
from machinery import ROOT, Server, background, free_port, run, run_in_terminal, script
from pages import table_keys
from prefect import Flow, flow, task
from prefect.cache_policies import INPUTS
from prefect.client.schemas.objects import State
from recorded import wait_until

Compare = Callable[..., None]
NO_ID = "0c0772af-7dfb-4b3e-b89f-72a8e73b34e2"  # of nothing on any server
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOWHERE = "http://127.0.0.1:1/api"  # no server answers there
PRINT_SETTINGS = """
from prefect.context import get_settings_context
settings = get_settings_context()
print(settings.profile.name, settings.settings.api.url)
"""


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
        words = ["user-flow/x"] if number > "10" else [NO_ID]
        options = ["--timeout", "1"] if number == "12" else []
        program = ["-c", PRINT_SETTINGS] if number == "01" else [script(number), *words, *options]
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
    template = (Path(prefect.settings.__file__).parent / "profiles.toml").read_text("utf-8")
    (tmp_path / "profiles.toml").write_text(template.replace("4200", port), "utf-8")
    settings: dict[str, Any] = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_API_PORT": port}

    def outcome(command: str) -> tuple[str, str, str]:
        printed = run_in_terminal(command, cwd=tmp_path, **settings)
        switched = re.findall(r"Switched to profile '\w+'", printed)
        told = run("-c", PRINT_SETTINGS, cwd=tmp_path, **settings).stdout
        profile, url = told.replace(port, "4200").replace("None", "none").split()
        if "--no-prompt" in command:
            run_in_terminal("prefect server stop", cwd=tmp_path, **settings)
        return "".join(switched), profile, url

    try:
        seen = {key: outcome(key) for key in table_keys("terminal")}
    finally:
        run("-m", "prefect", "server", "stop", cwd=tmp_path, **settings)
    assert [*seen][-1] in README, "README.md undoes it by another command"
    compare("terminal", seen)


def test_the_setting_in_readme_is_that_of_a_server_that_starts_too_slowly(tmp_path: Path) -> None:
    message = "Timed out while attempting to connect to ephemeral Prefect API server"
    (setting,) = re.findall(rf"{message}[\s\S]+?export (PREFECT_\w+)=", README)
    settings: Any = {"PREFECT_HOME": str(tmp_path), setting: "1"}
    told = run(script("01"), **settings)
    assert message in told.stdout + told.stderr, f"{setting} is another setting: {told.stderr}"


def deploy(name: str) -> str:
    """Create the deployment NAME/d of a flow with a parameter, which nothing serves."""

    def takes(user_id: int = 101) -> None: ...

    deployable: Any = flow(name=name)(takes)
    return str(deployable.to_deployment("d").apply())


def test_what_the_api_answers(at: Server, compare: Compare) -> None:
    def post(deployment_id: str, **body: Any) -> requests.Response:
        url = f"{at.api_url}/deployments/{deployment_id}/create_flow_run"
        return requests.post(url, json=body, timeout=60)

    deployment_id = deploy("answers")
    answers = {
        "new": post(deployment_id, idempotency_key="k"),
        "same again": post(deployment_id, idempotency_key="k", parameters={"user_id": 102}),
        "type": post(deployment_id, parameters={"user_id": "Ada"}),
        "name": post(deployment_id, parameters={"userid": 1}),
        "id": post(NO_ID),
    }
    assert answers["new"].json()["id"] == answers["same again"].json()["id"]
    seen = {
        key: (it.status_code, it.json()["state"]["name"] if it.ok else "no run")
        for key, it in answers.items()
    }
    compare("answers", seen)


def test_states(at: Server, compare: Compare) -> None:
    once: Any = task(cache_policy=INPUTS, persist_result=True)(lambda number: number)
    slow: Any = task(timeout_seconds=0.1)(asyncio.sleep)

    @flow
    def odd_ends() -> dict[str, State[Any]]:
        twice = [once(1, return_state=True) for _ in "12"]
        needs = once.submit(task(lambda: 1 // 0).submit())
        needs.wait()
        odd = [twice[1], needs.state, asyncio.run(slow(3, return_state=True))]
        return {it.name: it for it in odd}

    odd = odd_ends()
    seen = {}
    for name in table_keys("states"):
        state = odd.get(name) or getattr(prefect.states, name)()
        assert state.name == name
        seen[name] = (state.type.value, "yes" if state.is_final() else "no")
    compare("states", seen)


def test_exit_codes(at: Server, compare: Compare) -> None:
    deployment_id, name = deploy("codes"), "codes/d"

    def code(number: str, *words: str) -> int:
        return run(script(number), *words, PREFECT_API_URL=at.api_url).returncode

    def codes(by_id: str, by_name: str, *words: str) -> tuple[int, ...]:
        twelve = code("12", by_name, "--timeout", "5", *words)
        return code("10", by_id, *words), code("11", by_name, *words), twelve

    def waits(state: str) -> tuple[str, str, int]:
        path = f"/deployments/{deployment_id}/create_flow_run"
        made = at.ask("POST", path, idempotency_key=state)
        at.ask("POST", f"/flow_runs/{made['id']}/set_state", state={"type": state}, force=True)
        options = ("--wait", "--timeout", "5", "--idempotency-key", state)
        return "", "", code("12", name, *options)

    seen = {
        "accepted": codes(deployment_id, name),
        "Completed --wait": waits("COMPLETED"),
        "Failed --wait": waits("FAILED"),
        "--timeout --wait": waits("RUNNING"),
        "--unknown": codes(deployment_id, name, "--unknown"),
        "codes/e": codes(NO_ID, "codes/e"),
        "-p": codes(deployment_id, name, "-p", "user_id=Ada"),
        "--api-url": codes(deployment_id, name, "--api-url", NOWHERE),
    }
    compare("exit-codes", seen)


def test_ways_to_trigger(at: Server, tmp_path: Path, compare: Compare) -> None:
    """Trigger in each way, fail the new flow run, and read what the way makes of it."""
    deployed = deploy("ways")
    second = f"print(__import__({script('12').stem!r}).trigger('ways/d')['state']['name'])"
    third = ("-m", "prefect", "deployment", "run", "ways/d", "--watch")
    last = "from prefect.deployments import run_deployment as it; print(it('ways/d').state_name)"
    programs: dict[str, tuple[str | Path, ...]] = {
        "lesson 12 --wait": (script("12"), "ways/d", "--wait"),
        "trigger(...)": ("-c", second),
        "prefect deployment run NAME --watch": third,
        "run_deployment(...)": ("-c", last),
    }
    new = {"state": {"type": {"any_": ["SCHEDULED"]}}, "deployment_id": {"any_": [deployed]}}

    def triggered() -> Any:
        return at.ask("POST", "/flow_runs/filter", flow_runs=new)

    def outcome(key: str) -> tuple[str, str]:
        log = tmp_path / key
        words = ("-X", "importtime", *programs[key])
        with background(*words, log=log, PREFECT_API_URL=at.api_url) as process:
            (made,) = wait_until(f"{key} triggers a run", triggered, 120)
            path = f"/flow_runs/{made['id']}/set_state"

            def ends() -> bool:  # what watches for events may have missed the last one
                at.ask("POST", path, state={"type": "FAILED"}, force=True)
                return process.poll() is not None

            wait_until(f"{key} ends", ends, 120)
            code = process.returncode
        text = log.read_text(encoding="utf-8")
        imports = "yes" if re.search(r"(?m)\| +prefect$", text) else "no"
        printed = [it for it in text.splitlines() if not it.startswith("import time:")]
        end = f"exit code {code}" if "(" not in key else f"it returns a {printed[-1]} run"
        return imports, end

    compare("ways", {key: outcome(key) for key in programs})
