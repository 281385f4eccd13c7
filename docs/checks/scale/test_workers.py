"""A team's server on PostgreSQL, its workers, and what becomes of the runs of a killed one."""

import re
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any
from uuid import UUID

import psutil
import pytest
import requests
from clone import README, Clone, block, check_table, make_clone, needs_postgres, postgres, table
from machinery import NAME, ROOT, free_port
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, Settings, temporary_settings
from prefect.states import AwaitingRetry, Completed, Crashed, Running
from recorded import wait_until

pytestmark = [pytest.mark.timeout(900, func_only=True), needs_postgres]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """Return a client of a server that was started as the page says, with lesson 09 deployed."""
    clone = make_clone(tmp_path_factory.mktemp("team"), 1)
    with ExitStack() as stack:
        database, port = stack.enter_context(postgres()), str(free_port())
        free = (("0.0.0.0", "127.0.0.1"), ("4200", port), (":5432/", f":{database}/"))
        stack.enter_context(clone.terminal(block("prefect server start", *free), "Check out"))

        def answers() -> bool:
            with suppress(requests.RequestException):
                return requests.get(f"http://127.0.0.1:{port}/api/health", timeout=5).ok
            return False

        wait_until("the team's server answers", answers, 300)
        commands = block("prefect work-pool ls", ("4200", port))
        clone.run(commands)
        clone.exported = dict(re.findall(r'export (\w+)="(.+)"', commands))
        clone.run(block("prefect work-pool create"))
        url, login = (clone.exported[f"PREFECT_API_{name}"] for name in ("URL", "AUTH_STRING"))
        stack.enter_context(
            temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: login})
        )
        yield clone


@pytest.fixture
def client(team: Clone) -> Iterator[SyncPrefectClient]:
    """Return Prefect's own client of the team's server; all automations are deleted in the end."""
    with get_client(sync_client=True) as client:
        yield client
        forget_automations(client)


def forget_automations(client: SyncPrefectClient) -> None:
    for automation in client.read_automations():
        client.delete_automation(automation.id)


def rescue(team: Clone, client: SyncPrefectClient, silent_seconds: int) -> None:
    """Create the page's automations, with another time of silence, by running the program twice."""
    line = f"SILENT_SECONDS = {silent_seconds}"
    team.change("docs/growing/rescue_runs.py", r"^SILENT_SECONDS = \d+", line)
    for _ in range(2):
        team.run(block("rescue_runs.py"))
    assert len(client.read_automations()) == 2, "rescue_runs.py does not replace its automations"


def trigger(client: SyncPrefectClient) -> UUID:
    deployment = client.read_deployment_by_name(NAME)
    return client.create_flow_run_from_deployment(deployment.id).id


def states(client: SyncPrefectClient, flow_run_id: UUID) -> list[State]:
    """Return all states of the flow run, but not `Late`, which depends on the machine's speed."""
    found = client.read_flow_run_states(flow_run_id)
    return [state for state in found if state.name != "Late"]


def last(client: SyncPrefectClient, flow_run_id: UUID) -> str:
    return str(states(client, flow_run_id)[-1].name).replace("Submitting", "Pending")


def wait_for(client: SyncPrefectClient, flow_run_id: UUID, *wanted: str) -> str:
    """Return the flow run's last state once it is one of these."""
    what = f"flow run {flow_run_id} is {' or '.join(wanted)}"
    return wait_until(what, lambda: {last(client, flow_run_id)} & {*wanted}, 240).pop()


def kill(*processes: psutil.Process) -> None:
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, 10)


def check_killed(what: str, was: str, stays: str) -> None:
    row = [what, was, stays]
    assert row in table(README, "killed worker"), f"the table of SIGKILL should have the row {row}"


def set_seconds(team: Clone, seconds: int) -> None:
    """Make all runs of lesson 09 that start from now on take so long."""
    team.change("09_user_flow.py", r"^USER_SECONDS = \d+", f"USER_SECONDS = {seconds}")


def test_the_runs_of_a_killed_worker_are_restarted_by_another_one(
    team: Clone, client: SyncPrefectClient
) -> None:
    with team.terminal(block("--name worker-1"), "started!") as worker:
        ordinary = UUID(team.run(block("user_id=102 --wait"))[0].strip())
        first, *_, end = states(client, ordinary)
        # Silence has to be longer than an ordinary run, on this machine and today.
        rescue(team, client, 5 + 2 * round((end.timestamp - first.timestamp).total_seconds()))
        set_seconds(team, 600)
        lost = {"Running": trigger(client)}
        wait_for(client, lost["Running"], "Running")
        lost["Pending"] = trigger(client)
        wait_for(client, lost["Pending"], "Pending")
        lost["Scheduled"] = trigger(client)  # --limit 2
        kill(worker, *worker.children(recursive=True))

    what = "the worker and its flow runs, as if the machine died"
    for was, flow_run_id in lost.items():
        check_killed(what, was, last(client, flow_run_id))
    for was in ("Running", "Pending"):
        wait_for(client, lost[was], "AwaitingRetry")
    forget_automations(client)  # a slow start of the second worker is no silence

    set_seconds(team, 1)
    with team.terminal(block("--name worker-2", (" --limit 2", "")), "started!"):
        for flow_run_id in lost.values():
            wait_for(client, flow_run_id, "Completed")
    ours = {"No heartbeat", "The worker died"}  # the messages that the automations give
    history = states(client, lost["Running"])
    rows = [[it.name, it.message if it.message in ours else ""] for it in history]
    check_table(README, "rescued run", *rows)


def test_a_worker_keeps_its_limit_and_when_it_dies_alone_its_runs_crash(
    team: Clone, client: SyncPrefectClient
) -> None:
    set_seconds(team, 10)
    with team.terminal(block("--name worker-3"), "started!") as worker:
        first, second, third = (trigger(client) for _ in range(3))
        for flow_run_id in (first, second):
            wait_for(client, flow_run_id, "Running")
        waiting, runs = last(client, third), worker.children(recursive=True)
        kill(worker)
        ended = wait_for(client, second, "Crashed", "Completed")
        psutil.wait_procs(runs, 20)
    check_killed("the worker's process alone", "Running", ended)
    query_seconds = type(Settings().worker).model_fields["query_seconds"].default
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["prefect"]
    names = ["seconds between two polls of a worker, by default"]
    names += ["the same in this repository (query_seconds in pyproject.toml)"]
    names += ["state of a third flow run with --limit 2"]
    values = [f"{query_seconds:g}", project["worker"]["query_seconds"], waiting]
    check_table(README, "workers", *zip(names, values, strict=True))


def test_a_crashed_run_is_restarted_twice_and_a_finished_one_must_not_be(
    team: Clone, client: SyncPrefectClient
) -> None:
    rescue(team, client, 90)
    stubborn, other = trigger(client), trigger(client)
    rows = []
    for time in ("first", "second", "third"):
        client.set_flow_run_state(stubborn, Running(), force=True)
        client.set_flow_run_state(stubborn, Crashed(), force=True)
        if time == "third":  # a later crash is handled, so this one has been, too
            client.set_flow_run_state(other, Crashed(), force=True)
            wait_for(client, other, "AwaitingRetry")
        else:
            wait_for(client, stubborn, "AwaitingRetry")
        rows.append([f"for the {time} time", last(client, stubborn)])
    check_table(README, "crashes", *rows)
    client.set_flow_run_state(other, Completed(), force=True)
    new: tuple[State[Any], ...] = (Crashed(), AwaitingRetry())
    answers = [client.set_flow_run_state(other, it).status.value for it in new]
    rows = [["Completed", str(it.name), answer] for it, answer in zip(new, answers, strict=True)]
    check_table(README, "changes of a state", *rows)


def test_the_heartbeats() -> None:
    flows = type(Settings().flows)
    (_, default), (_, smallest) = table(README, "heartbeats")
    assert int(default) == flows.model_fields["heartbeat_frequency"].default
    assert f"PREFECT_FLOWS_HEARTBEAT_FREQUENCY={smallest}\n" in block("--name worker-3")
    flows(heartbeat_frequency=int(smallest))
    with pytest.raises(ValueError, match="greater than or equal"):
        flows(heartbeat_frequency=int(smallest) - 1)


@pytest.mark.parametrize(("command", "password", "code", "said"), table(README, "password"))
def test_who_gets_past_the_password(
    team: Clone, command: str, password: str, code: str, said: str
) -> None:
    no_password = {} if password == "set" else {"PREFECT_API_AUTH_STRING": ""}
    clone = Clone(team.folder, {**team.exported, **no_password})
    output = "".join(clone.run(command, exits=int(code)))
    assert said == "".join(re.findall(r"\b401\b", output)[:1]), f"{command} prints {output}"


def test_eight_threads_lose_no_plain_post_on_postgresql(client: SyncPrefectClient) -> None:
    user, password = str(PREFECT_API_AUTH_STRING.value()).split(":")
    deployment = client.read_deployment_by_name(NAME).id
    url = f"{PREFECT_API_URL.value()}/deployments/{deployment}/create_flow_run"

    def post(_: int) -> requests.Response:
        return requests.post(url, json={}, auth=(user, password), timeout=60)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(post, range(40)))
    assert {answer.status_code for answer in answers} == {201}, "PostgreSQL lost triggers"
