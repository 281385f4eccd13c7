"""A team's server on PostgreSQL, its workers, and what becomes of the runs of a killed one."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from uuid import UUID

import psutil
import pytest
import requests
from clone import GROWING, PAGE, Clone, block, find_postgres, make_clone, postgres, stated
from machinery import NAME, free_port
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    Settings,
    temporary_settings,
)
from prefect.states import AwaitingRetry, Completed, Crashed, Running
from recorded import wait_until

pytestmark = [
    pytest.mark.timeout(900, func_only=True),
    pytest.mark.skipif(not find_postgres(), reason="PostgreSQL is not installed (no initdb)"),
]

ORDINARY = ["Scheduled", "Pending", "Submitting", "Running", "Completed"]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """Return a client of a server that was started as the page says, with lesson 09 deployed."""
    clone = make_clone(tmp_path_factory.mktemp("team"), 1)
    with ExitStack() as stack:
        database, port = stack.enter_context(postgres()), str(free_port())
        free = (("0.0.0.0", "127.0.0.1"), ("4200", port), (":5432/", f":{database}/"))
        stack.enter_context(clone.terminal(block("prefect server start", *free), "Check out"))
        wait_until("the team's server answers", lambda: answers(port), 300)
        client = block("prefect work-pool ls", ("4200", port))
        clone.run(client)
        clone.exported = dict(re.findall(r'export (\w+)="(.+)"', client))
        clone.run(block("prefect work-pool create"))
        yield clone


def answers(port: str) -> bool:
    """Return whether the server at the port answers."""
    with suppress(requests.RequestException):
        return requests.get(f"http://127.0.0.1:{port}/api/health", timeout=5).ok
    return False


@pytest.fixture(scope="module")
def client(team: Clone) -> Iterator[SyncPrefectClient]:
    """Return Prefect's own client of the team's server."""
    url, login = (team.exported[f"PREFECT_API_{name}"] for name in ("URL", "AUTH_STRING"))
    here = {PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: login}
    with temporary_settings(here), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def rescue(team: Clone, client: SyncPrefectClient) -> Iterator[Callable[[int], None]]:
    """Return a function that makes the page's automations, which are deleted in the end."""

    def make(silent_seconds: int) -> None:
        file, line = "docs/growing/rescue_runs.py", f"SILENT_SECONDS = {silent_seconds}"
        team.change(file, r"^SILENT_SECONDS = \d+", line)
        for _ in range(2):
            team.run(block("rescue_runs.py"))
        made = len(client.read_automations())
        assert made == 2, f"run again, rescue_runs.py replaces its automations: {made}"

    yield make
    forget_automations(client)


def forget_automations(client: SyncPrefectClient) -> None:
    """Delete all automations."""
    for automation in client.read_automations():
        client.delete_automation(automation.id)


def trigger(client: SyncPrefectClient) -> UUID:
    """Trigger lesson 09's deployment and return the flow run's id."""
    deployment = client.read_deployment_by_name(NAME)
    return client.create_flow_run_from_deployment(deployment.id).id


def states(client: SyncPrefectClient, flow_run_id: UUID) -> list[State]:
    """Return all states of the flow run, but not `Late`, which depends on the machine's speed."""
    found = client.read_flow_run_states(flow_run_id)
    return [state for state in found if state.name != "Late"]


def names(client: SyncPrefectClient, flow_run_id: UUID) -> list[str]:
    """Return the names of the flow run's states."""
    return [str(state.name) for state in states(client, flow_run_id)]


def wait_for(client: SyncPrefectClient, flow_run_id: UUID, *wanted: str) -> None:
    """Return once the flow run's last state is one of these."""
    with suppress(AssertionError):
        wait_until("", lambda: names(client, flow_run_id)[-1] in wanted, 240)
    told = [f"{state.name}: {state.message}" for state in states(client, flow_run_id)]
    assert names(client, flow_run_id)[-1] in wanted, f"it does not get {wanted}, but {told}"


def left(row: str) -> dict[str, str]:
    """Return the page's table of what SIGKILL leaves behind: state before, state after."""
    return dict(re.findall(rf"(?m)^\| {row}[^|]* \| `(\w+)` \| `(\w+)`", PAGE))


def set_seconds(team: Clone, seconds: int) -> None:
    """Make all runs of lesson 09 that start from now on take so long."""
    team.change("09_user_flow.py", r"^USER_SECONDS = \d+", f"USER_SECONDS = {seconds}")


def test_the_runs_of_a_killed_worker_are_run_again_by_another_one(
    team: Clone, client: SyncPrefectClient, rescue: Callable[[int], None]
) -> None:
    with team.terminal(block("--name worker-1"), "started!") as (worker, _):
        ordinary = UUID(team.run(block("user_id=102 --wait"))[0].strip())
        assert names(client, ordinary) == ORDINARY, "script 12 triggers what a worker then runs"
        first, *_, last = states(client, ordinary)
        # Silence has to be longer than an ordinary run, on this machine and today.
        rescue(5 + 2 * round((last.timestamp - first.timestamp).total_seconds()))
        set_seconds(team, 600)
        lost = {"Running": trigger(client)}
        wait_for(client, lost["Running"], "Running")
        lost["Pending"] = trigger(client)
        wait_for(client, lost["Pending"], "Pending", "Submitting")
        lost["Scheduled"] = trigger(client)  # --limit 2
        killed = [worker, *worker.children(recursive=True)]
        for process in killed:
            process.kill()
        psutil.wait_procs(killed, 10)

    for was, stays in left("the machine").items():
        after = names(client, lost[was])[-1].replace("Submitting", "Pending")
        assert after == stays, f"a {was} run stays {stays} when its machine dies"
    for was in ("Running", "Pending"):
        wait_for(client, lost[was], "AwaitingRetry")
        crashed, retry = states(client, lost[was])[-2:]
        assert crashed.message == "No heartbeat", "only the automation ends a silent run"
        assert retry.message == "It lost its worker", "the second one schedules it again"
    forget_automations(client)  # a slow start of the second worker is no silence

    set_seconds(team, 1)
    with team.terminal(block("--name worker-2", (" --limit 2", "")), "started!"):
        for flow_run_id in lost.values():
            wait_for(client, flow_run_id, "Completed")
    assert names(client, lost["Scheduled"]) == ORDINARY, "a worker of --limit 2 took a third run"
    told = stated(r"Its states are then (`Running`.+?)\. ").replace("`Running` again", "`Running`")
    history = names(client, lost["Running"])[3:]
    assert history == re.findall(r"`(\w+)`", told), "the page tells the states of a rescued run"


def test_a_run_ends_by_itself_when_only_the_workers_process_dies(
    team: Clone, client: SyncPrefectClient
) -> None:
    set_seconds(team, 5)
    with team.terminal(block("--name worker-3"), "started!") as (worker, _):
        flow_run_id = trigger(client)
        wait_for(client, flow_run_id, "Running")
        runs = worker.children(recursive=True)
        worker.kill()
        wait_for(client, flow_run_id, "Crashed", "Completed")
        psutil.wait_procs(runs, 20)
    assert names(client, flow_run_id)[-1] == left("the worker's process")["Running"]


def test_a_crashed_run_is_run_again_twice_and_a_finished_one_must_not_be(
    client: SyncPrefectClient, rescue: Callable[[int], None]
) -> None:
    rescue(90)
    stubborn, other = trigger(client), trigger(client)
    for attempt in (1, 2, 3):
        client.set_flow_run_state(stubborn, Running(), force=True)
        client.set_flow_run_state(stubborn, Crashed(), force=True)
        if attempt < 3:
            wait_for(client, stubborn, "AwaitingRetry")
    client.set_flow_run_state(other, Crashed(), force=True)
    wait_for(client, other, "AwaitingRetry")  # so the automation has seen the one before, too
    assert names(client, stubborn)[-1] == "Crashed", "prefect.run-count gives up after 3 attempts"

    client.set_flow_run_state(other, Completed(), force=True)
    refused = client.set_flow_run_state(other, Crashed()).status.value
    assert refused == "ABORT", "the page says that a finished run cannot become Crashed"
    taken = client.set_flow_run_state(other, AwaitingRetry()).status.value
    assert taken == "ACCEPT", "the page warns of what the server refuses now"


def test_the_defaults_are_those_that_the_page_states() -> None:
    flows, worker = type(Settings().flows), type(Settings().worker)
    default, smallest = (
        int(stated(r"every (\d+) seconds by default, and `r")),
        int(stated(r"takes, which is (\d+)")),
    )
    assert default == flows.model_fields["heartbeat_frequency"].default
    assert flows(heartbeat_frequency=smallest).heartbeat_frequency == smallest
    with pytest.raises(ValueError, match="greater than or equal"):
        flows(heartbeat_frequency=smallest - 1)
    polls = int(stated(r"looks for runs every (\d+) seconds by default"))
    assert polls == worker.model_fields["query_seconds"].default
    program = (GROWING / "rescue_runs.py").read_text(encoding="utf-8")
    assert f"SILENT_SECONDS = {stated(r'a lost run is found after (.+?) seconds')} " in program
    (counts,) = re.findall(r'"prefect.run-count": \[(.*?)\]', program)
    third = {"third": 3}[stated(r"is given up after the (\w+) attempt")]
    assert len(counts.split(",")) == third


def test_the_server_wants_the_password_and_ten_and_eleven_send_none(team: Clone) -> None:
    bare = Clone(team.folder, {**team.exported, "PREFECT_API_AUTH_STRING": ""})
    for command in ("prefect work-pool ls", "python 11_get_deployment_id_by_name.py"):
        status = stated(r"the server answers them (\d+)")
        assert status in "".join(bare.run(command, exits=1)), (
            f"a server without a password: {command}"
        )
    team.run("python 11_get_deployment_id_by_name.py", exits=1)


def test_eight_threads_lose_no_plain_post_on_postgresql(
    team: Clone, client: SyncPrefectClient
) -> None:
    user, password = team.exported["PREFECT_API_AUTH_STRING"].split(":")
    deployment = client.read_deployment_by_name(NAME).id
    url = f"{team.exported['PREFECT_API_URL']}/deployments/{deployment}/create_flow_run"

    def post(_: int) -> requests.Response:
        return requests.post(url, json={}, auth=(user, password), timeout=60)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(post, range(40)))
    assert {answer.status_code for answer in answers} == {201}, "PostgreSQL lost triggers"
    assert len({answer.json()["id"] for answer in answers}) == 40
