"""What a plan says of itself: numbers that add up, and text that people can read."""

import itertools
import math
import pickle

import pytest
import rich.console
import torch
from points import MODES, network, point
from torch import nn

from torchadx.autodiff import jacobian, plan_hessian, plan_jacobian
from torchadx.autodiff._tables import segment_table


def untraceable(x):
    return x.sin() if x.sum() < 1e9 else x.cos()


class Residual(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).relu()
        return x


CASES = {
    **{mode: (network(12, 8, 3, 8, 9), (point(12),), {"mode": mode}) for mode in MODES},
    "batched": (network(12, 3, 9), (point(4, 12),), {"batched": True}),
    "parameters": (network(4, 3, 2), (point(4),), {"params": True}),
    "limit": (network(60, 40, 30, 40, 50), (point(4, 60),), {"memory": "700 KiB"}),
    "chunk": (network(12, 3, 9), (point(12),), {"chunk": 2}),
    "residual": (Residual(6, 20).double(), (point(6),), {}),
    "two inputs": (lambda x, y: (x * y, x.sum()), (point(3), point(3)), {"argnums": (0, 1)}),
    "untraceable": (untraceable, (point(5),), {}),
    "identity": (lambda x: x, (point(5),), {}),
}


@pytest.fixture(params=CASES)
def case(request):
    f, args, options = CASES[request.param]
    return plan_jacobian(f, *args, **options), args


def test_explanations_are_plain_data(case):
    plan, args = case
    before = plan.explain()
    plan(*args)
    after = plan.explain()
    for explanation in (before, after):
        assert pickle.loads(pickle.dumps(explanation)) == explanation
        assert hash(explanation) == hash(pickle.loads(pickle.dumps(explanation)))
        assert explanation.mode == plan.mode
    assert plan.explain() == after
    assert pickle.loads(pickle.dumps(plan)).explain() == after


def test_text_has_no_escape_codes_nor_endless_lines(case):
    plan, args = case
    plan(*args)
    lines = str(plan.explain()).splitlines()
    assert lines[0].startswith(plan.mode)
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert max(map(len, lines)) < 240


def test_rich_draws_the_same(case):
    plan, args = case
    plan(*args)
    explanation = plan.explain()
    console = rich.console.Console(width=240, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(explanation)
    drawn = console.export_text()
    assert set(str(explanation).split()) <= set(drawn.split())


def test_segments_are_a_chain_and_share_the_seconds_of_moves(case):
    plan, _ = case
    explanation = plan.explain()
    rows, moves = explanation.segments, explanation.moves
    assert [row.number for row in rows] == list(range(len(rows)))
    for before, after in itertools.pairwise(rows):
        assert before.after == after.before
        assert before.width_after == after.width_before
    for row in rows:
        assert row.width_before == sum(map(math.prod, row.before))
    for move in moves:
        if move.action != "multiply":
            seconds = math.fsum(row.seconds for row in rows[move.first : move.last])
            assert seconds == pytest.approx(move.seconds, rel=1e-12)
    if moves:
        assert explanation.seconds == plan.seconds == pytest.approx(math.fsum(move.seconds for move in moves))
        assert explanation.peak_bytes == plan.peak_bytes >= max(move.peak_bytes for move in moves)
        assert (moves[-1].rows, moves[-1].columns) == (rows[-1].width_after, rows[0].width_before)


@pytest.mark.parametrize(("mode", "word", "directions"), [("forward", "tangents", 12), ("reverse", "adjoints", 9)])
def test_pure_modes(mode, word, directions):
    explanation = plan_jacobian(lambda x: x.sin()[:9].cos(), point(12), mode=mode, chunk=4).explain()
    (move,) = explanation.moves
    assert (move.action, move.directions, move.chunk) == (mode, directions, 4)
    assert {row.action for row in explanation.segments} == {f"{word} (4 at once)"}
    assert move.flops == directions * sum(row.flops for row in explanation.segments)
    assert explanation.seconds == getattr(explanation, mode)
    assert explanation.cuts == ()
    assert f"mode={mode!r} was asked for" in explanation.why
    assert f"{directions} {word}" in explanation.why


def test_cuts_are_where_products_join():
    explanation = plan_jacobian(network(40, 3, 50), point(40), mode="mixed").explain()
    (cut,) = explanation.cuts
    assert explanation.segments[cut].width_before == 3
    assert f"cut where 3 numbers pass, before segment {cut}" in explanation.why
    product = explanation.moves[-1]
    assert (product.action, product.first, product.rows, product.columns) == ("multiply", cut, 50, 40)
    assert product.flops == 2 * 50 * 3 * 40
    assert "known" in {row.action for row in explanation.segments}


def test_a_known_matrix_spares_its_arithmetic():
    f = network(4, 30)
    explanation = plan_jacobian(lambda x: f(x).sin().sin(), point(4), mode="forward").explain()
    directions = 4
    moved = math.fsum(row.flops for row in explanation.segments[1:])
    assert math.fsum(row.flops for row in explanation.moves) == pytest.approx(directions * moved, rel=1e-12)


def test_seconds_are_measured_by_a_run():
    model, x = network(12, 3, 9), point(12)
    plan = plan_jacobian(model, x)
    before = plan.explain()
    assert (before.measured, before.evaluation) == (None, None)
    assert {move.measured for move in before.moves} == {None}
    assert "measured:" not in str(before)
    plan(x)
    after = plan.explain()
    assert after.evaluation == plan.measured[0]
    assert [move.measured for move in after.moves] == list(plan.measured[1:])
    assert after.measured == pytest.approx(sum(plan.measured[1:]))
    assert "measured:" in str(after)


def test_a_factored_run_is_not_taken_for_a_dense_one():
    model, x = network(30, 3, 40), point(30)
    plan = plan_jacobian(model, x, mode="mixed")
    plan(x, factored=True)
    assert plan.explain().measured is None


def test_memory_is_told():
    model, x = network(60, 40, 30, 40, 50), point(4, 60)
    free = plan_jacobian(model, x).explain()
    assert free.limit_bytes is None
    assert "without a limit" in str(free)
    limited = plan_jacobian(model, x, memory="700 KiB").explain()
    assert limited.limit_bytes == 700 * 1024
    assert limited.peak_bytes <= 700 * 1024
    assert "at most of 700.0 KiB" in str(limited)
    assert ("evaluated anew" in str(limited)) == limited.recompute


def test_samples_count():
    x = point(4, 12)
    one, all_four = (plan_jacobian(network(12, 3, 9), x[:n], batched=True, mode="forward").explain() for n in (1, 4))
    assert (one.samples, all_four.samples) == (1, 4)
    assert sum(move.flops for move in all_four.moves) == pytest.approx(4 * sum(move.flops for move in one.moves))
    assert sum(row.tape_bytes for row in all_four.segments) == 4 * sum(row.tape_bytes for row in one.segments)


def test_functions_that_are_not_taken_apart_say_why():
    explanation = plan_jacobian(untraceable, point(5)).explain()
    assert not explanation.traced
    assert (explanation.segments, explanation.moves, explanation.seconds) == ((), (), None)
    assert "test_explain.py" in str(explanation)
    assert "torch.func differentiates f whole" in explanation.why


@pytest.mark.filterwarnings("ignore::torchadx.autodiff.IndependentOutputWarning")
@pytest.mark.parametrize("f", [lambda x: x, lambda x: torch.ones(3, dtype=x.dtype), lambda x: x.reshape(-1)[:0]])
def test_plans_without_anything_to_do(f):
    plan = plan_jacobian(f, point(5))
    explanation = plan.explain()
    assert "nothing to compute" in explanation.why
    assert all(note in str(explanation) for note in plan.notes)


def test_long_chains_stay_readable():
    explanation = plan_jacobian(Residual(6, 12).double(), point(6), mode="forward").explain()
    table = segment_table(explanation.segments)
    assert len(explanation.segments) > 30
    assert len(table) < 16
    assert any("..." in line[0] for line in table)


def test_hessians_explain_themselves():
    plan = plan_hessian(lambda x: network(5, 4, 1)(x).tanh().sum(), point(5))
    assert plan.mode in str(plan.explain())


def test_explanations_leave_results_alone():
    model, x = network(6, 4, 5), point(6)
    plan = plan_jacobian(model, x)
    plan.explain()
    assert torch.equal(plan(x), jacobian(model, x))
