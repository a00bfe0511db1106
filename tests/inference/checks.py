"""How the tests of models compare what a wrapper gives with what the bare module gives."""

import contextlib
import gc
import warnings

import torch
import torch.autograd.forward_ad as fwad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten


def equal(got, expected):
    """Compare nested results bit for bit, what is no tensor included."""
    compare(got, expected, lambda g, e: torch.testing.assert_close(g, e, rtol=0, atol=0, equal_nan=True))


def near(got, expected):
    """Compare nested results of the same precision computed in another order: 1e-10 in float64."""

    def close(g, e):
        wide = {"rtol": 1e-10, "atol": 1e-10} if e.dtype is torch.float64 else {}
        torch.testing.assert_close(g, e, **wide)

    compare(got, expected, close)


def as_exact(got, plain, exact):
    """By distance to float64: at most twice the error of plain PyTorch, plus 1e-6 of the largest value."""
    expected = iter(tensors(exact))

    def close(g, p):
        e = next(expected).double()
        assert (g.dtype, g.shape) == (p.dtype, p.shape)
        error, allowed = (g.double() - e).abs(), (p.double() - e).abs()
        if e.numel():
            assert error.max() <= 2 * allowed.max() + 1e-6 * max(1.0, e.abs().max())

    compare(got, plain, close)


def compare(got, expected, close):
    got_leaves, got_spec = tree_flatten(got)
    leaves, spec = tree_flatten(expected)
    assert got_spec == spec
    for g, e in zip(got_leaves, leaves, strict=True):
        if torch.is_tensor(e):
            close(g, e)
        else:
            assert (type(g), g) == (type(e), e)


def tensors(tree):
    return [leaf for leaf in tree_flatten(tree)[0] if torch.is_tensor(leaf)]


def floats(tree):
    return [leaf for leaf in tensors(tree) if leaf.is_floating_point()]


def replaced(tree, old, new):
    """Return the tree with each tensor of ``old`` (by identity) replaced by its partner of ``new``."""
    leaves, spec = tree_flatten(tree)
    partner = {id(o): n for o, n in zip(old, new, strict=True)}
    return tree_unflatten([partner.get(id(leaf), leaf) for leaf in leaves], spec)


def step(module, args, kwargs):
    """One forward and backward in grad mode: outputs, and the gradients of inputs and parameters by name."""
    torch.manual_seed(1)
    leaves = [leaf.clone().requires_grad_() for leaf in floats((args, kwargs))]
    args, kwargs = replaced((args, kwargs), floats((args, kwargs)), leaves)
    out = module(*args, **kwargs)
    reached = [y for y in floats(out) if y.requires_grad]
    sum(y.square().sum() for y in reached).backward()
    found = {name: p.grad for name, p in module.named_parameters()}
    return torch.utils._pytree.tree_map(lambda y: y.detach() if torch.is_tensor(y) else y, out), leaves, found


def tangents(module, args, kwargs, along):
    """Outputs and their tangents by ``torch.func.jvp``, with the attention and LSTM whose derivatives PyTorch knows."""
    primals = floats(args)

    def f(*inputs):
        return tuple(floats(module(*replaced(args, primals, inputs), **kwargs)))

    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN", UserWarning)
        with torch.backends.mkldnn.flags(enabled=False):
            outputs, pushed = torch.func.jvp(f, tuple(primals), tuple(along))
    return tuple(y.detach() for y in outputs), tuple(t.detach() for t in pushed)


@contextlib.contextmanager
def dual(args, along):
    """Enter a dual level; give the arguments with tangents."""
    from torchadx.inference import make_dual

    primals = floats(args)
    with fwad.dual_level():
        yield replaced(args, primals, [make_dual(p, t) for p, t in zip(primals, along, strict=True)])


def lent(module):
    """Names of submodules whose ``forward``, or whole call, is found on the instance."""
    own = ("forward", "_compiled_call_impl")
    return {name for name, child in module.named_modules() if any(vars(child).get(way) is not None for way in own)}


def packed():
    """Count the packed tensors that are alive."""
    gc.collect()
    return sum(thing.is_mkldnn for thing in gc.get_objects() if type(thing) is torch.Tensor)
