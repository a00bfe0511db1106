"""Machine code of every kernel for GPUs that need not be there: matrix units used, nothing spilled, memory enough."""

import dataclasses

import pytest
import torch

from torchadx.kernels import configs, heuristic, interpreting
from torchadx.kernels._candidates import OPS

from .compiling import ARCHITECTURES, compile_for
from .planning import LARGE, plan

pytestmark = [
    pytest.mark.skipif(interpreting(), reason="kernels are interpreted in this process; unset TRITON_INTERPRET"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]

PROBLEM = dict(zip("mnk", LARGE, strict=True), itemsize=2)
OFFERED = [
    pytest.param(op, config, architecture, id=f"{op}-{architecture}-{config.name}")
    for architecture in ARCHITECTURES
    for op in OPS
    for config in configs(op, **PROBLEM, capability=architecture.capability)
]


@pytest.fixture
def compiled(monkeypatch):
    """Return a function that compiles for an architecture as a process that runs on it would."""

    def compiled(op, config, architecture, **options):
        monkeypatch.setattr(torch.version, "hip", "7" if architecture.capability[0] == "hip" else None)
        return [compile_for(launch, architecture) for launch in plan(op, config, **options)]

    return compiled


def check(machine, architecture, rows_per_tile=64, spills=0):
    """Require matrix instructions, no spilled register, and no more shared memory than there is."""
    # wgmma and tcgen05 take 64 rows; fewer go through the matrix instructions of older GPUs
    cuda = architecture.capability[0] == "cuda"
    instruction = "mma.sync" if cuda and rows_per_tile < 64 else architecture.matrix_instruction
    assert instruction in machine.text, "no matrix instructions"
    assert machine.spills <= spills, f"{machine.spills} spilled, with {machine.registers} registers"
    assert machine.shared <= architecture.shared_limit


@pytest.mark.parametrize(("op", "config", "architecture"), OFFERED)
def test_every_config_offered(compiled, op, config, architecture):
    (machine,) = compiled(op, config, architecture)
    check(machine, architecture, config.BM)


VARIANTS = {
    "fp16": {"dtype": torch.float16},
    "identity without bias": {"activation": "identity", "absent": ("b", "z", "tz", "gz", "tw", "tb")},
    "mish and all arguments": {"activation": "mish", "absent": ()},
    "tanh and gz, tw alone": {"activation": "tanh", "absent": ("gy", "tx", "tb")},
    "ragged rows": {"shape": (8191, 4096, 4096)},
    "misaligned": {"shape": (8191, 4095, 4093)},
    "single row": {"shape": (1, 4096, 4096)},
    "single element": {"shape": (1, 1, 1), "absent": ()},
    "wide": {"shape": (2**20, 4096, 4096)},
    "batch": {"batch": 8, "absent": ("gz", "tw")},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("op", OPS)
def test_variants(compiled, op, variant):
    """Each on the static pick of one architecture, which differs from variant to variant."""
    if variant == "batch" and op != "dual":
        pytest.skip("only dual has a batch of tangents")
    architecture = ARCHITECTURES[(list(VARIANTS).index(variant) + OPS.index(op)) % len(ARCHITECTURES)]
    sizes = dict(zip("mnk", VARIANTS[variant].get("shape", LARGE), strict=True), itemsize=2)
    config = heuristic(op, **sizes, capability=architecture.capability, tangents=VARIANTS[variant].get("batch", 1))
    (machine,) = compiled(op, config, architecture, **VARIANTS[variant])
    # a few bytes where loads go through registers, or offsets take two each
    check(machine, architecture, config.BM, spills=64 if variant in ("misaligned", "wide") else 0)


@pytest.mark.parametrize(("op", "architecture"), list(zip(OPS, ARCHITECTURES, strict=True)), ids=str)
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_fp32(compiled, op, architecture, precision):
    """TF32 runs on matrix units; full precision on NVIDIA does not, and must not by accident."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = precision
    try:
        config = heuristic(op, **{**PROBLEM, "itemsize": 4}, capability=architecture.capability)
        (machine,) = compiled(op, config, architecture, dtype=torch.float32)
    finally:
        settings.fp32_precision = before
    assert machine.shared <= architecture.shared_limit
    on_matrix_units = any(name in machine.text for name in ("mma.sync", "wgmma", "tcgen05.mma", "v_mfma"))
    assert on_matrix_units == (precision == "tf32" or architecture.capability[0] == "hip")


@pytest.mark.parametrize("architecture", ARCHITECTURES[1::2], ids=str)
def test_split_rows(compiled, architecture):
    """The parts are added by a second kernel, which has no product and needs no shared memory."""
    config = heuristic("weight_grad", **PROBLEM, capability=architecture.capability)
    product, sum_of_parts = compiled("weight_grad", dataclasses.replace(config, split=4), architecture)
    check(product, architecture)
    assert sum_of_parts.spills == sum_of_parts.shared == 0
