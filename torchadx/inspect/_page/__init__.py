"""The report as one HTML document, which needs no network: templates, plotly.js, dagre and the data in one file."""

import base64
import hashlib
import html
import importlib.resources
import json
import string
from typing import Any

from torchadx.inspect._page._pack import packed

# in the order they run; one closure holds them all
SCRIPTS = (
    *("dom.js", "theme.js", "table.js", "summary.js", "modules.js", "timeline.js", "storages.js"),
    *("graph_model.js", "graph_layout.js", "graph_draw.js", "graph.js", "profile.js", "page.js"),
)
STYLES = ("page.css", "parts.css", "tables.css", "graph.css")


def render(payload: dict[str, Any]) -> str:
    """Write the page of a report.

    Args:
        payload: ``title``, ``subtitle`` and one or two ``passes``, each with ``name`` and, where they were taken,
            ``saved``, ``timeline``, ``graph`` and ``profile``: what their ``to_json()`` give.

    Returns:
        An HTML document, to be written as UTF-8. It loads nothing from anywhere.

    Raises:
        ModuleNotFoundError: Without plotly.
        ValueError: Other than one or two passes, or a number that JSON has no word for.
    """
    if len(payload["passes"]) not in (1, 2):
        raise ValueError(f"the page shows one pass or compares two: got {len(payload['passes'])} passes")
    # plotly comes last: it takes a second to start, and the rest of the page needs none of it
    scripts = [_inline(script) for script in (_dagre(), _closure(SCRIPTS), _plotly())]
    page = string.Template(_file("page.html"))
    return page.substitute(
        policy=html.escape(_policy(scripts)),
        title=html.escape(payload["title"]),
        subtitle=html.escape(payload["subtitle"]),
        style="\n".join(map(_file, STYLES)),
        payload=_json(packed(payload)),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _file(name: str) -> str:
    return importlib.resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        message = 'the HTML report needs plotly: pip install "torchadx[inspect]"'
        raise ModuleNotFoundError(message, name=error.name) from error
    return get_plotlyjs()


def _dagre() -> str:
    code, _, _ = _file("vendor/dagre.min.js").partition("//# sourceMappingURL")
    return f"/*\n{_file('vendor/LICENSE')}*/\n{code}"


def _closure(names: tuple[str, ...]) -> str:
    return '(() => {\n"use strict";\n' + "\n".join(map(_file, names)) + "})();\n"


def _inline(script: str) -> str:
    # a parser reads \r\n as \n, and the policy's hashes are of what it read
    return script.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")


def _policy(scripts: list[str]) -> str:
    """Forbid every load, and every script but those written here."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    sources = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    return f"{sources}; base-uri 'none'; form-action 'none'"


def _json(payload: dict[str, Any]) -> str:
    try:
        text = json.dumps(payload, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise ValueError(f"the payload of a page holds finite numbers only: {error}") from error
    # no string can close the element, nor open a comment in it
    return text.replace("<", "\\u003c")
