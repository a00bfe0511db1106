"""Config names, what is offered for tuning, and the static pick."""

import pytest

from torchadx.kernels import Config, configs, heuristic
from torchadx.kernels._candidates import OPS

CAPABILITIES = (("cuda", 80), ("cuda", 86), ("cuda", 90), ("cuda", 100), ("cuda", 120), ("hip", "gfx942"))
SIZES = ((1, 1, 1), (8, 4096, 4096), (4096, 8, 4096), (4096, 4096, 8), (100, 300, 50), (8192, 4096, 4096), (5, 7, 0))


@pytest.mark.parametrize(
    "config", [Config(128, 64, 32), Config(16, 16, 16, 2, 5, 1, split=8), Config(64, 64, 64, persistent=True)]
)
def test_names_are_read_back(config):
    assert Config.parse(config.name) == config


def test_names_are_stable():
    assert Config(128, 256, 64, warps=8, stages=3, group=4).name == "128x256x64w8s3g4"
    assert Config(128, 256, 64, warps=8, stages=3, group=4, split=2, persistent=True).name == "128x256x64w8s3g4k2p"


@pytest.mark.parametrize("name", ["", "128x64", "128x64x32", "128x64x32w4s3g8k", "128x64x32w4s3g8q"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="not a config name"):
        Config.parse(name)


@pytest.mark.parametrize("capability", [*CAPABILITIES, ("interpreter", 0)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_there_are_a_few_configs_for_every_problem(op, capability):
    for m, n, k in SIZES:
        for itemsize in (2, 4):
            problem = {"m": m, "n": n, "k": k, "itemsize": itemsize, "capability": capability, "tangents": 3}
            found = configs(op, **problem)
            assert 1 <= len(found) <= 16
            assert len(set(found)) == len(found)
            assert len({config.name for config in found}) == len(found)
            pick = heuristic(op, **problem)
            assert not pick.persistent
            assert capability[0] == "interpreter" or pick in found


def offered(op, m=8192, n=4096, k=4096, itemsize=2, capability=("cuda", 90), **more):
    """Return the configs for a large problem, or one near it."""
    return configs(op, m=m, n=n, k=k, itemsize=itemsize, capability=capability, **more)


def test_tiles_fit_the_problem():
    assert {config.BM for config in offered("forward", m=16)} == {16}
    assert max(config.BN for config in offered("forward", n=64)) == 64
    assert max(config.BM for config in offered("weight_grad", n=64)) == 64


def test_rows_are_split_only_where_there_are_many_and_few_tiles():
    assert all(config.split == 1 for config in offered("weight_grad"))
    assert all(config.split == 1 for config in offered("weight_grad", m=64, n=256, k=256))
    assert any(config.split > 8 for config in offered("weight_grad", m=65536, n=256, k=256))
    assert all(config.split == 1 for config in offered("forward", m=65536, n=256, k=256))


def test_tangents_are_shared_between_programs_only_where_tiles_are_few():
    assert all(config.split == 1 for config in offered("dual", tangents=64))
    assert all(config.split == 1 for config in offered("dual", m=64, n=64))
    assert any(config.split > 8 for config in offered("dual", m=64, n=64, tangents=64))


def test_persistent_configs_need_descriptors_and_aligned_rows():
    assert any(config.persistent for config in offered("forward"))
    assert not any(config.persistent for config in offered("forward", k=4095))
    assert not any(config.persistent for config in offered("forward", n=4092))
    assert not any(config.persistent for config in offered("forward", capability=("cuda", 80)))
    assert not any(config.persistent for config in offered("input_grad"))


def test_the_pick_grows_with_the_problem():
    def area(**sizes):
        pick = heuristic("forward", **{"m": 8192, "n": 8192, "k": 4096, **sizes}, itemsize=2, capability=("cuda", 90))
        return pick.BM * pick.BN

    assert area() > area(m=512, n=512) > area(m=32, n=64)


def test_small_shared_memory_rules_out_large_tiles():
    large, small = offered("input_grad", capability=("cuda", 80)), offered("input_grad", capability=("cuda", 75))
    assert set(small) < set(large)


def test_unknown_op():
    with pytest.raises(ValueError, match="op must be one of forward, input_grad"):
        offered("backward")
