"""Rows of any report as a data frame."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


def fields(rows: Sequence[Any], kind: type) -> Any:
    """Return dataclasses as a ``pandas.DataFrame``, a column for each field of ``kind``.

    Raises:
        ModuleNotFoundError: pandas is not installed.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    return dataframe([{name: getattr(row, name) for name in names} for row in rows], names)


def dataframe(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """Return rows as a ``pandas.DataFrame`` with these columns.

    Raises:
        ModuleNotFoundError: pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        message = 'to_dataframe() needs pandas: pip install "torchadx[dataframe]"'
        raise ModuleNotFoundError(message, name="pandas") from error
    return pandas.DataFrame(rows, columns=list(names))
