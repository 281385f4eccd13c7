"""Long work that mostly waits, done beside the tests that run before its turn comes."""

import inspect
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import pytest

T = TypeVar("T")


class Keep(Protocol):
    """Enter a context until nothing needs it any more, and return what it gives."""

    def __call__(self, context: AbstractContextManager[T], /) -> T:
        """Enter it."""


# What can be done beside the tests, by name; what of it is begun before the rest, and first of all.
WORK: dict[str, Callable[..., Any]] = {}
EARLY: list[str] = []
FIRST: list[str] = []

# The parameters of work that are neither other work nor fixtures.
OWN = ("empty_folder", "items", "keep")

# While one works the other waits, most of the time, and the tests themselves need a core.
AT_ONCE = 4


def beside(work: Callable[..., Any]) -> Any:
    """Make `work` a fixture of the session, or a test if its name says so, that starts early.

    It begins in a thread with the session's first test, if a test of the session needs it, and is
    waited for when its turn comes. Its parameters are other such work, fixtures of the session, and
    three of its own: `empty_folder`; `items`, the tests of the session; and `keep`, which enters a
    context until nothing needs it.
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


def first(work: Callable[..., Any]) -> Any:
    """Do the same, and give way to nothing: it takes longest of all."""
    FIRST.append(work.__name__)
    return early(work)


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
    for name in sorted(wanted, key=lambda name: (name not in FIRST, name not in EARLY)):
        add(name)
    return names


def sort_by_waiting(items: list[pytest.Item]) -> None:
    """Put off the tests that wait for work, late work most, and to the end what waits for all."""

    def rank(item: pytest.Item) -> int:
        if "undisturbed" in fixtures(item):
            return 3
        waits = {name for name in (item.name, *fixtures(item)) if name in WORK}
        return 2 if waits.difference(EARLY) else int(bool(waits))

    items.sort(key=rank)


def fixtures(item: pytest.Item) -> list[str]:
    """Return the names of all fixtures that the test needs."""
    return list(getattr(item, "fixturenames", ()))


def is_skipped(item: pytest.Item) -> bool:
    """Return whether the test is marked to be skipped here."""
    return any(mark.args and mark.args[0] for mark in item.iter_markers("skipif"))


@contextmanager
def at_work(request: pytest.FixtureRequest) -> Iterator["Crew"]:
    """Do all work that the session's tests need, beside the block; give those who do it.

    What is not begun at the end of the block is not done; what was kept is closed.
    """
    items = [item for item in request.session.items if not is_skipped(item)]
    wanted = Counter(name for item in items for name in fixtures(item))
    crew = Crew(needed(items), wanted)

    def rank(name: str) -> tuple[bool, bool]:
        return name not in EARLY, bool(borrowed(name))

    with ThreadPoolExecutor(AT_ONCE) as threads:
        members = [threads.submit(crew.work) for _ in range(AT_ONCE)]
        try:
            # The early work first, and of that what can begin before the session's server runs.
            for name in sorted(crew.under_way, key=rank):
                crew.add(name, arguments(request, name))
            yield crew
        finally:
            crew.stop()
        for member in members:
            member.result()


def borrowed(work: str) -> list[str]:
    """Return the fixtures that the work's parameters name."""
    return [name for name in parameters(WORK[work]) if name not in {*WORK, *OWN}]


def arguments(request: pytest.FixtureRequest, work: str) -> dict[str, Any]:
    """Return what the work's parameters ask for that is no other work, and not `keep`."""
    found = {name: request.getfixturevalue(name) for name in borrowed(work)}
    if "empty_folder" in parameters(WORK[work]):
        found["empty_folder"] = request.getfixturevalue("tmp_path_factory").mktemp(work)
    if "items" in parameters(WORK[work]):
        found["items"] = request.session.items
    return found


class Crew:
    """Threads that do work in order, each piece of it once all that it needs is done."""

    def __init__(self, names: list[str], wanted: Counter[str]) -> None:
        """Take the names of the work, in order, and how many tests want each of them."""
        self.wanted = wanted
        self.under_way: dict[str, Future[Any]] = {name: Future() for name in names}
        self.kept = {name: ExitStack() for name in names}
        self.waiting: dict[str, dict[str, Any]] = {}
        self.begun: set[str] = set()
        self.closed: set[str] = set()
        self.stopped = False
        self.change = threading.Condition()

    def add(self, name: str, arguments: dict[str, Any]) -> None:
        """Have the work done with these arguments, and the results of other work."""
        with self.change:
            self.waiting[name] = arguments
            self.change.notify_all()

    def finish(self, item: pytest.Item) -> None:
        """Count the test as one that wants nothing any more."""
        with self.change:
            self.wanted -= Counter(fixtures(item))
            self.change.notify_all()

    def stop(self) -> None:
        """Begin nothing more, and close all that is kept."""
        with self.change:
            for name, future in self.under_way.items():
                if name not in self.begun:
                    future.cancel()
            self.waiting.clear()
            self.wanted.clear()
            self.stopped = True
            self.change.notify_all()

    def needs(self, name: str) -> list[str]:
        """Return the other work that this one needs."""
        return [other for other in parameters(WORK[name]) if other in WORK]

    def ready(self) -> list[str]:
        """Return the work that waits for nothing but a thread, in order."""
        done = {name for name, future in self.under_way.items() if future.done()}
        return [name for name in self.waiting if done.issuperset(self.needs(name))]

    def over(self) -> list[str]:
        """Return the work that is done and that neither a test nor other work asks for."""
        return [
            name
            for name, future in self.under_way.items()
            if name in self.kept and future.done() and not self.wanted[name]
            if all(other in self.closed for other in self.under_way if name in self.needs(other))
        ]

    def work(self) -> None:
        """Close what is over and do what is ready, the first first, until all is stopped."""
        while True:
            with self.change:
                self.change.wait_for(lambda: self.over() or self.ready() or self.is_through())
                if self.is_through():
                    return
                job = self.next_job()
            try:
                job()
            finally:
                with self.change:
                    self.change.notify_all()

    def next_job(self) -> Callable[[], None]:
        """Return the next thing to do, which nobody else will be given."""
        if over := self.over():
            return partial(self.close, over[0], self.kept.pop(over[0]))
        name = self.ready()[0]
        self.begun.add(name)
        return partial(self.do_apart, name, self.waiting.pop(name))

    def close(self, name: str, kept: ExitStack) -> None:
        """Close what the work kept."""
        try:
            kept.close()
        finally:
            self.closed.add(name)

    def do_apart(self, name: str, arguments: dict[str, Any]) -> None:
        """Do one piece of work in a thread of its own: one that gave way cannot take it back."""
        thread = threading.Thread(target=self.do, args=(name, arguments))
        thread.start()
        thread.join()

    def is_through(self) -> bool:
        """Return whether nothing is left to do or to close."""
        return self.stopped and self.closed >= self.begun

    def do(self, name: str, arguments: dict[str, Any]) -> None:
        """Do one piece of work."""
        if name not in FIRST:
            give_way(5)
        if "keep" in parameters(WORK[name]):
            arguments["keep"] = self.kept[name].enter_context
        future = self.under_way[name]
        try:
            results = {other: self.under_way[other].result() for other in self.needs(name)}
            future.set_result(WORK[name](**arguments, **results))
        except BaseException as error:  # noqa: BLE001 - the test that waits for it raises it
            future.set_exception(error)


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
