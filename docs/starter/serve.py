"""Serve the pipeline: a long-lived process that runs it whenever somebody asks.

Run:    python serve.py                     (trigger.py triggers it)
        python serve.py --interval 86400    (it also runs by itself, every 86400 seconds)
Notice: it needs a Prefect server, and serves until you press Ctrl-C.

To try it on your machine, with the fake services, start a server and wait until it answers. Then
run each of the other three commands in a separate terminal:
    .venv/bin/python -m prefect server start --background
    .venv/bin/python -m prefect server status --wait
    .venv/bin/python fake_services.py
    SERVICE_URL=http://127.0.0.1:8000 .venv/bin/python serve.py
    .venv/bin/python trigger.py churn-flow/nightly --wait
"""

import argparse

from prefect import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipeline import churn_flow

DEFAULT_API_URL = "http://127.0.0.1:4200/api"


def check_server(api_url: str) -> None:
    """Exit with one line unless a Prefect server accepts a request at the URL."""
    try:
        with get_client(httpx_settings={"timeout": 10}, sync_client=True) as client:
            client.read_flows(limit=1)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one line
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        advice = "Check PREFECT_API_URL, its server and your credentials."
        if api_url == DEFAULT_API_URL and cause.startswith("ConnectError"):
            advice = "Start a server: prefect server start --background"
        raise SystemExit(f"error: no usable Prefect API at {api_url} ({cause}). {advice}") from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve churn-flow/nightly.")
    parser.add_argument("--interval", type=int, metavar="SECONDS", help="also run it by itself")
    interval = parser.parse_args().interval
    if interval is not None and not 1 <= interval <= 10_000_000:
        parser.error(f"argument --interval: expected 1 to 10000000 seconds, got {interval}")
    api_url = PREFECT_API_URL.value() or DEFAULT_API_URL
    with temporary_settings({PREFECT_API_URL: api_url}):  # or each run would start a server
        check_server(api_url)
        churn_flow.serve("nightly", interval=interval, limit=5)  # runs at a time
