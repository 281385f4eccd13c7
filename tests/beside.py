"""Long work that mostly waits, done beside the tests that run before its turn comes."""

import inspect
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol, TypeVar

import pytest

T = TypeVar("T")


class Keep(Protocol):
    """Enter a context until the end of the session, and return what it gives."""

    def __call__(self, context: AbstractContextManager[T], /) -> T:
        """Enter it."""


# What can be done beside the tests, by name.
WORK: dict[str, Callable[..., Any]] = {}

# While one works the other waits, most of the time, and the tests themselves need a core.
AT_ONCE = 2


def beside(work: Callable[..., Any]) -> Any:
    """Make `work` a fixture of the session, or a test if its name says so, that starts early.

    It begins in a thread with the session's first test, if a test of the session needs it, and is
    waited for when its turn comes. Its parameters are other such work, fixtures of the session, and
    two of its own: `empty_folder`, and `keep`, which enters a context until the session's end.
    """
    name = work.__name__
    WORK[name] = work

    def result(under_way: dict[str, Future[Any]]) -> Any:
        return under_way[name].result()

    def test(under_way: dict[str, Future[Any]]) -> None:
        under_way[name].result()

    made = test if name.startswith("test_") else pytest.fixture(scope="session", name=name)(result)
    made.__doc__ = work.__doc__
    return made


def parameters(work: Callable[..., Any]) -> list[str]:
    """Return the names of its parameters."""
    return list(inspect.signature(work).parameters)


def needed(items: list[pytest.Item]) -> list[str]:
    """Return the names of the work that these tests need, each after what it needs itself."""
    names: list[str] = []

    def add(name: str) -> None:
        if name in WORK and name not in names:
            for other in parameters(WORK[name]):
                add(other)
            names.append(name)

    for item in items:
        if not is_skipped(item):
            for name in (item.name, *getattr(item, "fixturenames", ())):
                add(name)
    return names


def is_skipped(item: pytest.Item) -> bool:
    """Return whether the test is marked to be skipped here."""
    return any(mark.args and mark.args[0] for mark in item.iter_markers("skipif"))


def begin(
    request: pytest.FixtureRequest, threads: ThreadPoolExecutor, stack: ExitStack
) -> dict[str, Future[Any]]:
    """Start all work that the session's tests need, and return it under way, by name."""
    folders: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    under_way: dict[str, Future[Any]] = {}

    def argument(work: str, parameter: str) -> Any:
        if parameter == "keep":
            return stack.enter_context
        if parameter == "empty_folder":
            return folders.mktemp(work)
        return under_way.get(parameter) or request.getfixturevalue(parameter)

    def do(name: str, arguments: dict[str, Any]) -> Any:
        return WORK[name](
            **{
                parameter: value.result() if isinstance(value, Future) else value
                for parameter, value in arguments.items()
            }
        )

    for name in needed(request.session.items):
        arguments = {each: argument(name, each) for each in parameters(WORK[name])}
        under_way[name] = threads.submit(do, name, arguments)
    return under_way


def start_cases(
    item: pytest.Function, threads: ThreadPoolExecutor
) -> dict[pytest.Item, Future[Any]]:
    """Start the tests of the item's module that need nothing else than the item does, and cases.

    Returns them under way. Tests that need a fixture of their own are left out.
    """
    shared = {name: item.funcargs[name] for name in own_fixtures(item)}
    return {
        other: threads.submit(other.obj, **shared, **cases_of(other))
        for other in item.session.items
        if isinstance(other, pytest.Function)
        and other.module is item.module
        and own_fixtures(other) == set(shared)
        and not is_skipped(other)
    }


def cases_of(item: pytest.Function) -> dict[str, Any]:
    """Return the arguments by which the test is parametrised."""
    return dict(item.callspec.params) if hasattr(item, "callspec") else {}


def own_fixtures(item: pytest.Function) -> set[str]:
    """Return the names of the fixtures that the test takes as arguments."""
    return set(parameters(item.obj)) - set(cases_of(item))
