"""Every way to differentiate a function ``f(x, w, b)``, as one table that the closure tests run through.

Each entry takes the function, its arguments and the indices of those that carry gradients or tangents, and returns
a pytree of results. ``b`` may be ``None`` and is then never carried.
"""

import torch
import torch.autograd.forward_ad as fwAD
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils.checkpoint import checkpoint


def _seeds(args, carried, salt=0):
    generator = torch.Generator().manual_seed(1 + salt)
    # drawn on the CPU: the same on every device
    return tuple(
        torch.randn(args[i].shape, dtype=args[i].dtype, generator=generator).to(args[i].device) for i in carried
    )


def _of(f, args, carried):
    """The function of the carried arguments alone."""

    def g(*some):
        full = list(args)
        for i, value in zip(carried, some, strict=True):
            full[i] = value
        return f(*full)

    return g, tuple(args[i] for i in carried)


def _loss(g):
    return lambda *some: g(*some).pow(2).sum()


def _leaves(some):
    return [t.detach().clone().requires_grad_() for t in some]


def _weights(y):
    return torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape)


def backward(f, args, carried):
    g, some = _of(f, args, carried)
    leaves = _leaves(some)
    y = g(*leaves)
    return torch.autograd.grad(y, leaves, _weights(y))


def double_backward(f, args, carried):
    g, some = _of(f, args, carried)
    leaves = _leaves(some)
    first = torch.autograd.grad(_loss(g)(*leaves), leaves, create_graph=True)
    return torch.autograd.grad(sum((p * p).sum() for p in first), leaves)


def dual_level(f, args, carried):
    g, some = _of(f, args, carried)
    with fwAD.dual_level():
        y = g(*map(fwAD.make_dual, some, _seeds(args, carried)))
        return tuple(fwAD.unpack_dual(y))


def dual_level_with_grad(f, args, carried):
    """Forward AD and reverse mode at one level: the tangent itself is differentiated."""
    g, some = _of(f, args, carried)
    leaves, seeds = _leaves(some), _leaves(_seeds(args, carried))
    with fwAD.dual_level():
        y, ty = fwAD.unpack_dual(g(*map(fwAD.make_dual, leaves, seeds)))
        return torch.autograd.grad(((y - ty) ** 2).sum(), [*leaves, *seeds])


def no_grad_dual(f, args, carried):
    with torch.no_grad():
        return dual_level(f, args, carried)


def inference(f, args, carried):
    with torch.inference_mode():
        return f(*args).clone()


def jvp_in_inference_mode(f, args, carried):
    with torch.inference_mode():
        return tuple(t.clone() for t in func_jvp(f, args, carried))


def func_jvp(f, args, carried):
    g, some = _of(f, args, carried)
    return jvp(g, some, _seeds(args, carried))


def func_vjp(f, args, carried):
    g, some = _of(f, args, carried)
    y, pull = vjp(g, *some)
    return y, pull(_weights(y))


def func_grad(f, args, carried):
    g, some = _of(f, args, carried)
    return grad(_loss(g), tuple(range(len(some))))(*some)


def _jacobian(transform):
    def run(f, args, carried):
        g, some = _of(f, args, carried)
        return transform(g, tuple(range(len(some))))(*some)

    return run


def func_hessian(f, args, carried):
    g, some = _of(f, args, carried)
    return hessian(_loss(g), tuple(range(len(some))))(*some)


def reverse_over_forward(f, args, carried):
    g, some = _of(f, args, carried)
    return jacrev(jacfwd(_loss(g)))(*some)


def jvp_of_jvp(f, args, carried):
    g, some = _of(f, args, carried)
    u, v = _seeds(args, carried), _seeds(args, carried, 1)
    return jvp(lambda *a: jvp(g, a, u)[1], some, v)


def jvp_of_jvp_of_grad(f, args, carried):
    g, some = _of(f, args, carried)
    u, v = _seeds(args, carried), _seeds(args, carried, 1)
    first = grad(_loss(g), tuple(range(len(some))))
    return jvp(lambda *a: jvp(first, a, u)[1], some, v)[1]


def hessian_vector_product(f, args, carried):
    g, some = _of(f, args, carried)
    return jvp(grad(_loss(g), tuple(range(len(some)))), some, _seeds(args, carried))


def func_linearize(f, args, carried):
    g, some = _of(f, args, carried)
    y, push = linearize(g, *some)
    return y, push(*_seeds(args, carried))


def mean_flow(f, args, carried):
    """The MeanFlow loss: reverse mode through a tangent."""
    g, some = _of(f, args, carried)
    leaves = _leaves(some)
    y, ty = jvp(g, tuple(leaves), _seeds(args, carried))
    return torch.autograd.grad(((y - ty) ** 2).sum(), leaves)


def mean_flow_hvp(f, args, carried):
    """Forward mode through reverse mode through a tangent."""
    g, some = _of(f, args, carried)
    u, v = _seeds(args, carried), _seeds(args, carried, 1)
    loss = lambda *a: jvp(g, a, u)[1].pow(2).sum()  # noqa: E731
    return jvp(grad(loss, tuple(range(len(some)))), some, v)


def _batched(args, carried, size=3):
    return tuple(torch.stack([args[i], *_seeds(args, (i,) * (size - 1), i)]) for i in carried)


def func_vmap(f, args, carried):
    g, some = _of(f, args, carried)
    return vmap(g)(*_batched(args, carried))


def vmap_in_other_dims(f, args, carried):
    g, some = _of(f, args, carried)
    return vmap(g, in_dims=-1, out_dims=-1)(*(t.movedim(0, -1) for t in _batched(args, carried)))


def nested_vmap(f, args, carried):
    g, some = _of(f, args, carried)
    twice = tuple(torch.stack([t, 2 * t]) for t in _batched(args, carried))
    return vmap(vmap(g))(*twice)


def per_sample_gradients(f, args, carried):
    g, some = _of(f, args, carried)
    return vmap(grad(_loss(g), tuple(range(len(some)))))(*_batched(args, carried))


def per_sample_gradients_of_the_rest(f, args, carried):
    """Batch what carries; differentiate everything."""
    everything = tuple(i for i, t in enumerate(args) if t is not None)
    g, some = _of(f, args, everything)
    mapped = iter(_batched(args, carried))
    inputs = tuple(next(mapped) if i in carried else args[i] for i in everything)
    in_dims = tuple(0 if i in carried else None for i in everything)
    return vmap(grad(_loss(g), tuple(range(len(some)))), in_dims)(*inputs)


def per_sample_jvp(f, args, carried):
    g, some = _of(f, args, carried)
    batch = _batched(args, carried)
    tangents = tuple(torch.cos(t) for t in batch)
    return vmap(lambda p, t: jvp(g, p, t))(batch, tangents)


def jvp_of_vmap_with_shared_tangent(f, args, carried):
    g, some = _of(f, args, carried)
    seeds = _seeds(args, carried)
    return vmap(lambda *p: jvp(g, p, seeds))(*_batched(args, carried))


def batch_of_tangents(f, args, carried):
    g, some = _of(f, args, carried)
    tangents = tuple(torch.stack([t, t.cos(), -t]) for t in _seeds(args, carried))
    return vmap(lambda *t: jvp(g, some, t), out_dims=(None, 0))(*tangents)


def gradient_of_a_batch_of_tangents(f, args, carried):
    g, some = _of(f, args, carried)
    tangents = tuple(torch.stack([t, t.cos(), -t]) for t in _seeds(args, carried))

    def loss(some, tangents):
        return vmap(lambda *t: jvp(g, some, t)[1])(*tangents).pow(3).sum()

    return grad(loss, (0, 1))(some, tangents)


def gradient_with_one_batched_tangent(f, args, carried):
    """The first tangent is a batch, the others are shared by it."""
    g, some = _of(f, args, carried)
    first, *rest = _seeds(args, carried)

    def loss(some, first, rest):
        return vmap(lambda t: jvp(g, some, (t, *rest))[1])(torch.stack([first, first.cos()])).pow(3).sum()

    return grad(loss, (0, 1, 2))(some, first, tuple(rest))


def _checkpointed(reentrant):
    def run(f, args, carried):
        g, some = _of(f, args, carried)
        leaves = _leaves(some)
        y = checkpoint(g, *leaves, use_reentrant=reentrant)
        y.backward(_weights(y))
        return [t.grad for t in leaves]

    return run


EVERY = {
    "backward": backward,
    "double backward": double_backward,
    "dual_level": dual_level,
    "dual_level with grad": dual_level_with_grad,
    "no_grad dual_level": no_grad_dual,
    "inference_mode": inference,
    "jvp in inference_mode": jvp_in_inference_mode,
    "func.jvp": func_jvp,
    "func.vjp": func_vjp,
    "func.grad": func_grad,
    "jacfwd": _jacobian(jacfwd),
    "jacrev": _jacobian(jacrev),
    "hessian": func_hessian,
    "jacrev(jacfwd)": reverse_over_forward,
    "jvp of jvp": jvp_of_jvp,
    "jvp of jvp of grad": jvp_of_jvp_of_grad,
    "hvp": hessian_vector_product,
    "linearize": func_linearize,
    "MeanFlow": mean_flow,
    "hvp of MeanFlow": mean_flow_hvp,
    "vmap": func_vmap,
    "vmap in other dims": vmap_in_other_dims,
    "nested vmap": nested_vmap,
    "per-sample gradients": per_sample_gradients,
    "per-sample gradients of the rest": per_sample_gradients_of_the_rest,
    "per-sample jvp": per_sample_jvp,
    "per-sample jvp, shared tangent": jvp_of_vmap_with_shared_tangent,
    "batch of tangents": batch_of_tangents,
    "gradient of a batch of tangents": gradient_of_a_batch_of_tangents,
    "gradient with one batched tangent": gradient_with_one_batched_tangent,
    "checkpoint": _checkpointed(False),
    "checkpoint, reentrant": _checkpointed(True),
}
