"""Processes that do the work and may die of it: a crash or an endless loop of the native core is a finding, no end."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

SECONDS = 180.0
"""A unit takes a few; what takes as long as this does not end."""
_LOOK = 0.5
"""How often it is looked for what does not end, in seconds."""

DEATHS = ("crash", "hang")

T = TypeVar("T")


@dataclass(frozen=True)
class Death:
    """The process did not survive."""

    how: str
    """One of :data:`DEATHS`."""
    detail: str

    def __str__(self) -> str:
        return f"{self.how} ({self.detail})"


def _serve(connection: Connection) -> None:
    """Do what comes until nothing comes any more."""
    try:
        while True:
            function, arguments = connection.recv()
            try:
                answer: object = function(*arguments)
            except Exception as error:  # it is raised again in the process that asked
                answer = error
            connection.send(answer)
    except (EOFError, KeyboardInterrupt):
        pass


class Worker:
    """A process that does one call at a time."""

    def __init__(self) -> None:
        self._process: BaseProcess | None = None
        self.task: Any = None

    def ask(self, function: Callable[..., object], *arguments: object) -> None:
        """Start a call; :meth:`answer` has what comes of it."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        self._asked = time.monotonic()
        self.connection.send((function, arguments))

    def late(self, seconds: float) -> bool:
        """The call takes longer than this."""
        return time.monotonic() - self._asked > seconds

    def answer(self) -> Any:
        """What the call has given, or a :class:`Death`; what it has raised is raised."""
        assert self._process is not None
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self.close()
            return Death("crash", f"signal {-code}" if code is not None and code < 0 else f"exit status {code}")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def call(self, function: Callable[..., object], *arguments: object, seconds: float = SECONDS) -> Any:
        """Do a call and wait for it."""
        self.ask(function, *arguments)
        if not self.connection.poll(seconds):
            return self.kill(seconds)
        return self.answer()

    def kill(self, seconds: float) -> Death:
        """End what does not end."""
        self.close()
        return Death("hang", f"no end after {seconds:.0f} s")

    def close(self) -> None:
        if self._process is not None:
            self.connection.close()
            self._process.kill()
            self._process.join()
            self._process = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Workers(Generic[T]):
    """Several of them, all kept busy."""

    def __init__(self, jobs: int) -> None:
        self._idle = [Worker() for _ in range(jobs)]
        self._busy: list[Worker] = []

    def results(
        self, function: Callable[[T], object], tasks: Iterator[T], seconds: float = SECONDS
    ) -> Iterator[tuple[T, Any]]:
        """Each task with what came of it, in the order in which they end.  A task is taken when a process is free."""
        while True:
            while self._idle and (task := next(tasks, None)) is not None:
                worker = self._idle.pop()
                worker.task = task
                worker.ask(function, task)
                self._busy.append(worker)
            if not self._busy:
                return
            ready = wait([worker.connection for worker in self._busy], timeout=_LOOK)
            for worker in list(self._busy):
                if worker.connection in ready:
                    answer = worker.answer()
                elif worker.late(seconds):
                    answer = worker.kill(seconds)
                else:
                    continue
                self._busy.remove(worker)
                self._idle.append(worker)
                yield worker.task, answer

    def __enter__(self) -> Workers[T]:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._idle + self._busy:
            worker.close()
