"""Bars over directions."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def bar(total: int) -> Iterator[Callable[[int], object]]:
    """Yield what to call with the number of directions that were moved; without a total it shows nothing.

    Raises:
        ModuleNotFoundError: tqdm is not installed.
    """
    if not total:
        yield lambda moved: None
        return
    with tqdm()(total=total, unit="direction") as shown:
        yield shown.update


def tqdm() -> Any:
    """Return the class of bars.

    Raises:
        ModuleNotFoundError: tqdm is not installed.
    """
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('progress=True needs tqdm: pip install "torchadx[progress]"', name="tqdm") from error
    return tqdm
