"""Which backend is chosen and what it says about it; what the environment may say."""

import importlib.util
import os
import platform

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import torchadx
from torchadx import dispatch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def fresh_choices(monkeypatch):
    """No memory of other environments, before and after."""
    cached = (dispatch._select, dispatch.interpreting)
    for function in cached:
        function.cache_clear()
    monkeypatch.delenv("TORCHADX_BACKEND")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield
    monkeypatch.undo()
    for function in cached:
        function.cache_clear()


def on(device, dtype=torch.float32):
    """A tensor of a device that this machine need not have."""
    with FakeTensorMode():
        return torch.empty(2, 2, device=device, dtype=dtype)


def chosen(tensor):
    choice = dispatch.select("linear", tensor)
    assert choice.reason
    return choice.backend, choice.reason


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_cpu_tensors_take_aten(dtype):
    assert chosen(on("cpu", dtype)) == ("aten", "CPU tensors take the ATen and oneDNN route")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_cuda_tensors_take_triton(dtype, monkeypatch):
    monkeypatch.setenv("TORCHADX_BACKEND", "auto")
    assert dispatch.select("linear", torch.empty(1, dtype=dtype, device="cuda")) == ("triton", "on cuda:0")


def test_without_triton_cuda_tensors_take_aten_and_say_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    backend, reason = chosen(on("cuda"))
    assert backend == "aten"
    assert "pip install 'triton>=" in reason


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
@pytest.mark.parametrize("interpreted", ["0", "1"])
def test_float64_always_takes_aten(device, interpreted, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)
    backend, reason = chosen(on(device, torch.float64))
    assert backend == "aten"
    assert "torch.float64 always takes the ATen route" in reason


def test_the_interpreter_takes_cpu_tensors(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert chosen(on("cpu")) == ("triton", "interpreted on the CPU (TRITON_INTERPRET=1)")


def test_other_devices_take_aten():
    assert chosen(on("meta")) == ("aten", "no Triton kernels for 'meta' tensors")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_aten_can_be_asked_for(device, monkeypatch):
    monkeypatch.setenv("TORCHADX_BACKEND", "aten")
    assert chosen(on(device)) == ("aten", "TORCHADX_BACKEND=aten")


@pytest.mark.parametrize(
    ("tensor", "obstacle"), [(("cpu", torch.float32), "CPU tensors"), (("cuda", torch.float64), "float64")]
)
def test_triton_asked_for_in_vain_raises(tensor, obstacle, monkeypatch):
    monkeypatch.setenv("TORCHADX_BACKEND", "triton")
    with pytest.raises(RuntimeError, match=f"TORCHADX_BACKEND=triton, but torchadx::linear cannot run.*{obstacle}"):
        dispatch.select("linear", on(*tensor))


def test_an_unknown_backend_raises_when_a_layer_runs(monkeypatch):
    monkeypatch.setenv("TORCHADX_BACKEND", "cuda")
    with pytest.raises(ValueError, match="TORCHADX_BACKEND is 'cuda'; expected one of auto, aten, triton"):
        torchadx.linear(torch.ones(2, 2), torch.ones(2, 2))


def test_a_change_of_environment_is_seen(monkeypatch):
    assert chosen(on("cpu"))[1] != "TORCHADX_BACKEND=aten"
    monkeypatch.setenv("TORCHADX_BACKEND", "aten")
    assert chosen(on("cpu"))[1] == "TORCHADX_BACKEND=aten"


def test_small_layers_are_left_to_pytorch_unless_a_backend_is_named(monkeypatch):
    x, w = torch.ones(4, 8, requires_grad=True), torch.ones(8, 8)
    assert dispatch.composes(x, 8, native=True)
    assert dispatch.small(x, 8)
    assert not dispatch.small(x.bfloat16(), 1 << 19)
    assert not dispatch.composes(x, 1 << 19, native=True)
    assert dispatch.composes(x.bfloat16(), 1 << 19, native=True)
    many_rows = torch.ones(1 << 16, 64)
    assert dispatch.composes(many_rows, 64, native=True)
    assert not dispatch.composes(many_rows, 64, native=False)
    assert not dispatch.composes(x.bfloat16(), 1 << 19, native=False)
    assert type(torchadx.linear(x, w, None, "gelu").grad_fn).__name__ == "GeluBackward0"
    monkeypatch.setenv("TORCHADX_BACKEND", "aten")
    assert not dispatch.composes(x, 8, native=True)
    assert type(torchadx.linear(x, w, None, "gelu").grad_fn).__name__ == "RecordedBackward"


def test_the_interpreter_composes_nothing(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not dispatch.composes(torch.ones(1, 1), 1, native=True)
    assert not dispatch.small(torch.ones(1, 1), 1)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_onednn_serves_only_cpu_tensors_of_its_dtypes_while_enabled():
    assert dispatch.onednn_dtypes() <= {torch.float32, torch.bfloat16}
    if torch.float32 not in dispatch.onednn_dtypes():
        pytest.skip("this build of torch has no oneDNN")
    assert dispatch.onednn_serves(on("cpu"))
    assert not any(map(dispatch.onednn_serves, (on("cuda"), on("cpu", torch.float64), on("cpu", torch.float16))))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not dispatch.onednn_serves(on("cpu"))


def test_the_machine_is_named_with_its_libraries():
    name = dispatch.machine(torch.device("cpu"))
    assert name.endswith(f"; torch {torch.__version__}")
    assert len(name.split(";")[0]) > 3


def test_the_processor_is_named_without_proc(monkeypatch):
    monkeypatch.setattr("builtins.open", lambda *args: (_ for _ in ()).throw(FileNotFoundError()))
    assert dispatch._cpu_model() == (platform.processor() or platform.machine())


def test_cache_directory(monkeypatch):
    monkeypatch.setenv("TORCHADX_CACHE_DIR", "/mine")
    monkeypatch.setenv("XDG_CACHE_HOME", "/theirs")
    assert dispatch.cache_directory() == "/mine"
    monkeypatch.delenv("TORCHADX_CACHE_DIR")
    assert dispatch.cache_directory() == os.path.join("/theirs", "torchadx")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert dispatch.cache_directory() == os.path.join("/home/somebody", ".cache", "torchadx")


@pytest.mark.parametrize("mode", ["off", "cached", "full", None])
def test_tuning_modes(mode, monkeypatch):
    if mode is None:
        monkeypatch.delenv("TORCHADX_TUNING")
    else:
        monkeypatch.setenv("TORCHADX_TUNING", mode)
    assert dispatch.tuning_mode() == (mode or "full")


def test_autocasting():
    tensor = torch.ones(1)
    assert not dispatch.autocasting(tensor)
    with torch.autocast("cpu"):
        assert dispatch.autocasting(tensor)
        with torch.autocast("cpu", enabled=False):
            assert not dispatch.autocasting(tensor)


def test_what_lies_in_host_memory():
    assert not dispatch.on_accelerator(torch.ones(1))
    assert dispatch.on_accelerator(on("cuda"))
    assert dispatch.on_accelerator(on("xpu"))
