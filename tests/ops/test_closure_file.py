"""``ops/_closure.py``: private names of torch live there alone, are missed with a message, and ``plain`` sees all."""

import ast
import contextlib
import runpy
from pathlib import Path

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch._vmap_internals import _vmap as legacy_vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import torchadx
from torchadx.ops import _closure as closure


def imported_privately():
    """(module, name) of what ``_closure.py`` imports under its guard."""
    (guard,) = (node for node in ast.parse(Path(closure.__file__).read_text()).body if isinstance(node, ast.Try))
    for node in ast.walk(guard):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


PRIVATE = [*imported_privately(), ("torch.autograd.forward_ad", "_current_level")]


def test_the_guard_was_read():
    assert ("torch.autograd.function", "_SingleLevelFunction") in PRIVATE
    assert len(PRIVATE) >= 10


@pytest.mark.parametrize(("module", "name"), PRIVATE, ids=lambda value: value)
def test_a_missing_private_name_is_named_with_the_versions(module, name, monkeypatch):
    monkeypatch.delattr(f"{module}.{name}")
    with pytest.raises(ImportError, match=name) as error:
        runpy.run_path(closure.__file__)
    assert torch.__version__ in str(error.value)
    assert "Supported: torch 2.11 and newer" in str(error.value)


def test_the_file_itself_imports():
    assert "register" in runpy.run_path(closure.__file__)


class Subclass(torch.Tensor):
    pass


class Buffered(torch.nn.Buffer):
    pass


def left_by_a_finished_vjp(x):
    """What a vjp function saved stays wrapped after its level has ended."""
    asked = []

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, g):
            asked.append(closure.plain(*ctx.saved_tensors))
            return g

    _, pull = torch.func.vjp(Square.apply, x)
    pull(x)
    return asked[0]


def in_transform(transform):
    def ask(x):
        found = []

        def f(x):
            found.append(closure.plain(x))
            return x.sum()

        transform(f)(x)
        return found[0]

    return ask


def within(context, x_of=lambda x: x):
    def ask(x):
        with context():
            return closure.plain(x_of(x))

    return ask


NOT_PLAIN = {
    "dual level": within(fwAD.dual_level),
    "functorch grad": in_transform(torch.func.grad),
    "functorch vmap": in_transform(torch.func.vmap),
    "functorch jvp": in_transform(lambda f: lambda x: torch.func.jvp(f, (x,), (x,))),
    "left by a finished vjp": left_by_a_finished_vjp,
    "legacy vmap": in_transform(legacy_vmap),
    "dispatch mode": within(TorchDispatchMode),
    "function mode": within(TorchFunctionMode),
    "device context": within(lambda: torch.device("cpu")),
    "autocast": within(lambda: torch.autocast("cpu")),
    "subclass": within(contextlib.nullcontext, lambda x: x.as_subclass(Subclass)),
    "jit tracing": in_transform(lambda f: lambda x: torch.jit.trace(f, x, check_trace=False)),
    "make_fx": in_transform(lambda f: lambda x: make_fx(f)(x)),
}


@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("case", NOT_PLAIN)
def test_not_plain(case):
    x = torch.randn(2, 3)
    assert NOT_PLAIN[case](x) is False
    assert closure.plain(x) is True


def test_one_tensor_that_is_not_plain_is_enough():
    x = torch.randn(2, 3)
    for position in range(3):
        tensors = [x, x, x]
        tensors[position] = x.as_subclass(Subclass)
        assert not closure.plain(*tensors)


PLAIN = {
    "tensor": lambda: (torch.randn(2),),
    "absent ones": lambda: (None, torch.randn(2), None),
    "parameter": lambda: (torch.nn.Parameter(torch.randn(2)), torch.randn(2)),
    "view": lambda: (torch.randn(2, 2).t(),),
    "graph": lambda: (torch.randn(2, requires_grad=True) * 2,),
}


@pytest.mark.parametrize("case", PLAIN)
@pytest.mark.parametrize(
    "context",
    [contextlib.nullcontext, torch.no_grad, torch.enable_grad, lambda: torch.autocast("cpu", enabled=False)],
    ids=["", "no_grad", "enable_grad", "autocast off"],
)
def test_plain(case, context):
    with context():
        assert closure.plain(*PLAIN[case]()) is True


def private_names(path):
    """Every private part of a name that a file reads below ``torch``, as dotted text."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                dotted = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names):
                dotted = [f"{module}.{alias.name}" for alias in names]
            case ast.Attribute():
                dotted = [ast.unparse(node)]
            case _:
                continue
        for name in dotted:
            parts = name.split(".")
            if parts[0] in ("torch", "fwAD", "F", "aten") and any(p.startswith("_") and p[1] != "_" for p in parts):
                yield name


# operators, which have schemas; pytrees and dispatch modes, which are documented and have no public name
ALLOWED = (
    *("torch.ops.mkldnn._", "torch.ops.aten._unsafe_view", "torch._addmm_activation", "aten._"),
    *("torch.utils._pytree", "torch.utils._python_dispatch"),
)


def test_private_names_of_torch_are_in_one_file():
    folder = Path(torchadx.__file__).parent
    used = {
        str(path.relative_to(folder)): names
        for path in folder.rglob("*.py")
        if (names := {name for name in private_names(path) if not name.startswith(ALLOWED)})
    }
    assert set(used) == {"ops/_closure.py"}, used
    assert any("_SingleLevelFunction" in name for name in used["ops/_closure.py"])
