"""Threads for what need not be waited for."""

import queue
import threading
from collections.abc import Callable
from typing import TypeAlias

Job: TypeAlias = Callable[[], None]


class Workers:
    """Runs jobs in the order in which they come, several at a time.

    The threads know the queue only: they keep no owner of the workers alive while they sleep. They are daemons, because
    the interpreter waits for others before it calls what was registered for its exit, and so before it could stop them.

    Args:
        threads: How many.
    """

    def __init__(self, threads: int) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=_work, args=(self._jobs,), name=f"torchadx-disk-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Have a job run. Finalizers may call this: a ``SimpleQueue`` may be interrupted by its own ``put``."""
        self._jobs.put(job)

    def stop(self) -> None:
        """Let the threads end after the jobs that they have."""
        for _ in self._threads:
            self._jobs.put(None)

    def join(self) -> None:
        """Wait until the threads have ended."""
        for thread in self._threads:
            thread.join()


def _work(jobs: "queue.SimpleQueue[Job | None]") -> None:
    while (job := jobs.get()) is not None:
        job()
        # or else the thread would hold the job's owner while it sleeps
        del job
