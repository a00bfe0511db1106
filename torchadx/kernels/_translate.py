"""Activation formulas as Triton device functions: the same Python source, with ``torch`` bound to Triton's math.

Triton reads a function's source through ``inspect``, so the translated source is put where ``inspect`` looks.
"""

import ast
import functools
import hashlib
import inspect
import linecache
import textwrap
import types
from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from torchadx.activations import VOCABULARY, Activation
from torchadx.kernels._math import torch_in_triton

_STATEMENTS = (ast.Assign, ast.Return)
_OPERATORS = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitAnd, ast.BitOr, ast.BitXor, ast.USub, ast.Invert,
    ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq,
)  # fmt: skip
_EXPRESSIONS = (
    ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Attribute, ast.Name, ast.Constant, ast.Load, ast.Store,
)  # fmt: skip


def untranslatable(row: Activation, fields: tuple[str, ...] = ("value", "derivative")) -> str | None:
    """Say why an activation cannot run inside a Triton kernel.

    Args:
        row: The activation.
        fields: The formulas that the kernel needs; only that of the dual cotangents reads ``second_derivative``.

    Returns:
        The reason, as the end of a sentence, or ``None`` where all of them can be translated.
    """
    for field in fields:
        reason = _reason(getattr(row, field))
        if reason is not None:
            return f"`{field}` of activation {row.name!r} {reason}"
    return None


@functools.cache
def device_function(formula: Callable[[torch.Tensor], torch.Tensor]) -> JITFunction | InterpretedFunction:
    """Translate a formula into a device function for kernels to call on fp32 tiles of any shape.

    Global numbers that the formula reads are fixed at their value of the first call.

    Args:
        formula: A plain function of one tensor over :data:`torchadx.activations.VOCABULARY`.

    Returns:
        What ``triton.jit`` makes of it: interpreted where ``TRITON_INTERPRET`` is set.

    Raises:
        ValueError: The formula cannot be translated; the message says why.
    """
    reason = _reason(formula)
    if reason is not None:
        raise ValueError(f"{formula!r} {reason}; use a formula over {', '.join(VOCABULARY)}, or the ATen route")
    tree = _parse(formula)
    names = {name.id for name in _names(tree)} - _locals(tree) - {"torch"}
    constants = {name: formula.__globals__[name] for name in sorted(names)}
    # an annotation would be looked up like any other name
    tree.returns = tree.args.args[0].annotation = None
    source = ast.unparse(tree)
    digest = hashlib.sha256(f"{source}{constants}".encode()).hexdigest()[:12]
    namespace = {
        **{name: tl.constexpr(value) for name, value in constants.items()},
        "torch": torch_in_triton,
        "tl": tl,  # the interpreter looks for it
        "__name__": formula.__module__,
    }
    file = f"<{formula.__module__}.{formula.__qualname__} as Triton {digest}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), namespace)
    twin = namespace[formula.__name__]
    # Triton tells the device functions of a kernel apart by name alone, and two formulas may share theirs
    twin.__qualname__ = f"{formula.__name__}_{digest}"
    return triton.jit(twin)


@functools.cache
def _reason(formula: Callable) -> str | None:
    if not isinstance(formula, types.FunctionType):
        return "is not a plain Python function, whose source Triton could read"
    if formula.__name__ == "<lambda>":
        return "is a lambda; Triton reads functions from their source, so write it with `def`"
    if formula.__closure__:
        return f"reads variables of an enclosing function ({', '.join(formula.__code__.co_freevars)})"
    kinds = [parameter.kind for parameter in inspect.signature(formula).parameters.values()]
    if kinds != [inspect.Parameter.POSITIONAL_OR_KEYWORD] or formula.__defaults__:
        return "must take exactly one plain argument, without a default"
    try:
        tree = _parse(formula)
    except (OSError, SyntaxError) as error:
        return f"has no source that Triton could read ({error})"
    if tree.decorator_list:
        return "is decorated"
    return next((why for why in map(_statement_reason, _body(tree)) if why), None) or _name_reason(tree, formula)


def _parse(formula: types.FunctionType) -> ast.FunctionDef:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(formula))).body
    compiled = compile(ast.Module([tree], []), "<formula>", "exec").co_consts
    code = next((const for const in compiled if isinstance(const, types.CodeType)), None)
    if code is None or _vocabulary(code) != _vocabulary(formula.__code__):
        raise OSError("the file was changed after it was imported")
    return tree


def _vocabulary(code: types.CodeType) -> tuple:
    # not the bytecode: how an attribute is read depends on the imports of the whole module
    return code.co_name, code.co_names, code.co_varnames, code.co_consts


def _body(tree: ast.FunctionDef) -> list[ast.stmt]:
    """Return the statements after the docstring."""
    return tree.body[1:] if ast.get_docstring(tree) is not None else tree.body


def _statement_reason(statement: ast.stmt) -> str | None:
    if not isinstance(statement, _STATEMENTS):
        return f"has a statement other than assignment and return: `{ast.unparse(statement)}`"
    if isinstance(statement, ast.Assign) and not (
        len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name)
    ):
        return f"assigns to something other than one name: `{ast.unparse(statement)}`"
    for node in ast.walk(statement.value or ast.Constant(None)):
        reason = _expression_reason(node)
        if reason is not None:
            return reason
    return None


def _expression_reason(node: ast.AST) -> str | None:
    if isinstance(node, _OPERATORS):
        return None
    if not isinstance(node, _EXPRESSIONS):
        return f"uses {type(node).__name__}, which a kernel formula may not"
    text = f"`{ast.unparse(node)}`" if isinstance(node, ast.expr) else ""
    if isinstance(node, ast.Constant) and not isinstance(node.value, int | float):
        return f"has a constant that is not a number: {text}"
    if isinstance(node, ast.Compare) and len(node.ops) > 1:
        return f"chains comparisons: {text}"
    if isinstance(node, ast.Call) and (node.keywords or not isinstance(node.func, ast.Attribute)):
        return f"calls something other than torch.* with positional arguments: {text}"
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == "torch":
            return None if node.attr in VOCABULARY else f"calls {text}, which has no translation"
        return None if node.attr in ("to", "dtype") else f"uses the attribute {text}, which has no translation"
    return None


def _name_reason(tree: ast.FunctionDef, formula: types.FunctionType) -> str | None:
    for name in sorted({node.id for node in _names(tree)} - _locals(tree)):
        value = formula.__globals__.get(name)
        if name == "torch" and value is not torch:
            return "uses a `torch` that is not the torch module"
        if name != "torch" and type(value) not in (int, float):
            return f"reads the global `{name}`, which is neither torch nor a number"
    return None


def _names(tree: ast.FunctionDef) -> Iterator[ast.Name]:
    for statement in _body(tree):
        yield from (node for node in ast.walk(statement) if isinstance(node, ast.Name))


def _locals(tree: ast.FunctionDef) -> set[str]:
    return {tree.args.args[0].arg} | {node.id for node in _names(tree) if isinstance(node.ctx, ast.Store)}
