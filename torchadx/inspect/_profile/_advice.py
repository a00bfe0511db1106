"""Rules that say what of a profile to look at first: each gives its evidence, or nothing."""

from collections.abc import Callable, Iterator, Sequence

from torchadx.activations import known
from torchadx.inspect._profile._evidence import Advice, Evidence
from torchadx.inspect._profile._rows import ModuleRow
from torchadx.memory.report import size


def advise(evidence: Evidence) -> tuple[Advice, ...]:
    """Apply every rule; the largest share comes first, time before memory where they are equal."""
    found = [advice for rule in RULES for advice in rule(evidence)]
    return tuple(sorted(found, key=lambda advice: (-advice.share, advice.of != "time")))


def _name(row: ModuleRow) -> str:
    return f"{row.module or '(model)'} ({row.class_name})"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _counted(count: int, noun: str, ending: str = "s") -> str:
    return f"{count} {noun}{'' if count == 1 else ending}"


def _inner(evidence: Evidence) -> list[ModuleRow]:
    return [row for row in evidence.modules if row.module is not None]


def heavy_module(evidence: Evidence) -> Iterator[Advice]:
    """One module of several takes much of the time by itself."""
    rows = _inner(evidence)
    for row in rows if len(rows) > 2 else ():
        share = evidence.share(row.forward_self_ms + row.backward_self_ms)
        if share >= 0.3:
            yield Advice(
                f"{_name(row)} takes {_percent(share)} of the time by itself",
                f"{row.forward_self_ms:.3f} ms in forward and {row.backward_self_ms:.3f} ms in backward "
                f"of {evidence.total_ms:.3f} ms, in {_counted(row.calls, 'call')}",
                "start here: ops() tells its operators; a lower precision (torch.autocast) or torch.compile of this "
                "module alone are the least changes",
                share,
            )


def slow_backward(evidence: Evidence) -> Iterator[Advice]:
    """Backward of a layer costs about twice its forward: two products for one."""
    for row in _inner(evidence):
        share = evidence.share(row.backward_self_ms)
        plain = row.backward_self_ms - row.recomputed_ms
        if share >= 0.1 and row.calls and plain > 4 * row.forward_self_ms:
            yield Advice(
                f"backward of {_name(row)} is slow for its forward",
                f"{row.backward_self_ms:.3f} ms in backward, {_percent(share)} of the time, "
                f"for {row.forward_self_ms:.3f} ms in forward; a matrix product takes about twice",
                "look for indexing, gathers, broadcasts and non-contiguous views in its forward, whose backward "
                "scatters or sums; a torch.autograd.Function of its own or torch.compile can fuse these",
                share,
            )


def small_ops(evidence: Evidence) -> Iterator[Advice]:
    """Many operators that do next to nothing: what it costs to call them counts."""
    small = [row for row in evidence.ops if row.name.startswith("aten::") and row.self_ms < 5e-3 * row.calls]
    calls, spent = sum(row.calls for row in small), sum(row.self_ms for row in small)
    if calls >= 1000 and evidence.share(spent) >= 0.1:
        yield Advice(
            f"{calls} operators take less than 5 us each",
            f"{spent:.3f} ms in all, {_percent(evidence.share(spent))} of the time, {1e3 * spent / calls:.1f} us "
            "each: overhead rather than arithmetic",
            "torch.compile(model) fuses them; larger batches spread the overhead",
            evidence.share(spent),
        )


def idle_device(evidence: Evidence) -> Iterator[Advice]:
    """The device waits for the host."""
    idle = 1 - evidence.share(evidence.busy_ms)
    if evidence.kernels >= 100 and idle >= 0.5:
        yield Advice(
            f"the device is idle for {_percent(idle)} of the time",
            f"{evidence.kernels} kernels ran for {evidence.busy_ms:.3f} ms of {evidence.total_ms:.3f} ms, "
            f"{1e3 * evidence.busy_ms / evidence.kernels:.1f} us each",
            'torch.compile(model, mode="reduce-overhead") launches them as one CUDA graph; larger batches help, too',
            idle,
        )


def conversions(evidence: Evidence) -> Iterator[Advice]:
    """Tensors change their type or their device inside the step."""
    row = evidence.op("aten::_to_copy")
    share = evidence.share(max(row.total_ms, row.device_ms))
    if share >= 0.05:
        yield Advice(
            f"{row.calls} conversions of type or device",
            f"aten::_to_copy takes {row.total_ms:.3f} ms, {_percent(share)} of the time",
            "create tensors with the type and on the device where they are used; let inputs come from pinned memory "
            "with non_blocking=True; keep weights in the type they are multiplied in",
            share,
        )


def layouts(evidence: Evidence) -> Iterator[Advice]:
    """Tensors are copied for their layout."""
    clone, contiguous = evidence.op("aten::clone"), evidence.op("aten::contiguous")
    share = evidence.share(clone.total_ms)
    if share >= 0.05:
        yield Advice(
            f"{clone.calls} copies of tensors, for a contiguous layout",
            f"aten::clone takes {clone.total_ms:.3f} ms, {_percent(share)} of the time; "
            f"{contiguous.calls} of the calls are contiguous(), others reshape() of what no view can show",
            "transpose once, or where the result is small; keep channels_last throughout; view() instead of "
            "reshape() raises where a copy would be made",
            share,
        )


def synchronizations(evidence: Evidence) -> Iterator[Advice]:
    """The host waits for a number of the device."""
    rows = [evidence.op(name) for name in ("aten::_local_scalar_dense", "aten::nonzero")]
    calls, spent = sum(row.calls for row in rows), sum(row.total_ms for row in rows)
    if evidence.kernels and calls:
        yield Advice(
            f"the host waits {calls} times for the device",
            f"item(), a condition on a tensor, or nonzero(): {spent:.3f} ms, "
            f"{_percent(evidence.share(spent))} of the time, and launches stop meanwhile",
            "keep the loss as a tensor, and read it every n-th step; torch.where instead of a condition or a mask",
            evidence.share(spent),
        )


def data(evidence: Evidence) -> Iterator[Advice]:
    """The step waits for its batch."""
    row = evidence.range("enumerate(DataLoader)")
    share = evidence.share(row.total_ms)
    if share >= 0.1:
        yield Advice(
            f"loading data takes {_percent(share)} of the time",
            f"{_counted(row.calls, 'batch', 'es')} in {row.total_ms:.3f} ms of {evidence.total_ms:.3f} ms",
            "DataLoader(num_workers=..., persistent_workers=True, pin_memory=True) loads while the model runs",
            share,
        )


def outside(evidence: Evidence) -> Iterator[Advice]:
    """Much runs neither in a module, nor in backward, nor in what is known."""
    (row,) = (row for row in evidence.modules if row.module is None)
    known = evidence.range("Optimizer.").total_ms + evidence.range("enumerate(DataLoader)").total_ms
    rest = row.forward_self_ms - known
    if evidence.share(rest) >= 0.3:
        yield Advice(
            f"{_percent(evidence.share(rest))} of the time is outside of modules and of backward",
            f"{rest:.3f} ms of {evidence.total_ms:.3f} ms, optimizers and DataLoaders apart",
            "put torch.profiler.record_function ranges around suspects and export_chrome_trace(), or "
            "profile(stacks=True); if nothing else ran, it is Python and the engine of autograd: larger batches",
            evidence.share(rest),
        )


def optimizer(evidence: Evidence) -> Iterator[Advice]:
    """The optimizer updates parameters one by one."""
    row = evidence.range("Optimizer.step#")
    share, each = evidence.share(row.total_ms), row.ops / max(row.calls, 1)
    if share >= 0.05 and each >= 20 and not any("_foreach_" in name or "_fused_" in name for name in row.names):
        yield Advice(
            f"the optimizer's step takes {_percent(share)} of the time, parameter by parameter",
            f"{row.total_ms:.3f} ms in {_counted(row.calls, 'step')}, {each:.0f} operators each",
            "fused=True, where the optimizer has it, or foreach=True updates all parameters in a few calls",
            share,
        )


def recomputation(evidence: Evidence) -> Iterator[Advice]:
    """Checkpoints run forwards again."""
    rows = [row for row in _inner(evidence) if row.recomputed]
    spent = max((row.recomputed_ms for row in evidence.modules), default=0.0)
    share = evidence.share(spent)
    if rows and share >= 0.1:
        most = max(rows, key=lambda row: row.recomputed_ms)
        yield Advice(
            f"recomputing takes {_percent(share)} of the time",
            f"{spent:.3f} ms in backward; most of it {_name(most)}, {most.recomputed} times",
            'torchadx.memory.managed(module, "bf16") keeps such activations in half the memory instead; checkpoint '
            "what is cheap to compute and large to keep",
            share,
        )


def memory(evidence: Evidence) -> Iterator[Advice]:
    """One module keeps much of what forward leaves for backward."""
    rows = _inner(evidence)
    kept = sum(row.kept_bytes for row in rows)
    for row in rows if len(rows) > 2 and kept >= 2**20 else ():
        share = row.kept_bytes / kept
        if share >= 0.3:
            yield Advice(
                f"{_name(row)} keeps {_percent(share)} of what forward leaves for backward",
                f"{size(row.kept_bytes)} of {size(kept)} were still allocated when backward began, "
                f"from {_counted(row.calls, 'call')}",
                'torchadx.memory.managed(module, "bf16") or torch.utils.checkpoint of this module alone; '
                "torchadx.inspect.saved(model) tells which tensors they are",
                share,
                "memory",
            )


def fusion(evidence: Evidence) -> Iterator[Advice]:
    """An activation reads and writes again what the layer before it just wrote."""
    rows = {row.module: row for row in evidence.modules}
    fused = {type(module).__name__ for activation in known() for module in activation.modules}
    found = [
        (first, second)
        for first, second in evidence.pairs
        if rows[first].class_name == "Linear" and rows[second].class_name in fused
    ]
    spent = sum(rows[second].device_forward_ms + rows[second].device_backward_ms for _, second in found)
    share = evidence.share(spent)
    if share >= 0.02:
        yield Advice(
            f"{len(found)} activations right after a Linear take {_percent(share)} of the time",
            f"{spent:.3f} ms on the device, the first is {_name(rows[found[0][1]])} after {_name(rows[found[0][0]])}",
            "torchadx.nn.Linear(..., activation=...) computes it along with the product",
            share,
        )


#: what ``advise`` applies
RULES: Sequence[Callable[[Evidence], Iterator[Advice]]] = (
    heavy_module,
    slow_backward,
    small_ops,
    idle_device,
    conversions,
    layouts,
    synchronizations,
    data,
    outside,
    optimizer,
    recomputation,
    memory,
    fusion,
)
