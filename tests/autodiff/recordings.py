"""Recording a function of tensors, and comparing what was written down with the function itself."""

import inspect

import torch

from torchadx.autodiff._record import record


class Times(torch.autograd.Function):
    """Sine, with a rule of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, cotangent):
        return 10 * cotangent

    @staticmethod
    def jvp(ctx, tangent):
        return 10 * tangent


def points(count, *shape):
    """Several points, the first to record at."""
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(count)]


def recorded(f, *arguments, module=None):
    """Record a function that returns one tensor or several."""

    def several(*xs):
        y = f(*xs)
        return list(y) if isinstance(y, (tuple, list)) else [y]

    return record(several, arguments, module)


def names(program):
    """Names of the operations, overloads apart."""
    return [call.target.overloadpacket.__name__ for call in program.calls]


def same_elsewhere(f, *shapes, module=None):
    """Record at one point, and check that the program computes the same there and at two others; return it."""
    first, *others = zip(*[points(3, *shape) for shape in shapes], strict=True)
    before = [argument.clone() for argument in first]
    program = recorded(f, *first, module=module)
    assert all(map(torch.equal, first, before)), "recording leaves the arguments alone"
    for arguments in (first, *others):
        with torch.no_grad():
            wanted = f(*[argument.clone() for argument in arguments])
            wanted = list(wanted) if isinstance(wanted, (tuple, list)) else [wanted]
            for got, want in zip(program.run(*arguments), wanted, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    return program


def writes_nothing(program):
    """Whether none of its operations changes a tensor."""
    return not any(call.target._schema.is_mutable for call in program.calls)


def line_of(f, text):
    """``file:line`` of the line of a function that holds a text."""
    lines, start = inspect.getsourcelines(f)
    (number,) = (number for number, line in enumerate(lines) if text in line)
    return f"{inspect.getsourcefile(f)}:{start + number}"
