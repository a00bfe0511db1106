"""Plans: used again for other values and weights, pickled, within a memory limit, and what they say of themselves."""

import pickle
import xml.etree.ElementTree as ElementTree

import pytest
import rich.console
import torch
from memory_probe import peak_above
from points import MODES, by_parameters, network, point
from torch import nn
from torch.utils._pytree import tree_leaves
from zoo import agree

from torchadx.autodiff import DerivativeError, jacobian, plan_jacobian


@pytest.mark.parametrize("option", [{}, {"batched": True}, {"mode": "mixed"}, {"params": True}], ids=str)
def test_plans_see_the_weights_of_the_moment(option):
    model, x = network(3, 6, 2), point(4, 3)
    plan = plan_jacobian(model, x, **option)
    before = plan(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.1)
    agree(plan(x), jacobian(model, x, **option))
    moved = [not torch.allclose(a, b) for a, b in zip(tree_leaves(before), tree_leaves(plan(x)), strict=True)]
    assert any(moved)


def test_plans_see_the_buffers_of_the_moment():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double().eval()
    x = point(5, 3)
    plan = plan_jacobian(model, x)
    model[1].running_var.mul_(3)
    agree(plan(x), torch.func.jacrev(model)(x))


def test_plans_do_not_keep_constants_of_the_values_they_were_made_with():
    def f(x, shift):
        return torch.where(x > shift, x.sort(0).values * shift, x.exp())

    plan = plan_jacobian(f, point(5), point(5, name="shift"))
    for name in ("a", "b"):
        x, shift = point(5, name=name), point(5, name=name + "shift")
        agree(plan(x, shift), torch.func.jacrev(f)(x, shift))


@pytest.mark.parametrize(
    "wrong",
    [
        (point(5, 3),), (point(4, 3, 1),), (point(4, 3).float(),), (point(4, 3).to("meta"),), (), (point(4, 3),) * 2,
        ([point(4, 3)],), (torch.ones(4, 3, dtype=torch.long),),
    ],
)  # fmt: skip
@pytest.mark.parametrize("f", [lambda x: x.sin(), lambda x: x.sin() if x.sum() > 0 else x.cos()], ids=["traced", "not"])
def test_plans_refuse_other_shapes_and_dtypes(f, wrong):
    plan = plan_jacobian(f, point(4, 3))
    with pytest.raises(ValueError, match=r"."):
        plan(*wrong)


def test_plans_say_what_they_expected():
    with pytest.raises(ValueError, match=r"(?s)(5, 3).*(4, 3)|(4, 3).*(5, 3)"):
        plan_jacobian(torch.sin, point(4, 3))(point(5, 3))


@pytest.mark.parametrize("option", [{}, {"batched": True}, {"mode": "mixed"}, {"params": True}], ids=str)
def test_plans_can_be_pickled_and_bound_again(option):
    model, other, x = network(3, 5, 2), network(3, 5, 2, name="other"), point(4, 3)
    plan = plan_jacobian(model, x, **option)
    loaded = pickle.loads(pickle.dumps(plan))
    with pytest.raises(DerivativeError, match="bind"):
        loaded(x)
    assert loaded.mode == plan.mode
    assert loaded.notes == plan.notes
    assert str(loaded.explain()) == str(plan.explain())
    agree(loaded.bind(model)(x), jacobian(model, x, **option))
    agree(pickle.loads(pickle.dumps(plan)).bind(other)(x), jacobian(other, x, **option))
    agree(plan(x), jacobian(model, x, **option))


def test_plans_of_functions_that_cannot_be_pickled_can():
    weight = point(3, 3, name="weight")
    f = lambda x: torch.tanh(x @ weight) @ weight  # noqa: E731
    plan = pickle.loads(pickle.dumps(plan_jacobian(f, point(3))))
    agree(plan.bind(f)(point(3)), torch.func.jacrev(f)(point(3)))


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
@pytest.mark.parametrize("mode", MODES)
def test_chunks(chunk, mode):
    model, x = network(12, 3, 9), point(2, 12)
    agree(jacobian(model, x, mode=mode, chunk=chunk), torch.func.jacrev(model)(x))
    agree(jacobian(model, x, mode=mode, chunk=chunk, batched=True), torch.func.vmap(torch.func.jacrev(model))(x))
    agree(jacobian(model, x, mode=mode, chunk=chunk, params=True), by_parameters(model, x))


@pytest.mark.parametrize("chunk", [0, -1, 2.5, "all", None, True])
def test_chunks_that_are_no_number_of_directions_are_refused(chunk):
    with pytest.raises((ValueError, TypeError), match="chunk"):
        jacobian(torch.sin, point(3), chunk=chunk)


@pytest.mark.parametrize("mode", ["backward", "", None, "Auto"])
def test_unknown_modes_are_refused(mode):
    with pytest.raises((ValueError, TypeError), match="mode"):
        jacobian(torch.sin, point(3), mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_plans_say_which_mode_they_use(mode):
    plan = plan_jacobian(network(12, 3, 9), point(12), mode=mode)
    assert plan.mode in MODES[1:]
    if mode != "auto":
        assert plan.mode == mode
    assert plan.seconds > 0
    assert plan.peak_bytes >= 0
    assert plan.notes == ()


def test_the_cheaper_mode_is_chosen():
    wide, tall = network(200, 40, 1), network(1, 40, 200)
    assert plan_jacobian(wide, point(200)).mode in ("reverse", "mixed")
    assert plan_jacobian(tall, point(1)).mode in ("forward", "mixed")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
def test_memory_limits_hold(mode, fraction):
    model, x = network(60, 40, 30, 40, 50).requires_grad_(False), point(4, 60)
    free = plan_jacobian(model, x, mode=mode)
    limit = int(max(free.peak_bytes, peak_above(lambda: free(x))[1]) * fraction)
    try:
        plan = plan_jacobian(model, x, mode=mode, memory=limit)
    except DerivativeError:
        assert fraction < 1
        return
    got, used = peak_above(lambda: plan(x))
    agree(got, torch.func.jacrev(model)(x))
    assert used <= limit
    assert plan.peak_bytes <= limit


@pytest.mark.parametrize("memory", ["64 MiB", "1 GiB", "0.5 GiB", 1 << 26])
def test_memory_in_words(memory):
    model, x = network(6, 4, 5), point(6)
    agree(jacobian(model, x, memory=memory), torch.func.jacrev(model)(x))


@pytest.mark.parametrize("memory", ["a lot", "64 M B", "-1 MiB", -5, 2.5, "", True])
def test_memory_that_is_none_is_refused(memory):
    with pytest.raises((ValueError, TypeError), match=r"memory|byte"):
        jacobian(torch.sin, point(3), memory=memory)


def test_memory_that_does_not_suffice_is_said():
    with pytest.raises(DerivativeError, match=r"\d+(\.\d+)? ?([KM]iB|B\b|bytes)"):
        jacobian(network(60, 40, 50), point(4, 60), memory=100)


def test_factored_of_a_narrow_network():
    model, x = network(30, 3, 40), point(30)
    expected = torch.func.jacrev(model)(x).detach()
    operator = jacobian(model, x, factored=True)
    assert tuple(operator.shape) == (40, 30)
    assert operator.dtype == torch.float64
    assert operator.device == x.device
    agree(operator.dense().detach(), expected)
    v, u, V, U = point(30, name="v"), point(40, name="u"), point(30, 2, name="V"), point(40, 3, name="U")
    agree(operator.matvec(v).detach(), expected @ v)
    agree(operator.rmatvec(u).detach(), expected.T @ u)
    agree(operator.matmat(V).detach(), expected @ V)
    agree((operator.T @ U).detach(), expected.T @ U)
    agree(plan_jacobian(model, x)(x, factored=True).dense().detach(), expected)


@pytest.mark.parametrize(
    ("f", "args", "options"),
    [
        (lambda x: (x, x), (point(3),), {}),
        (lambda x, y: x * y, (point(3), point(3)), {"argnums": (0, 1)}),
        (lambda x: x.sin(), (point(3, 2),), {"batched": True}),
    ],
    ids=["outputs", "inputs", "batched"],
)
def test_factored_needs_one_input_and_one_output(f, args, options):
    with pytest.raises((ValueError, DerivativeError), match="factored"):
        jacobian(f, *args, factored=True, **options)


def test_progress_changes_nothing(capfd):
    model, x = network(6, 4, 5), point(6)
    expected = jacobian(model, x, chunk=2)
    assert capfd.readouterr() == ("", "")
    agree(jacobian(model, x, chunk=2, progress=True), expected)
    agree(plan_jacobian(model, x, chunk=2)(x, progress=True), expected)
    untraceable = jacobian(lambda x: x.sin() if x.sum() < 1e9 else x.cos(), x, chunk=2, progress=True)
    agree(untraceable, jacobian(torch.sin, x))


def test_explanations_are_tables_of_plain_text():
    plan = plan_jacobian(network(40, 20, 3, 20, 50), point(40))
    text = str(plan.explain())
    assert text.isascii() or all(character.isprintable() or character == "\n" for character in text)
    assert "\x1b" not in text
    assert plan.mode in text
    assert len(text.splitlines()) > 3
    console = rich.console.Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(plan.explain())
    assert plan.mode in console.export_text()


def test_drawings_are_svg_or_png(tmp_path):
    plan = plan_jacobian(network(40, 20, 3, 20, 50), point(40))
    text = plan.draw()
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    plan.draw(tmp_path / "plan.svg")
    assert ElementTree.parse(tmp_path / "plan.svg").getroot().tag.endswith("svg")
    plan.draw(str(tmp_path / "plan.png"))
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match="gif"):
        plan.draw(tmp_path / "plan.gif")
