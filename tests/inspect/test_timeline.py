"""``inspect.timeline``: bytes of every category, to the byte, and whose they were at the peak."""

import gc
import json
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchadx
from torchadx import inspect
from torchadx.inspect._trace._trace import Recording

ROWS, WIDTH, HIDDEN = 64, 128, 256
FLOAT = 4
PARAMETERS = (WIDTH * HIDDEN + HIDDEN + HIDDEN * WIDTH + WIDTH) * FLOAT


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))


class Training:
    """A step with a momentum, whose state is as large as the parameters."""

    def __init__(self):
        self.model = network()
        self.x = torch.randn(ROWS, WIDTH)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)

    def __call__(self):
        self.optimizer.zero_grad()
        loss = self.model(self.x).square().mean()
        loss.backward()
        self.optimizer.step()


@pytest.fixture(scope="module")
def trained():
    torch.set_num_threads(1)
    return inspect.timeline(Training())


def highest(timeline, category):
    return max(timeline.devices["cpu"].curve.categories[category])


def last(timeline, category):
    return timeline.devices["cpu"].curve.categories[category][-1]


def alive(timeline, category):
    return sum(each.nbytes for each in timeline.devices["cpu"].alive if each.category == category)


def test_parameters_are_there_all_the_time(trained):
    assert set(trained.devices["cpu"].curve.categories["parameter"]) == {PARAMETERS}


def test_state_of_the_optimizer_is_as_large_as_the_parameters(trained):
    assert set(trained.devices["cpu"].curve.categories["optimizer state"]) == {PARAMETERS}


def test_gradients_begin_with_those_of_the_step_before_are_freed_and_come_back(trained):
    gradients = trained.devices["cpu"].curve.categories["gradient"]
    assert gradients[0] == max(gradients) == gradients[-1] == PARAMETERS
    assert min(gradients) == 0


def test_activations_are_what_saved_says(trained):
    training = Training()
    saved = inspect.saved(lambda: training.model(training.x).square().mean())
    # the output of ReLU, and that of the last layer, which the square keeps
    assert highest(trained, "activation") == saved.activation_bytes == ROWS * (HIDDEN + WIDTH) * FLOAT
    assert last(trained, "activation") == 0


def test_the_input_is_the_callers(trained):
    assert set(trained.devices["cpu"].curve.categories["input"]) == {ROWS * WIDTH * FLOAT}


def test_nothing_temporary_is_left(trained):
    assert highest(trained, "temporary") > 0
    assert last(trained, "temporary") == 0


def test_phases_cover_the_step_in_order(trained):
    names = [phase.name for phase in trained.phases if phase.name != "other"]
    assert names == ["forward", "backward", "optimizer"]
    assert trained.phases[0].start == 0
    for before, after in zip(trained.phases, trained.phases[1:], strict=False):
        assert before.end == pytest.approx(after.start)


def test_the_peak_is_the_highest_point_and_is_explained_to_the_byte(trained):
    device = trained.devices["cpu"]
    totals = dict(device.curve.totals())
    assert max(totals.values()) == device.peak_bytes == totals[device.peak_ms]
    assert sum(each.nbytes for each in device.alive) == device.peak_bytes
    assert alive(trained, "parameter") == alive(trained, "optimizer state") == PARAMETERS


def test_parameters_gradients_and_state_are_of_their_modules(trained):
    weights = {"0": (WIDTH * HIDDEN + HIDDEN) * FLOAT, "2": (HIDDEN * WIDTH + WIDTH) * FLOAT}
    for category in ("parameter", "optimizer state"):
        found = {}
        for each in trained.devices["cpu"].alive:
            if each.category == category:
                found[each.module] = found.get(each.module, 0) + each.nbytes
        assert found == weights


def test_rises_are_of_the_modules_that_left_them(trained):
    rises = {(rise.module, rise.phase): rise.nbytes for rise in trained.rises}
    assert rises["1", "forward"] == ROWS * HIDDEN * FLOAT
    assert rises["2", "forward"] == ROWS * WIDTH * FLOAT
    # gradients of its weight and bias, and of its input, which the node before takes over
    assert rises["2", "backward"] == (HIDDEN * WIDTH + WIDTH) * FLOAT + ROWS * HIDDEN * FLOAT
    assert list(trained.rises) == sorted(trained.rises, key=lambda rise: -rise.nbytes)


def test_the_curve_is_that_of_torchs_allocator():
    """The rise from the beginning of a step to its peak, against the profiler's own events."""
    training = Training()
    training()
    with Recording() as recording:
        training()
    total, most, blocks = 0, 0, {}
    for event in recording.trace.memory:
        if event.bytes > 0:
            blocks[event.address] = event.bytes
        # what was there before is not told when it goes
        elif blocks.pop(event.address, None) is None:
            continue
        total += event.bytes
        most = max(most, total)
    timeline = inspect.timeline(training)
    # the timeline knows what was there before: parameters, their state and the input
    before = 2 * PARAMETERS + ROWS * WIDTH * FLOAT
    assert timeline.devices["cpu"].peak_bytes - before == pytest.approx(most, rel=0.05)


def test_encoded_activations_are_activations():
    model, x = network(), torch.randn(ROWS, WIDTH)
    manager = torchadx.memory.ActivationManager("int8", min_bytes=0)

    def step():
        with manager:
            loss = model(x).square().mean()
        loss.backward()

    timeline = inspect.timeline(step)
    assert highest(timeline, "activation") == manager.report().held_bytes
    assert "int8" in str(manager.report())


@pytest.mark.parametrize("reentrant", [False, True], ids=["hooks", "reentrant"])
def test_what_a_checkpoint_computes_again_is_an_activation_in_backward(reentrant):
    model = network()
    x = torch.randn(ROWS, WIDTH)
    x.requires_grad_(reentrant)

    def step():
        checkpoint(model, x, use_reentrant=reentrant).square().mean().backward()

    timeline = inspect.timeline(step, model=model)
    backward = next(phase for phase in timeline.phases if phase.name == "backward")
    device = timeline.devices["cpu"]
    pairs = list(zip(device.curve.times, device.curve.categories["activation"], strict=True))
    forward = max(nbytes for time, nbytes in pairs if time < backward.start)
    again = max(nbytes for time, nbytes in pairs if time >= backward.start)
    # the output, which the square keeps; the reentrant one puts a state of the random numbers on its ctx
    assert forward == ROWS * WIDTH * FLOAT + (torch.get_rng_state().nbytes if reentrant else 0)
    assert again >= forward + ROWS * HIDDEN * FLOAT
    assert any(each.module == "1" and each.category == "activation" for each in device.alive)


def test_gradients_by_autograd_grad_are_gradients():
    model, x = network(), torch.randn(ROWS, WIDTH)
    kept = []

    def step():
        kept[:] = torch.autograd.grad(model(x).sum(), list(model.parameters()))

    assert last(inspect.timeline(step), "gradient") == PARAMETERS


def test_an_optimizer_may_run_forward_and_backward_itself():
    model, x = network(), torch.randn(ROWS, WIDTH)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    timeline = inspect.timeline(lambda: optimizer.step(closure))
    names = [phase.name for phase in timeline.phases if phase.name != "other"]
    assert names[0] == names[-1] == "optimizer"
    assert names.count("backward") >= 2
    for before, after in zip(timeline.phases, timeline.phases[1:], strict=False):
        assert before.end == pytest.approx(after.start)
    rises = {(rise.module, rise.phase) for rise in timeline.rises}
    assert {("1", "forward"), ("2", "backward")} <= rises
    assert highest(timeline, "activation") == ROWS * (HIDDEN + WIDTH) * FLOAT


def test_a_step_without_backward_has_no_activations():
    model, x = network(), torch.randn(ROWS, WIDTH)
    timeline = inspect.timeline(lambda: model(x))
    assert highest(timeline, "activation") == highest(timeline, "gradient") == 0
    assert [phase.name for phase in timeline.phases if phase.name != "other"] == ["forward"]


def test_steps_are_counted():
    calls = []
    inspect.timeline(lambda: calls.append(0), warmup=2)
    assert len(calls) == 3


def test_gradients_are_those_without_a_timeline():
    plain, watched = network(), network()
    x = torch.randn(ROWS, WIDTH)
    plain(x).square().mean().backward()
    inspect.timeline(lambda: watched(x).square().mean().backward(), warmup=0)
    for expected, found in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(expected.grad, found.grad)


def test_it_holds_no_tensor():
    training = Training()
    seen = [weakref.ref(tensor) for tensor in (training.x, *training.model.parameters())]
    timeline = inspect.timeline(training)
    del training
    gc.collect()
    assert [reference() for reference in seen] == [None] * len(seen)
    assert timeline.devices


def test_a_step_that_raises_leaves_nothing_behind():
    model = network()

    def step():
        model(torch.randn(2, WIDTH))
        raise KeyError("broken step")

    with pytest.raises(KeyError, match="broken step"):
        inspect.timeline(step)
    module = torch.nn.modules.module
    assert not module._global_forward_hooks
    assert not module._global_forward_pre_hooks
    assert inspect.timeline(lambda: model(torch.randn(2, WIDTH))).devices


def test_a_negative_number_of_steps_to_warm_up_is_refused():
    with pytest.raises(ValueError, match="warmup is a number of steps"):
        inspect.timeline(lambda: None, warmup=-1)


def test_a_step_is_a_function():
    with pytest.raises(TypeError, match="step is a function without arguments"):
        inspect.timeline(torch.zeros(1))


def test_text_tells_the_peak_and_whose_it_was(trained):
    text = str(trained)
    assert "cpu: at most" in text
    assert "optimizer state" in text
    assert "alive then:" in text
    assert "left allocated by runs that were over" in text


def test_json_and_data_frame_hold_the_curve(trained):
    plain = json.loads(trained.to_json())
    curve = trained.devices["cpu"].curve
    assert plain["devices"]["cpu"]["times"] == list(curve.times)
    assert plain["devices"]["cpu"]["peak"]["bytes"] == trained.devices["cpu"].peak_bytes
    frame = trained.to_dataframe()
    assert list(frame["activation"]) == list(curve.categories["activation"])
    assert set(frame["device"]) == {"cpu"}


def test_a_picture_is_drawn(trained, tmp_path):
    trained.draw(tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
