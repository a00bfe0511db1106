"""Compile a launch for a target that this machine need not have, and read the machine code.

Tensors may live on the meta device: only their dtypes, strides and alignment are looked at, by the same code of Triton
that looks at them when a launch runs.
"""

import dataclasses
import pathlib
import re
import subprocess
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from torchadx.kernels._launch import Launch, settles

KIB = 1024


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A GPU to compile for: what it is called, the instructions of its matrix units, and its shared memory."""

    capability: tuple[str, int | str]
    matrix_instruction: str
    shared_limit: int

    @property
    def target(self) -> GPUTarget:
        backend, arch = self.capability
        return GPUTarget(backend, arch, 32 if backend == "cuda" else 64)

    def __str__(self) -> str:
        return f"sm_{self.capability[1]}" if self.capability[0] == "cuda" else str(self.capability[1])


ARCHITECTURES = (
    Architecture(("cuda", 80), "mma.sync", 163 * KIB),
    Architecture(("cuda", 90), "wgmma.mma_async", 227 * KIB),
    Architecture(("cuda", 100), "tcgen05.mma", 227 * KIB),
    Architecture(("hip", "gfx942"), "v_mfma", 64 * KIB),
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a compiled kernel is made of; ``spills`` counts bytes on NVIDIA and registers on AMD."""

    text: str
    shared: int
    spills: int
    registers: int


def compile_for(launch: Launch, architecture: Architecture) -> Machine:
    """Compile a launch as Triton would on that architecture."""
    kernel, backend = launch.kernel, make_backend(architecture.target)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    constants = dict(launch.constants)
    if "SETTLE" in constants:  # the one constant that depends on the machine
        constants["SETTLE"] = settles(architecture.capability)
    arguments, specialization, options = binder(
        **launch.arguments, **constants, num_warps=launch.warps, num_stages=launch.stages
    )
    options, signature, constexprs, attributes = kernel._pack_args(backend, options, arguments, specialization, options)
    source = ASTSource(kernel, signature, constexprs, attributes)
    built = triton.compile(source, target=architecture.target, options=options.__dict__)
    if architecture.capability[0] == "hip":
        text = built.asm["amdgcn"]
        spills, registers = _number(r"vgpr_spill_count:\s*(\d+)", text), _number(r"\.vgpr_count:\s*(\d+)", text)
        return Machine(text, built.metadata.shared, spills, registers)
    usage = _resource_usage(built.asm["cubin"])
    spills = _number(r"STACK:(\d+)", usage) + _number(r"LOCAL:(\d+)", usage)
    return Machine(built.asm["ptx"], built.metadata.shared, spills, _number(r"REG:(\d+)", usage))


def _resource_usage(cubin: bytes) -> str:
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    return int(re.search(pattern, text)[1])
