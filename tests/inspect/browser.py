"""Open a page in headless Chromium, and note everything that should not happen there."""

import contextlib
import importlib.resources
import io
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import payloads
import pytest

from torchadx.inspect import _page

# ratio of two colours by WCAG 2; of every element that has text of its own, against the first opaque background
CONTRASTS = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const linear = (x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.slice(0, 3).map((x) => linear(x / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let place = element; place; place = place.parentElement) {
      const color = parts(getComputedStyle(place).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const worded = [...document.querySelectorAll("body *:not(script, svg, svg *, noscript)")].filter((element) =>
    element.checkVisibility() && !element.disabled &&
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return worded.map((element) => {
    const [one, other] = [parts(getComputedStyle(element).color), behind(element)].map(light).sort((a, b) => b - a);
    const name = `${element.tagName} ${element.className} ${element.textContent.slice(0, 40)}`;
    return [(one + 0.05) / (other + 0.05), name];
  });
}"""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser, or skip with the reason why there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: the page is not opened in a browser")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on the path: the page is not opened in a browser")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def written(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Write the page of a payload of ``payloads.py``, once to a folder."""
    pytest.importorskip("plotly", reason="no plotly: there is no page to write")
    file = folder / f"{name}.html"
    if not file.exists():
        file.write_text(_page.render(getattr(payloads, name)()), encoding="utf-8")
    return file


def template(name: str) -> str:
    return importlib.resources.files(_page).joinpath(name).read_text(encoding="utf-8")


class Pages:
    """Pages of a browser, each opened once, with all they complained about and all they asked for."""

    def __init__(self, browser: Any, folder: pathlib.Path) -> None:
        self.browser = browser
        self.folder = folder
        self.opened: dict[tuple[str, int, str], Any] = {}
        self.problems: list[str] = []
        self.requests: list[str] = []

    def shown(self, name: str, width: int = 1280, scheme: str = "light") -> Any:
        key = (name, width, scheme)
        if key not in self.opened:
            self.opened[key] = page = self.blank(width, scheme)
            page.goto(written(name, self.folder).as_uri())
        page = self.opened[key]
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        return page

    def blank(self, width: int = 1280, scheme: str = "light") -> Any:
        page = self.browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: (self.problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))
        return page

    def foreign_requests(self) -> list[str]:
        own = {file.as_uri() for file in self.folder.iterdir()}
        return [url for url in self.requests if url not in own]


def colours(locator: Any) -> int:
    """Count the colours of an element on the screen, in steps of sixteen."""
    image = pytest.importorskip("matplotlib.image", reason="no matplotlib: pixels are not read")
    pixels = image.imread(io.BytesIO(locator.screenshot()), format="png")[..., :3]
    return len({tuple(pixel) for pixel in (pixels * 16).astype(int).reshape(-1, 3)})
