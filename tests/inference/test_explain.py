"""``explain()``: every submodule by name, what runs for it in each mode, and why it does not run better."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from torchadx.inference import InferenceAware

from .zoo import CASES, mlp


def lines_about(text, name):
    """Lines that name a submodule (names hold dots, so words are not enough)."""
    return [line for line in text.splitlines() if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", line)]


def explained(module, x=None, **options):
    wrapper = InferenceAware(module.eval(), **options)
    with torch.inference_mode():
        for _ in range(3):
            wrapper(torch.randn(16, 256) if x is None else x)
    return wrapper.explain()


@pytest.mark.parametrize("called", [False, True], ids=["new", "called"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_submodule_is_named(case, called):
    wrapper = InferenceAware(case.module()).eval()
    if called:
        args, kwargs = case.inputs()
        with torch.inference_mode():
            wrapper(*args, **kwargs)
    text = wrapper.explain()
    for name, child in wrapper.module.named_modules():
        if name and not isinstance(child, InferenceAware):
            assert lines_about(text, name), f"{name!r} is missing in\n{text}"


def test_modes_are_named():
    text = explained(mlp()).lower()
    assert "train" in text
    assert "inference" in text
    assert "no_grad" in text or "no grad" in text


def test_a_fused_pair_says_so():
    text = explained(nn.Sequential(nn.Linear(256, 512), nn.GELU()))
    assert any("gelu" in line.lower() and "fused" in line.lower() for line in text.splitlines()), text


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("index", [0, 1])
def test_a_pair_with_a_hook_says_why_it_is_not_fused(index, register):
    module = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256))
    handle = getattr(module[index], register)(lambda *args: None)
    assert any("hook" in line for line in lines_about(explained(module), str(index)))
    handle.remove()
    assert "hook" not in explained(module)


def subclassed():
    return type("Scaled", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)})(256, 512)


def with_inference_weight():
    with torch.inference_mode():
        return nn.Linear(256, 512)


def patched():
    layer = nn.Linear(256, 512)
    layer.forward = lambda x: x.repeat_interleave(2, -1)
    return layer


REASONS = {
    "shared memory": (lambda: nn.Linear(256, 512).share_memory(), "shared"),
    "inference tensor": (with_inference_weight, "inference tensor"),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Linear(256, 512)), "parametri"),
    "subclass": (subclassed, "Scaled|subclass"),
    "patched forward": (patched, "forward"),
    "double": (lambda: nn.Linear(256, 512, dtype=torch.float64), "float64|double"),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_weight_that_is_not_prepared_says_why(name):
    build, reason = REASONS[name]
    module = nn.Sequential(nn.Identity(), build())
    x = torch.randn(16, 256, dtype=next(module.parameters()).dtype)
    text = explained(module, x)
    assert any(re.search(reason, line) for line in lines_about(text, "1")), text


@pytest.mark.parametrize("bound", [0, "600 KiB"])
def test_a_weight_that_does_not_fit_says_so(bound):
    text = explained(mlp(), cache_bytes=bound)
    assert any("cache_bytes" in line for name in ("0", "2") for line in lines_about(text, name)), text


def test_the_text_follows_the_module():
    wrapper, x = InferenceAware(mlp()).eval(), torch.randn(16, 256)
    texts = [wrapper.explain()]
    with torch.inference_mode():
        wrapper(x)
    texts.append(wrapper.explain())
    wrapper.module[1] = nn.Softmax(-1)
    texts.append(wrapper.explain())
    assert "Softmax" in texts[2]
    assert "Softmax" not in texts[1]
    wrapper.module[1] = nn.Tanh()
    assert "hook" not in wrapper.explain()
    wrapper.module[0].register_forward_hook(lambda *args: None)
    assert "hook" in wrapper.explain()


def test_explaining_changes_nothing():
    wrapper, x = InferenceAware(mlp()).eval(), torch.randn(16, 256)
    before = copy.deepcopy(dict(vars(wrapper.module[0])))
    wrapper.explain()
    assert wrapper.prepared_bytes == 0
    assert set(vars(wrapper.module[0])) == set(before)
    with torch.inference_mode():
        wrapper(x)
        held = wrapper.prepared_bytes
        assert wrapper.explain() == wrapper.explain()
    assert wrapper.prepared_bytes == held


def test_the_lower_dtype_is_named():
    assert "bfloat16" in explained(mlp(), dtype=torch.bfloat16)
    assert "bfloat16" not in explained(mlp())
