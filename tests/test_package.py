"""What installing, importing and running the package may and may not do."""

import ast
import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import torchadx

ROOT = pathlib.Path(__file__).parent.parent


def python(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_example(name, *arguments):
    command = [sys.executable, ROOT / "examples" / name, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_setup_imports_the_standard_library_and_setuptools_only():
    tree = ast.parse((ROOT / "setup.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names | {"setuptools"}


def test_setup_reads_the_version_without_importing_torch():
    code = """
import runpy, sys, setuptools
given = {}
setuptools.setup = given.update
runpy.run_path("setup.py")
assert "torch" not in sys.modules
print(given["version"])
"""
    assert python(code).strip() == torchadx.__version__


def test_version_is_in_the_changelog_or_unreleased():
    log = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in log or f"## [{torchadx.__version__}]" in log


def test_import_brings_neither_triton_nor_the_compiler_nor_a_device():
    code = """
import sys, torch
before = set(sys.modules)
import torchadx
new = {name for name in set(sys.modules) - before if not name.startswith("torchadx")}
heavy = ("triton", "torch._inductor", "torch._dynamo", "torch._functorch._aot_autograd", "torch.testing", "numpy")
print(sorted(name for name in new if name.startswith(heavy)), torch.cuda.is_initialized())
"""
    assert python(code).strip() == "[] False"


def test_works_without_triton():
    code = """
import sys

class NoTriton:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")

sys.meta_path.insert(0, NoTriton())
import torch, torchadx
layer = torchadx.nn.Linear(3, 5, activation="gelu")
x = torch.randn(2, 3, requires_grad=True)
layer(x).sum().backward()
y, tangent = torch.func.jvp(layer, (x,), (torch.ones(2, 3),))
print(tuple(x.grad.shape), tuple(tangent.shape))
"""
    assert python(code).strip() == "(2, 3) (2, 5)"


@pytest.mark.parametrize("module", ["torchadx", "torchadx.nn"])
def test_public_names_are_documented(module):
    module = importlib.import_module(module)
    public = {name: getattr(module, name) for name in module.__all__ if not name.startswith("__")}
    assert [name for name, value in public.items() if not inspect.getdoc(value)] == []


def test_readme_has_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    assert 'pip install torch==2.13.0 -e ".[examples]" && python examples/quickstart.py\n' in readme
    assert 'pip install torch==2.13.0 -e ".[test]" && pytest\n' in readme


def test_quickstart():
    printed = run_example("quickstart.py")
    accuracies = [float(share) for share in re.findall(r"([\d.]+)%", printed)]
    assert len(accuracies) == 2
    assert min(accuracies) >= 96
    row = re.search(r"saved for backward.*?(\d+) KiB\s+(\d+) KiB", printed)
    assert int(row[2]) <= int(row[1])
    plain_error, fused_error = map(float, re.search(r"error of that JVP.*?(\S+e-\d+)\s+(\S+e-\d+)", printed).groups())
    assert fused_error <= 2 * plain_error + 1e-6
    assert float(re.search(r"largest gradient difference.*?(\S+e[+-]\d+)", printed)[1]) <= 1e-6


def test_jacobian_of_a_chain():
    printed = run_example("jacobian_of_a_chain.py")
    differences = [float(number) for number in re.findall(r"\d\.\de-\d\d", printed)]
    assert len(differences) == 5
    assert max(differences) <= 1e-6
    assert "1024-256-64-4" in printed
    assert "64-256-512-2048" in printed


def test_long_context(tmp_path):
    plot = tmp_path / "memory.png"
    printed = run_example("long_context.py", "--layers", "2", "--width", "64", "--steps", "8", "--plot", str(plot))
    needed, held = map(float, re.search(r"memory for saved tensors.*?([\d.]+) MiB\s+([\d.]+) MiB", printed).groups())
    assert held <= needed / 3 + 0.1  # both are rounded to a tenth
    first, last = (re.search(rf"loss at the {step} step\s+([\d.]+)\s+([\d.]+)", printed) for step in ("first", "last"))
    assert first[1] == first[2]
    assert float(last[1]) < float(first[1])
    assert abs(float(last[2]) / float(last[1]) - 1) <= 0.01
    for line in ("tensors saved", "limit ", "int8"):
        assert line in printed
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_which_mode(tmp_path):
    pictures = {name: tmp_path / f"{name}.png" for name in ("plot", "map")}
    paths = [argument for name, path in pictures.items() for argument in (f"--{name}", str(path))]
    printed = run_example("which_mode.py", "--quick", *paths)
    for name in ("encoder", "decoder", "square", "autoencoder"):
        assert re.search(rf"^ +{name} +64( +[\d.]+){{3}} +[\d.]+x +(forward|reverse|mixed)", printed, re.MULTILINE)
    assert float(re.search(r"difference of a Jacobian.*?(\S+e[+-]\d+)", printed)[1]) <= 1e-5
    assert float(re.search(r"a pixel is off by ([\d.]+)", printed)[1]) < 0.3
    for path in pictures.values():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_inference(tmp_path):
    plot = tmp_path / "pixels.png"
    printed = run_example("inference.py", "--epochs", "8", "--plot", str(plot))
    cell = r" +[\d.]+ ms +(\d+) KiB +([\d.]+)% +(lost|[\d.]+)(?: +(\S+e-\d+))?"
    rows = re.findall(rf"^ +(\w+) +(plain|wrapped(?:, bfloat16)?){cell} *$", printed, re.MULTILINE)
    found = {(mode, module): values for mode, module, *values in rows}
    grad, wrapped = found.pop(("enable_grad", "plain")), ("inference_mode", "wrapped")
    assert int(grad[0]) > 0
    assert [int(saved) for saved, *_ in found.values()] == [0, 0, 0, 0]
    assert float(found[wrapped][1]) == 100
    assert min(float(agreement) for _, agreement, *_ in found.values()) >= 99
    # plain PyTorch loses the tangent in inference mode, and there alone
    assert [way for way, (*_, tangent, _) in found.items() if tangent == "lost"] == [("inference_mode", "plain")]
    assert abs(float(found[wrapped][2]) - float(grad[2])) < 2e-4  # both are rounded to four places
    assert max(float(error) for *_, error in (grad, found["no_grad", "plain"], found[wrapped])) <= 1e-5
    assert float(re.search(r"accuracy.*?([\d.]+)%", printed)[1]) >= 95
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_look_inside(tmp_path):
    printed = run_example("look_inside.py", "--folder", str(tmp_path), "--steps", "8")
    for name in ("digits", "transformer"):
        first, last = map(float, re.search(rf"{name}: loss ([\d.]+) to ([\d.]+)", printed).groups())
        assert last < first
        assert (tmp_path / f"{name}.html").stat().st_size < 6 << 20
        for picture in ("saved", "memory"):
            assert (tmp_path / f"{name}_{picture}.png").read_bytes().startswith(b"\x89PNG")
    held = re.findall(r"^held +([\d.]+) MiB +([\d.]+) (KiB|MiB)", printed, re.MULTILINE)
    assert len(held) == 2
    for before, after, unit in held:
        assert float(after) / (1024 if unit == "KiB" else 1) < 0.3 * float(before)


def test_examples_name_the_extra_that_they_need():
    scripts = sorted(str(path) for path in (ROOT / "examples").glob("*.py"))
    code = """
import runpy, sys
sys.modules["tqdm"] = None
for script in sys.argv[1:]:
    try:
        runpy.run_path(script)
    except SystemExit as stop:
        print(stop)
"""
    assert len(scripts) >= 6
    said = python(code, *scripts).splitlines()
    assert said == ['this example needs tqdm: pip install "torchadx[examples]"'] * len(scripts)


def test_bench_names_the_extra_that_it_needs():
    code = """
import runpy, sys
sys.modules["rich"] = None
try:
    runpy.run_module("torchadx.bench", run_name="__main__")
except SystemExit as stop:
    print(stop)
"""
    assert 'pip install "torchadx[bench]"' in python(code)
