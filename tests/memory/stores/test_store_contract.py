"""What every store promises: the same bits back, as often and in whatever order, and exact accounts."""

import gc
import random
import threading

import pytest
import torch

from torchadx.memory.stores import STORES, DiskStore, Store

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
    torch.complex128, torch.complex64, torch.complex32, torch.bool,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
)  # fmt: skip
SHAPES = ((), (0,), (1,), (3, 5), (2, 0, 4), (1000,), (7, 1, 33))


@pytest.fixture(params=STORES)
def store(request):
    store = STORES[request.param]()
    yield store
    store.close()


def random_bits(dtype, shape):
    """A tensor of any bits at all: NaN payloads, infinities, subnormals, negative zero."""
    size = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), dtype=torch.uint8)
    return raw.view(dtype).view(shape)


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8).tolist()


def same(got, expected):
    return len(got) == len(expected) and all(
        (a.dtype, a.shape, a.device, bits(a)) == (b.dtype, b.shape, b.device, bits(b))
        for a, b in zip(got, expected, strict=True)
    )


def test_stores_are_listed_by_the_names_that_they_have():
    assert ", ".join(STORES) == "device, host, disk"
    assert all(issubclass(kind, Store) and kind.name == name for name, kind in STORES.items())


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("lent", [False, True], ids=["owned", "borrowed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_come_back(store, dtype, lent):
    parts = tuple(random_bits(dtype, shape) for shape in SHAPES)
    expected = tuple(part.clone() for part in parts)
    stored = store.put(parts, parts[0] if lent else None)
    assert same(stored.get(), expected)
    store.flush()
    assert same(stored.get(), expected)
    assert stored.nbytes == sum(part.nbytes for part in expected)


@pytest.mark.parametrize("parts", [(), (torch.empty(0),), (torch.empty(3, 0), torch.empty(0, dtype=torch.bool))])
def test_nothing_at_all(store, parts):
    stored = store.put(parts)
    store.flush()
    assert same(stored.get(), parts)
    assert (stored.nbytes, store.bytes_now, store.resident_now) == (0, 0, 0)


def test_parts_of_different_types_share_a_place(store):
    parts = (torch.randint(-8, 8, (33,), dtype=torch.int8), torch.randn(5), torch.tensor(True), torch.empty(0))
    stored = store.put(tuple(part.clone() for part in parts))
    store.flush()
    assert same(stored.get(), parts)


def test_bytes_are_counted_in_and_out(store):
    assert (store.bytes_now, store.bytes_peak) == (0, 0)
    first = store.put((torch.ones(100), torch.ones(50, dtype=torch.int8)))
    second = store.put((torch.ones(10),), torch.ones(10))
    assert (first.nbytes, second.nbytes) == (450, 40)
    assert (store.bytes_now, store.bytes_peak) == (490, 490)
    del first
    assert (store.bytes_now, store.bytes_peak) == (40, 490)
    third = store.put((torch.ones(2),))
    assert (store.bytes_now, store.bytes_peak) == (48, 490)
    del second, third
    assert (store.bytes_now, store.bytes_peak, store.resident_now) == (0, 490, 0)


def test_what_takes_up_the_memory_it_came_from(store):
    stored = [store.put((torch.ones(1000),)) for _ in range(3)]
    store.flush()
    assert store.resident_now == (0 if store.name == "disk" else 12_000)
    del stored
    assert store.resident_now == 0


def test_a_borrowed_tensor_may_change_once_it_was_put(store):
    owner = torch.arange(100.0)
    stored = store.put((owner[10:20],), owner)
    owner.fill_(-1)
    assert stored.get()[0].tolist() == list(range(10, 20))
    store.flush()
    assert stored.get()[0].tolist() == list(range(10, 20))


def test_owned_tensors_in_memory_are_not_copied():
    for name in ("device", "host"):
        part = torch.ones(10)
        assert STORES[name]().put((part,)).get()[0].data_ptr() == part.data_ptr()


@pytest.mark.parametrize("order", ["reverse", "forward", "shuffled", "each twice", "reverse twice"])
def test_any_order(store, order):
    count = 40
    stored = [store.put((torch.full((257,), float(number)),)) for number in range(count)]
    store.flush()
    numbers = list(range(count))
    if order == "shuffled":
        random.Random(0).shuffle(numbers)
    elif order == "each twice":
        numbers = [number for number in reversed(numbers) for _ in range(2)]
    elif order != "forward":
        numbers = numbers[::-1] * (2 if order.endswith("twice") else 1)
    for number in numbers:
        assert stored[number].get()[0].eq(number).all()
    assert (store.reloads >= count) == (store.name == "disk" and order.endswith("twice"))


def test_two_graphs_at_once(store):
    graphs = [[store.put((torch.full((64,), float(g * 100 + n)),)) for n in range(20)] for g in range(2)]
    store.flush()
    for g in (0, 1):
        for n in reversed(range(20)):
            assert graphs[g].pop().get()[0].eq(g * 100 + n).all()
    assert store.bytes_now == 0
    assert store.reloads == 0


def test_parts_are_on_one_device(store):
    with pytest.raises(ValueError, match=r"parts of one tensor are on one device; got \['cpu', 'meta'\]"):
        store.put((torch.ones(1), torch.ones(1, device="meta")))
    assert store.bytes_now == 0


def test_closing_can_be_repeated_and_undone(store):
    store.close()
    for number in range(3):
        stored = store.put((torch.full((10,), float(number)),))
        assert stored.get()[0].eq(number).all()
        del stored
        store.close()
        store.close()
        assert (store.bytes_now, store.resident_now) == (0, 0)


def test_threads_put_get_and_drop_at_once(store):
    errors = []

    def work(seed):
        rng = random.Random(seed)
        mine = []
        try:
            for step in range(150):
                value = float(seed * 1000 + step)
                mine.append((value, store.put((torch.full((rng.randrange(1, 3000),), value),))))
                if len(mine) > 10:
                    value, stored = mine.pop(rng.randrange(len(mine)) if rng.random() < 0.3 else -1)
                    assert stored.get()[0].eq(value).all()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    store.flush()
    assert (store.bytes_now, store.resident_now) == (0, 0)


def test_one_tensor_is_read_by_many_threads(store):
    stored = store.put((torch.arange(100_000.0),))
    store.flush()
    sums = []
    threads = [threading.Thread(target=lambda: sums.append(stored.get()[0].sum().item())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [torch.arange(100_000.0).sum().item()] * 8


def test_dropped_by_garbage_collection_at_any_moment(store):
    """Finalizers run inside of the store's own methods, and must not wait for a lock that the thread has."""
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for number in range(60):
            knot = [store.put((torch.full((10,), float(number)),))]
            assert knot[0].get()[0].eq(number).all()
            knot.append(knot)
            del knot
            assert store.bytes_now <= 40 * (number + 1)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert store.bytes_now == 0


def test_what_is_held_outlives_the_store():
    for kind in STORES.values():
        stored = kind().put((torch.arange(5.0),))
        gc.collect()
        assert stored.get()[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("arguments", [{"window_bytes": -1}, {"threads": 0}, {"capacity_bytes": -1}])
def test_senseless_disk_stores_are_refused(arguments):
    with pytest.raises(ValueError, match="expected window_bytes >= 0, capacity_bytes >= 0 and threads >= 1; got"):
        DiskStore(**arguments)
