"""Deployments and flow runs on the server in use, by Prefect's client; each is called NAME/d."""

from typing import Any
from uuid import UUID

import requests
from prefect import flow, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from recorded import wait_until


def api_url() -> str:
    """Return the URL of the server's API."""
    return str(PREFECT_API_URL.value())


def deploy(name: str, **options: Any) -> UUID:
    """Create the deployment NAME/d of a flow with a parameter, which nothing serves."""

    def takes(user_id: int = 101) -> None: ...

    deployable: Any = flow(name=name)(takes)
    return UUID(str(deployable.to_deployment("d", **options).apply()))


def deployment(name: str) -> Any:
    """Return the server's record of NAME/d."""
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(f"{name}/d")


def post(deployment_id: UUID, **body: Any) -> requests.Response:
    """Ask for a flow run, again while SQLite is busy; return the API's answer."""
    url = f"{api_url()}/deployments/{deployment_id}/create_flow_run"

    def answer() -> list[requests.Response]:
        response = requests.post(url, json=body, timeout=60)
        return [response] if response.status_code != 503 else []

    return wait_until("an answer that is not 503", answer)[0]


def trigger(name: str, **parameters: Any) -> UUID:
    """Ask for a run of NAME/d, and return its id."""
    return UUID(post(deployment(name).id, parameters=parameters).json()["id"])


def read_state(flow_run_id: UUID) -> str:
    """Return the name of the run's state, or `gone` if the server has no such run."""
    with get_client(sync_client=True) as client:
        try:
            return client.read_flow_run(flow_run_id).state_name or ""
        except ObjectNotFound:
            return "gone"


def set_state(flow_run_id: UUID, state: State[Any]) -> None:
    """Give the run this state."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, state, force=True)


def becomes(flow_run_id: UUID, *names: str) -> str:
    """Wait until the run is in one of these states, and return which."""

    def state() -> str | None:
        name = read_state(flow_run_id)
        return name if name in names else None

    return wait_until(f"the run is {' or '.join(names)}", state, 120)
