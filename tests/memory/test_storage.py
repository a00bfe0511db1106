"""Whatever view of whatever memory is saved, backward gets that view again."""

import math

import pytest
import torch
from helpers import EVERY, EXACT, same_bits, through
from hypothesis import given, settings
from hypothesis import strategies as st

from torchadx.memory import ActivationManager
from torchadx.memory._storage import Region, View

MOVED = ("@disk", "lossless")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.bool)


def filled(numel, dtype):
    """Memory of which every element differs from its neighbours."""
    if dtype == torch.bool:
        return torch.arange(numel) % 3 == 0
    values = torch.arange(numel, dtype=torch.float64) % 251 - 125
    return (torch.complex(values, values + 0.5) if dtype.is_complex else values).to(dtype)


def slices(draw, view):
    axis = draw(st.integers(0, view.dim() - 1))
    start, step = draw(st.integers(0, view.shape[axis])), draw(st.integers(1, 3))
    stop = draw(st.integers(start, view.shape[axis]))
    return view[(slice(None),) * axis + (slice(start, stop, step),)]


def unfolds(draw, view):
    axis = draw(st.integers(0, view.dim() - 1))
    size = draw(st.integers(1, max(1, view.shape[axis])))
    return view.unfold(axis, size, draw(st.integers(1, 3))) if view.shape[axis] >= size else view


def diagonals(draw, view):
    return view.diagonal(draw(st.integers(-1, 1))) if view.dim() >= 2 else view


def expands(draw, view):
    return view.unsqueeze(draw(st.integers(0, view.dim()))).expand(*(draw(st.just(-1)),) * (view.dim() + 1))


def broadcasts(draw, view):
    return view.unsqueeze(0).expand(draw(st.integers(0, 4)), *view.shape)


def parts(draw, view):
    if not view.is_complex():
        return view
    return draw(st.sampled_from([torch.conj, lambda t: t.real, lambda t: t.imag, lambda t: t.conj().imag]))(view)


STEPS = (
    slices,
    unfolds,
    diagonals,
    expands,
    broadcasts,
    parts,
    lambda draw, view: view.permute(draw(st.permutations(range(view.dim())))),
    lambda draw, view: view.select(0, draw(st.integers(0, view.shape[0] - 1))) if view.shape[0] else view,
    lambda draw, view: view.view(torch.int16).view(view.dtype) if view.dtype == torch.bfloat16 else view,
)


@st.composite
def views(draw, dtypes=DTYPES):
    """A view of a storage, by one to four steps from a contiguous tensor somewhere in it."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    before, after = draw(st.sampled_from([0, 1, 7, 4096])), draw(st.sampled_from([0, 1, 7, 4096]))
    memory = filled(before + math.prod(shape) + after, draw(st.sampled_from(dtypes)))
    view = memory[before : before + math.prod(shape)].view(shape)
    for step in draw(st.lists(st.sampled_from(STEPS), max_size=4)):
        if view.dim():
            view = step(draw, view)
    return view


def check(policy, view, **options):
    got, manager = through(policy, view, **options)
    assert same_bits(got, view)
    assert (got.shape, got.dtype, got.device) == (view.shape, view.dtype, view.device)
    if view.numel():
        assert got.stride() == view.stride()
    assert got.is_conj() == view.is_conj()
    assert not got.requires_grad
    return got, manager


@settings(max_examples=250, deadline=None)
@given(view=views(), policy=st.sampled_from(MOVED))
def test_views_come_back(view, policy):
    with_source_gone, manager = check(policy, view)
    assert manager.report().storages == 1
    del with_source_gone


@settings(max_examples=300, deadline=None)
@given(view=views())
def test_what_stands_for_a_view(view):
    """The same without a codec: elements taken out, and the view made of them again."""
    storage = view.untyped_storage()
    region = Region.of(view, storage.nbytes())
    flat, own = region.elements(view, storage)
    assert flat.shape == (region.numel,)
    assert flat.is_contiguous()
    assert not flat.is_conj()
    assert own == (region.gathered is None)
    assert (flat.untyped_storage()._cdata == storage._cdata) == own
    back = View.of(view).restore(flat.clone(), region)
    assert same_bits(back, view)
    # no more than autograd would hold, and no more than twice what is shown unless indices overlap
    stored = storage.nbytes() // view.element_size()
    assert region.numel <= stored
    if region.numel < stored and view.numel():
        assert region.numel <= max(2 * view.numel(), view.unfold(0, 1, 1).numel() if view.dim() else 1) * 16
    if region.start == 0 and region.numel == stored:
        assert back.storage_offset() == view.storage_offset()


@settings(max_examples=100, deadline=None)
@given(view=views(dtypes=(torch.float32, torch.bfloat16)), policy=st.sampled_from(EVERY))
def test_views_survive_every_policy(view, policy):
    got, _ = through(policy, view)
    assert (got.shape, got.dtype) == (view.shape, view.dtype)
    if view.numel():
        assert got.stride() == view.stride()
    if policy in EXACT:
        assert same_bits(got, view)
    elif view.numel():
        assert (got.double() - view.double()).abs().max() <= 125


WHOLE = {
    "all of it": lambda m: m,
    "transposed": lambda m: m.t(),
    "a quarter, with an offset": lambda m: m[48:],
    "every second column": lambda m: m[:, ::2],
    "every second row": lambda m: m[1::2],
    "a chunk of columns": lambda m: m[:, 16:32],
    "expanded": lambda m: m.unsqueeze(1).expand(-1, 5, -1),
    "unfolded": lambda m: m.unfold(0, 3, 1),
    "flipped axes": lambda m: m.view(8, 8, 8, 8).permute(3, 1, 2, 0),
    "diagonal of blocks": lambda m: m.view(4, 16, 64).diagonal(0, 0, 1),
}


@pytest.mark.parametrize("policy", EXACT)
@pytest.mark.parametrize("how", WHOLE)
def test_strides_and_offset(how, policy):
    view = WHOLE[how](torch.randn(64, 64))
    got, _ = check(policy, view)
    if how != "diagonal of blocks":
        assert got.storage_offset() == view.storage_offset()


def test_a_slice_of_a_big_storage_takes_its_own_bytes():
    data = torch.randn(1000, 64)
    for view in (data[10:20], data[10:20].t(), data[::100], data[:, 3], data.as_strided((8, 8), (64 * 7, 5))):
        got, manager = check("@disk", view)
        (row,) = manager.report().rows
        assert row.held_bytes <= 2 * view.nbytes
        del got
    overlapping = data[:64, 0].unfold(0, 16, 1)
    _, manager = check("@disk", overlapping)
    assert manager.report().rows[0].held_bytes <= 64 * 64 * 4


def test_views_of_one_storage_share_what_is_read():
    leaf = torch.randn(64, 96, requires_grad=True)
    with ActivationManager("@disk", min_bytes=0) as manager:
        a, b, c = (leaf * 1).chunk(3, -1)
        loss = (a * b + b * c).sum()
    a, b, c = leaf.detach().chunk(3, -1)
    loss.backward()
    assert same_bits(leaf.grad, torch.cat((b, a + c, b), -1))
    (row,) = manager.report().rows
    assert (row.tensors, row.decodes) == (4, 1)


def test_dtypes_of_one_storage_are_told_apart():
    leaf = torch.randn(64, requires_grad=True)
    with ActivationManager("@disk", min_bytes=0):
        y = leaf * 1
        z = torch.view_as_complex(y.view(32, 2))
        loss = (y.square().sum() * z.abs().sum()) + (z * z.conj()).real.sum()
    y = leaf.detach().clone().requires_grad_()
    z = torch.view_as_complex(y.view(32, 2))
    expected = torch.autograd.grad((y.square().sum() * z.abs().sum()) + (z * z.conj()).real.sum(), y)
    assert same_bits(torch.autograd.grad(loss, leaf)[0], expected[0])


@pytest.mark.parametrize("policy", ["keep", "@disk", "lossless", "bf16"])
def test_version_counters_of_one_storage_are_told_apart(policy):
    """The cells of GRU and LSTM write into chunks of one storage, each of which has a counter of its own."""
    leaf = torch.zeros(2, 4096, requires_grad=True)
    with ActivationManager(policy, min_bytes=0):
        a, b = torch.unsafe_chunk(leaf * 1, 2)
        a.add_(1)
        first = a.square().sum()
        b.add_(1)
        second = b.square().sum()
    assert same_bits(torch.autograd.grad(first + second, leaf)[0], torch.full((2, 4096), 2.0))


def test_a_storage_that_grew_is_read_anew():
    x, leaf = torch.randn(64), torch.randn(256, requires_grad=True)
    with ActivationManager("@disk", min_bytes=0):
        first = (leaf[:64] * x.clone().detach()).sum() + (leaf[:64] * x).sum()
        x.resize_(256).copy_(torch.arange(256.0))
        second = (leaf * x).sum()
    assert same_bits(torch.autograd.grad(second, leaf)[0], torch.arange(256.0))
    del first


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 4), ()])
@pytest.mark.parametrize("policy", EVERY)
def test_empty_and_scalar(shape, policy):
    got, manager = through(policy, torch.zeros(shape))
    assert same_bits(got, torch.zeros(shape))
    if 0 in shape:
        (row,) = manager.report().rows
        assert row.reason == ("the policy is 'keep'" if policy == "keep" else "empty")


def test_empty_views_of_full_storages():
    memory = torch.randn(4096)
    for view in (memory[5:5], memory.as_strided((0, 3), (10, 1)), memory.view(64, 64)[:, 7:7], memory[:8].expand(0, 8)):
        got, manager = check("int8", view)
        assert [row.reason for row in manager.report().rows] == ["empty"]
        del got


SPECIALS = (math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, 1e-40, 3.4e38, 65504.0, 1.0)


@pytest.mark.parametrize("policy", EXACT)
def test_special_values_come_back_bit_for_bit(policy):
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        values = torch.tensor(SPECIALS, dtype=torch.float64).to(dtype).repeat(100)
        check(policy, values)
        check(policy, torch.complex(values.double(), values.double().flip(0)))
    payload = torch.tensor([0x7FC00001, 0x7F800001, 0x00000001], dtype=torch.int32).repeat(100)
    check(policy, payload.view(torch.float32))
