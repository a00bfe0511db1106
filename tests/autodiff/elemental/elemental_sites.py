"""Every place where a recorded function has a derivative, and what PyTorch says that it is."""

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from torchadx.autodiff._program import Ref
from torchadx.autodiff._record import record
from torchadx.autodiff.elemental import Site, part

aten = torch.ops.aten

# what PyTorch says where it has no derivative to compare with
HOLES = (
    "is not implemented", "not differentiable", "does not support automatic differentiation", "forward AD",
    "ZeroTensors are immutable",
)  # fmt: skip
EXACT = (torch.float64, torch.complex128)


def differentiable(value):
    if not isinstance(value, torch.Tensor) or value.dtype == torch.complex32:
        return False
    return value.is_floating_point() or value.is_complex()


def sites(f, *arguments):
    """Record f, run it, and return a Site for every argument that depends on f's, and every result."""
    program = record(lambda *xs: [y for y in tree_leaves(f(*xs)) if isinstance(y, torch.Tensor)], arguments, None)
    values = program.start(arguments)
    dependent, found = set(program.inputs), []
    for call in program.calls:
        call.run(values)
        args, kwargs = call.bind(values)
        results = tuple(None if index is None else values[index] for index in call.outputs)
        for n, item in enumerate(call.args):
            several = type(item) in (list, tuple)
            for k, leaf in enumerate(item if several else [item]):
                if isinstance(leaf, Ref) and leaf.index in dependent and differentiable(values[leaf.index]):
                    wrt = (n, k) if several else (n,)
                    of = [m for m, result in enumerate(results) if differentiable(result)]
                    found += [Site(call, args, kwargs, results, wrt, m) for m in of]
        if not dependent.isdisjoint(call.inputs):
            dependent.update(index for index in call.outputs if index is not None)
    return found


def title(site):
    return f"{site.call.target} by {site.wrt} of {site.of}: {tuple(site.x.shape)} to {tuple(site.y.shape)}"


def directions(site, count=2):
    tangents = torch.randn(count, *site.x.shape, dtype=site.x.dtype)
    return tangents, torch.randn(count, *site.y.shape, dtype=site.y.dtype)


def unless_hole(compute):
    """Return what PyTorch computes, or None where it says that it cannot."""
    try:
        return compute()
    except (RuntimeError, NotImplementedError) as error:
        if any(words in str(error) for words in HOLES):
            return None
        raise


def plain(x):
    """The same numbers laid out like tangents: PyTorch's forward mode wants both alike."""
    return x.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def expected_push(site, tangents):
    f, x = site.function(), plain(site.x)
    return unless_hole(lambda: torch.stack([torch.func.jvp(f, (x,), (plain(t),))[1] for t in tangents]))


def expected_pull(site, cotangents):
    f, x = site.function(), plain(site.x)
    return unless_hole(lambda: torch.stack([torch.func.vjp(f, x)[1](c)[0] for c in cotangents]))


def close(got, expected):
    if (got.shape, got.dtype) != (expected.shape, expected.dtype):
        return False
    tolerance = 1e-10 if got.dtype in EXACT else 8 * torch.finfo(got.dtype).eps
    return torch.allclose(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def inner(a, b):
    """The real inner product that PyTorch's complex cotangents belong to."""
    return (a * b.conj()).sum().real


def faults(site):
    """Return what is wrong with the derivative at a site, and its kind: None where PyTorch has none, or another."""
    found = unless_hole(lambda: part(site))
    if found is None or found.kind == "sweep":
        return [], found and found.kind
    if one_way(site) and site.call.target is not aten.embedding.default:
        return [], None
    wrong = []
    tangents, cotangents = directions(site)
    pushed, pulled = found.push(tangents), found.pull(cotangents)
    for name, got, expected in (
        ("push", pushed, expected_push(site, tangents)),
        ("pull", pulled, None if only_together(site) else expected_pull(site, cotangents)),
    ):
        if expected is not None and not close(got, expected):
            wrong.append(f"{name} of {title(site)}")
    exact = {site.x.dtype, site.y.dtype} <= set(EXACT) and pushed.isfinite().all() and pulled.isfinite().all()
    if exact and not close(inner(pushed, cotangents), inner(tangents, pulled)) and not one_way(site):
        wrong.append(f"transposes of {title(site)}")
    if exact and found.matrix is not None:
        rows = found.matrix()
        if not close(tangents.reshape(2, -1) @ rows.mT, pushed.reshape(2, -1)):
            wrong.append(f"matrix of {title(site)}")
    return wrong, found.kind


def only_together(site):
    """PyTorch differentiates a group norm's statistics by reverse mode only where the result has a cotangent too."""
    return site.of > 0 and site.call.target is aten.native_group_norm.default


def one_way(site):
    """PyTorch's derivatives that are no transposes of each other: padding is pushed and not pulled, so is a count."""
    if site.call.target in (aten.nll_loss_backward.default, aten.nll_loss2d_backward.default):
        return site.wrt == (6,)
    return site.call.target is aten.embedding.default and site.arg(2, "padding_idx", -1) >= 0


def moved(site, tensors, spec, places, direction, back):
    """The derivative of the operation at other values of its floating-point arguments."""
    leaves = [tensors[places.index(n)] if n in places else leaf for n, leaf in enumerate(spec[0])]
    args = tree_unflatten(leaves, spec[1])
    results = site.call.target(*args, **site.kwargs)
    results = tuple(results) if site.call.several else (results,)
    found = part(Site(site.call, args, site.kwargs, results, site.wrt, site.of))
    return found.pull(direction) if back else found.push(direction)


def free(site):
    """Return the arguments of a site flat, and where floating-point tensors are among them."""
    spec = tree_flatten(site.args)
    return spec, [n for n, leaf in enumerate(spec[0]) if differentiable(leaf)]
