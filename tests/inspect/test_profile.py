"""A profile: which module's forward and backward cost what, counted again by hand from the trace."""

import collections
import doctest
import gzip
import json
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from torchadx.inspect._profile import _profile
from torchadx.inspect._profile._profile import SORTS, profile
from torchadx.inspect._trace import _trace
from torchadx.ops import next_sequence_number


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.shared = nn.Linear(16, 16)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(3)])
        self.last = nn.Linear(16, 4)

    def forward(self, x):
        x = self.first(x).relu()
        x = self.shared(self.shared(x))
        x = checkpoint(self.blocks[0], x, use_reentrant=False)
        x = checkpoint(self.blocks[1], x, use_reentrant=True)
        return self.last(self.blocks[2](x))


STEPS = 2


@pytest.fixture(scope="module")
def steps():
    """Two whole steps of a net with a loss and an optimizer."""
    net, loss = Net(), nn.MSELoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    inputs, target = torch.randn(32, 8), torch.randn(32, 4)
    with profile() as measured:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(net(inputs), target).backward()
            optimizer.step()
    return measured


@pytest.fixture(scope="module")
def exported(steps, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    steps.export_chrome_trace(path)
    return json.loads(path.read_text())["traceEvents"]


@pytest.fixture(scope="module")
def rows(steps):
    return {row.module: row for row in steps.modules()}


def spans(events, cat, beginning=""):
    return [
        event
        for event in events
        if event["ph"] == "X" and event.get("cat") == cat and event["name"].startswith(beginning)
    ]


def innermost(ranges, event):
    """The name of the shortest range that holds an event."""
    holding = [one for one in ranges if one["ts"] <= event["ts"] < one["ts"] + one["dur"]]
    return min(holding, key=lambda one: one["dur"])["name"] if holding else None


def test_calls_are_counted_and_recomputing_apart(rows):
    calls = {module: (row.calls, row.recomputed) for module, row in rows.items()}
    assert calls == {
        None: (0, 0),
        "": (STEPS, 0),
        "first": (STEPS, 0),
        "shared": (2 * STEPS, 0),
        "blocks.0": (STEPS, STEPS),
        "blocks.0.0": (STEPS, STEPS),
        "blocks.0.1": (STEPS, STEPS),
        "blocks.1": (STEPS, STEPS),
        "blocks.1.0": (STEPS, STEPS),
        "blocks.1.1": (STEPS, STEPS),
        "blocks.2": (STEPS, 0),
        "blocks.2.0": (STEPS, 0),
        "blocks.2.1": (STEPS, 0),
        "last": (STEPS, 0),
        "MSELoss": (STEPS, 0),
    }
    assert rows["blocks.2.1"].class_name == "GELU"
    assert rows[None].class_name is None


def test_self_times_of_all_rows_sum_to_the_time_recorded(steps, exported):
    (whole,) = spans(exported, "user_annotation", "torchadx.inspect.profile")
    total = sum(row.forward_self_ms + row.backward_self_ms for row in steps.modules())
    assert total == pytest.approx(whole["dur"] / 1e3, rel=1e-9)


def test_backward_of_all_modules_is_the_time_of_the_engines_outermost_nodes(rows, exported):
    nodes = spans(exported, "cpu_op", "autograd::engine::evaluate_function: ")
    outermost = [
        node for node in nodes if not any(other["ts"] < node["ts"] < other["ts"] + other["dur"] for other in nodes)
    ]
    assert len(outermost) < len(nodes)
    total = sum(row.backward_self_ms for row in rows.values())
    assert total == pytest.approx(sum(node["dur"] for node in outermost) / 1e3, rel=1e-9)


@pytest.mark.parametrize("module", ["first", "shared", "blocks.2.0", "blocks.2.1", "last", "MSELoss"])
def test_backward_of_a_module_is_every_node_that_its_forward_made(rows, exported, module):
    ranges = [span for span in spans(exported, "user_annotation") if span["name"].endswith(")")]
    makers = {
        op["args"]["Sequence number"]: innermost(ranges, op)
        for op in spans(exported, "cpu_op")
        if "Sequence number" in op["args"] and not op["args"]["Fwd thread id"]
    }
    name, total, count, owner = f"{module} ({rows[module].class_name})", 0.0, 0, None
    for node in spans(exported, "cpu_op", "autograd::engine::evaluate_function: "):
        if "Sequence number" in node["args"]:
            owner = makers[node["args"]["Sequence number"]]
        if owner == name:
            total += node["dur"]
            count += 1
    assert count >= STEPS
    assert rows[module].backward_self_ms == pytest.approx(total / 1e3, rel=1e-9)
    assert rows[module].backward_ms == pytest.approx(total / 1e3, rel=1e-9)


def test_forward_of_a_module_is_the_time_of_its_ranges(rows, exported):
    ranges = spans(exported, "user_annotation")
    nodes = spans(exported, "cpu_op", "autograd::engine::evaluate_function: ")
    for module, row in rows.items():
        if module is None:
            continue
        name = f"{module or '(model)'} ({row.class_name})"
        own = [span for span in ranges if span["name"] == name and innermost(nodes, span) is None]
        assert len(own) == row.calls
        assert row.forward_ms == pytest.approx(sum(span["dur"] for span in own) / 1e3, rel=1e-9)


def test_times_with_submodules_are_the_sums_of_self_times(rows):
    inner = [row for module, row in rows.items() if module not in (None, "MSELoss")]
    assert rows[""].forward_ms == pytest.approx(sum(row.forward_self_ms for row in inner))
    assert rows[""].backward_ms == pytest.approx(sum(row.backward_self_ms for row in inner))
    block = [rows["blocks.2"], rows["blocks.2.0"], rows["blocks.2.1"]]
    assert rows["blocks.2"].backward_ms == pytest.approx(sum(row.backward_self_ms for row in block))


@pytest.mark.parametrize("block", ["blocks.0", "blocks.1"])
def test_what_a_checkpoint_recomputes_is_backward_of_the_modules_that_run_again(rows, exported, block):
    nodes = spans(exported, "cpu_op", "autograd::engine::evaluate_function: ")
    name = f"{block} (Sequential)"
    again = [
        span
        for span in spans(exported, "user_annotation")
        if span["name"] == name and innermost(nodes, span) is not None
    ]
    assert rows[block].recomputed_ms == pytest.approx(sum(span["dur"] for span in again) / 1e3, rel=1e-9)
    assert rows[block].backward_ms >= rows[block].recomputed_ms > 0
    assert rows["shared"].recomputed_ms == 0


def test_memory_of_a_linear_is_its_output_and_its_gradients():
    layer, inputs = nn.Linear(8, 16), torch.randn(32, 8)
    inner = nn.Sequential(layer, nn.ReLU())
    with profile() as measured:
        output = inner(inputs)
        output.sum().backward()
    rows = {row.module: row for row in measured.modules()}
    assert rows["0"].forward_bytes == rows["0"].forward_peak_bytes == 32 * 16 * 4
    assert rows["1"].forward_bytes == 32 * 16 * 4
    # relu keeps its own output and the product's is gone by the end; the gradients of the weight and the bias stay
    assert rows[""].forward_bytes == 32 * 16 * 4
    assert rows[""].forward_peak_bytes == 2 * 32 * 16 * 4
    assert rows["0"].kept_bytes == 0
    assert rows["1"].kept_bytes == 32 * 16 * 4
    assert layer.weight.grad is not None
    assert rows["0"].backward_peak_bytes >= (8 * 16 + 16) * 4
    ops = {row.name: row for row in measured.ops()}
    assert ops["aten::addmm"].self_bytes == 32 * 16 * 4


def test_operators_cost_what_torchs_own_averages_say(steps, exported):
    own = {row.name: row for row in steps.ops()}
    averages = {row.key: row for row in steps.key_averages() if row.key in own}
    assert set(averages) == set(own)
    assert len(own) > 20
    for name, row in own.items():
        assert row.calls == sum(event["name"] == name for event in spans(exported, "cpu_op"))
        assert row.self_ms == pytest.approx(averages[name].self_cpu_time_total / 1e3, rel=1e-3, abs=1e-4)
    assert "aten::addmm" in steps.key_averages(group_by_input_shape=True).table(sort_by="self_cpu_time_total")


def test_an_exported_trace_has_arrows_from_forward_to_backward_and_modules_names(exported):
    begins = {event["id"]: event for event in exported if event.get("cat") == "fwdbwd" and event["ph"] == "s"}
    ends = {event["id"]: event for event in exported if event.get("cat") == "fwdbwd" and event["ph"] == "f"}
    assert begins.keys() == ends.keys()
    assert len(begins) >= 10 * STEPS
    assert all(begins[key]["ts"] < ends[key]["ts"] for key in begins)
    names = {event["name"] for event in spans(exported, "user_annotation")}
    assert {"(model) (Net)", "first (Linear)", "MSELoss (MSELoss)", "torchadx.inspect.profile"} <= names
    assert not any(name.startswith("torchadx.inspect module") for name in names)


def test_an_exported_trace_may_be_compressed(steps, exported, tmp_path):
    steps.export_chrome_trace(tmp_path / "trace.json.gz")
    assert json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"] == exported


def test_json_has_what_the_page_reads(steps):
    plain = json.loads(steps.to_json())
    assert plain == json.loads(json.dumps(steps.to_dict()))
    kinds = {"module": (str, type(None)), "class": (str, type(None)), "calls": int}
    kinds |= dict.fromkeys(("forward_bytes", "backward_bytes", "forward_peak_bytes", "backward_peak_bytes"), int)
    times = ("forward_ms", "backward_ms", "forward_self_ms", "backward_self_ms", "recomputed_ms")
    kinds |= dict.fromkeys((*times, "device_forward_ms", "device_backward_ms"), (int, float))
    assert len(plain["modules"]) == 15
    for row in plain["modules"]:
        assert all(isinstance(row[key], kind) for key, kind in kinds.items())
    assert all({"what", "why", "remedy"} <= set(one) for one in plain["advice"])


def test_a_data_frame_has_a_row_for_each_module(steps):
    pandas = pytest.importorskip("pandas")
    frame = steps.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["calls"]) == [row.calls for row in steps.modules()]


@pytest.mark.parametrize("sort", [name for name in SORTS if name != "order"])
def test_rows_are_sorted_by_what_is_asked_for(steps, sort):
    values = [sum(getattr(row, column) for column in SORTS[sort]) for row in steps.modules(sort)]
    assert values == sorted(values, reverse=True)


def test_text_shows_the_model_the_outside_and_what_is_left_out(steps):
    text = str(steps)
    assert "(model)" in text
    assert "(outside)" in text
    assert "outside of both" in text
    lines = steps.table("order", limit=3).splitlines()
    assert len(lines) == 5
    assert lines[1].startswith("(outside)")
    assert lines[2].startswith("(model)")
    assert lines[-1] == "12 more: table(limit=None)"


def test_parts_called_by_themselves_go_by_the_given_model_names():
    net = Net()
    with profile(model=net, memory=False, shapes=False) as measured:
        net.last(net.shared(torch.randn(2, 16))).sum().backward()
    assert [(row.module, row.calls) for row in measured.modules("order")] == [(None, 0), ("shared", 1), ("last", 1)]
    assert all(row.forward_bytes == 0 for row in measured.modules())


def test_a_graph_that_another_thread_made_is_of_no_module_here():
    layer, made = nn.Linear(4, 4), []

    def forward():
        # numbers count in each thread: these become those of the nodes that the layer made in the main thread
        while next_sequence_number() < number:
            layer.weight.t()
        made.append(layer(torch.ones(2, 4)).sum())

    with profile() as measured:
        number = next_sequence_number()
        layer(torch.ones(2, 4)).sum()
        thread = threading.Thread(target=forward)
        thread.start()
        thread.join()
        made[0].backward()
    rows = {row.module: row for row in measured.modules()}
    assert rows[""].backward_ms == 0
    assert rows[None].backward_ms > 0


def test_backward_inside_of_a_forward_is_backward():
    class Force(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = nn.Linear(3, 1)

        def forward(self, x):
            return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]

    with profile() as measured:
        Force()(torch.randn(2, 3, requires_grad=True))
    rows = {row.module: row for row in measured.modules()}
    assert rows["energy"].backward_self_ms > 0
    assert rows[""].backward_ms > 0
    assert rows[""].recomputed_ms == 0
    assert rows["energy"].recomputed == 0


def test_nothing_can_be_read_before_the_block_is_left():
    with profile() as measured:
        for read in (measured.modules, measured.ops, measured.advice, measured.to_dict, measured.table):
            with pytest.raises(RuntimeError, match="before its block is left"):
                read()
        assert "has not been left" in str(measured)


def test_a_profile_inside_of_another_is_refused_and_leaves_no_hook():
    layer = nn.Linear(2, 2)
    with profile() as outer:
        with pytest.raises(RuntimeError, match="cannot run inside of each other"), profile():
            pass
        layer(torch.ones(1, 2))
    assert [(row.module, row.calls) for row in outer.modules("order")] == [(None, 0), ("", 1)]


def test_an_error_passes_and_leaves_neither_hook_nor_profiler_behind():
    class Fails(nn.Linear):
        def forward(self, x):
            super().forward(x)
            raise ZeroDivisionError("as planned")

    measured = profile()
    with pytest.raises(ZeroDivisionError, match="as planned"), measured:
        Fails(2, 2)(torch.ones(1, 2))
    assert {row.module for row in measured.modules()} == {None, ""}
    assert hooks() == 0
    # a second one would be refused if the first were still running
    with profile(memory=False):
        pass


def hooks():
    """How many hooks are registered for all modules."""
    from torch.nn.modules import module

    return sum(
        len(value)
        for name, value in vars(module).items()
        if name.startswith("_global_") and name.endswith("hooks") and isinstance(value, dict)
    )


def test_a_profile_that_is_off_registers_no_hook_and_starts_no_profiler(monkeypatch, tmp_path):
    started = collections.Counter()
    monkeypatch.setattr(_trace.Recording, "__enter__", lambda recording: started.update(["recording"]))
    monkeypatch.setattr(torch.profiler, "profile", lambda **options: started.update(["profiler"]))
    with profile(enabled=False) as measured:
        assert hooks() == 0
        assert "not enabled" in str(measured)
    assert not started
    assert "not enabled" in measured.table()
    assert measured.modules() == measured.ops() == measured.advice() == ()
    assert measured.to_dict() == {"modules": [], "advice": []}
    with pytest.raises(RuntimeError, match="not enabled"):
        measured.key_averages()
    with pytest.warns(UserWarning, match="is not written"):
        measured.export_chrome_trace(tmp_path / "trace.json")
    assert not (tmp_path / "trace.json").exists()


def test_an_interrupted_block_is_not_read_and_leaves_no_hook():
    measured = profile()
    with pytest.raises(KeyboardInterrupt), measured:
        raise KeyboardInterrupt
    assert hooks() == 0
    with pytest.raises(RuntimeError, match="nor if that was interrupted"):
        measured.modules()


def test_the_example_does_what_it_says():
    failed, ran = doctest.testmod(_profile, extraglobs={"torch": torch})
    assert (failed, ran) == (0, 3)


def test_arguments_that_are_not_possible_are_named():
    with pytest.raises(ValueError, match=r"sort must be one of 'forward', .*; got 'speed'"):
        profile(sort="speed")
    with pytest.raises(ValueError, match="top must be at least 1"):
        profile(top=0)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module or None, got int"):
        profile(model=3)
