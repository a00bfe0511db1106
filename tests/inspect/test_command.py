"""``python -m torchadx inspect``: what it loads, what it refuses, whose traceback it shows, what it writes."""

import json
import pathlib
import subprocess
import sys

import pytest

from torchadx.__main__ import COMMANDS, main

SCRIPT = '''
import sys
import torch
from torch import nn

assert __name__ != "__main__"
ARGUMENTS = list(sys.argv)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
number = 3


def step():
    """Train once."""
    optimizer.zero_grad()
    loss = model(torch.ones(5, 3)).square().mean()
    loss.backward()
    optimizer.step()
    return loss


def model_and_step():
    return model, step


def silent_step():
    step()


def needs(batch):
    return model(batch)


def wrong():
    return [model, step]


def wrong_pair():
    return model, optimizer


def forward_alone():
    return model(torch.ones(5, 3)).sum()


def raises():
    """Raise below."""
    return _below()


def _below():
    raise RuntimeError("from the script")


def raises_later():
    return model, raises
'''


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "folder" / "train.py"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    return path


def inspected(capsys, *arguments):
    status = main(["inspect", *map(str, arguments)])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("function", ["step", "model_and_step", "silent_step"])
def test_a_function_is_a_step_or_returns_model_and_step(script, function, capsys):
    status, out, err = inspected(capsys, f"{script}:{function}")
    page = pathlib.Path(f"{function}.html")
    assert (status, err) == (0, "")
    assert f"written: {page}" in out
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")


def test_text_and_json_say_what_is_saved(script, tmp_path, capsys):
    page, numbers = tmp_path / "page.html", tmp_path / "saved.json"
    status, out, _ = inspected(capsys, f"{script}:step", "--out", page, "--text", "--json", numbers)
    assert status == 0
    assert page.exists()
    assert not pathlib.Path("step.html").exists()
    assert "Addmm" in out
    saved = json.loads(numbers.read_text())
    assert {row["node"] for row in saved["rows"]} >= {"AddmmBackward0"}
    assert {row["module"] for row in saved["rows"]} >= {"0", "2"}
    assert {str(row["source"]).partition(":")[0] for row in saved["rows"]} == {"folder/train.py"}


def test_the_script_leaves_the_path_and_the_modules_as_they_were(script, capsys):
    path = list(sys.path)
    (script.parent / "beside.py").write_text("value = 2\n")
    script.write_text(
        "import sys, pathlib, beside\nassert pathlib.Path(sys.path[0]) == pathlib.Path(__file__).parent\n"
    )
    status, _, err = inspected(capsys, script)
    assert status == 2, err
    assert sys.path == path
    assert "train" not in sys.modules
    del sys.modules["beside"]


def test_a_script_called_as_a_module_that_is_there_does_not_replace_it(script, capsys):
    path = script.with_name("json.py")
    path.write_text(f"assert __name__ == 'json_inspected'\n{SCRIPT}")
    status, out, _ = inspected(capsys, f"{path}:wrong")
    assert status == 2
    assert sys.modules["json"] is json


def test_a_module_on_the_path_serves_as_well(script, monkeypatch, capsys):
    monkeypatch.syspath_prepend(script.parents[1])
    status, _, err = inspected(capsys, "folder.train:absent")
    assert status == 2
    assert "folder.train has no function 'absent'" in err
    for name in ("folder.train", "folder"):
        del sys.modules[name]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("folder/absent.py:step", "there is no Python file folder/absent.py"),
        ("folder/train.txt:step", "there is no Python file folder/train.txt"),
        ("no_such_module:step", "'no_such_module' is no module that can be imported"),
        ("no_such.module:step", "No module named 'no_such'"),
        ("folder/train.py", "needs a function behind it: folder/train.py:function"),
        ("folder/train.py:", "needs a function behind it: folder/train.py:function"),
        ("folder/train.py:absent", "has no function 'absent'"),
        ("folder/train.py:number", "number of folder/train.py is no function: got int"),
        ("folder/train.py:model", "model of folder/train.py is no function: got Sequential"),
        ("folder/train.py:needs", "is called without arguments: got needs(batch)"),
        ("folder/train.py:wrong", "wrong() returned list: expected (model, step)"),
        ("folder/train.py:wrong_pair", "wrong_pair() returned (Sequential, SGD): expected (model, step)"),
        ("folder/train.py:forward_alone", "the step ran no backward"),
    ],
)
def test_what_cannot_be_inspected_is_refused_with_what_was_expected(script, target, said, capsys):
    status, out, err = inspected(capsys, target)
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert list(pathlib.Path().glob("*.html")) == []


@pytest.mark.parametrize("target", ["", ":", ":absent", ":number", ":needs"])
def test_functions_to_choose_from_are_listed(script, target, capsys):
    _, _, err = inspected(capsys, f"{script}{target}")
    _, *listed = err[err.index("functions to choose from:") :].splitlines()
    assert "  step            Train once." in listed
    names = {line.split()[0] for line in listed}
    assert names == {
        "step",
        "model_and_step",
        "silent_step",
        "wrong",
        "wrong_pair",
        "forward_alone",
        "raises",
        "raises_later",
    }


def test_a_script_without_functions_says_so(script, capsys):
    script.write_text("")
    assert "has no function that takes no arguments" in inspected(capsys, f"{script}:step")[2]


@pytest.mark.parametrize("function", ["raises", "raises_later"])
def test_an_error_of_the_script_shows_its_own_traceback_alone(script, function, capsys):
    status, out, err = inspected(capsys, f"{script}:{function}")
    lines = err.splitlines()
    assert (status, out) == (1, "")
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith(f'  File "{script}"')
    assert lines[-1] == "RuntimeError: from the script"
    assert "in _below" in err
    assert "torchadx" not in err


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("import no_such_package\n", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("def step(:\n", "SyntaxError"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_script_that_does_not_load_shows_why(script, text, last, capsys):
    script.write_text(text)
    status, _, err = inspected(capsys, f"{script}:step")
    assert status == 1
    assert err.splitlines()[-1].startswith(last)
    assert f'File "{script}"' in err
    assert "torchadx" not in err
    assert "importlib" not in err


def test_a_script_that_ends_the_program_is_told_of_the_main_guard(script, capsys):
    script.write_text("import sys\nsys.exit(3)\n")
    status, _, err = inspected(capsys, f"{script}:step")
    assert status == 2
    assert 'if __name__ == "__main__":' in err


def test_a_missing_folder_is_noticed_before_anything_runs(script, capsys):
    script.write_text("raise AssertionError\n")
    for option in ("--out", "--json"):
        status, _, err = inspected(capsys, f"{script}:step", option, "absent/file")
        assert status == 2
        assert "absent to write file to" in err


def test_by_command_line_it_runs_where_it_is_called(script):
    command = [sys.executable, "-m", "torchadx", "inspect", "train.py:step", "--text"]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (script.parent / "step.html").stat().st_size > 1000
    assert "Addmm" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert COMMANDS[name].DESCRIPTION in shown
    assert max(map(len, COMMANDS[name].DESCRIPTION.splitlines())) <= 80


def test_without_a_command_they_are_named(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(command.HELP in " ".join(shown.split()) for command in COMMANDS.values())
