"""Why a tensor is kept, and what can be done: by node and slot, as torch names them."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from saving import Attention, Convolutions, mlp
from torch import nn

from torchadx.inspect import saved
from torchadx.inspect._saved import _why


def explain(node, slot, alias=None, residence="cpu", managed=False):
    return _why.explain(node, slot, alias, residence, managed=managed)


CASES = {
    ("AddmmBackward0", "mat1"): ("weight's gradient multiplies", "int8"),
    ("AddmmBackward0", "mat2"): ("input's gradient multiplies", "checkpoint"),
    ("MmBackward0", "self"): ("weight's gradient", "encode"),
    ("BmmBackward0", "mat2"): ("other factor", "encode"),
    ("ConvolutionBackward0", "input"): ("convolves with this input", "encode"),
    ("ConvolutionBackward0", "weight"): ("convolves with this kernel", "encode"),
    ("ReluBackward0", "result"): ("passes gradient", '"mask"'),
    ("LogSoftmaxBackward0", "result"): ("read off its output", "chunks of rows"),
    ("SoftmaxBackward0", "result"): ("read off its output", "scaled_dot_product_attention"),
    ("TanhBackward0", "result"): ("read off its output", "next layer keeps it"),
    ("GeluBackward0", "self"): ("needs its input", "checkpoint"),
    ("EluBackward0", "self"): ("needs its input", "checkpoint"),
    ("EluBackward0", "result"): ("read off its output", "next layer"),
    ("MulBackward0", "other"): ("derivative in one factor", "recompute"),
    ("SinBackward0", "self"): ("needs the point", "recompute"),
    ("NativeLayerNormBackward0", "input"): ("normalization's gradient needs its input", "encode"),
    ("NativeLayerNormBackward0", "result1"): ("statistics", "nothing"),
    ("ScaledDotProductFlashAttentionForCpuBackward0", "query"): ("recomputes its weights", "encode"),
    ("ScaledDotProductFlashAttentionForCpuBackward0", "output"): ("starts from its output", "next layer"),
    ("ScaledDotProductFlashAttentionForCpuBackward0", "logsumexp"): ("rescales by", "nothing"),
    ("EmbeddingBackward0", "indices"): ("which elements get gradient", "int32"),
    ("IndexBackward0", "indices[1]"): ("which elements get gradient", "int32"),
    ("NllLossBackward0", "target"): ("which elements get gradient", "int32"),
    ("NativeDropoutBackward0", "result1"): ("dropped", '"mask"'),
    ("MaxPool2DWithIndicesBackward0", "result1"): ("chosen elements", "int32"),
    ("AvgPool2DBackward0", "self"): ("pooling", "encode"),
    ("WhereBackward0", "condition"): ("which branch", '"mask"'),
    ("MkldnnRnnLayerBackward0", "result3"): ("gates and states", "detach"),
    ("RecordedBackward", "saved_tensors[2]"): ("fused linear", "encode"),
    ("CheckpointFunctionBackward", "saved_tensors[0]"): ("checkpointed region", "encode"),
    ("CompiledFunctionBackward", "saved_tensors[7]"): ("torch.compile chose it", "checkpoint"),
    ("CheckpointFunctionBackward", "ctx.fwd_cpu_state"): ("random numbers", "preserve_rng_state=False"),
    ("MseLossBackward0", "target"): ("what it compares", "chunks of the batch"),
    ("NllLossBackward0", "total_weight"): ("the mean divides by it", "nothing"),
    ("CeluBackward0", "self"): ("needs its input", "checkpoint"),
    ("SafeSoftmaxBackward0", "result"): ("read off its output", "scaled_dot_product_attention"),
    ("MaximumBackward0", "other"): ("which of the two", "encode"),
    ("AmaxBackward0", "self"): ("compares its input with its output", "encode"),
    ("TanhBackwardBackward0", "grad_output"): ("the derivative of a derivative", "encode"),
    ("MineBackward", "saved_tensors[0]"): ("ctx.save_for_backward()", "keep less"),
    ("StrangeBackward0", "thing"): ("the derivative of Strange reads thing", "recompute"),
}


@pytest.mark.parametrize(("node", "slot"), CASES)
def test_reasons_and_remedies(node, slot):
    reason = explain(node, slot)
    why, remedy = CASES[node, slot]
    assert why in reason.why
    assert remedy in reason.remedy


def test_circumstances_come_before_the_table():
    assert "save_for_backward" in explain("MineBackward", "ctx.mask").remedy
    assert "hooks on saved tensors do not see it" in explain("MineBackward", "ctx.mask").why
    plain = explain("AddmmBackward0", "mat1")
    for alias, said in {"input": "an input", "leaf": "a leaf", "parameter": "a parameter"}.items():
        assert explain("AddmmBackward0", "mat1", alias) == (plain.why, f"nothing to gain: it is the memory of {said}")
    assert explain("AddmmBackward0", "mat2", "parameter 0.weight").remedy.endswith("the parameter 0.weight")
    assert explain("AddmmBackward0", "mat1", residence="recomputed").remedy.startswith("nothing: it is computed again")
    assert explain("AddmmBackward0", "mat1", residence="int8@host", managed=True).remedy.endswith("waits as int8@host")
    assert (
        "the caller holds this input anyway" in explain("AddmmBackward0", "mat1", "input", "int8", managed=True).remedy
    )


def literals(pattern):
    """Some texts that a pattern of the table matches."""
    pattern = pattern.replace("(Layer|Batch|Group)", "Group")
    return [alternative.replace(".*", "X").replace("\\", "") for alternative in pattern.split("|")]


@pytest.mark.parametrize("row", _why._ROWS, ids=lambda row: f"{row.nodes[:20]}.{row.slots[:10]}")
def test_no_row_is_hidden_by_those_before(row):
    reached = {
        (reason.why, reason.remedy)
        for node, slot in itertools.product(literals(row.nodes), literals(row.slots))
        if re.fullmatch(row.nodes, node)
        for reason in [explain(f"{node}Backward0", slot)]
    }
    assert (row.why, row.remedy) in reached


X = {"matrix": lambda: torch.randn(4, 8), "image": lambda: torch.randn(2, 4, 8, 8)}
OPS = {
    "convolutions": (Convolutions(), lambda: torch.randn(2, 3, 10, 10)),
    "attention": (Attention(), lambda: torch.randn(2, 5, 16)),
    "mlp": (mlp(), X["matrix"]),
    "lstm": (nn.LSTM(8, 4), X["matrix"]),
    "cross entropy": (lambda x: F.cross_entropy(x, torch.arange(4)), X["matrix"]),
    "squared error": (lambda x: F.mse_loss(x, torch.randn(4, 8)), X["matrix"]),
    "norms": (lambda x: F.rms_norm(F.group_norm(F.batch_norm(x, None, None, training=True), 2), (8,)), X["image"]),
    "pools": (lambda x: F.adaptive_max_pool2d(F.max_pool2d(F.avg_pool2d(x, 2), 2), 1), X["image"]),
    "choices": (lambda x: torch.where(x > 0, x.masked_fill(x > 1, 0), x.sort()[0]), X["matrix"]),
    "indices": (lambda x: x[torch.tensor([0, 1])].index_select(0, torch.tensor([0])).gather(0, x.long()[:1] * 0).exp(),
                X["matrix"]),
}  # fmt: skip
ACTIVATIONS = (
    *(F.relu, F.gelu, F.silu, F.mish, F.softplus, F.hardswish, F.hardsigmoid, F.hardtanh, F.leaky_relu, F.elu),
    *(F.logsigmoid, F.tanh, F.sigmoid, F.relu6, torch.exp, torch.sqrt, torch.rsqrt, torch.sin, torch.abs, torch.erf),
)
OPS |= {function.__name__: (function, X["matrix"]) for function in ACTIVATIONS}


@pytest.mark.parametrize("name", OPS)
def test_what_torch_saves_in_common_layers_has_a_row(name):
    function, make = OPS[name]
    report = saved(function, make().requires_grad_())
    assert report.rows
    plain = [row.slots[0] for row in report.rows if row.why.startswith("the derivative of")]
    # gather reads the shape of that alone
    assert set(plain) <= {"GatherBackward0.self"}
