"""``inspect``: load a script, run a training step of it, and write the report."""

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

HELP = "write the report of a training step in a script of yours"
DESCRIPTION = """\
Run a training step and write a page that shows what it saves for backward, its
graph, its memory over time and the time of each module.

TARGET is path/to/script.py:function, or package.module:function. The function
takes no arguments. Either it returns (model, step): a module, and a function
without arguments that runs one training step (forward, backward, optimizer). Or
it is such a step itself, and returns the loss or None. Without :function, the
functions to choose from are listed. The step runs several times: to warm up,
for what it saves, for memory, for time.

The script is loaded as a module: what is under `if __name__ == "__main__"` does
not run."""

Step = Callable[[], Any]


class Refusal(Exception):  # noqa: N818
    """What is asked for cannot be done, in words that say why."""


class ScriptFailed(Exception):  # noqa: N818
    """The script raised, and its traceback has been printed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="path/to/script.py:function")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the page goes (default: function.html, here)")
    parser.add_argument("--text", action="store_true", help="also print what the step saves")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what the step saves to FILE")


def run(options: argparse.Namespace) -> int:
    """Write what is asked for; the status is 1 where the script raises, and 2 where it is not fit for this."""
    place, name = _split(options.target)
    page = options.out or Path(f"{name}.html")
    try:
        for path in filter(None, (page, options.json)):
            if not path.absolute().parent.is_dir():
                raise Refusal(f"there is no folder {path.absolute().parent} to write {path.name} to")
        with _loaded(place) as module:
            function = _function(module, place, name)
            with _errors_of_script(str(module.__file__)):
                model, step = _model_and_step(function, name)
                _write(model, step, page, options)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 2
    except ScriptFailed:
        return 1
    return 0


def _split(target: str) -> tuple[str, str]:
    """Part a target into its place and its function, which may be missing; a drive has a colon too."""
    place, _, name = target.rpartition(":")
    return (place, name) if place and (name.isidentifier() or not name) else (target, "")


@contextlib.contextmanager
def _loaded(place: str) -> Iterator[ModuleType]:
    """Load a script, its folder first on the path as for ``python script.py``, or import a module."""
    if not place.endswith(".py") and Path(place).name == place:
        yield _imported(place)
        return
    path = Path(place).resolve()
    # a script may be called as a module that is already there
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_inspected"
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise Refusal(f"there is no Python file {place}: expected path/to/script.py:function")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        with _errors_of_script(str(path)):
            spec.loader.exec_module(module)
        yield module
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(path.parent))
        sys.modules.pop(name, None)


def _imported(name: str) -> ModuleType:
    spec, why = None, "there is none on the path"
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        why = str(error)
    if spec is None or spec.origin is None:
        raise Refusal(f"{name!r} is no module that can be imported ({why}): expected path/to/script.py:function")
    with _errors_of_script(str(spec.origin)):
        return importlib.import_module(name)


@contextlib.contextmanager
def _errors_of_script(file: str) -> Iterator[None]:
    """Print what the script raises, from its own first frame on."""
    try:
        yield
    except Refusal:
        raise
    except SystemExit as stop:
        hint = 'put what runs it under `if __name__ == "__main__":`'
        raise Refusal(f"{file} ends the program (SystemExit: {stop}); {hint}") from stop
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != file:
            trace = trace.tb_next
        # it has no frame where it does not even parse
        if trace is None and not (isinstance(error, SyntaxError) and error.filename == file):
            if isinstance(error, ModuleNotFoundError):
                raise Refusal(str(error)) from error
            raise
        traceback.print_exception(type(error), error, trace)
        raise ScriptFailed from error


def _function(module: ModuleType, place: str, name: str) -> Step:
    function = getattr(module, name, None) if name else None
    if callable(function) and not isinstance(function, nn.Module) and _takes_nothing(function):
        return function
    if not name:
        what = f"{place} needs a function behind it: {place}:function"
    elif function is None:
        what = f"{place} has no function {name!r}"
    elif not callable(function) or isinstance(function, nn.Module):
        what = f"{name} of {place} is no function: got {type(function).__name__}"
    else:
        what = f"{name} of {place} is called without arguments: got {name}{inspect.signature(function)}"
    raise Refusal("\n".join([what, *_candidates(module)]))


def _takes_nothing(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:
        # some functions written in C do not tell
        return True
    return True


def _candidates(module: ModuleType) -> Iterator[str]:
    """List the functions of a module that could be meant, with the first line of what they say of themselves."""
    found = {
        name: (inspect.getdoc(value) or "").partition("\n")[0]
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
        if not name.startswith("_") and _takes_nothing(value)
    }
    yield "functions to choose from:" if found else "it has no function that takes no arguments"
    width = max(map(len, found), default=0)
    yield from (f"  {name:<{width}}  {says}".rstrip() for name, says in found.items())


def _model_and_step(function: Step, name: str) -> tuple[nn.Module | None, Step]:
    returned = function()
    if returned is None or isinstance(returned, Tensor):
        return None, function
    if isinstance(returned, tuple) and len(returned) == 2:
        model, step = returned
        if isinstance(model, nn.Module) and callable(step) and _takes_nothing(step):
            return model, step
    kind = type(returned).__name__
    if isinstance(returned, tuple):
        kind = f"({', '.join(type(part).__name__ for part in returned)})"
    raise Refusal(
        f"{name}() returned {kind}: expected (model, step), a module and a function without arguments, "
        "or, where it is the step itself, the loss as a tensor, or None"
    )


def _write(model: nn.Module | None, step: Step, page: Path, options: argparse.Namespace) -> None:
    from torchadx.inspect._html import NoBackwardError, look_into, report

    try:
        print(f"written: {report(model, step, page)}")
    except NoBackwardError as error:
        raise Refusal(str(error)) from error
    if not options.text and not options.json:
        return
    saved = look_into(step, model, 0).saved
    if options.text:
        print(saved)
    if options.json:
        options.json.write_text(saved.to_json() + "\n", encoding="utf-8")
        print(f"written: {options.json}")
