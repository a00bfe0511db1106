"""Rows beyond PyTorch's samples: options, gradients as functions, kinks, infinities, batches and second derivatives."""

import dataclasses
import pathlib
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from elemental_sites import EXACT, directions, faults, free, moved, plain, sites, title, unless_hole

from torchadx.autodiff.elemental import part, reads_result

sys.path.append(str(pathlib.Path(__file__).parents[1]))

from zoo import CASES
from zoo_networks import NETWORKS

aten = torch.ops.aten


def drawn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def gradient(f):
    """The gradient of a nonlinear sum of f, whose operations are those of backward passes."""
    return torch.func.grad(lambda x: (f(x) ** 3).sum())


IMAGE, TARGETS, CLASSES = (2, 4, 6, 6), (2, 4, 6, 6), (2, 6, 6)
INDEX = torch.tensor([[2, 0, 1], [1, 1, 3]])
DISTINCT = torch.tensor([[2, 0], [1, 3]])
MASK = torch.eye(6).bool()


def put(x):
    """In-place writes by number, slice, mask and diagonal."""
    y, v = x.clone(), x[:1].sin()
    y[:, DISTINCT] = v[:, :1, None]
    y[:, DISTINCT[0], :, DISTINCT[1]] = 2 * v[0, 0, :, 0]
    y[0] = v[0].exp()
    y[:, 1:3] *= 2
    y[:, :, MASK] = v[0, 0, 0]
    y.diagonal(0, 2, 3).mul_(3)
    y[:, DISTINCT] += v[:, :1, None]
    return y


def fixed():
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(TARGETS, generator=generator, dtype=torch.float64)
    return target, torch.randint(0, 4, CLASSES, generator=generator)


TARGET, LABEL = fixed()

GRADIENTS = {
    "elu": F.elu, "softplus": F.softplus, "hardswish": F.hardswish, "mish": F.mish, "hardsigmoid": F.hardsigmoid,
    "logsigmoid": F.logsigmoid, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu,
    "leaky_relu": F.leaky_relu, "hardtanh": F.hardtanh, "relu": F.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(1), "log_softmax": lambda x: x.log_softmax(1), "logsumexp": lambda x: x.logsumexp(1),
    "std": lambda x: x.std(1), "amax": lambda x: x.amax(1), "norm": lambda x: x.norm(dim=1),
    "sort": lambda x: x.sort(1)[0],
    "max": lambda x: x.max(1)[0], "cumsum": lambda x: x.cumsum(1), "select": lambda x: x[:, 1],
    "slice": lambda x: x[:, ::2],
    "diagonal": lambda x: x.diagonal(0, 1, 2), "unfold": lambda x: x.unfold(1, 2, 1), "index": lambda x: x[:, INDEX],
    "embedding": lambda x: F.embedding(INDEX, x[0, 0]), "padded": lambda x: F.embedding(INDEX, x[0, 0], padding_idx=1),
    "mse": lambda x: F.mse_loss(x, TARGET), "mse_each": lambda x: F.mse_loss(x, TARGET, reduction="none"),
    "smooth_l1": lambda x: F.smooth_l1_loss(x, TARGET), "huber": lambda x: F.huber_loss(x, TARGET, reduction="sum"),
    "bce": lambda x: F.binary_cross_entropy(x.sigmoid(), TARGET),
    "cross_entropy": lambda x: F.cross_entropy(x[:, :, 0, 0], torch.tensor([1, 3])),
    "cross_entropy_each": lambda x: F.cross_entropy(x[:, :, 0, 0], torch.tensor([1, 3]), reduction="none"),
    "cross_entropy_2d": lambda x: F.cross_entropy(x, LABEL),
    "cross_entropy_2d_each": lambda x: F.cross_entropy(x, LABEL, reduction="none"),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1), "max_pool3d": lambda x: F.max_pool3d(x, 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, 1), "adaptive": lambda x: F.adaptive_avg_pool2d(x, (2, 5)),
    "bilinear": lambda x: F.interpolate(x, size=(3, 5), mode="bilinear"),
    "nearest": lambda x: F.interpolate(x, size=(9, 5)),
    "reflect": lambda x: F.pad(x, (1, 2, 1, 1), mode="reflect"), "im2col": lambda x: F.unfold(x, 2),
    "layer_norm": lambda x: F.layer_norm(x, (6,)), "group_norm": lambda x: F.group_norm(x, 2),
    "conv2d": lambda x: F.conv2d(x, x[:, :2, :3, :2].sin(), groups=2, stride=2, padding=1),
}  # fmt: skip
FORWARD = {
    "put": put,
    "index": lambda x: [x[:, INDEX], x[:, INDEX[0], :, INDEX[1]], x[:, :, MASK], x[0, INDEX, 1], x[..., [0, 0, 5]]],
    "batch_norm": lambda x: F.batch_norm(x, drawn(4), drawn(4).abs(), drawn(4), drawn(4)),
    "batch_norm_train": lambda x: F.batch_norm(x, None, None, x[0, :, 0, 0], x[0, :, 0, 1], training=True),
    "layer_norm": lambda x: F.layer_norm(x, (6, 6), x[0, 0], x[0, 1]),
    "group_norm": lambda x: F.group_norm(x, 2, x[0, :, 0, 0], x[0, :, 0, 1]),
    "rms_norm": lambda x: F.rms_norm(x, (6,), x[0, 0, 0]),
    "resized": lambda x: [F.interpolate(x, size=(3, 9), mode=m) for m in ("nearest", "nearest-exact",
        "bilinear", "bicubic")],
    "pools": lambda x: [F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 3, 2, 1, True, False),
        F.adaptive_avg_pool2d(x, (4, 3))],
    "pads": lambda x: [F.pad(x, (1, -1, 2, 0)), F.pad(x[0], (2, 1, 0, 1), mode="reflect"), F.pad(x[0], (2, 1,
        0, 0), mode="circular")],
    "fft": lambda x: [torch.fft.irfft(torch.fft.rfft(x), n=5), torch.fft.fft2(x).abs(), torch.fft.ifft(x).imag.exp()],
    "picks": lambda x: [x.sort(1)[0], x.topk(2)[0], x.median(1)[0], x.cummax(1)[0], x.kthvalue(2, 1, True)[0]],
    "reduced": lambda x: [x.logsumexp((1, 2)), x.std((0, 2)), x.amax(1), x.prod(1), torch.linalg.vector_norm(x,
        3, dim=1)],
    "chosen": lambda x: [x.clamp(-0.5, 0.6), F.prelu(x, x[0, :, 0, 0]), torch.maximum(x, x[0]), F.hardtanh(x),
        x.lerp(x.sin(), x)],
    "losses": lambda x: [F.huber_loss(x, x[0] ** 2), F.binary_cross_entropy_with_logits(x, TARGET),
        F.cross_entropy(x, LABEL)],
}  # fmt: skip
FUNCTIONS = FORWARD | {f"gradient_of_{name}": gradient(f) for name, f in GRADIENTS.items()}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def every_site(name):
    """Functions of this file on one image, and the zoo's."""
    found = {name: (FUNCTIONS[name], drawn(*IMAGE)) for name in FUNCTIONS} | {
        case.name: (case.f, case.x) for case in CASES
    }
    f, x = found[name]
    return sites(f, x)


NAMES = [*FUNCTIONS, *(case.name for case in CASES)]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_derivatives(name):
    wrong = [fault for site in every_site(name) for fault in faults(site)[0]]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_read_results_that_are_not_kept_for_them(name):
    for site in every_site(name):
        if not reads_result(site.call.target) and not random(site):
            poisoned = dataclasses.replace(site, results=tuple(poison(result) for result in site.results))
            tangents, cotangents = directions(site)
            torch.testing.assert_close(part(poisoned).push(tangents), part(site).push(tangents), rtol=0, atol=0)
            torch.testing.assert_close(part(poisoned).pull(cotangents), part(site).pull(cotangents), rtol=0, atol=0)


def poison(result):
    """A result with its shape and dtype, and without its values."""
    return torch.full_like(result, torch.nan) if result is not None and result.is_floating_point() else result


def random(site):
    return torch.Tag.nondeterministic_seeded in site.call.target.tags


def at_other_values(site, back):
    """The derivative as a function of the operation's floating-point arguments and a direction."""
    spec, places = free(site)
    return lambda tensors, direction: moved(site, tensors, spec, places, direction, back)


@pytest.mark.parametrize("name", NAMES)
def test_rows_under_vmap(name):
    for site in every_site(name):
        if random(site) or part(site).kind == "sweep" or site.call.target is aten._neg_view.default:
            continue
        for direction, back in zip(directions(site), (False, True), strict=True):
            spec, places = free(site)
            batch = [torch.stack([spec[0][n], 0.9 * spec[0][n]]) for n in places]
            apart, f = torch.stack([direction, direction.flip(0)]), at_other_values(site, back)
            got = torch.func.vmap(f)(batch, apart)
            expected = torch.stack([f([t[n] for t in batch], apart[n]) for n in range(2)])
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10, msg=title(site))


def is_differentiable(site, direction, back):
    """Compare the gradient of a row's result, by all arguments that PyTorch does not hold fixed, with differences."""
    (leaves, _), places = free(site)
    f = at_other_values(site, back)

    def penalty(*tensors):
        return f(tensors, direction).abs().square().sum()

    def checked(moving):
        points = [plain(leaf).requires_grad_(any(leaf is x for x in moving)) for leaf in (leaves[n] for n in places)]
        return not penalty(*points).requires_grad or torch.autograd.gradcheck(penalty, points, fast_mode=True)

    result = unless_hole(lambda: checked([leaves[n] for n in places]))
    # where PyTorch holds one of them constant, by the site's own
    return unless_hole(lambda: checked([site.x])) is not False if result is None else result


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NETWORKS])
def test_rows_can_be_differentiated_again(name):
    for site in every_site(name):
        if not random(site) and part(site).kind != "sweep" and {site.x.dtype, site.y.dtype} <= set(EXACT):
            tangents, cotangents = directions(site, 1)
            assert is_differentiable(site, tangents, back=False), title(site)
            assert is_differentiable(site, cotangents, back=True), title(site)
