"""``python -m torchadx doctor``: every section is there, and what is wrong is named with what to do."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch

import torchadx
from torchadx import tuning
from torchadx.__main__ import main
from torchadx.inspect import _doctor

SECTIONS = (
    *("Versions", "Devices", "Backends", "Environment", "Tuning cache", "Private names of torch", "Extras"),
    *("Programs", "Problems"),
)
PRIVATE = ("torch.nn.modules.module._has_any_global_hook", "torch.autograd.forward_ad._current_level")


def essential(found):
    return [problem.what for problem in found.problems if problem.essential]


def told(found):
    return {problem.what: problem.remedy for problem in found.problems}


def section(text, title):
    """The lines of one section."""
    part = re.search(rf"^{title}\n((?:  .*\n?)+)", text, re.MULTILINE)
    return part[1].splitlines()


def test_the_text_has_every_section_and_fits_80_columns(capsys):
    status = main(["doctor"])
    text = capsys.readouterr().out
    assert status == 0, text
    assert tuple(line for line in text.splitlines() if line and not line.startswith(" ")) == SECTIONS
    assert all(section(text, title) for title in SECTIONS)
    # a path is not broken, so that it can be copied
    assert [line for line in text.splitlines() if len(line) > 80 and len(line.split()) > 2] == []
    assert any(torch.__version__ in line for line in section(text, "Versions"))


def test_json_is_what_was_found(tmp_path, capsys):
    path = tmp_path / "doctor.json"
    main(["doctor", "--json", str(path)])
    read, found = json.loads(path.read_text()), _doctor.diagnose()
    facts = {field.name for field in dataclasses.fields(found)}
    assert set(read) == facts | {"problems", "usable"}
    assert read == json.loads(found.to_json())
    assert read["usable"] is True
    assert {row["name"]: row["value"] for row in read["versions"]}["torchadx"] == torchadx.__version__


def test_devices_and_their_backends_are_those_of_torch():
    found = _doctor.diagnose()
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    assert len(found.devices) == 1 + count
    assert found.devices[0].name == "cpu"
    assert ("no accelerator" in str(found)) == (count == 0)
    for row in found.backends:
        for dtype in row.dtypes:
            x = torch.empty(0, dtype=getattr(torch, dtype), device=row.device)
            assert (row.backend, row.reason) == torchadx.dispatch.select("linear", x)
    assert sum(len(row.dtypes) for row in found.backends) == 4 * len(found.devices)


def test_every_setting_that_the_package_reads_is_explained():
    folder = pathlib.Path(torchadx.__file__).parent
    files = [path for path in folder.rglob("*.py") if path.name != "_doctor.py"]
    read = {name for path in files for name in re.findall(r"\bTORCHADX_[A-Z_]+\b", path.read_text())}
    assert read == {name for name in _doctor.SETTINGS if name.startswith("TORCHADX_")}


def test_a_setting_that_nothing_reads_is_a_problem_and_no_more(monkeypatch):
    monkeypatch.setenv("TORCHADX_BACKENDS", "triton")
    found = _doctor.diagnose()
    assert found.usable
    (what,) = (what for what in told(found) if "TORCHADX_BACKENDS" in what)
    assert "TORCHADX_BACKEND," in told(found)[what]


@pytest.mark.parametrize("name", ["TORCHADX_BACKEND", "TORCHADX_TUNING"])
def test_a_setting_with_a_value_that_it_cannot_have_is_essential(name, monkeypatch, capsys):
    monkeypatch.setenv(name, "nonsense")
    assert main(["doctor"]) == 1
    assert f"broken  nothing runs on cpu: {name}" in (text := capsys.readouterr().out) or f"broken  {name}" in text
    (what,) = essential(_doctor.diagnose())
    assert "'nonsense'; expected" in what
    assert name in told(_doctor.diagnose())[what]


def test_a_tuning_file_is_counted_for_its_machine(monkeypatch):
    monkeypatch.setenv("TORCHADX_TUNING", "full")
    cpu = torch.device("cpu")
    assert all(row.value != "1 entry" for row in _doctor.diagnose().cache)
    tuning.choose(tuning.Key("product", cpu, torch.float32, 2, 2, 2), ("aten", "other"), lambda name: None, "aten")
    *_, file = _doctor.diagnose().cache
    assert file.value == "1 entry"
    assert file.note == f"for cpu: {torchadx.dispatch.machine(cpu)}"
    assert pathlib.Path(file.name).parent == pathlib.Path(torchadx.dispatch.cache_directory())
    content = json.loads(pathlib.Path(file.name).read_text()) | {"machine": "another; torch 2.0"}
    pathlib.Path(file.name).write_text(json.dumps(content))
    *_, file = _doctor.diagnose().cache
    assert file.note == "for none of these devices: another; torch 2.0"


@pytest.mark.parametrize("content", ["{", "[]", '{"machine": "here"}', '{"machine": "here", "records": 3}'])
def test_a_tuning_file_that_cannot_be_read_is_named(content):
    folder = pathlib.Path(torchadx.dispatch.cache_directory())
    folder.mkdir(parents=True)
    (folder / "tuning-1-broken.json").write_text(content)
    found = _doctor.diagnose()
    assert found.usable
    (what,) = (what for what in told(found) if "tuning-1-broken.json cannot be read" in what)
    assert "delete it" in told(found)[what]


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHADX_CACHE_DIR", str(tmp_path / "file" / "cache"))
    found = _doctor.diagnose()
    assert found.usable
    (what,) = (what for what in told(found) if "cannot be written" in what)
    assert "TORCHADX_CACHE_DIR" in told(found)[what]


def test_extras_are_those_of_the_package_and_a_missing_one_says_how_to_get_it(monkeypatch, capsys):
    version = importlib.metadata.version

    def without(package):
        if package == "blosc2":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", without)
    assert main(["doctor"]) == 0
    lines = section(capsys.readouterr().out, "Extras")
    (line,) = (line for line in lines if line.split()[0] == "lossless")
    assert 'missing: blosc2>=2.7; to have it: pip install "torchadx[lossless]"' in line
    (line,) = (line for line in lines if line.split()[0] == "progress")
    assert f"installed: tqdm {version('tqdm')}" in line
    names = set(importlib.metadata.metadata("torchadx").get_all("Provides-Extra"))
    assert set(_doctor.diagnose().extras) == names


def test_triton_is_told_as_installed_or_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (row,) = (row for row in _doctor.diagnose().versions if row.name == "triton")
    assert row.value is None
    assert "not installed" in row.note


@pytest.mark.parametrize(
    ("installed", "wanted", "older"),
    [
        ("2.7", ">=2.7", False),
        ("2.6.9", ">=2.7", True),
        ("2.10", ">=2.7", False),
        ("9", ">=10", True),
        ("2", ">=2.0", False),
        ("2.13.0+cpu", ">=2.11", False),
        ("3.0rc1", ">=3", False),
        ("1.26", ">=1.26,<3", False),
        ("1.0", "", False),
        (None, ">=1", False),
    ],
)
def test_older_than_what_is_asked_for(installed, wanted, older):
    fact = _doctor.Fact("package", installed, wanted)
    assert _doctor._older(fact) is older
    found = dataclasses.replace(_doctor.diagnose(), extras={"some": (fact,), "other": (fact,)})
    assert sum("package" in what for what in told(found)) == older


def test_a_package_that_is_not_installed_has_unknown_extras(monkeypatch):
    def nothing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    found = _doctor.diagnose()
    assert found.extras == {}
    assert found.usable
    assert any("only on the path" in what for what in told(found))
    assert "of unknown version" in str(found) or "not installed" in str(found)


@pytest.mark.parametrize("name", PRIVATE)
def test_a_missing_private_name_is_named_and_the_status_is_1(name, monkeypatch, capsys):
    assert name in {row.name for row in _doctor.diagnose().private_names}
    monkeypatch.delattr(name)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert section(text, "Private names of torch")[0] == f"  {name}"
    (what,) = essential(_doctor.diagnose())
    assert name in what


def test_all_private_names_are_looked_up():
    rows = _doctor.diagnose().private_names
    names = [row.name for row in rows]
    imported = {
        "torch._C._get_tracing_state",
        "torch._C._functorch.TransformType",
        "torch._C._are_functorch_transforms_active",
    }
    read = {"torch.autograd.forward_ad._current_level", "torch._unpack_dual", "torch.nn.Module._call_impl"}
    assert imported | read <= set(names)
    assert len(names) == len(set(names)) >= 20
    assert {row.value for row in rows} == {"found"}


def test_a_compiler_that_is_not_there_is_a_problem(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    found = _doctor.diagnose()
    assert found.usable
    assert any("no no-such-compiler on the PATH" in what for what in told(found))


def test_a_device_that_does_not_answer_is_essential_and_is_left_out():
    found = _doctor.diagnose()
    silent = _doctor.Device("cuda:0", "cuda", error="no kernel image")
    found = dataclasses.replace(found, devices=(*found.devices, silent))
    assert essential(found) == ["cuda:0 does not answer: no kernel image"]
    assert list(_doctor._backends(torchadx.dispatch, [silent])) == []


def test_nothing_is_asked_before_it_runs():
    code = """
import sys, torch
before = set(sys.modules)
import torchadx.__main__
new = [name for name in set(sys.modules) - before if not name.startswith("torchadx")]
heavy = ("triton", "torch._dynamo", "torch._inductor", "numpy", "pandas", "plotly", "graphviz", "rich")
print(sorted(name for name in new if name.startswith(heavy)), torch.cuda.is_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[] False", done.stderr


def test_by_its_file_it_runs_where_torchadx_cannot_be_imported():
    code = f"""
import runpy, sys, torch
del torch.nn.modules.module._has_any_global_hook
sys.argv = ["doctor"]
runpy.run_path({_doctor.__file__!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 1, done.stderr
    problems = " ".join(" ".join(section(done.stdout, "Problems")).split())
    assert "torchadx cannot be imported: torchadx hooks into PyTorch through names" in problems
    assert PRIVATE[0] in problems
