"""Lesson 11: the id of a deployment, looked up by its name."""

from pathlib import Path
from types import ModuleType

import pytest
from forked import run_forked
from stub import (
    BAD_API_URLS,
    BAD_NAMES,
    DEPLOYMENT_ID,
    MISBEHAVIOUR,
    UNKNOWN_NAMES,
    assert_asks_port_4200,
    prefect_api,
    stub,
)
from support import (
    Served,
    assert_one_line,
    assert_told,
    read,
    run_script,
)

pytestmark = pytest.mark.together

READ = read("11")


def test_it_asks_for_the_name_and_prints_the_id_alone(path: Path) -> None:
    with stub(prefect_api) as server:
        result = run_script(path, "user-flow/user-deployment", "--api-url", server.api_url)
    assert (result.returncode, result.stdout) == (0, f"{DEPLOYMENT_ID}\n"), (
        f"stdout is not the id and nothing else: {result.stdout!r}; {READ}"
    )
    (request,) = server.received
    assert (request.method, request.path) == (
        "GET",
        "/api/deployments/name/user-flow/user-deployment",
    ), f"the lookup is another request; {READ}"


@pytest.mark.parametrize("suffix", ["", "/"])
def test_the_url_and_the_name_have_defaults(path: Path, suffix: str) -> None:
    with stub(prefect_api) as server:
        result = run_forked(path, PREFECT_API_URL=server.api_url + suffix)
    assert result.stdout == f"{DEPLOYMENT_ID}\n", f"PREFECT_API_URL is not used; {READ}"


def test_without_a_setting_it_asks_the_local_server(path: Path, tmp_path: Path) -> None:
    assert_asks_port_4200(path, tmp_path)


def test_the_url_and_the_timeout_are_those_of_lesson_10(as_written: ModuleType) -> None:
    assert as_written.DEFAULT_API_URL == "http://127.0.0.1:4200/api", READ
    assert as_written.TIMEOUT_SECONDS == 10, f"the timeout is another; {READ}"


def test_the_function_is_importable(as_written: ModuleType) -> None:
    with stub(prefect_api) as server:
        found = as_written.get_deployment_id(server.api_url, "user-flow/user-deployment")
    assert found == DEPLOYMENT_ID, f"it returns another field than the deployment's id; {READ}"


@pytest.mark.parametrize("name", UNKNOWN_NAMES)
def test_an_unknown_name_is_quoted_and_reported(path: Path, name: str) -> None:
    with stub(prefect_api) as server:
        result = run_forked(path, name, "--api-url", server.api_url)
    assert [request.path for request in server.received] == [UNKNOWN_NAMES[name]], (
        f"the name is not quoted as one part of the path; {READ}"
    )
    assert_one_line(result, f"There is no deployment with the name {name!r}")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_name_is_not_sent(path: Path, name: str) -> None:
    with stub(prefect_api) as server:
        assert_one_line(run_forked(path, name, "--api-url", server.api_url), "FLOW/DEPLOYMENT")
    assert server.received == [], f"{name!r} was sent, though it is no FLOW/DEPLOYMENT; {READ}"


@pytest.mark.parametrize("case", BAD_API_URLS)
def test_a_bad_api_url_is_one_clear_line(path: Path, case: str) -> None:
    url, hint = BAD_API_URLS[case]
    assert_one_line(run_forked(path, "--api-url", url), hint)


@pytest.mark.parametrize("case", MISBEHAVIOUR)
def test_a_misbehaving_server_is_one_clear_line(path: Path, impatient: Path, case: str) -> None:
    answer, hint = MISBEHAVIOUR[case]
    script = impatient if answer.hang else path
    with stub(lambda _: answer) as server:
        assert_one_line(run_forked(script, "--api-url", server.api_url), hint)
    assert len(server.received) == 1, f"lesson 11 asks once; {READ}"


def test_credentials_in_the_url_are_refused_and_not_shown(path: Path) -> None:
    result = run_forked(path, "--api-url", "http://admin:secret@127.0.0.1:1/api")
    assert_one_line(result, "An API URL carries no credentials")
    assert "secret" not in result.stderr, f"a credential is shown; {READ}"


def test_it_finds_the_served_flow(path: Path, served: Served) -> None:
    result = run_forked(path, PREFECT_API_URL=served.api.url)
    assert result.stdout == f"{served.deployment['id']}\n", f"not the deployment's id; {READ}"


def test_it_says_what_to_type(path: Path) -> None:
    result = run_script(path, "--help")
    assert result.returncode == 0
    assert_told(
        result.stdout,
        "[NAME]",
        "Print the id of a deployment.",
        "default: PREFECT_API_URL, or port 4200",
    )
