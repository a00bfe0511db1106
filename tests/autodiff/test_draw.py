"""Pictures of plans: well-formed, complete, and without words upon words."""

import itertools
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from points import network, point
from test_explain import CASES, Residual, untraceable

from torchadx.autodiff import plan_jacobian
from torchadx.autodiff._picture import ADJOINTS, KNOWN, TANGENTS, Label, Line, picture

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(params=CASES)
def plan(request):
    f, args, options = CASES[request.param]
    made = plan_jacobian(f, *args, **options)
    made(*args)
    return made


def box(label):
    """Left, top, right, bottom."""
    before = {"start": 0.0, "middle": 0.5, "end": 1.0}[label.anchor] * label.length
    if label.upright:
        return label.x - label.size, label.y + before - label.length, label.x, label.y + before
    return label.x - before, label.y - label.size, label.x - before + label.length, label.y


def corners(shape):
    if isinstance(shape, Label):
        left, top, right, bottom = box(shape)
        return (left, top), (right, bottom)
    return (shape.start, shape.end) if isinstance(shape, Line) else shape.points


def test_words_do_not_overlap(plan):
    labels = [shape for shape in picture(plan.explain()).shapes if isinstance(shape, Label)]
    for first, second in itertools.combinations(labels, 2):
        a, b = box(first), box(second)
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, (first.text, second.text)


def test_everything_is_on_the_canvas(plan):
    drawn = picture(plan.explain())
    for shape in drawn.shapes:
        for x, y in corners(shape):
            assert 0 <= x <= drawn.width, shape
            assert 0 <= y <= drawn.height, shape


def test_svg_is_well_formed_and_complete(plan):
    explanation = plan.explain()
    root = ElementTree.fromstring(plan.draw())
    assert root.tag == f"{SVG}svg"
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert texts[0].startswith(f"{plan.mode} mode")
    assert len(list(root)) == len(picture(explanation).shapes)
    if explanation.segments:
        assert {str(row.number) for row in explanation.segments} <= set(texts)
        assert {str(row.width_after) for row in explanation.segments} <= set(texts)
    fills = [element.get("fill") for element in root.iter(f"{SVG}polygon")]
    actions = [row.action for row in explanation.moves]
    for color, marks in ((TANGENTS, {"forward", "push"}), (ADJOINTS, {"reverse", "pull"}), (KNOWN, {"known"})):
        count = sum(action in marks for action in actions)
        # the legend has one more, of what occurs
        if explanation.traced:
            assert fills.count(color) == count + (count > 0)


def test_tangents_point_to_the_right_and_adjoints_to_the_left():
    for mode, color, sign in (("forward", TANGENTS, 1), ("reverse", ADJOINTS, -1)):
        for f in (network(4, 3, 4), untraceable):
            shapes = picture(plan_jacobian(f, point(4), mode=mode).explain()).shapes
            lines = [shape for shape in shapes if isinstance(shape, Line) and shape.color == color]
            assert lines
            assert all((line.end[0] - line.start[0]) * sign > 0 for line in lines)


def test_cuts_are_dashed():
    for mode, dashed in (("mixed", True), ("forward", False)):
        text = plan_jacobian(network(40, 3, 50), point(40), mode=mode).draw()
        assert ("stroke-dasharray" in text) == dashed


def test_long_chains_are_drawn_whole():
    plan = plan_jacobian(Residual(6, 14).double(), point(6))
    drawn = picture(plan.explain())
    assert len(plan.explain().segments) > 30
    assert any(isinstance(shape, Label) and shape.upright for shape in drawn.shapes)
    assert drawn.width < 2000


def test_what_svg_would_misread_is_escaped():
    plan = plan_jacobian(network(4, 3), point(4))
    plan.notes = ("a < b && c > \"d\" at 'x'",)
    texts = [element.text for element in ElementTree.fromstring(plan.draw()).iter(f"{SVG}text")]
    assert f"note: {plan.notes[0]}" in texts


def test_files(plan, tmp_path):
    assert plan.draw(tmp_path / "plan.svg") is None
    assert (tmp_path / "plan.svg").read_text(encoding="utf-8") == plan.draw()


def test_png(plan, tmp_path):
    pytest.importorskip("matplotlib")
    assert plan.draw(str(tmp_path / "plan.png")) is None
    data = (tmp_path / "plan.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    drawn = picture(plan.explain())
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    assert abs(width - 2 * drawn.width) <= 2
    assert abs(height - 2 * drawn.height) <= 2


def test_png_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    plan = plan_jacobian(network(4, 3), point(4))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"torchadx\[examples\]"):
        plan.draw(tmp_path / "plan.png")
    assert not (tmp_path / "plan.png").exists()


@pytest.mark.parametrize("name", ["plan.gif", "plan", "plan.svg.gz"])
def test_other_suffixes_are_refused(name, tmp_path):
    plan = plan_jacobian(network(4, 3), point(4))
    with pytest.raises(ValueError, match=r"(?=.*\.svg)(?=.*\.png)") as caught:
        plan.draw(tmp_path / name)
    assert repr((tmp_path / name).suffix) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
