"""A bar over directions."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(total: int) -> Iterator[Callable[[int], object]]:
    """Yield what to call with the number of directions that were moved; without a total it shows nothing.

    Raises:
        ModuleNotFoundError: tqdm is not installed.
    """
    if not total:
        yield lambda moved: None
        return
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('progress=True needs tqdm: pip install "torchadx[progress]"', name="tqdm") from error
    with tqdm(total=total, unit="direction") as shown:
        yield shown.update
