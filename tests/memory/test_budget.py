"""What a budget does with tensors, and what it says of it."""

import copy
import pickle
import re

import pytest
import torch
from budget_passes import KIB, Passes, actions, dense, measured, passes, rectified
from hypothesis import given, settings
from hypothesis import strategies as st

from torchadx.memory import Budget, BudgetError, DeviceStore
from torchadx.memory.budget import parse_bytes
from torchadx.memory.policy import Action


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1024", 1024), ("7 B", 7), ("1 kB", 1000), ("1 KB", 1000), ("1 KiB", 1024), ("500 MB", 500 * 10**6),
        ("1.5GiB", 3 << 29), (" 2 gib ", 2 << 30), ("2 TiB", 2 << 40), ("0.1 kB", 100), (1 << 20, 1 << 20),
    ],
)  # fmt: skip
def test_bytes_are_read(text, nbytes):
    assert parse_bytes(text) == nbytes
    assert Budget(text).limit == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "2 G", "2 Gibibytes", "-1", "1e9", "2,5 GiB", "1 iB", "0", "0.5 B", 0, -5])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        Budget(text)


@pytest.mark.parametrize("limit", [2.5e9, True, None, ["2 GiB"]])
def test_bytes_of_another_type_are_refused(limit):
    with pytest.raises(TypeError, match="int or text"):
        Budget(limit)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"max_error.*got 1\.5"):
        Budget("1 GiB", max_error=1.5)
    with pytest.raises(ValueError, match="int9"):
        Budget("1 GiB", actions=("int9",))


def test_the_first_pass_takes_the_fewest_bytes():
    tried = ("mask", "sparse", "bf16", "int8")
    tensors = [dense(64, 64), rectified(64, 64), dense(64, 64) > 0, torch.zeros(64, 64), (dense(64, 64) > 0).float()]
    for tensor, decision in zip(tensors, passes("1 GiB", actions=tried).run(tensors), strict=True):
        flat = tensor.reshape(-1)
        encoded = [a.codec.encode(flat) for a in map(Action.parse, tried) if a.codec.accepts(flat.dtype)]
        fewest = min([flat.nbytes, *(e.nbytes for e in encoded if hasattr(e, "parts"))])
        chosen = decision.action
        assert (flat if chosen.keeps else chosen.codec.encode(flat)).nbytes == fewest
        assert decision.reason.startswith("measured")


def test_everything_is_kept_where_there_is_room():
    driver = passes(3 * 16 * KIB, actions=("sparse", "bf16", "int8"))
    tensors = [dense(64, 64), rectified(64, 64), dense(64, 64)]
    driver.run(tensors)
    decisions = driver.run(tensors)
    assert actions(decisions) == ["keep"] * 3
    assert all(decision.reason == "planned: the limit leaves room for it" for decision in decisions)


def test_lossless_actions_come_first():
    driver = passes(56 * KIB, actions=("sparse", "bf16", "int8"))
    tensors = [dense(64, 64), rectified(64, 64), rectified(64, 64), dense(64, 64)]
    driver.run(tensors)
    driver.peak = 0
    assert set(actions(driver.run(tensors))) == {"keep", "sparse"}
    assert driver.peak <= 56 * KIB


def test_lossy_actions_touch_no_more_than_they_must():
    driver = passes(53 * KIB, actions=("bf16",))
    tensors = [dense(64, 64), dense(64, 64), dense(32, 64), dense(64, 64)]
    driver.run(tensors)
    # 56 KiB in all: halving the small one is too little by 1 KiB, and halving a large one is enough... of 3 KiB
    assert actions(driver.run(tensors)) == ["keep", "keep", "bf16", "keep"]
    assert "without loss the limit is exceeded by 3.0 KiB" in driver.budget.explain()


def test_max_error_is_kept():
    tensors = [dense(64, 64) for _ in range(4)]
    for allowed in (0.5, 0.05, 0.01, 0.003, 1e-4):
        driver = passes("1 GiB", actions=("bf16", "int8", "int4"), max_error=allowed)
        for decision, tensor in zip(driver.run(tensors), tensors, strict=True):
            codec = decision.action.codec
            if codec is not None:
                flat = tensor.reshape(-1)
                assert (codec.decode(codec.encode(flat)) - flat).norm() / flat.norm() <= allowed
        assert set(actions(driver.run(tensors))) == {"keep"}
    assert all("relative error" in row.reason for row in driver.budget.plan)


def test_no_error_means_lossless_only():
    driver = passes(40 * KIB, max_error=0)
    tensors = [torch.ones(64, 64), rectified(64, 64), dense(32, 64).double()]
    assert all(decision.action.lossless for _ in range(3) for decision in driver.run(tensors))


def test_a_lossy_codec_without_error_is_lossy_all_the_same():
    tensor = torch.full((64, 64), 2.5)
    assert actions(passes("1 GiB", actions=("bf16",), max_error=0).run([tensor])) == ["keep"]
    assert actions(passes("1 GiB", actions=("bf16",), max_error=1e-9).run([tensor])) == ["bf16"]


def test_nonfinite_values_are_no_obstacle():
    tensor = dense(64, 64)
    tensor[3, 5], tensor[9, 9] = torch.inf, torch.nan
    assert actions(passes("1 GiB", actions=("int8",)).run([tensor])) == ["int8"]


def test_masks_are_never_lossy():
    driver = passes("5 KiB", actions=("bf16", "int8", "mask"))
    tensors = [dense(64, 64) > 0, dense(64, 64) > 1]
    assert actions(driver.run(tensors)) == ["mask", "mask"]
    assert sorted(actions(driver.run(tensors))) == ["keep", "mask"]


def test_copies_of_parameters_stay_exact():
    driver = passes("1 GiB", actions=("int8",))
    assert actions(driver.run([dense(64, 64)], alias="parameter copy")) == ["keep"]
    assert "autocast" in driver.budget.plan[0].reason


def test_the_host_is_no_other_place_for_what_is_there():
    driver = passes("1 GiB", actions=("@host",))
    assert actions(driver.run([dense(64, 64)])) == ["keep"]
    assert "in host memory already" in driver.budget.plan[0].reason


def test_the_disk_is_used_if_it_is_named():
    driver = passes("64 KiB", actions=("@disk", "int8@disk"))
    tensors = [dense(64, 64) for _ in range(8)]
    assert set(actions(driver.run(tensors))) == {"@disk"}
    # room for three, and for the copy of another one
    assert sorted(actions(driver.run(tensors))) == ["@disk"] * 5 + ["keep"] * 3
    assert "16.0 KiB of the limit are left to copies under way" in driver.budget.explain()
    assert driver.peak <= 64 * KIB


def test_a_copy_under_way_needs_room_too():
    driver = passes("10 KiB", actions=("@disk", "bf16@disk"))
    # the tensor itself is too large to wait for the disk
    assert actions(driver.run([dense(64, 64)] * 4)) == ["bf16@disk"] * 4
    assert driver.peak <= 10 * KIB


class WritesWhenFlushed(DeviceStore):
    """A disk that is as slow as can be: what was put is in memory until someone waits."""

    name = "disk"

    def __init__(self):
        super().__init__()
        self.waiting = 0

    @property
    def resident_now(self):
        return self.waiting

    def put(self, parts, borrowed=None):
        self.waiting += sum(part.nbytes for part in parts)
        return super().put(parts, borrowed)

    def flush(self):
        self.waiting = 0


def test_copies_under_way_are_waited_for():
    driver = passes("40 KiB", actions=("@disk",))
    driver.stores["disk"] = WritesWhenFlushed()
    tensors = [dense(64, 64)] * 6
    for _ in range(2):
        assert "@disk" in actions(driver.run(tensors))
    assert driver.peak == 32 * KIB


def test_what_cannot_be_met_is_said_at_once():
    driver = passes("10 KiB", actions=("bf16", "int4"))
    driver.enter()
    driver.save(dense(64, 64), module="first")
    with pytest.raises(BudgetError) as error:
        driver.save(dense(64, 64), module="second", op="gelu")
    message = str(error.value)
    for part in ("10.0 KiB", "8.0 KiB of saved", "gelu in second", "6.0 KiB too much", "16384 bytes", "@disk", "int4"):
        assert part in message
    assert "max_error=0.1" in message
    assert driver.peak <= 10 * KIB


def test_after_a_failure_the_next_pass_starts_anew():
    driver = passes("10 KiB", actions=("bf16",))
    driver.enter()
    kept = [driver.save(dense(64, 64))[1]]
    with pytest.raises(BudgetError):
        driver.save(dense(64, 64))
    for key in kept:
        driver.drop(key)
    assert driver.budget.plan == ()
    assert measured(driver.run([dense(32, 64)])) == [True]
    assert actions(driver.run([dense(32, 64)])) == ["keep"]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_no_pass_exceeds_the_limit(data):
    sizes = data.draw(st.lists(st.tuples(st.integers(8, 40), st.booleans()), min_size=1, max_size=6))
    tensors = [(rectified if sparse else dense)(rows, 64) for rows, sparse in sizes]
    need = sum(tensor.nbytes for tensor in tensors)
    limit = data.draw(st.integers(need // 5, need))
    driver = Passes(Budget(limit, actions=("sparse", "bf16", "int8"), max_error=data.draw(st.sampled_from([0, 0.01]))))
    try:
        for _ in range(3):
            decisions = driver.run(tensors)
    except BudgetError:
        assert driver.passes == 1
    else:
        assert driver.peak <= limit
        assert not any(measured(decisions))
        rows = driver.budget.plan
        assert [row.action for row in rows] == actions(decisions)
        if "no choice is sure to fit" not in driver.budget.explain():
            assert sum(row.held_bytes for row in rows) <= limit
    finally:
        driver.close()


def test_a_plan_explains_itself():
    driver = passes("40 KiB", actions=("sparse", "bf16"))
    before = driver.budget.explain()
    assert before.startswith("limit 40.0 KiB: no plan yet")
    assert driver.budget.plan == ()
    tensors = [dense(64, 64), rectified(64, 64), dense(64, 64)]
    driver.run(tensors, module="encoder.0")
    totals, _, header, *lines = driver.budget.explain().splitlines()
    assert re.match(r"limit 40.0 KiB: at most \d+\.\d KiB promised, 48.0 KiB without a plan; \d\.\d+ s paid", totals)
    assert header.split() == ["number", "module", "op", "tensor", "bytes", "action", "saved", "seconds", "error", "why"]
    assert len(lines) == 3
    assert all(line.split()[1:3] == ["encoder.0", "relu"] for line in lines)
    # a row each, and what is promised adds up
    rows = driver.budget.plan
    assert [row.number for row in rows] == [0, 1, 2]
    assert sum(row.held_bytes for row in rows) <= 40 * KIB < sum(row.nbytes for row in rows)
    assert all(row.saved_bytes == row.nbytes - row.held_bytes for row in rows)
    with pytest.raises(AttributeError):
        rows[0].action = "keep"


def test_explaining_does_not_change_what_happens():
    driver = passes("40 KiB", actions=("bf16",))
    driver.enter()
    keys = [driver.save(dense(64, 64))[1] for _ in range(2)]
    assert len(driver.budget.plan) == 2
    keys.append(driver.save(dense(64, 64))[1])
    for key in keys:
        driver.drop(key)
    assert len(driver.budget.plan) == 3
    assert not any(measured(driver.run([dense(64, 64)] * 3)))


def test_copies_have_seen_nothing():
    driver = passes("40 KiB", actions=("bf16",), max_error=0.1)
    driver.run([dense(64, 64)])
    for other in (copy.deepcopy(driver.budget), pickle.loads(pickle.dumps(driver.budget))):
        assert other.plan == ()
        assert repr(other) == repr(driver.budget) == "Budget(40960, max_error=0.1, actions=('bf16',))"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu_move_to_the_host():
    driver = passes("20 MiB", actions=("@host",))
    tensors = [torch.randn(1024, 1024, device="cuda") for _ in range(8)]
    assert set(actions(driver.run(tensors))) == {"@host"}
    assert sorted(actions(driver.run(tensors))) == ["@host"] * 3 + ["keep"] * 5
    assert driver.peak <= 20 << 20
