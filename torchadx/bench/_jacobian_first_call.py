"""Let what compiles at its first call do so within a limit."""

import contextlib
import signal
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator

from torch import Tensor


class FirstCall:
    """Calls ``run``, the first time within a limit, and keeps how long that first time took.

    Attributes:
        seconds: The first call took; ``None`` until it is over.
    """

    def __init__(self, run: Callable[[], Tensor], limit: float) -> None:
        """``limit`` is in seconds."""
        self._run = run
        self._limit = limit
        self.seconds: float | None = None

    def __call__(self) -> Tensor:
        """Run it.

        Raises:
            TimeoutError: The first call takes longer than its limit.
        """
        if self.seconds is not None:
            return self._run()
        start = time.perf_counter()
        with time_limit(self._limit), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what compilers say of themselves
            result = self._run()
        self.seconds = time.perf_counter() - start
        return result


class _OutOfTime(BaseException):
    """No Exception: compilers catch those, and go on."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer; where there are no alarms, as in other threads, nothing is interrupted.

    Raises:
        TimeoutError: It took longer.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: types.FrameType | None) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _OutOfTime:
        raise TimeoutError(f"not ready after {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
