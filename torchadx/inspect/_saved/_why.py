"""Why a node keeps a tensor, and what can be done about it: one row a kind of node."""

import functools
import re
from typing import NamedTuple

_COMPRESS = 'encode it (torchadx.memory.managed(module, "int8")) or checkpoint the block around it'
_SHARED = "costs nothing where the next layer keeps it as its input; else a codec or a checkpoint"
_MASK = 'torchadx.memory\'s codec "mask" keeps a bit an element'
_INTEGERS = "int32 instead of int64 halves it, where the op takes that"
_SMALL = "nothing: it is small"


class Reason(NamedTuple):
    """Why a tensor is kept, and a remedy."""

    why: str
    remedy: str


class _Row(NamedTuple):
    nodes: str
    slots: str
    why: str
    remedy: str


# the first row whose patterns match the whole name of the node, less "Backward0", and of the slot
_ROWS = (
    _Row("CheckpointFunction", r"ctx\..*", "the state of random numbers, to compute the same again",
         "preserve_rng_state=False, where nothing in the region is random"),
    _Row(".*", r"ctx\..*", "put on ctx as an attribute, where hooks on saved tensors do not see it",
         "use ctx.save_for_backward(): it can then be moved, encoded and checked for in-place changes"),
    _Row("Addmm|Mm|Linear|MkldnnLinear", "mat1|self|input", "the weight's gradient multiplies by this input",
         _COMPRESS),
    _Row("Addmm|Mm|Linear|MkldnnLinear", "mat2|weight", "the input's gradient multiplies by this matrix", _COMPRESS),
    _Row("Bmm|Baddbmm|Mv|Dot|Addmv", ".*", "each factor's gradient multiplies by the other factor", _COMPRESS),
    _Row("Convolution|MkldnnConvolution", "input", "the weight's gradient convolves with this input", _COMPRESS),
    _Row("Convolution|MkldnnConvolution", "weight", "the input's gradient convolves with this kernel", _COMPRESS),
    _Row("Relu|Threshold", "result|self", "whether an element passes gradient is read off it", f"{_SHARED}; {_MASK}"),
    _Row("LogSoftmax", "result", "its derivative is read off its output",
         "compute the loss in chunks of rows, or in bfloat16: it is as large as the logits"),
    _Row("Softmax|SafeSoftmax", "result", "its derivative is read off its output",
         "for attention, F.scaled_dot_product_attention keeps no matrix of weights"),
    _Row("Tanh|Sigmoid|Exp|Expm1|Sqrt|Rsqrt|Reciprocal|Elu|LogSumExp|Logsumexp|Norm|LinalgVectorNorm", "result",
         "its derivative is read off its output", _SHARED),
    _Row("Gelu|Silu|Mish|Softplus|Hardswish|Hardsigmoid|Hardtanh|LeakyRelu|Elu|Celu|Glu|LogSigmoid|PreluKernel",
         "self|.*buffer",
         "its derivative needs its input", "recompute it: checkpoint it with the layer after it; or encode it"),
    _Row("Mul|Div|Pow|Lerp|Addcmul|Addcdiv|Atan2|Hypot", ".*", "the derivative in one factor is the other",
         "recompute it from what is kept anyway, or encode it"),
    _Row("Sin|Cos|Tan|Log|Log2|Log10|Log1P|Erf|Abs|Square|Clamp|ClampMin|ClampMax|Cumprod|Prod|Std|Var", ".*",
         "its derivative is not constant: it needs the point", "recompute it from what is kept anyway, or encode it"),
    _Row("Native(Layer|Batch|Group)Norm|CudnnBatchNorm|MiopenBatchNorm|FusedRmsNorm|RmsNorm", "input|self",
         "a normalization's gradient needs its input", _COMPRESS),
    _Row("Native(Layer|Batch|Group)Norm|CudnnBatchNorm|MiopenBatchNorm|FusedRmsNorm|RmsNorm", ".*",
         "statistics and scales of the normalization", _SMALL),
    _Row("ScaledDotProduct.*|EfficientAttention|FlashAttention", "query|key|value",
         "attention's backward recomputes its weights from queries, keys and values", _COMPRESS),
    _Row("ScaledDotProduct.*|EfficientAttention|FlashAttention", "output",
         "attention's backward starts from its output", _SHARED),
    _Row("ScaledDotProduct.*|EfficientAttention|FlashAttention", ".*", "what attention's backward rescales by", _SMALL),
    _Row("Embedding|EmbeddingBag|Index|IndexSelect|Gather|Scatter.*|IndexPut|IndexAdd|Take.*|Nll.*",
         "ind.*|target.*|offset.*", "which elements get gradient", _INTEGERS),
    _Row("Nll.*", "total_weight", "the mean divides by it", _SMALL),
    _Row("Nll.*|.*Loss|BinaryCrossEntropy.*", ".*", "the loss's derivative needs what it compares",
         "compute the loss in chunks of the batch"),
    _Row("EmbeddingBag", ".*", "which rows get gradient, and how much", _INTEGERS),
    _Row("NativeDropout|FusedDropout", ".*", "which elements were dropped", f"{_MASK}; or leave dropout out"),
    _Row("MaxPool.*|AdaptiveMaxPool.*|Max|Min|Amax|Amin|Sort|Topk|Kthvalue|Median|Mode|Cummax|Cummin", "ind.*|result1",
         "where the chosen elements were", _INTEGERS),
    _Row("Maximum|Minimum|Fmax|Fmin", ".*", "which of the two it took is read off both", _COMPRESS),
    _Row("Max|Min|Amax|Amin|Logsumexp|LinalgVectorNorm|Norm|Cdist|WeightNormInterface", ".*",
         "its derivative compares its input with its output", _COMPRESS),
    _Row("MaxPool.*|AvgPool.*|Adaptive.*Pool.*|Upsample.*|GridSampler.*", ".*", "pooling's gradient needs its input",
         _COMPRESS),
    _Row("Where|MaskedFill|MaskedSelect|MaskedScatter", "condition|mask", "which branch an element took", _MASK),
    _Row("MkldnnRnnLayer|CudnnRnn|ThnnFused.*Cell|MiopenRnn", ".*", "a recurrent layer keeps its gates and states",
         "shorter sequences between detach() calls, or encode them"),
    _Row(".*Backward", ".*", "the derivative of a derivative reads it: create_graph=True, or a gradient through a jvp",
         _COMPRESS),
    _Row("Recorded", ".*", "torchadx's fused linear keeps input, weight and what its activation's derivative reads",
         _COMPRESS),
    _Row("CheckpointFunction", ".*", "an input of a checkpointed region, which is run again from it", _COMPRESS),
    _Row("CompiledFunction", ".*", "torch.compile chose it when it split the graph into forward and backward",
         "checkpoint a region inside of the compiled function: the compiler keeps less then"),
)  # fmt: skip


def explain(node: str, slot: str, alias: str | None, residence: str, *, managed: bool) -> Reason:
    """Say why ``node`` keeps what its ``slot`` holds, and what can be done about it.

    Args:
        node: Name of the node, ``"AddmmBackward0"``.
        slot: Name of the slot, ``"mat1"``.
        alias: Who holds that memory anyway.
        residence: Where it is.
        managed: Whether an activation manager encoded or moved it.
    """
    why, remedy = _reason(node, slot)
    if residence == "recomputed":
        return Reason(why, "nothing: it is computed again in backward")
    if managed and alias is not None:
        return Reason(why, f"the caller holds this {alias} anyway: a policy function can keep it (meta.alias)")
    if managed:
        return Reason(why, f"nothing: it waits as {residence}")
    if alias is not None and not slot.startswith("ctx."):
        return Reason(why, f"nothing to gain: it is the memory of {_article(alias)}")
    return Reason(why, remedy)


def _article(alias: str) -> str:
    return f"the {alias}" if " " in alias else f"{'an' if alias[0] in 'aeiou' else 'a'} {alias}"


@functools.lru_cache(maxsize=1024)
def _reason(node: str, slot: str) -> Reason:
    op = re.sub(r"Backward\d*$", "", node)
    bare = re.sub(r"\[\d+\]$", "", slot)
    for row in _ROWS:
        if re.fullmatch(row.nodes, op) and re.fullmatch(row.slots, bare):
            return Reason(row.why, row.remedy)
    if bare == "saved_tensors":
        return Reason("its forward gave it to ctx.save_for_backward()", "keep less there, or encode it")
    return Reason(f"the derivative of {op} reads {bare}", "recompute it (checkpoint), encode it or move it")
