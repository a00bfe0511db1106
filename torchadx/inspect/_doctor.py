"""``doctor``: what torchadx finds on this machine, as facts, as text, as JSON; nothing is asked before it runs.

Where ``import torchadx`` itself fails, so does ``python -m torchadx``. Nothing of torchadx is therefore imported here
but while facts are gathered, and this file also runs by itself: ``python torchadx/inspect/_doctor.py``.
"""

import argparse
import ast
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pkgutil
import platform
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

HELP = "say what is installed, which device takes which route, and what is wrong"
DESCRIPTION = """\
Say which versions, devices, backends, settings, caches, extras and programs
torchadx finds here, and at the end what is wrong, with what to do about it.

The exit status is 0 where torchadx is usable and 1 where something essential is
broken. If `import torchadx` itself fails, run the file of this command instead:
python .../site-packages/torchadx/inspect/_doctor.py"""
SETTINGS = {
    "TORCHADX_BACKEND": "the backend of every op: auto (the default), aten or triton",
    "TORCHADX_TUNING": "full (the default) measures what is new, cached only reads what was measured, off does neither",
    "TORCHADX_CACHE_DIR": "the folder for what is measured; by default torchadx in the user's cache folder",
    "TRITON_INTERPRET": "1 runs Triton's kernels in its interpreter, on the CPU; read once",
}
_CLOSURE = Path(__file__).resolve().parents[1] / "ops" / "_closure.py"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# what wheels call the package from which `triton` is imported
_TRITONS = ("triton", "pytorch-triton", "triton-rocm", "pytorch-triton-rocm", "triton-xpu", "pytorch-triton-xpu")
_RELEASE = r"\d+(?:\.\d+)*"
_WIDTH, _NAME = 80, 30
_UNKNOWN = [("", "unknown: torchadx is not imported, or not installed")]


@dataclasses.dataclass(frozen=True)
class Fact:
    """A version, setting, file, package or program: its name, what it is (``None``: missing, wrong), and why."""

    name: str
    value: str | None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Device:
    """A device: ``memory_bytes`` and ``capability`` where it tells them; ``error`` where asking it failed."""

    name: str
    description: str
    memory_bytes: int | None = None
    capability: str | None = None
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Backend:
    """The backend that tensors of these dtypes take on a device, and why; ``None`` where there is none."""

    device: str
    dtypes: tuple[str, ...]
    backend: str | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong, what to do about it, and whether torchadx is unusable until then."""

    what: str
    remedy: str
    essential: bool = False


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """All that is found; of what needs torchadx itself nothing, where it cannot be imported, and ``error`` says why."""

    versions: tuple[Fact, ...]
    devices: tuple[Device, ...]
    backends: tuple[Backend, ...]
    settings: tuple[Fact, ...]
    cache: tuple[Fact, ...]
    private_names: tuple[Fact, ...]
    extras: Mapping[str, tuple[Fact, ...]]
    programs: tuple[Fact, ...]
    error: str | None

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong, the essential first."""
        return tuple(sorted(_problems(self), key=lambda problem: not problem.essential))

    @property
    def usable(self) -> bool:
        """Whether nothing essential is broken."""
        return not any(problem.essential for problem in self.problems)

    def to_json(self) -> str:
        """Return everything, problems too, as JSON."""
        problems = [dataclasses.asdict(problem) for problem in self.problems]
        return json.dumps(dataclasses.asdict(self) | {"problems": problems, "usable": self.usable}, indent=2)

    def __str__(self) -> str:
        """Lay it out as plain text, 80 columns wide."""
        return "\n\n".join("\n".join([title, *_aligned(rows)]) for title, rows in _sections(self))


def diagnose() -> Diagnosis:
    """Gather the facts, asking every device."""
    dispatch, error = None, None
    try:
        dispatch = importlib.import_module("torchadx.dispatch")
    except ImportError as missing:
        error = str(missing)
    devices = tuple(_devices(dispatch))
    return Diagnosis(
        versions=tuple(_versions()),
        devices=devices,
        backends=tuple(_backends(dispatch, devices)) if dispatch else (),
        settings=tuple(_settings()),
        cache=tuple(_cache(dispatch, devices)) if dispatch else (),
        private_names=tuple(_private_names()),
        extras=_extras(),
        programs=tuple(_programs()),
        error=error,
    )


def _versions() -> Iterator[Fact]:
    yield Fact("torchadx", _version("torchadx"), "not installed, only on the path")
    yield Fact("torch", torch.__version__)
    if importlib.util.find_spec("triton") is None:
        yield Fact("triton", None, "not installed: kernels for GPUs need it")
    else:
        yield Fact("triton", next(filter(None, map(_version, _TRITONS)), "of unknown version"))
    yield Fact("Python", platform.python_version())
    yield Fact("platform", platform.platform())
    yield Fact("CUDA", torch.version.cuda, "torch is built without it")
    yield Fact("ROCm", torch.version.hip, "torch is built without it")
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    yield Fact("cuDNN", None if cudnn is None else str(cudnn), "not available")
    for name, library in (("oneDNN", torch.backends.mkldnn), ("MKL", torch.backends.mkl)):
        yield Fact(name, "available" if library.is_available() else None, "not available")
    yield Fact("threads", f"{torch.get_num_threads()} for an operation on the CPU")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices(dispatch: Any) -> Iterator[Device]:
    processor = platform.processor() or platform.machine()
    if dispatch is not None:
        processor = dispatch.machine(torch.device("cpu")).partition("; torch")[0]
    yield Device("cpu", processor, capability=torch.backends.cpu.get_cpu_capability())
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        yield from (_device(f"{accelerator.type}:{index}") for index in range(torch.accelerator.device_count()))


def _device(name: str) -> Device:
    device = torch.device(name)
    try:
        ask = getattr(torch.get_device_module(device), "get_device_properties", None)
        properties = ask(device.index) if ask is not None else None
    except RuntimeError as error:
        return Device(name, device.type, error=str(error).partition("\n")[0])
    capability = getattr(properties, "gcnArchName", None) if torch.version.hip else None
    if device.type == "cuda" and capability is None:
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    description = str(getattr(properties, "name", device.type))
    return Device(name, description, getattr(properties, "total_memory", None), capability)


def _backends(dispatch: Any, devices: Sequence[Device]) -> Iterator[Backend]:
    for device in (row for row in devices if row.error is None):
        found: dict[tuple[str | None, str], list[str]] = {}
        for dtype in _DTYPES:
            try:
                choice: tuple[str | None, str] = dispatch.select(
                    "linear", torch.empty(0, dtype=dtype, device=device.name)
                )
            except (RuntimeError, TypeError, ValueError) as error:
                choice = (None, str(error))
            found.setdefault(choice, []).append(str(dtype).removeprefix("torch."))
        for (backend, reason), dtypes in found.items():
            yield Backend(device.name, tuple(dtypes), backend, reason)


def _settings() -> Iterator[Fact]:
    for name, meaning in SETTINGS.items():
        yield Fact(name, os.environ.get(name), meaning)
    for name in sorted(os.environ):
        if name.startswith("TORCHADX_") and name not in SETTINGS:
            yield Fact(name, os.environ[name], "torchadx does not read it")


def _cache(dispatch: Any, devices: Sequence[Device]) -> Iterator[Fact]:
    try:
        yield Fact("tuning", dispatch.tuning_mode())
    except ValueError as error:
        yield Fact("tuning", None, str(error))
    folder = Path(dispatch.cache_directory())
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    yield Fact(str(folder), "folder" if writable else None, "can be written" if writable else "cannot be written")
    machines = {row.name: dispatch.machine(torch.device(row.name)) for row in devices if row.error is None}
    yield from (_cache_file(path, machines) for path in sorted(folder.glob("tuning-*.json")))


def _cache_file(path: Path, machines: dict[str, str]) -> Fact:
    try:
        content = json.loads(path.read_text())
        machine, entries = content["machine"], len(content["records"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        return Fact(str(path), None, f"cannot be read: {type(error).__name__}: {error}")
    devices = [name for name, other in machines.items() if other == machine]
    held = f"{entries} {'entry' if entries == 1 else 'entries'}"
    return Fact(str(path), held, f"for {', '.join(devices) or 'none of these devices'}: {machine}")


def _private_names() -> Iterator[Fact]:
    for name in _guarded(ast.parse(_CLOSURE.read_text(encoding="utf-8"))):
        try:
            pkgutil.resolve_name(name)
        except (AttributeError, ImportError):
            yield Fact(name, None)
        else:
            yield Fact(name, "found")


def _guarded(tree: ast.Module) -> Iterator[str]:
    """Name what the file asks of torch under its guard: what it imports, and what it reads."""
    imports = (alias for node in tree.body if isinstance(node, ast.Import) for alias in node.names)
    modules = {alias.asname: alias.name for alias in imports if alias.asname}
    (guard,) = (node for node in tree.body if isinstance(node, ast.Try))
    for node in guard.body:
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Tuple):
            for element in node.value.elts:
                module, _, rest = ast.unparse(element).partition(".")
                yield f"{modules.get(module, module)}.{rest}"


def _extras() -> dict[str, tuple[Fact, ...]]:
    extras: dict[str, tuple[Fact, ...]] = {}
    for line in importlib.metadata.requires("torchadx") or () if _version("torchadx") else ():
        requirement, _, marker = line.partition(";")
        package = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra == ["']([\w.-]+)["']""", marker)
        if package and extra:
            fact = Fact(package[0], _version(package[0]), requirement[package.end() :].strip())
            extras[extra[1]] = (*extras.get(extra[1], ()), fact)
    return extras


def _older(package: Fact) -> bool:
    release, least = re.match(_RELEASE, package.value or ""), re.search(f">= ?({_RELEASE})", package.note)
    if release is None or least is None:
        return False
    found, wanted = (tuple(map(int, text.split("."))) for text in (release[0], least[1]))
    return (*found, 0, 0, 0) < wanted


def _programs() -> Iterator[Fact]:
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    # CXX may hold options too
    compiler = next(iter(os.environ.get("CXX", "").split()), usual)
    programs = {"C++ compiler": (compiler, "torch.compile on a CPU"), "dot": ("dot", "pictures of graphs")}
    for name, (program, purpose) in programs.items():
        found = shutil.which(program)
        yield Fact(name, found, f"for {purpose}" if found else f"no {program} on the PATH, for {purpose}")


def _problems(facts: Diagnosis) -> Iterator[Problem]:
    other = "install a torch that torchadx supports (2.11 and newer), or report this version to torchadx"
    if facts.error is not None:
        yield Problem(f"torchadx cannot be imported: {facts.error}", other, essential=True)
    for name in facts.private_names:
        if name.value is None:
            what = f"this torch has no {name.name}, without which `import torchadx` raises"
            yield Problem(what, other, essential=True)
    for device in facts.devices:
        if device.error is not None:
            yield Problem(f"{device.name} does not answer: {device.error}", "check its driver", essential=True)
    if len(facts.devices) == 1 and any(row.value and row.name in ("CUDA", "ROCm") for row in facts.versions):
        yield Problem("torch is built for GPUs, and finds none", "if there is one, check its driver")
    rows = [row for row in facts.backends if "float32" in row.dtypes]
    for row in rows:
        if row.backend is None:
            essential = all(row.backend is None for row in rows)
            yield Problem(f"nothing runs on {row.device}: {row.reason}", "unset TORCHADX_BACKEND", essential)
        elif row.backend == "aten" and row.device.startswith("cuda"):
            yield Problem(f"no fused kernels run on {row.device}", row.reason)
    for setting in facts.settings:
        if setting.name not in SETTINGS:
            yield Problem(f"{setting.name} is set, and torchadx does not read it", f"it reads {', '.join(SETTINGS)}")
    for fact in facts.cache:
        if fact.value is None:
            yield _cache_problem(fact)
    for package in dict.fromkeys(row for packages in facts.extras.values() for row in packages if _older(row)):
        wanted = f"{package.name}{package.note}"
        yield Problem(f"{package.name} {package.value} is older than {wanted}", f'pip install "{wanted}"')
    if not facts.extras:
        yield Problem("torchadx is only on the path: which extras it has is not known", "install it with pip")
    for program in facts.programs:
        if program.value is None and program.name == "C++ compiler":
            yield Problem(f"no C++ compiler: {program.note}", "install one, or name it in CXX")


def _cache_problem(fact: Fact) -> Problem:
    if fact.name == "tuning":
        return Problem(fact.note, "unset TORCHADX_TUNING, or correct it", essential=True)
    if fact.name.endswith(".json"):
        return Problem(f"{fact.name} {fact.note}", "delete it; what it held is measured anew")
    what = f"{fact.name} {fact.note}, so that every process measures anew"
    return Problem(what, "set TORCHADX_CACHE_DIR to a folder that can, or TORCHADX_TUNING=off")


def _sections(facts: Diagnosis) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    yield "Versions", [(row.name, row.value or row.note) for row in facts.versions]
    devices = [(row.name, _described(row)) for row in facts.devices]
    yield "Devices", devices if len(devices) > 1 else [*devices, ("", "no accelerator")]
    backends = [
        (row.device, f"{row.backend or 'none'} for {', '.join(row.dtypes)}: {row.reason}") for row in facts.backends
    ]
    yield "Backends", backends or _UNKNOWN
    yield "Environment", _rows(facts.settings, "not set")
    yield "Tuning cache", _rows(facts.cache, "broken") or _UNKNOWN
    missing = [row for row in facts.private_names if row.value is None]
    found = ", ".join(row.name for row in facts.private_names if row.value is not None)
    yield "Private names of torch", [*_rows(missing, "missing"), ("found", found or "none")]
    yield "Extras", [(name, _extra_text(name, packages)) for name, packages in facts.extras.items()] or _UNKNOWN
    yield "Programs", _rows(facts.programs, "missing")
    problems = [("broken" if row.essential else "note", f"{row.what}. To do: {row.remedy}") for row in facts.problems]
    yield "Problems", problems or [("", "none")]


def _rows(facts: Sequence[Fact], missing: str) -> list[tuple[str, str]]:
    return [(row.name, ": ".join(filter(None, (row.value or missing, row.note)))) for row in facts]


def _described(device: Device) -> str:
    memory = None if device.memory_bytes is None else f"{device.memory_bytes / 2**30:.1f} GiB"
    return device.error or ", ".join(filter(None, (device.description, memory, device.capability)))


def _extra_text(name: str, packages: Sequence[Fact]) -> str:
    missing = [f"{row.name}{row.note}" for row in packages if row.value is None or _older(row)]
    if missing:
        return f'missing: {", ".join(missing)}; to have it: pip install "torchadx[{name}]"'
    return f"installed: {', '.join(f'{row.name} {row.value}' for row in packages)}"


def _aligned(rows: list[tuple[str, str]]) -> Iterator[str]:
    width = max((len(name) for name, _ in rows if len(name) <= _NAME), default=0)
    for name, text in rows:
        # next to a longer name too little is left of a line
        if len(name) > _NAME:
            yield f"  {name}"
        first = f"  {name if len(name) <= _NAME else '':<{width}}  " if width else "  "
        wrapper = textwrap.TextWrapper(_WIDTH, first, " " * len(first), break_long_words=False, break_on_hyphens=False)
        yield wrapper.fill(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all of it to FILE")


def run(options: argparse.Namespace) -> int:
    found = diagnose()
    print(found)
    if options.json:
        options.json.write_text(found.to_json() + "\n", encoding="utf-8")
    return 0 if found.usable else 1


if __name__ == "__main__":
    command = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(command)
    sys.exit(run(command.parse_args()))
