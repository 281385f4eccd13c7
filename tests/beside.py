"""Long work that mostly waits, done beside the tests that run before its turn comes."""

import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

import pytest

T = TypeVar("T")


class Keep(Protocol):
    """Enter a context until nothing needs it any more, and return what it gives."""

    def __call__(self, context: AbstractContextManager[T], /) -> T:
        """Enter it."""


# What can be done beside the tests, by name, and the names of what is begun before the rest.
WORK: dict[str, Callable[..., Any]] = {}
EARLY: list[str] = []

# While one works the other waits, most of the time, and the tests themselves need a core.
AT_ONCE = 3


def beside(work: Callable[..., Any]) -> Any:
    """Make `work` a fixture of the session, or a test if its name says so, that starts early.

    It begins in a thread with the session's first test, if a test of the session needs it, and is
    waited for when its turn comes. Its parameters are other such work, fixtures of the session, and
    two of its own: `empty_folder`, and `keep`, which enters a context until nothing needs it.
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


def early(work: Callable[..., Any]) -> Any:
    """Do the same, and before the rest: it takes so long that the tests would wait for it."""
    EARLY.append(work.__name__)
    return beside(work)


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

    wanted = [
        name for item in items if not is_skipped(item) for name in (item.name, *fixtures(item))
    ]
    for name in sorted(wanted, key=lambda name: name not in EARLY):
        add(name)
    return names


def fixtures(item: pytest.Item) -> list[str]:
    """Return the names of all fixtures that the test needs."""
    return list(getattr(item, "fixturenames", ()))


def is_skipped(item: pytest.Item) -> bool:
    """Return whether the test is marked to be skipped here."""
    return any(mark.args and mark.args[0] for mark in item.iter_markers("skipif"))


@contextmanager
def at_work(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Any]]]:
    """Do all work that the session's tests need, beside the block; give it under way, by name.

    What is not begun at the end of the block is not done; what was kept is closed, last first.
    """
    items = request.session.items
    crew = Crew(needed(items), {name for item in items for name in fixtures(item)})
    with ExitStack() as kept, ThreadPoolExecutor(AT_ONCE) as threads:
        for stack in crew.kept.values():
            kept.enter_context(stack)
        members = [threads.submit(crew.work) for _ in range(AT_ONCE)]
        try:
            for name in crew.under_way:
                crew.add(name, arguments(request, name))
            yield crew.under_way
        finally:
            crew.stop()
        for member in members:
            member.result()


def arguments(request: pytest.FixtureRequest, work: str) -> dict[str, Any]:
    """Return what the work's parameters ask for that is no other work: a folder, fixtures."""
    folders: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    return {
        name: folders.mktemp(work) if name == "empty_folder" else request.getfixturevalue(name)
        for name in parameters(WORK[work])
        if name not in WORK and name != "keep"
    }


class Crew:
    """Threads that do work in order, each piece of it once all that it needs is done."""

    def __init__(self, names: list[str], wanted: set[str]) -> None:
        """Take the names of the work, in order, and the names that tests ask for."""
        self.wanted = wanted
        self.under_way: dict[str, Future[Any]] = {name: Future() for name in names}
        self.kept = {name: ExitStack() for name in names}
        self.waiting: dict[str, dict[str, Any]] = {}
        self.stopped = False
        self.change = threading.Condition()

    def add(self, name: str, arguments: dict[str, Any]) -> None:
        """Have the work done with these arguments, and the results of other work."""
        with self.change:
            self.waiting[name] = arguments
            self.change.notify_all()

    def needs(self, name: str) -> list[str]:
        """Return the other work that this one needs."""
        return [other for other in parameters(WORK[name]) if other in WORK]

    def ready(self) -> list[str]:
        """Return the work that waits for nothing but a thread, in order."""
        done = {name for name, future in self.under_way.items() if future.done()}
        return [name for name in self.waiting if done.issuperset(self.needs(name))]

    def is_over(self, name: str) -> bool:
        """Return whether the work is done, and neither a test nor other work asks for it."""
        askers = [other for other in self.under_way if name in self.needs(other)]
        done = self.under_way[name].done() and name not in self.wanted
        return done and all(self.is_over(other) for other in askers)

    def work(self) -> None:
        """Do what is ready, the first first, and close what is over, until all is stopped."""
        while True:
            with self.change:
                self.change.wait_for(lambda: self.ready() or self.stopped)
                if self.stopped:
                    return
                name = self.ready()[0]
                arguments = self.waiting.pop(name)
            # In a thread of its own, because a thread that gave way cannot take it back.
            thread = threading.Thread(target=self.do, args=(name, arguments))
            thread.start()
            thread.join()
            with self.change:
                self.change.notify_all()
                over = [self.kept[other].pop_all() for other in self.kept if self.is_over(other)]
            for stack in reversed(over):
                stack.close()

    def do(self, name: str, arguments: dict[str, Any]) -> None:
        """Do one piece of work."""
        give_way(2 if name in EARLY else 8)
        if "keep" in parameters(WORK[name]):
            arguments["keep"] = self.kept[name].enter_context
        future = self.under_way[name]
        try:
            results = {other: self.under_way[other].result() for other in self.needs(name)}
            future.set_result(WORK[name](**arguments, **results))
        except BaseException as error:  # noqa: BLE001 - the test that waits for it raises it
            future.set_exception(error)

    def stop(self) -> None:
        """Begin nothing more."""
        with self.change:
            for name in self.waiting:
                self.under_way[name].cancel()
            self.stopped = True
            self.change.notify_all()


def give_way(steps: int) -> None:
    """Let others have the processor before this thread and all programs that it will start.

    On Linux a priority is a thread's own; elsewhere nobody gives way.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        now = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, now + steps)


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
