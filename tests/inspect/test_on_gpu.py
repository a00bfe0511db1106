"""Looking at models on a GPU: where saved tensors are, memory by torch's caching allocator, kernels by module."""

import json
import re

import pytest
import torch
from torch import nn

from torchadx import inspect
from torchadx.memory import ActivationManager

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

# blocks of whole megabytes, which the allocator does not round up
ROWS, WIDTH = 4096, 1024
ACTIVATION = ROWS * WIDTH * 4


class Training:
    """A step with a momentum; each of its batches is drawn on the host."""

    def __init__(self):
        layers = (layer for _ in range(3) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU()))
        self.model = nn.Sequential(*layers).cuda()
        self.x = torch.randn(ROWS, WIDTH, device="cuda")
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)

    def __call__(self):
        self.step(self.x)

    def from_host(self):
        self.step(torch.randn(ROWS, WIDTH).cuda())

    def step(self, x):
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        self.optimizer.step()

    def known_bytes(self):
        """Bytes of what is there between steps: parameters, gradients, their momentum, and the input."""
        return 3 * sum(parameter.nbytes for parameter in self.model.parameters()) + self.x.nbytes


@pytest.fixture(scope="module")
def training():
    made = Training()
    # libraries get their workspaces at the first step
    made()
    torch.cuda.synchronize()
    return made


def test_saved_tensors_are_on_the_gpu_and_as_large_as_the_allocator_says(training):
    model, x = training.model, training.x
    report = inspect.saved(model, x, measure=True)
    assert {row.residence for row in report.rows} == {"cuda:0"}
    assert report.resident_bytes == report.held_bytes == report.activation_bytes == 3 * ACTIVATION
    before = torch.cuda.memory_allocated()
    # its output is the last of the three, which relu saves
    outputs = model(x)
    grown = torch.cuda.memory_allocated() - before
    assert outputs.grad_fn is not None
    assert report.activation_bytes == pytest.approx(grown, rel=0.05)
    assert report.measured_bytes == pytest.approx(grown, rel=0.05)


def test_encoded_tensors_on_the_host_are_not_resident(training):
    with ActivationManager("int8@host").watch(training.model) as manager:
        loss = training.model(training.x).square().mean()
    manager.flush()
    report = inspect.saved(loss, model=training.model)
    moved = [row for row in report.rows if row.residence == "int8@host"]
    assert len(moved) >= 3
    assert all(row.dtype == "float32" and not row.resident for row in moved)
    assert sum(row.held_bytes for row in moved) < 0.3 * sum(row.storage_bytes for row in moved)
    assert {row.residence for row in report.rows} <= {"int8@host", "cuda:0"}
    loss.backward()
    manager.close()


def test_the_peak_is_the_allocators(training):
    training()
    torch.cuda.synchronize()
    # workspaces, and what others left
    others = torch.cuda.memory_allocated() - training.known_bytes()
    torch.cuda.reset_peak_memory_stats()
    training()
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated() - others
    timeline = inspect.timeline(training, model=training.model)
    device = timeline.devices["cuda:0"]
    assert device.peak_bytes == pytest.approx(most, rel=0.05)
    assert sum(each.nbytes for each in device.alive) == device.peak_bytes
    assert max(device.curve.categories["activation"]) >= 3 * ACTIVATION


def test_modules_have_time_on_the_device_forward_and_backward(training):
    with inspect.profile(model=training.model) as measured:
        training()
        torch.cuda.synchronize()
    rows = {row.module: row for row in measured.modules()}
    for path in ("0", "2", "4"):
        assert rows[path].class_name == "Linear"
        assert rows[path].device_forward_ms > 0
        assert rows[path].device_backward_ms > 0
    parts = [rows[str(place)] for place in range(6)]
    assert rows[""].device_forward_ms == pytest.approx(sum(row.device_forward_ms for row in parts))
    assert rows[""].device_backward_ms == pytest.approx(sum(row.device_backward_ms for row in parts))


def test_the_page_has_both_devices(training, tmp_path):
    pytest.importorskip("plotly")
    path = inspect.report(training.model, training.from_host, tmp_path / "report.html")
    found = re.search(
        r'<script type="application/json" id="payload">(.*?)</script>', path.read_text("utf-8"), re.DOTALL
    )
    payload = json.loads(found[1])
    (only,) = payload["passes"]
    assert set(only["timeline"]["devices"]) == {"cpu", "cuda:0"}
    assert all(device["peak"]["bytes"] >= ACTIVATION for device in only["timeline"]["devices"].values())
    assert {"cpu", "cuda:0"} <= set(re.findall(r"cpu|cuda:0", payload["subtitle"]))
    assert any(module["device_backward_ms"] > 0 for module in only["profile"]["modules"])
