"""Every example in a public docstring, and the README's, does what it says."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest
import torch

import torchadx
from torchadx.activations import registry

README = pathlib.Path(__file__).parent.parent / "README.md"


def public_modules():
    """Names of the modules without an underscore; kernels need Triton and the bench needs rich."""
    yield "torchadx"
    for module in pkgutil.walk_packages(torchadx.__path__, "torchadx."):
        parts = module.name.split(".")
        if not any(part.startswith("_") or part in ("kernels", "bench") for part in parts):
            yield module.name


@pytest.fixture
def own_registry(monkeypatch):
    """Activations that an example registers are gone after it."""
    for table in ("_by_name", "_by_function"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))


@pytest.mark.parametrize("name", list(public_modules()))
def test_docstrings(name, own_registry):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
def test_readme(code, capsys):
    exec(compile(code, str(README), "exec"), {"__name__": "__readme__"})
    printed = capsys.readouterr().out
    promised = re.findall(r"^print\(.*\)  # (torch\..*)$", code, re.MULTILINE)
    assert [line for line in promised if line not in printed] == []
