"""The tables of docs/reference.md: each cell comes from Prefect, a lesson, or a run of it.

pytest docs/checks/page/test_reference.py --write changed writes them.
"""

import asyncio
import datetime
import re
import tomllib
from contextlib import ExitStack
from functools import reduce
from importlib import import_module
from importlib.metadata import metadata, version
from inspect import signature
from pathlib import Path
from typing import Any

import prefect.settings
import prefect.states
import requests
from machinery import ROOT, Server, background, free_port, run, run_in_terminal, script
from pages import Compare
from prefect import Flow, flow, task
from prefect.cache_policies import INPUTS
from prefect.client.schemas.objects import State
from recorded import wait_until

NO_ID = "0c0772af-7dfb-4b3e-b89f-72a8e73b34e2"  # of nothing on any server
README = (ROOT / "README.md").read_text(encoding="utf-8")
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
READ_BY_LESSONS = """
api.url api.key api.auth_string api.ssl_cert_file api.tls_insecure_skip_verify
client.custom_headers
"""
STATES = {
    "Scheduled": "it has a start time",
    "Late": "that time is over, and nothing has asked for the run",
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
    "NotReady": "a task was not run, because one of its inputs failed",
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


def test_versions(compare: Compare) -> None:
    classifiers = metadata("prefect").get_all("Classifier") or []
    minors = [int(it.rsplit(".", 1)[1]) for it in classifiers if re.search(r":: 3\.\d+$", it)]
    pythons = f"3.{min(minors)} to 3.{max(minors)}"
    head = ("Package", "Version that was tested", "Python that it runs on")
    compare("versions", head, [("`prefect`", version("prefect"), pythons)])


def test_defaults(compare: Compare) -> None:
    here = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["prefect"]
    rows = []
    for path in DEFAULTS.split():
        *labels, default = read_setting(path)
        ours: Any = reduce(lambda it, part: it.get(part, {}), path.split("."), here)
        rows.append((*labels, shown(default), "" if ours == {} else ours))
    compare("defaults", ("Setting", "Meaning, in Prefect's words", "Default", "Here"), rows)


def test_arguments(compare: Compare) -> None:
    serve, task_ = signature(Flow.serve).parameters, signature(prefect.Task).parameters
    lesson = import_module(script("12").stem)
    rows: list[tuple[str, str, Any]] = [
        ("`.serve(limit)`", "flow runs of this process at the same time", serve["limit"].default),
        (
            "`.serve(pause_on_shutdown)`",
            "whether the end of the serving process pauses the schedule",
            serve["pause_on_shutdown"].default,
        ),
        ("`.serve(interval)`", "seconds between two scheduled runs", serve["interval"].default),
        ("`@task(timeout_seconds)`", "time limit of a task run", task_["timeout_seconds"].default),
        ("`@task(log_prints)`", "whether `print` writes a log record", task_["log_prints"].default),
        ("`12 --timeout`", "seconds for the whole of lesson 12", lesson.TIMEOUT_SECONDS),
    ]
    compare("arguments", ("Argument", "Meaning", "Default"), rows)


def test_settings_that_the_lessons_read(compare: Compare) -> None:
    sources = {it: script(it).read_text(encoding="utf-8") for it in ("09", "10", "11", "12")}
    rows = {}
    for path in READ_BY_LESSONS.split():
        name, meaning, _ = read_setting(path)
        rows[name] = (name, meaning, ", ".join(it for it in sources if name[1:-1] in sources[it]))
    found = set(re.findall(r"\bPREFECT_\w+", "".join(sources.values())))
    assert {f"`{it}`" for it in found} == set(rows), "a lesson reads another setting"
    compare("settings", ("Variable", "Meaning, in Prefect's words", "Lessons"), rows.values())


def test_which_server(tmp_path: Path, compare: Compare) -> None:
    programs = {"10": [NO_ID], "11": ["a/b"], "12": ["a/b", "--timeout", "1"]}

    def url(*program: str | Path, **settings: Any) -> str:
        result = run(*program, cwd=tmp_path, PREFECT_HOME=str(tmp_path), **settings)
        port = re.search(r"http://127.0.0.1:(\d+)", result.stdout + result.stderr)
        return {"1": "that URL", "4200": "port 4200"}[port[1]] if port else "a temporary server"

    def urls(place: str, **settings: Any) -> tuple[str, ...]:
        triggers = {url(script(it), *words, **settings) for it, words in programs.items()}
        return place, url("-c", PRINT_SETTINGS, **settings), *triggers

    rows = [urls("the environment", PREFECT_API_URL=NOWHERE), urls("no place")]
    (tmp_path / ".env").write_text(f"PREFECT_API_URL={NOWHERE}")
    head = ("`PREFECT_API_URL` stands in", "Programs that import Prefect", "Lessons 10 to 12")
    compare("which-server", head, [*rows, urls("a file `.env`")])


def test_a_server_that_is_started_in_a_terminal(tmp_path: Path, compare: Compare) -> None:
    """Give the profile `local` another port than 4200, which may be in use."""
    port = str(free_port())
    template = (Path(prefect.settings.__file__).parent / "profiles.toml").read_text("utf-8")
    (tmp_path / "profiles.toml").write_text(template.replace("4200", port), "utf-8")
    settings: dict[str, Any] = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_API_PORT": port}

    def outcome(command: str) -> tuple[str, ...]:
        printed = run_in_terminal(command, cwd=tmp_path, **settings)
        switched = re.findall(r"Switched to profile '\w+'", printed)
        seen = run("-c", PRINT_SETTINGS, cwd=tmp_path, **settings).stdout
        return f"`{command}`", "".join(switched), *seen.replace(port, "4200").split()

    start, stop, undo = "server start --background", "prefect server stop", "profile use ephemeral"
    try:
        rows = [outcome(f"prefect --no-prompt {start}")]
        run_in_terminal(stop, cwd=tmp_path, **settings)
        rows += map(outcome, (f"prefect {start}", stop, f"prefect {undo}"))
    finally:
        run("-m", "prefect", "server", "stop", cwd=tmp_path, **settings)
    assert undo in README, "README.md undoes it by another command"
    head = ("Command, one after the other", "It prints", "Active profile", "URL of a new program")
    compare("terminal", head, rows)


def test_the_setting_in_readme_is_that_of_a_server_that_starts_too_slowly(tmp_path: Path) -> None:
    message = "Timed out while attempting to connect to ephemeral Prefect API server"
    (setting,) = re.findall(rf"{message}[\s\S]+?export (PREFECT_\w+)=", README)
    settings: Any = {"PREFECT_HOME": str(tmp_path), setting: "1"}
    result = run(script("01"), **settings)
    assert message in result.stdout + result.stderr, f"{setting} is another one: {result.stderr}"


def test_what_the_api_answers(at: Server, compare: Compare) -> None:
    seen: set[str] = set()

    def post(label: str, deployment_id: str, **body: Any) -> tuple[Any, ...]:
        url = f"{at.api_url}/deployments/{deployment_id}/create_flow_run"
        answer = requests.post(url, json=body, timeout=60)
        if not answer.ok:
            return label, answer.status_code, "none"
        which = "the first one" if answer.json()["id"] in seen else "a new one"
        seen.add(answer.json()["id"])
        return label, answer.status_code, f"{which}, {answer.json()['state']['name']}"

    known = at.deploy("answers/d")
    rows = [
        post("with an idempotency key", known, idempotency_key="k"),
        post(
            "the same key, other parameters", known, idempotency_key="k", parameters={"user_id": 2}
        ),
        post("a parameter of the wrong type", known, parameters={"user_id": "Ada"}),
        post("a parameter with an unknown name", known, parameters={"userid": 1}),
        post("a deployment with an unknown id", NO_ID),
    ]
    compare("answers", ("Request", "Status", "Flow run"), rows)


def test_states(at: Server, compare: Compare) -> None:
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
    compare("states", ("State", "Meaning", "Type", "Final"), rows)


def test_exit_codes(at: Server, compare: Compare) -> None:
    deployment_id, name = at.deploy("codes/d"), "codes/d"

    def code(number: str, *words: str) -> int:
        return run(script(number), *words, PREFECT_API_URL=at.api_url).returncode

    def codes(*words: str, at_id: str = deployment_id, named: str = name) -> tuple[int, ...]:
        twelve = code("12", named, "--timeout", "5", *words)
        return code("10", at_id, *words), code("11", named, *words), twelve

    def waits(state: str) -> tuple[str, str, int]:
        path = f"/deployments/{deployment_id}/create_flow_run"
        made = at.ask("POST", path, idempotency_key=state)
        at.ask("POST", f"/flow_runs/{made['id']}/set_state", state={"type": state}, force=True)
        options = ("--wait", "--timeout", "5", "--idempotency-key", state)
        return "", "", code("12", name, *options)

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


def test_ways_to_trigger(at: Server, tmp_path: Path, compare: Compare) -> None:
    """Trigger in each way, fail the new flow runs, and read what the way makes of it."""
    mine = {"deployment_id": {"any_": [at.deploy("ways/d")]}}
    by_import = f"print(__import__({script('12').stem!r}).trigger('ways/d')['state']['name'])"
    run_it = "from prefect.deployments import run_deployment as it; print(it('ways/d').state_name)"
    ways: dict[str, tuple[str | Path, ...]] = {
        "lesson 12 with `--wait`": (script("12"), "ways/d", "--wait"),
        "`trigger(...)` of lesson 12": ("-c", by_import),
        "`prefect deployment run --watch`": (
            "-m",
            *["prefect", "deployment", "run", "ways/d", "--watch"],
        ),
        "`run_deployment(...)`": ("-c", run_it),
    }
    logs = {way: tmp_path / str(number) for number, way in enumerate(ways)}
    with ExitStack() as stack:
        processes = {
            way: stack.enter_context(
                background("-X", "importtime", *it, log=logs[way], PREFECT_API_URL=at.api_url)
            )
            for way, it in ways.items()
        }

        def all_end() -> bool:  # what watches for events may have missed the last one
            for made in at.ask("POST", "/flow_runs/filter", flow_runs=mine):
                state = {"type": "FAILED"}
                at.ask("POST", f"/flow_runs/{made['id']}/set_state", state=state, force=True)
            return all(it.poll() is not None for it in processes.values())

        wait_until("all four end", all_end, 120)
    rows = []
    for way, process in processes.items():
        text = logs[way].read_text(encoding="utf-8")
        imports = "yes" if re.search(r"(?m)\| +prefect$", text) else "no"
        printed = [it for it in text.splitlines() if not it.startswith("import time:")]
        returned = f"it returns a {printed[-1]} run"
        rows.append((way, imports, returned if "(" in way else f"exit code {process.returncode}"))
    compare("ways", ("Way", "Imports Prefect", "If the run is Failed"), rows)
