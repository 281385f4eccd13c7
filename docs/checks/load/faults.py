"""Lesson 12 as a program, and what stands between it and a server."""

import subprocess
from typing import Any

import requests
from machinery import NAME, Server, run, script
from requests.adapters import HTTPAdapter
from urllib3.util import Retry
from werkzeug import Request, Response


def trigger(
    api_url: str, *options: str, name: str = NAME, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """Run lesson 12 as a program, with these settings in its environment."""
    settings["PREFECT_API_URL"] = api_url
    return run(script("12"), name, *options, seconds=600, **settings)


def deploy(api_url: str, auth: tuple[str, str] | None = None) -> str:
    """Make the deployment of lesson 09, which nothing serves yet; return its id."""
    session = requests.Session()
    session.auth = auth
    busy = Retry(total=8, status_forcelist=[503], allowed_methods=None, backoff_factor=0.5)
    session.mount("http://", HTTPAdapter(max_retries=busy))  # SQLite, now and then

    def make(path: str, **body: str) -> str:
        return str(session.post(f"{api_url}/{path}/", json=body, timeout=60).json()["id"])

    flow, name = NAME.split("/")
    return make("deployments", name=name, flow_id=make("flows", name=flow))


def forward(request: Request, target: Server) -> Response:
    """Pass the request on to the server, as a proxy does, and return its answer."""
    kept = ("Authorization", "Content-Type")
    answer = requests.request(
        request.method,
        f"{target.site}{request.full_path.rstrip('?')}",
        data=request.get_data(),
        headers={name: request.headers[name] for name in kept if name in request.headers},
        timeout=60,
    )
    return Response(answer.content, answer.status_code, content_type="application/json")
