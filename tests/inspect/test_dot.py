"""Pictures of graphs: folded for people to read, escaped for graphviz, written to files; and text and JSON."""

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from test_graph import Block, Stack, vector
from torch import nn

from torchadx.inspect._graph._dot import quoted
from torchadx.inspect._graph._graph import graph
from torchadx.inspect._modules import ModuleWatch

HOSTILE = (
    'say "hi"',
    "back\\slash \\n \\",
    "two\nlines",
    "<b>bold</b>",
    "a & b &lt; &amp;",
    "bell\a null\0",
    "\ud800",
    "äöü {|}",
)
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz's program dot is not installed")


def boxes(text):
    return re.findall(r"^\t\d+ \[label=\"(.*)\", fillcolor", text, re.MULTILINE)


def arrows(text):
    return re.findall(r"^\t(\d+) -> (\d+)(.*)$", text, re.MULTILINE)


def rendered(text):
    """Return the texts of the picture that dot makes."""
    done = subprocess.run(["dot", "-Tsvg"], input=text.encode(), capture_output=True, check=True)
    assert done.stderr == b""
    return [element.text for element in ElementTree.fromstring(done.stdout).iter("{http://www.w3.org/2000/svg}text")]


def watched(model, *inputs):
    with ModuleWatch(model) as record:
        return graph(model(*inputs), record=record)


def flat(layers):
    return nn.Sequential(*(layer for _ in range(layers) for layer in (nn.Linear(4, 4), nn.ReLU())))


def acyclic(text):
    pairs = [(int(source), int(target)) for source, target, _ in arrows(text)]
    places = {place for pair in pairs for place in pair}
    while places:
        free = places - {target for source, target in pairs if source in places and target in places}
        if not free:
            return False
        places -= free
    return True


def test_all_nodes_have_torchviz_colors():
    a = vector()
    y = a.exp()
    text = graph(y[0], {"a": a}, show_saved=True).dot()
    for label, color in {
        "a\\\\n(3)": "lightblue",
        "ExpBackward0": "lightgrey",
        "result\\\\n(3)": "orange",
        "output\\\\n()": "darkolivegreen1",
        "view base\\\\n(3)": "darkolivegreen3",
    }.items():
        assert re.search(rf'label="{label.replace("(", "[(]").replace(")", "[)]")}[^"]*", fillcolor={color}\]', text), (
            label
        )
    assert sum("style=dotted" in rest for _, _, rest in arrows(text)) == 1
    assert sum("dir=none" in rest for _, _, rest in arrows(text)) == 1


def test_modules_are_frames_around_their_nodes():
    model = Block()
    text = graph(model(torch.randn(3, 4)), model, collapse=None).dot()
    frames = re.findall(r'graph \[label="(.*?)"', text)
    assert frames == ["norm: LayerNorm", "mlp: Sequential", "mlp.0: Linear", "mlp.2: Linear"]
    assert text.count("{") == text.count("}")


def test_a_box_per_module_with_what_is_inside():
    text = watched(Block(), torch.randn(3, 4, requires_grad=True)).dot()
    assert boxes(text) == [
        "leaf\\n(3, 4)",
        "norm\\nLayerNorm\\n5 nodes, 24 B saved",
        "mlp.0\\nLinear\\n6 nodes, 48 B saved",
        "mlp.1\\nReLU\\n1 node, 48 B saved",
        "mlp.2\\nLinear\\n6 nodes",
        "(model) itself\\n1 node",
        "output\\n(3, 4)",
    ]
    chain = [("0", "1"), ("1", "2"), ("2", "3"), ("3", "4"), ("4", "5"), ("0", "5"), ("5", "6")]
    assert sorted(arrow[:2] for arrow in arrows(text)) == sorted(chain)


def test_a_depth_folds_what_is_deeper():
    drawn = watched(Block(), torch.randn(3, 4))
    assert boxes(drawn.dot(collapse=1)) == [
        "norm\\nLayerNorm\\n5 nodes, 72 B saved",
        "mlp\\nSequential\\n13 nodes, 96 B saved",
        "(model) itself\\n1 node",
        "output\\n(3, 4)",
    ]
    assert boxes(drawn.dot(collapse=0)) == ["(model)\\nBlock\\n19 nodes, 168 B saved", "output\\n(3, 4)"]


def test_edges_between_boxes_are_counted():
    model = nn.Sequential(nn.Linear(4, 4), Block())
    with ModuleWatch(model) as record:
        y = model(torch.randn(3, 4))
    text = graph(y, record=record, collapse=1).dot()
    # to the norm and around it
    assert arrows(text)[0] == ("0", "1", ' [label=" \N{MULTIPLICATION SIGN}2"]')


@pytest.mark.parametrize("how", ["names", "record"])
@pytest.mark.parametrize("model", [flat(1000), Stack(300)], ids=["flat", "deep"])
def test_a_thousand_layers_are_at_most_sixty_boxes(model, how):
    x = torch.randn(2, 4)
    drawn = watched(model, x) if how == "record" else graph(model(x), model)
    text = drawn.dot()
    assert 30 <= len(boxes(text)) <= 60
    assert acyclic(text)
    inside = sum(int(count) for count in re.findall(r"(\d+) nodes?[,\"]", text))
    # all but the output
    assert inside == len(drawn.nodes) - 1


def test_many_outputs_and_inputs_are_folded_too():
    model = Block()
    y = model(torch.stack([vector(4) for _ in range(100)]))
    assert len(boxes(graph(list(y.unbind()), model).dot())) <= 60


def test_neighbours_in_one_module_share_a_box():
    labels = boxes(watched(Stack(100), torch.randn(2, 4)).dot())
    assert labels[0] == "blocks.0 \N{HORIZONTAL ELLIPSIS} blocks.1\\nBlock\\n2 modules\\n38 nodes, 224 B saved"
    assert labels[-2].startswith("head\\nLinear\\n")


def test_of_nothing_but_the_model_all_nodes_are_drawn():
    model = nn.Linear(4, 2)
    drawn = graph(model(torch.randn(3, 4)), model)
    assert len(boxes(drawn.dot())) == len(drawn.nodes)


def test_a_string_is_escaped():
    assert quoted('a"b\\') == '"a\\"b\\\\"'
    assert quoted("a\nb") == '"a\\nb"'
    assert quoted("a\nb", "\\l") == '"a\\lb\\l"'
    assert quoted("<b>&lt;") == '"<b>&amp;lt;"'
    assert quoted("\0\ud800") == '"\ufffd\ufffd"'


@needs_dot
def test_hostile_names_are_shown_as_they_are():
    tensors = {hostile: vector() for hostile in HOSTILE}
    shown = rendered(graph(sum(tensors.values()), tensors, collapse=None).dot())
    for hostile in HOSTILE:
        for line in hostile.split("\n"):
            expected = re.sub("[\a\0\ud800]", "\ufffd", line)
            # dot writes no-break spaces
            assert expected in [text.replace("\xa0", " ") for text in shown]


@needs_dot
@pytest.mark.parametrize("collapse", ["module", 1, None])
def test_dot_reads_what_is_written(collapse):
    model = nn.Sequential(Block(), Block())
    tensors = {f"{hostile}.{name}": each for hostile in HOSTILE for name, each in model.named_parameters()}
    drawn = graph(model(torch.randn(3, 4)), tensors, show_saved=True, show_attrs=True)
    assert rendered(drawn.dot(collapse))


def test_text_is_written_without_graphviz(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "graphviz", None)
    drawn = graph(vector().exp())
    for suffix in (".dot", ".gv"):
        drawn.draw(tmp_path / f"graph{suffix}")
        assert (tmp_path / f"graph{suffix}").read_text(encoding="utf-8") == drawn.dot()
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"torchadx\[inspect\]\""):
        drawn.draw(tmp_path / "graph.svg")
    with pytest.raises(ModuleNotFoundError, match=r"draw\(\) writes .dot"):
        drawn.digraph()


@needs_dot
@pytest.mark.parametrize(("suffix", "begin"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_pictures_are_written(tmp_path, suffix, begin):
    pytest.importorskip("graphviz")
    graph(vector().exp()).draw(tmp_path / f"graph{suffix}")
    assert (tmp_path / f"graph{suffix}").read_bytes().startswith(begin)


def test_without_the_program_it_says_how_to_install_it(tmp_path, monkeypatch):
    pytest.importorskip("graphviz")
    monkeypatch.setenv("PATH", str(tmp_path))
    drawn = graph(vector().exp())
    with pytest.raises(RuntimeError, match=r"apt-get install graphviz; without it, draw\(\) writes .dot and .html"):
        drawn.draw(tmp_path / "graph.png")
    assert drawn._repr_mimebundle_() == {"text/plain": drawn.dot()}


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"written as .svg, .png, .pdf, .dot, .gv, .html: got a path with suffix '.jpg'"
    ):
        graph(vector().exp()).draw(tmp_path / "graph.jpg")


@needs_dot
def test_a_notebook_shows_a_picture():
    pytest.importorskip("graphviz")
    drawn = graph(vector().exp())
    shown = drawn._repr_mimebundle_()
    assert "ExpBackward0" in shown["image/svg+xml"]
    assert shown["text/plain"] == str(drawn)


def test_a_digraph_holds_the_same_lines():
    pytest.importorskip("graphviz")
    drawn = graph(vector().exp())
    assert drawn.digraph().source == drawn.dot()


def test_a_page_holds_the_graph(tmp_path):
    pytest.importorskip("plotly")
    drawn = graph(vector().exp())
    drawn.draw(tmp_path / "graph.html")
    assert "<title>" in (tmp_path / "graph.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(3), "it does not require grad; pass what the model returns"),
        (torch.zeros(3, requires_grad=True), "it is a leaf"),
        ([torch.zeros(3), torch.zeros(2)], "2 tensors without grad_fn"),
        ({}, "expected a tensor, .* got dict"),
    ],
)
def test_without_a_graph_it_says_what_to_do(output, message):
    with pytest.raises(ValueError, match=message):
        graph(output)


def test_arguments_are_checked():
    y = vector().exp()
    for collapse in ("modules", -1, True, 1.5):
        with pytest.raises(ValueError, match=r"collapse: expected \"module\""):
            graph(y, collapse=collapse)
    with pytest.raises(ValueError, match="max_attr_chars: expected 3 or more, got 2"):
        graph(y, max_attr_chars=2)
    with pytest.raises(TypeError, match="params: expected a mapping of names to tensors"):
        graph(y, [("a", y)])


def test_json_is_the_whole_graph():
    model = Block()
    drawn = graph(model(torch.randn(3, 4)), model, show_saved=True)
    read = json.loads(drawn.to_json())
    assert read == drawn.to_dict()
    assert [set(node) for node in read["nodes"]] == [{"id", "label", "kind", "module", "detail"}] * len(drawn.nodes)
    assert read["edges"] == [edge._asdict() for edge in drawn.edges]


def test_text_counts_nodes():
    model = Block()
    lines = str(graph(model(torch.randn(3, 4)), model)).split("\n")
    assert lines[0] == "autograd graph: 20 nodes (13 backward, 6 leaf, 1 output), 19 edges"
    assert lines[1] == "made in 5 modules"
    assert lines[2].startswith("saved for backward: ")
