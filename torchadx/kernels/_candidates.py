"""Which configs an op can be tuned over on a device, and a static pick for where nothing was measured."""

import dataclasses

import triton

from torchadx.kernels._configs import Config

Capability = tuple[str, int | str]

# Tiles that compile without spilling registers for bf16 and gelu, by op and by the matrix units they were checked for:
# tests/kernels compiles every one. Largest first.
_TABLE = {
    ("forward", "ampere"): (
        "128x256x32w8s3g8 256x128x32w8s3g8 128x128x64w8s3g8 128x64x64w4s3g8 64x128x64w4s3g8 64x64x64w4s4g8 "
        "32x64x64w4s4g8 16x64x128w4s4g8"
    ),
    ("forward", "hopper"): (
        "128x256x64w8s3g8p 128x128x64w8s4g8p 128x256x64w8s3g8 256x128x64w8s3g8 128x128x64w8s4g8 128x64x64w4s4g8 "
        "64x128x64w4s4g8 64x64x64w4s4g8 32x64x128w4s4g8 16x64x128w4s4g8"
    ),
    ("forward", "cdna"): (
        "256x128x64w8s2g8 128x256x64w8s2g8 128x128x64w8s2g8 128x128x64w4s2g8 128x64x64w4s2g8 64x128x64w4s2g8 "
        "64x64x64w4s2g8 32x64x64w4s2g8 16x64x128w4s2g8"
    ),
    ("input_grad", "ampere"): (
        "128x256x32w8s3g8 128x128x64w8s2g8 128x128x32w8s3g8 64x128x32w4s4g8 128x64x32w4s3g8 64x64x64w4s3g8 "
        "32x64x64w4s3g8 16x64x64w4s3g8"
    ),
    ("input_grad", "hopper"): (
        "128x256x32w8s3g8 128x128x64w8s3g8 128x128x32w8s4g8 64x128x64w4s3g8 128x64x32w4s4g8 64x64x64w4s3g8 "
        "32x64x32w4s4g8 16x64x64w4s3g8"
    ),
    ("input_grad", "blackwell"): (
        "128x256x32w8s3g8 128x128x32w8s4g8 64x128x64w4s3g8 128x64x32w4s4g8 64x64x64w4s3g8 32x64x32w4s4g8 16x64x64w4s3g8"
    ),
    ("input_grad", "cdna"): (
        "128x256x32w8s2g8 128x128x32w8s2g8 128x128x32w4s2g8 64x128x32w4s2g8 128x64x32w4s2g8 64x64x64w4s2g8 "
        "32x64x64w4s2g8 16x64x64w4s2g8"
    ),
    ("weight_grad", "ampere"): (
        "128x256x32w8s3g8 128x128x32w8s3g8 64x128x32w4s4g8 128x64x32w8s4g8 64x64x64w4s3g8 32x64x64w4s3g8"
    ),
    ("weight_grad", "hopper"): (
        "128x256x32w8s3g8 128x128x64w8s3g8 128x128x32w8s4g8 64x128x64w4s3g8 128x64x32w4s4g8 64x64x64w4s3g8 "
        "32x64x32w4s4g8"
    ),
    ("weight_grad", "cdna"): (
        "128x256x32w8s2g8 128x128x32w8s2g8 64x128x32w4s2g8 128x64x32w4s2g8 64x64x64w4s2g8 32x64x64w4s2g8"
    ),
    ("dual", "ampere"): "64x128x64w8s3g8 128x64x64w8s3g8 64x128x32w8s4g8 64x64x32w4s4g8 32x64x64w4s3g8 16x64x64w4s3g8",
    ("dual", "hopper"): (
        "128x128x64w8s3g8 128x128x32w8s4g8 128x64x64w8s3g8 64x128x64w8s3g8 64x64x64w4s4g8 32x64x64w4s4g8 16x64x64w4s4g8"
    ),
    ("dual", "cdna"): ("128x128x32w8s2g8 128x64x64w8s2g8 64x128x64w8s2g8 64x64x64w4s2g8 32x64x64w4s2g8 16x64x64w4s2g8"),
}
# a few Python-speed programs rather than many; small enough that tests meet several tiles
_INTERPRETED = "32x32x32w4s1g8 16x64x32w4s1g8 64x16x16w4s1g2"

OPS = ("forward", "input_grad", "weight_grad", "dual")
_KIB = 1024
# Tiles that are in shared memory at once, as (rows x reduced, reduced x columns): every operand an op may be given.
_STAGED = {"forward": (1, 1), "input_grad": (3, 1), "weight_grad": (3, 1), "dual": (2, 2)}


def configs(
    op: str, *, m: int, n: int, k: int, itemsize: int, capability: Capability, tangents: int = 1
) -> list[Config]:
    """List the configs worth timing for an op, in no order of merit.

    Args:
        op: ``"forward"``, ``"input_grad"``, ``"weight_grad"`` or ``"dual"``.
        m: Rows of x.
        n: Output features.
        k: Input features.
        itemsize: Bytes per element of the operands.
        capability: From :func:`capability`.
        tangents: dual: size of the batch of tangents.

    Returns:
        At most 16 configs that fit the device's shared memory, none with a tile far larger than the problem.

    Raises:
        ValueError: The op is unknown.
    """
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    rows, cols, reduced = _output(op, m, n, k)
    found = [_for_itemsize(Config.parse(name), itemsize) for name in _names(op, capability).split()]
    if n % 16 or k % 16:
        found = [_for_misaligned(op, config) for config in found if not config.persistent]
    if tangents > 1:
        found = [config for config in found if _per_thread(config) <= 32]
    found = [c for c in found if _shared_memory(op, c, itemsize, capability) <= _shared_limit(capability)]
    found = _no_larger_than(found, rows, cols, reduced)
    split = [_split(op, config, rows, cols, m, tangents, capability) for config in found]
    return list(dict.fromkeys(found + split))[:16]


def heuristic(op: str, *, m: int, n: int, k: int, itemsize: int, capability: Capability, tangents: int = 1) -> Config:
    """Pick a config without measuring: the cheapest by a model of one multiprocessor, never a persistent one.

    Takes what :func:`configs` takes. The model is arithmetic, not a measurement.
    """
    found = configs(op, m=m, n=n, k=k, itemsize=itemsize, capability=capability, tangents=tangents)
    rows, cols, reduced = _output(op, m, n, k)
    if capability[0] == "interpreter":
        return dataclasses.replace(found[0], split=2 if op in ("weight_grad", "dual") else 1)
    plain = [config for config in found if not config.persistent]
    return min(plain, key=lambda c: _cost(op, c, rows, cols, reduced, tangents, _multiprocessors(capability)))


def _output(op: str, m: int, n: int, k: int) -> tuple[int, int, int]:
    """Return the rows and columns of the op's matrix product, and the size it sums over."""
    return {"input_grad": (m, k, n), "weight_grad": (n, k, m)}.get(op, (m, n, k))


def _names(op: str, capability: Capability) -> str:
    if capability[0] == "interpreter":
        return _INTERPRETED
    family = _family(capability)
    return _TABLE[op, "hopper" if (op, family) not in _TABLE else family]


def _family(capability: Capability) -> str:
    backend, arch = capability
    if backend == "hip":
        return "cdna"
    # sm_120 has the tensor memory accelerator, but neither the matrix units nor the shared memory of sm_100
    return "hopper" if arch == 90 else "blackwell" if 100 <= arch < 120 else "ampere"


def _shared_limit(capability: Capability) -> int:
    """Return the bytes of shared memory that one program may use."""
    backend, arch = capability
    if backend == "cuda":
        return {80: 163, 87: 163, 75: 64}.get(arch, 227 if 90 <= arch < 120 else 99) * _KIB
    return (160 if arch == "gfx950" else 64) * _KIB


def _multiprocessors(capability: Capability) -> int:
    """Return how many multiprocessors the common device of an architecture has; only the heuristic depends on it."""
    return {80: 108, 89: 128, 90: 132, 100: 148, "gfx942": 304, "gfx950": 256}.get(capability[1], 96)


def _for_itemsize(config: Config, itemsize: int) -> Config:
    """Keep the bytes per tile for wider elements: half the steps, and half of what no accumulator could hold."""
    if itemsize <= 2:
        return config
    halved = dataclasses.replace(config, BK=max(16, config.BK // 2))
    return halved if config.BM * config.BN <= 128 * 128 else dataclasses.replace(halved, BM=64, BN=128, warps=8)


def _for_misaligned(op: str, config: Config) -> Config:
    """Take fewer steps at once where rows are off the grid of 16 elements: such loads go through registers."""
    # dual has twice the operands
    most = (16 if op == "dual" else 32) * 32 * config.warps
    steps = config.BK
    while steps > 16 and (config.BM + config.BN) * steps > most:
        steps //= 2
    return dataclasses.replace(config, BK=steps)


def _per_thread(config: Config) -> int:
    """Return the elements of an output tile that one thread of an NVIDIA GPU holds."""
    return config.BM * config.BN // (32 * config.warps)


def _shared_memory(op: str, config: Config, itemsize: int, capability: Capability) -> int:
    """Bound the bytes of shared memory from above: all operands an op may be given, in every stage."""
    left, right = _STAGED[op]
    # what wgmma and tcgen05 read asynchronously must stay one stage longer
    stages = config.stages if _family(capability) in ("hopper", "blackwell") else max(1, config.stages - 1)
    left_stages = max(1, config.stages - 1) if "grad" in op else stages
    settled = config.BM * config.BK if "grad" in op and capability[0] == "cuda" else 0
    left_tiles, right_tiles = left * config.BM * config.BK, right * config.BK * config.BN
    outputs = config.BM * config.BN // 2 if config.persistent else 0
    return (left_stages * left_tiles + stages * right_tiles + settled + outputs) * itemsize


def _no_larger_than(found: list[Config], rows: int, cols: int, reduced: int) -> list[Config]:
    """Drop tiles more than one power of two beyond the problem, unless there is no smaller one."""
    for side, size in (("BM", rows), ("BN", cols), ("BK", reduced)):
        enough = max(triton.next_power_of_2(max(size, 1)), min(getattr(config, side) for config in found))
        found = [config for config in found if getattr(config, side) <= enough]
    return found


def _split(op: str, config: Config, rows: int, cols: int, m: int, tangents: int, capability: Capability) -> Config:
    """Share the work of each tile between programs where there are fewer tiles than multiprocessors."""
    tiles = triton.cdiv(rows, config.BM) * triton.cdiv(cols, config.BN)
    idle = _multiprocessors(capability) // max(tiles, 1)
    most = {"weight_grad": m // (8 * config.BK), "dual": tangents}.get(op, 1)
    wanted = min(idle, most, 64)
    return dataclasses.replace(config, split=1 << (wanted.bit_length() - 1)) if wanted > 1 else config


def _cost(op: str, config: Config, rows: int, cols: int, reduced: int, tangents: int, processors: int) -> float:
    """Estimate the time of the busiest multiprocessor, in units of one multiply-add of its matrix units.

    Loading an element into shared memory costs about as much as 150 multiply-adds on the devices in the table.
    """
    split = min(config.split, tangents) if op == "dual" else config.split
    programs = triton.cdiv(rows, config.BM) * triton.cdiv(cols, config.BN) * split
    products = 1 + triton.cdiv(tangents, split) if op == "dual" else 1 / split
    step = config.BM * config.BN + 150 * (config.BM + config.BN)
    finish = 64 * config.BM * config.BN * (1 if op != "weight_grad" or split == 1 else 2)
    return triton.cdiv(programs, processors) * (reduced * products * step + finish)
