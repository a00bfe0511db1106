"""The HTML page as text: what it holds, what it loads, what is refused."""

import copy
import hashlib
import html.parser
import importlib.resources
import json
import re
import sys

import browser
import payloads
import pytest

from torchadx.inspect import _page
from torchadx.inspect._page import _pack

FILES = importlib.resources.files(_page)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return lambda name: browser.written(name, folder)


class Scripts(html.parser.HTMLParser):
    """The text of every script of a document, and the attributes of every tag."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.tags, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data


def columns_back(packed):
    places = range(packed["length"])
    return [{key: one["distinct"][one["index"][place]] for key, one in packed["columns"].items()} for place in places]


@pytest.mark.parametrize("name", ["small", "hostile"])
def test_the_payload_comes_back_from_the_page_whatever_its_strings_are(written, name):
    document = Scripts(written(name).read_text(encoding="utf-8"))
    assert len(document.scripts) == 4
    one = json.loads(document.scripts[0])["passes"][0]
    expected = getattr(payloads, name)()["passes"][0]
    assert columns_back(one["saved"]["rows"]) == expected["saved"]["rows"]
    assert columns_back(one["graph"]["nodes"]) == expected["graph"]["nodes"]
    assert columns_back(one["graph"]["edges"]) == expected["graph"]["edges"]
    assert one["profile"] == expected["profile"]


def test_no_tag_of_the_page_loads_anything(written):
    document = Scripts(written("small").read_text(encoding="utf-8"))
    assert [tag for tag, attributes in document.tags if "src" in attributes or tag in ("iframe", "object")] == []
    assert [attributes["href"] for tag, attributes in document.tags if tag == "link"] == ["data:,"]


@pytest.mark.parametrize("name", [*_page.SCRIPTS, *_page.STYLES, "page.html"])
def test_template_files_load_nothing_and_write_no_markup_from_data(name):
    text = (FILES / name).read_text(encoding="utf-8").replace('"http://www.w3.org/2000/svg"', "")
    found = re.findall(
        r"https?:|url\((?!#)|@import|\bfetch\(|XMLHttpRequest|innerHTML|outerHTML|insertAdjacent|eval\(", text
    )
    assert found == []


def test_the_vendored_file_is_the_one_its_readme_names():
    digest = hashlib.sha256((FILES / "vendor" / "dagre.min.js").read_bytes()).hexdigest()
    assert f"sha256: `{digest}`" in (FILES / "vendor" / "README.md").read_text(encoding="utf-8")
    assert "Permission is hereby granted" in (FILES / "vendor" / "LICENSE").read_text(encoding="utf-8")


def test_a_page_carries_the_licenses_of_what_it_contains(written):
    text = written("small").read_text(encoding="utf-8")
    assert "Chris Pettitt" in text
    assert "Plotly, Inc." in text


def test_a_missing_plotly_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ModuleNotFoundError, match=r"torchadx\[inspect\]"):
        _page.render(payloads.bare())


def test_rendering_leaves_the_payload_as_it_was(written):
    written("small")
    payload = payloads.small()
    kept = copy.deepcopy(payload)
    _page.render(payload)
    assert payload == kept


@pytest.mark.parametrize("count", [0, 3])
def test_a_page_shows_one_pass_or_two(count):
    with pytest.raises(ValueError, match=f"got {count} passes"):
        _page.render({**payloads.bare(), "passes": payloads.bare()["passes"] * count})


def test_a_number_that_json_cannot_write_is_refused(written):
    written("small")
    payload = payloads.small()
    payload["passes"][0]["timeline"]["phases"][0]["end"] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        _page.render(payload)


def test_records_that_differ_in_their_keys_are_refused():
    with pytest.raises(ValueError, match="same keys"):
        _pack.columns([{"a": 1}, {"b": 1}])


def test_a_column_keeps_apart_what_python_finds_equal():
    records = [{"a": value} for value in (1, True, 1.0, "1", None, [1], [])]
    assert [type(one["a"]) for one in columns_back(_pack.columns(records))] == [type(one["a"]) for one in records]


def test_a_long_timeline_is_thinned_and_keeps_its_peak_its_lows_and_its_ends():
    device = payloads.timeline(instants=50_000)["devices"]["cpu"]
    device["categories"]["temporary"][40_001] += 10**12
    small = _pack.thinned(device, stretches=100)
    assert small["instants"] == 50_000
    assert 100 <= len(small["times"]) <= 2 * 101 + 2
    assert small["times"] == sorted(small["times"])
    assert max(small["categories"]["temporary"]) > 10**12
    assert (small["times"][0], small["times"][-1]) == (device["times"][0], round(device["times"][-1], 4))
    assert min(small["categories"]["temporary"]) == 0


@pytest.mark.parametrize("name", ["small", "two_passes", "many_rows", "large_graph", "hostile"])
def test_a_page_is_smaller_than_six_megabytes(written, name):
    assert written(name).stat().st_size < 6_000_000
