"""Stores of a GPU's tensors: real streams, events and pinned memory."""

import gc

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from torchadx.memory.stores import STORES, DiskStore, HostStore, StaleCopyError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

MB = 1 << 20


@pytest.fixture
def busy():
    """Give the current stream work that takes it tens of milliseconds at least."""
    left = torch.randn(4096, 4096, device="cuda")

    def work():
        result = left
        for _ in range(30):
            result = torch.mm(left, result)
        return result

    work()
    torch.cuda.synchronize()
    return work


def ones(nbytes=MB, value=1.0):
    return torch.full((nbytes // 4,), value, device="cuda")


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("lent", [False, True], ids=["owned", "borrowed"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64, torch.int64], ids=str
)
def test_the_same_bits_come_back_to_the_same_device(name, lent, dtype):
    store = STORES[name]()
    raw = torch.randint(0, 2, (8 * 1001,), dtype=torch.uint8, device="cuda")
    parts = (raw.view(dtype), torch.tensor(True, device="cuda"), torch.empty(0, device="cuda"))
    expected = tuple(part.clone() for part in parts)
    stored = store.put(parts, raw if lent else None)
    for _ in range(3):
        for got, part in zip(stored.get(), expected, strict=True):
            assert (got.device, got.dtype, got.shape) == (part.device, part.dtype, part.shape)
            assert got.reshape(-1).view(torch.uint8).equal(part.reshape(-1).view(torch.uint8))
        store.flush()
    store.close()


def test_host_memory_is_pinned_up_to_the_cap():
    store = HostStore(pool_bytes=4 * MB, slab_bytes=2 * MB)
    stored = [store.put((ones(2 * MB),)) for _ in range(3)]
    assert [one._item.copies[0].is_pinned() for one in stored] == [True, True, False]
    assert (store.pinned_bytes, store.pageable_bytes) == (4 * MB, 2 * MB)
    assert all(one.get()[0].eq(1).all() for one in stored)


def test_put_and_get_do_not_wait_for_the_gpu(busy):
    store = HostStore()
    # getting pinned memory may wait
    store.put((ones(),))
    store.flush()
    first = ones()
    busy()
    done = torch.cuda.Event()
    stored = store.put((first,))
    got = stored.get()[0]
    done.record()
    assert not done.query()
    assert store.seconds_waited == 0
    assert got.eq(1).all()


def test_the_copy_waits_for_the_stream_that_made_the_tensor(busy):
    store = HostStore()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        part = torch.zeros(MB, device="cuda")
        part += busy()[0, 0] * 0 + 5
        stored = store.put((part,))
    del part
    store.flush()
    assert stored.get()[0].eq(5).all()


def test_the_copy_back_is_waited_for_by_whatever_stream_asks(busy):
    store = HostStore(window_bytes=64 * MB)
    stored = [store.put((ones(4 * MB, number),)) for number in range(30)]
    store.flush()
    sums = []
    for number in reversed(range(30)):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            if number % 10 == 0:
                busy()
            part = stored.pop().get()[0]
            sums.append(part.double().mean())
            # freed while its kernel may not have begun: its memory must not be reused yet
            del part
    torch.cuda.synchronize()
    assert [total.item() for total in sums] == list(range(29, -1, -1))
    assert store.reloads == 0


def test_memory_on_the_gpu_is_freed_once_copied_and_bounded_meanwhile():
    store = HostStore(window_bytes=8 * MB)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    stored = [store.put((ones(4 * MB, number),)) for number in range(40)]
    assert torch.cuda.max_memory_allocated() - before <= 16 * MB
    store.flush()
    assert (store.resident_now, store.bytes_now) == (0, 160 * MB)
    assert torch.cuda.memory_allocated() == before
    for number in reversed(range(40)):
        assert stored.pop().get()[0].eq(number).all()
        assert store.resident_now <= 8 * MB
    assert torch.cuda.memory_allocated() == before


def test_a_change_before_the_copy_is_done_is_found_out(busy):
    store = HostStore()
    owner = ones()
    busy()
    stored = store.put((owner.detach(),), owner)
    owner.add_(1)
    with pytest.raises(StaleCopyError):
        stored.get()
    store.flush()
    with pytest.raises(StaleCopyError):
        stored.get()


def test_a_change_after_the_copy_is_done_is_not_seen(busy):
    store = HostStore()
    owner = ones()
    busy()
    stored = store.put((owner.detach(),), owner)
    early = stored.get()[0]
    store.flush()
    owner.add_(1)
    assert early.eq(1).all()
    assert stored.get()[0].eq(1).all()


def test_pinned_memory_is_reused_step_after_step():
    store = HostStore(slab_bytes=8 * MB)
    sizes = set()
    for step in range(30):
        stored = [store.put((ones(MB, step * 100 + number),)) for number in range(20)]
        while stored:
            assert stored.pop().get()[0].eq(step * 100 + len(stored)).all()
        sizes.add(store.pinned_bytes)
    assert len(sizes) <= 2
    assert max(sizes) <= 32 * MB
    store.close()
    assert store.pinned_bytes == 0


@pytest.mark.parametrize("name", STORES)
def test_gradients_are_the_same_bits(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(layer for _ in range(6) for layer in (nn.Linear(512, 512), nn.GELU(), nn.LayerNorm(512)))
    ).cuda()
    x = torch.randn(256, 512, device="cuda")
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    store = STORES[name]()

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() in own or not tensor.is_contiguous():
            return tensor.detach()
        return store.put((tensor.detach(),), tensor.detach())

    def unpack(packed):
        return packed if isinstance(packed, torch.Tensor) else packed.get()[0]

    for _ in range(3):
        expected = torch.autograd.grad(model(x).square().mean(), model.parameters())
        with saved_tensors_hooks(pack, unpack):
            loss = model(x).square().mean()
        assert all(map(torch.equal, torch.autograd.grad(loss, model.parameters()), expected))
        del loss
        gc.collect()
        assert store.bytes_now == 0
    assert store.reloads == 0
    store.close()


def test_a_disk_store_takes_up_no_memory_of_the_gpu():
    store = DiskStore()
    before = torch.cuda.memory_allocated()
    stored = store.put((ones(),))
    assert (store.bytes_now, store.resident_now) == (MB, 0)
    assert torch.cuda.memory_allocated() == before
    store.flush()
    assert stored.get()[0].eq(1).all()
    store.close()
