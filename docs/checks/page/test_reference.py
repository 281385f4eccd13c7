"""The tables of docs/reference.md: each cell comes from Prefect, a lesson, or a run of it.

pytest docs/checks/page/test_reference.py --write changed writes them.
"""

import asyncio
import datetime
import re
import shutil
import tomllib
from functools import reduce
from pathlib import Path
from typing import Any

import prefect.settings
import prefect.states
from machinery import (
    ROOT,
    Server,
    free_port,
    migrated_database,
    open_terminal,
    read_terminal,
    run,
    script,
)
from pages import Compare
from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.client.schemas.objects import State

NO_ID = "0c0772af-7dfb-4b3e-b89f-72a8e73b34e2"  # of nothing on any server
NOWHERE = "http://127.0.0.1:1/api"  # no server answers there
PRINT_SETTINGS = """
from prefect.context import get_settings_context
settings = get_settings_context()
print(settings.profile.name, settings.settings.api.url)
"""
DEFAULTS = """
runner.poll_frequency worker.query_seconds worker.heartbeat_seconds flows.heartbeat_frequency
server.services.late_runs.after_seconds server.ephemeral.startup_timeout_seconds server.api.port
server.api.default_limit server.database.timeout server.services.db_vacuum.enabled
server.services.db_vacuum.retention_period server.events.retention_period server.analytics_enabled
client.max_retries api.request_timeout logging.level logging.to_api.max_log_size
tasks.default_retries tasks.runner.thread_pool_max_workers results.persist_by_default
"""
STATES = {
    "Scheduled": "it has a start time",
    "Late": "that time has passed, and nothing has asked for the run",
    "AwaitingRetry": "it waits for its next attempt",
    "Pending": "something has taken the run",
    "Submitting": "its process is being started",
    "Running": "its code runs",
    "Retrying": "its code runs again",
    "Paused": "it waits for somebody",
    "Cancelling": "it is to be cancelled",
    "Completed": "it returned",
    "Cached": "a task was not run, because its result is known",
    "Failed": "your code raised",
    "TimedOut": "it took longer than its time limit",
    "NotReady": "a task was not run, and will not be, because one of its inputs failed",
    "Crashed": "it could not run, or its process ended",
    "Cancelled": "somebody cancelled it",
}


def shown(value: Any) -> str:
    """Return a value as a cell."""
    if isinstance(value, datetime.timedelta):
        return f"{value.days} days" if value.days else f"{value.seconds}"
    return ", ".join(sorted(value)) if isinstance(value, set) else f"{value}".removesuffix(".0")


def read_setting(path: str) -> tuple[str, str, Any]:
    """Return name, first sentence of the description, and default of a setting of Prefect's."""
    *groups, name = path.split(".")
    model: Any = prefect.settings.Settings
    for group in groups:
        model = model.model_fields[group].annotation
    field = model.model_fields[name]
    words = re.split(r"\.? \(default|\. (?=[A-Z])|\.$", " ".join(field.description.split()))
    variable = f"PREFECT_{path.replace('.', '_').upper()}"
    return f"`{variable}`", words[0], field.get_default(call_default_factory=True)


def test_defaults(compare: Compare) -> None:
    here = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["prefect"]
    rows = []
    for path in DEFAULTS.split():
        *labels, default = read_setting(path)
        ours: Any = reduce(lambda it, part: it.get(part, {}), path.split("."), here)
        rows.append((*labels, shown(default), "" if ours == {} else ours))
    compare("defaults", ("Setting", "Meaning, in Prefect's words", "Default", "Here"), rows)


def test_settings_that_the_lessons_read(compare: Compare) -> None:
    sources = {it: script(it).read_text(encoding="utf-8") for it in ("09", "10", "11", "12")}
    rows = []
    for name in sorted(set(re.findall(r"\bPREFECT_\w+", "".join(sources.values())))):
        variable, meaning, _ = read_setting(getattr(prefect.settings, name).accessor)
        rows.append((variable, meaning, ", ".join(it for it in sources if name in sources[it])))
    rows.sort(key=lambda row: -len(row[2]))  # what all of them read comes first
    compare("settings", ("Environment variable", "Meaning, in Prefect's words", "Lessons"), rows)


def test_which_server(tmp_path: Path, compare: Compare) -> None:
    programs = {"10": [NO_ID], "11": ["a/b"], "12": ["a/b", "--timeout", "1"]}

    def urls(place: str, **settings: Any) -> tuple[str, ...]:
        results = [run(script(it), *words, **settings) for it, words in programs.items()]
        ports = [re.findall(r"http://127.0.0.1:(\d+)", it.stderr)[0] for it in results]
        return place, *({"1": "that URL", "4200": "port 4200"}[it] for it in ports)

    (tmp_path / ".env").write_text(f"PREFECT_API_URL={NOWHERE}")
    rows = [
        urls("the environment", PREFECT_API_URL=NOWHERE),
        urls("a file `.env`", cwd=tmp_path),
        urls("no place"),
    ]
    head = ("`PREFECT_API_URL` stands in", *(f"Lesson {it} asks" for it in programs))
    compare("which-server", head, rows)


def test_a_server_that_is_started_in_a_terminal(tmp_path: Path, compare: Compare) -> None:
    """Give the profile `local` another port than 4200, which may be in use."""
    port = str(free_port())
    shutil.copy(migrated_database(), tmp_path)
    template = (Path(prefect.settings.__file__).parent / "profiles.toml").read_text("utf-8")
    (tmp_path / "profiles.toml").write_text(template.replace("4200", port), "utf-8")
    settings: dict[str, Any] = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_API_PORT": port}

    def outcome(command: str) -> tuple[str, ...]:
        printed = read_terminal(open_terminal(command, cwd=tmp_path, **settings))
        switched = re.findall(r"Switched to profile '\w+'", printed)
        seen = run("-c", PRINT_SETTINGS, cwd=tmp_path, **settings).stdout
        return f"`{command}`", "".join(switched), *seen.replace(port, "4200").split()

    start, stop, undo = "server start --background", "prefect server stop", "profile use ephemeral"
    try:
        rows = [outcome(f"prefect --no-prompt {start}")]
        run("-m", *stop.split(), cwd=tmp_path, **settings)
        rows += map(outcome, (f"prefect {start}", stop, f"prefect {undo}"))
    finally:
        run("-m", *stop.split(), cwd=tmp_path, **settings)
    head = ("Command, one after the other", "It prints", "Active profile", "URL of a new program")
    compare("terminal", head, rows)


def test_states(harness: None, compare: Compare) -> None:
    """Run a flow here: not on a server that ends before this process has sent its last records."""
    once: Any = task(cache_policy=INPUTS, persist_result=True)(lambda number: number)
    slow: Any = task(timeout_seconds=0.1)(asyncio.sleep)

    @flow
    def odd_ends() -> list[State[Any]]:
        twice = [once(1, return_state=True) for _ in "12"]
        needs = once.submit(task(lambda: 1 // 0).submit())
        needs.wait()
        return [twice[1], needs.state, asyncio.run(slow(3, return_state=True))]

    states = {str(it.name): it for it in odd_ends()}
    states |= {it: getattr(prefect.states, it)() for it in STATES if it not in states}
    rows = [
        (f"`{name}`", meaning, states[name].type.value, "yes" if states[name].is_final() else "no")
        for name, meaning in STATES.items()
    ]
    compare("states", ("State", "Meaning", "Type", "Final: the run's code can't change it"), rows)


def test_exit_codes(at: Server, compare: Compare) -> None:
    deployment_id, name = at.deploy("codes/d"), "codes/d"

    def codes(*words: str, at_id: str = deployment_id, named: str = name) -> list[int]:
        programs = (("10", at_id), ("11", named), ("12", named, "--timeout", "5"))
        url = at.api_url
        return [
            run(script(it), *first, *words, PREFECT_API_URL=url).returncode
            for it, *first in programs
        ]

    def waits(state: str) -> list[Any]:
        path = f"/deployments/{deployment_id}/create_flow_run"
        made = at.ask("POST", path, idempotency_key=state)
        at.ask("POST", f"/flow_runs/{made['id']}/set_state", state={"type": state}, force=True)
        return ["", "", codes("--wait", "--idempotency-key", state)[2]]

    rows = {
        "the trigger is accepted": codes(),
        "`--wait`, and the run is Completed": waits("COMPLETED"),
        "`--wait`, and the run is Failed": waits("FAILED"),
        "`--wait`, and the run goes on after the `--timeout`": waits("RUNNING"),
        "an unknown option": codes("--unknown"),
        "an unknown deployment": codes(at_id=NO_ID, named="codes/e"),
        "`-p` with a wrong parameter, or where it is not an option": codes("-p", "user_id=Ada"),
        "no server at the `--api-url`": codes("--api-url", NOWHERE),
    }
    head = ("Outcome", "Lesson 10", "Lesson 11", "Lesson 12")
    compare("exit-codes", head, [(outcome, *it) for outcome, it in rows.items()])
