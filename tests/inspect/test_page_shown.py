"""The HTML page in a real browser: what it shows, and what a keyboard does to it."""

import itertools
import re

import browser as browsing
import payloads
import pytest

from torchadx.inspect import _page


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Open pages once for all tests of this file, which share them: each begins with what it needs."""
    with browsing.chromium() as running:
        yield browsing.Pages(running, tmp_path_factory.mktemp("pages"))


@pytest.fixture
def shown(pages):
    """Give the page of a payload; whatever a test does, nothing may complain or ask for anything but the file."""
    yield pages.shown
    assert pages.problems == []
    assert pages.foreign_requests() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_draw_without_a_complaint_and_without_a_request(shown, scheme):
    page = shown("small")
    page.emulate_media(color_scheme=scheme)
    assert page.locator(".chart.treemap path.surface").count() >= 10
    assert page.locator(".chart.timeline .scatterlayer path").count() >= 6
    assert browsing.colours(page.locator(".chart.treemap")) > 8
    assert browsing.colours(page.locator(".chart.timeline")) > 8


def test_what_was_not_taken_is_left_out(shown):
    page = shown("only_graph")
    assert page.locator("main h2").all_inner_texts() == ["Memory over time", "Autograd graph"]
    assert page.locator("nav a").all_inner_texts() == ["Timeline", "Graph"]
    assert "No timeline was recorded" in page.locator("#timeline").inner_text()
    assert page.locator("#graph .box-button").count() > 0


def test_notes_of_the_timeline_are_shown(shown):
    assert "4 blocks were freed unseen" in shown("small").locator("#timeline .notes").inner_text()


def test_hostile_strings_are_text_and_nothing_else(shown):
    page = shown("hostile", width=400)
    assert page.locator("h1").inner_text() == payloads.HOSTILE
    page.locator("#storages .opener").first.press("Enter")
    page.locator("#graph .box-button").first.press("Enter")
    page.locator("#graph .node").first.focus()
    assert page.locator("#storages .detail").count() == 1
    assert page.locator("img, b, svg a").count() == 0
    assert page.locator("script").count() == 4


@pytest.mark.parametrize(("name", "width"), [("two_passes", 1280), ("hostile", 400)])
def test_a_narrow_screen_needs_no_sideways_scrolling_be_it_narrow_at_first_or_later(shown, name, width):
    page = shown(name, width=width)
    page.set_viewport_size({"width": 400, "height": 900})
    page.locator("#storages .opener").nth(1).click()
    page.get_by_role("button", name="Expand all").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator(".chart").first.bounding_box()["width"] < 400


def test_both_colour_schemes_are_readable_and_charts_follow_a_change(shown):
    page = shown("two_passes")
    page.locator("#storages .opener").first.click()
    background = "getComputedStyle(document.body).backgroundColor"
    paper = "getComputedStyle(document.querySelector('.chart.timeline .main-svg')).backgroundColor"
    colours = {}
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        colours[scheme] = [page.evaluate(background), page.evaluate(paper)]
        contrasts = page.evaluate(browsing.CONTRASTS)
        assert len(contrasts) > 300
        assert [one for one in contrasts if one[0] < 4.5] == []
    assert all(one != other for one, other in zip(colours["light"], colours["dark"], strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_in_charts_and_graph_stand_out_from_what_is_behind_them(pages, scheme):
    behind = ["surface", "sunken", "band-even", "band-odd", *(f"hue-{hue}" for hue in range(8))]
    chips = "".join(f'<p style="background:var(--{name});color:var(--text)">{name}</p>' for name in behind)
    kinds = ("backward", "leaf", "saved", "output", "base")
    chips += "".join(f'<p class="swatch kind-{kind}" style="color:#14181d">{kind}</p>' for kind in kinds)
    styles = "".join(f"<style>{browsing.template(name)}</style>" for name in _page.STYLES)
    page = pages.blank(scheme=scheme)
    page.set_content(styles + chips)
    contrasts = page.evaluate(browsing.CONTRASTS)
    assert len(contrasts) == len(behind) + len(kinds)
    assert min(contrasts)[0] >= 4.5


def test_a_table_is_sorted_searched_and_opened_by_keyboard(shown):
    page = shown("small")
    held = page.locator("#storages thead").get_by_role("button", name="Held")
    cells = page.locator("#storages tbody tr td:nth-child(3)")
    held.press("Enter")
    assert page.locator("#storages th:has(button:text-is('Held'))").get_attribute("aria-sort") == "descending"
    assert cells.first.inner_text() == "72.0 KiB"
    held.press("Space")
    assert cells.first.inner_text() == "0 B"
    page.get_by_label("Search saved storages").fill("ENCODER.1.norm")
    assert page.locator("#storages [role=status]").inner_text() == "3 of 3 rows, found among 39"
    opener = page.locator("#storages .opener").first
    opener.press("Enter")
    assert opener.get_attribute("aria-expanded") == "true"
    assert "product of the cotangent" in page.locator("#storages .detail").inner_text()
    opener.press("Enter")
    assert page.locator("#storages .detail").count() == 0


def test_thousands_of_rows_are_shown_a_page_at_a_time(shown):
    page = shown("many_rows")
    rows = page.locator("#storages tbody tr")
    assert rows.count() == 200
    page.get_by_role("button", name="Show 200 more").press("Enter")
    assert rows.count() == 400
    place = page.evaluate("document.activeElement.closest('tr').dataset.place")
    assert place == "200"
    page.get_by_label("Search saved storages").fill("layers.99.")
    assert rows.count() == 50
    assert not page.get_by_role("button", name="Show").is_visible()


def test_the_graph_opens_module_by_module_from_the_keyboard(shown):
    page = shown("small")
    shapes = page.locator("#graph .box, #graph .node")
    page.get_by_role("button", name="Collapse all").press("Enter")
    assert page.locator("#graph [aria-expanded=true]").count() == 0
    before = shapes.count()
    encoder = page.locator("#graph").get_by_role("button", name="module encoder, 16 nodes")
    encoder.press("Enter")
    assert shapes.count() == before + 2
    assert encoder.get_attribute("aria-expanded") == "true"
    assert page.evaluate("document.activeElement.dataset.key") == "encoder"
    encoder.press("Space")
    assert shapes.count() == before
    page.get_by_role("button", name="Expand all").press("Enter")
    assert page.locator("#graph .node").count() == 25
    page.locator("#graph .node.kind-saved").first.focus()
    assert "sequence number" in page.locator("#graph .about").inner_text()
    page.get_by_role("button", name="Collapse all").press("Enter")
    assert shapes.count() == before


def test_edges_are_lifted_to_the_boxes_that_are_seen_and_merged(shown):
    page = shown("small")
    edges = page.locator("#graph .edge")
    page.get_by_role("button", name="Collapse all").click()
    assert edges.count() == 7
    page.get_by_role("button", name="Expand all").click()
    assert edges.count() == len(payloads.graph()["edges"])
    assert page.locator("#graph .edge.dotted").count() == 1


def test_shapes_of_an_open_graph_do_not_overlap_and_stay_inside_their_box(shown):
    page = shown("small")
    page.get_by_role("button", name="Expand all").click()
    boxes = "[...document.querySelectorAll('#graph .node rect')].map((one) => one.getBBox())"
    nodes = page.evaluate(f"{boxes}.map((box) => [box.x, box.y, box.x + box.width, box.y + box.height])")
    overlaps = [
        (one, other)
        for place, one in enumerate(nodes)
        for other in nodes[:place]
        if one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
    ]
    assert overlaps == []
    outside = """() => [...document.querySelectorAll('#graph .box .node')].filter((node) => {
      const inner = node.getBBox();
      const frame = node.closest('.box').querySelector('.frame').getBBox();
      return inner.x < frame.x || inner.y < frame.y || inner.x + inner.width > frame.x + frame.width
        || inner.y + inner.height > frame.y + frame.height;
    }).length"""
    assert page.evaluate(outside) == 0


def test_a_large_graph_shows_only_what_is_open(shown):
    page = shown("large_graph")
    assert page.locator("#graph .box").count() == 1
    assert page.get_by_role("button", name="Expand all").is_disabled()
    assert "3,000 nodes are too many" in page.locator("#graph .tools").inner_text()
    page.locator("#graph [data-key='blocks']").press("Enter")
    assert page.locator("#graph .box").count() == 21
    page.locator("#graph [data-key='blocks.3']").press("Enter")
    page.locator("#graph [data-key='blocks.3.7']").press("Enter")
    assert page.locator("#graph .node").count() == 15


def test_two_passes_are_compared_on_one_scale(shown):
    page = shown("two_passes")
    held = page.locator(".figure", has_text="Held now").inner_text()
    assert re.search(r"1\.20 MiB → 493 KiB\s+\u2212" + "60 %", held)
    tops = "[...document.querySelectorAll('.chart.timeline')].map((one) => one.layout.yaxis.range[1])"
    assert len(set(page.evaluate(tops))) == 1
    size = "(one) => { const { width, height } = one.querySelector('.treemaplayer').getBBox(); return width * height; }"
    before, after = page.evaluate(f"[...document.querySelectorAll('.chart.treemap')].map({size})")
    assert after / before == pytest.approx(0.4, abs=0.02)
    left, right = (one.bounding_box() for one in page.locator(".chart.treemap").all())
    assert left["y"] == right["y"]
    assert page.locator("#storages table").count() == 2


def test_what_was_not_recorded_is_said_or_left_out(shown):
    page = shown("bare")
    assert "No timeline was recorded." in page.locator("#timeline").inner_text()
    assert "No graph was recorded." in page.locator("#graph").inner_text()
    assert page.locator("#profile, nav a[href='#profile']").count() == 0


def test_the_page_is_made_for_keyboards_and_screen_readers(shown):
    page = shown("two_passes")
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.locator("main, header, footer, nav").count() == 4
    identities = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(identities) == len(set(identities))
    names = page.evaluate("[...document.querySelectorAll('button')].map((one) => one.ariaLabel ?? one.textContent)")
    assert len(names) > 80
    assert all(name.strip() for name in names)
    line = page.locator("#modules summary.line").first
    page.locator("#modules details > summary").first.press("Enter")
    line.press("Enter")
    assert page.locator("#modules details[open] details[open]").count() == 1


def test_the_first_stop_of_the_tab_key_leads_to_the_content(shown):
    page = shown("bare")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
