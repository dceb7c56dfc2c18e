"""One self-contained HTML file: style, scripts and data inlined, nothing fetched.

Names of features and modules come from whoever wrote the model. They are data in a JSON block that
no markup can break out of, are only ever set as text, and a content security policy lets no script
run but the ones written here.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib import resources
from typing import Any

from recreplay.tools.view.data import finite

SCRIPTS = (
    "format.js",
    "state.js",
    "dom.js",
    "theme.js",
    "lanes.js",
    "canvas.js",
    "timeline.js",
    "bands.js",
    "assignment.js",
    "compare.js",
    "details.js",
    "charts.js",
    "buckets.js",
    "bench.js",
    "live.js",
    "app.js",
)
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def render(data: dict[str, Any], *, live: bool = False) -> str:
    """The page as one string. A live page polls the server that it came from."""
    style = _asset("style.css")
    script = '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();\n"
    source = "'self'" if live else "'none'"
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        f"img-src data:; connect-src {source}; base-uri 'none'; "
        "form-action 'none'"
    )
    parts = {
        "title": html.escape(f"{data['artifact']['model']} · RecReplay"),
        "policy": html.escape(policy, quote=True),
        "style": style,
        "script": script,
        "data": inline_json({**data, "live": live}),
    }
    # One pass, so that nothing that is put in can name another part.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def inline_json(data: Any) -> str:
    """JSON that is safe inside of a script element: ASCII, without `<`, `>` and `&`."""
    text = json.dumps(finite(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda found: _ESCAPES[found[0]], text)


def _asset(name: str) -> str:
    return (resources.files("recreplay.tools.view") / "assets" / name).read_text("utf-8")


def _digest(text: str) -> str:
    """A source expression of a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
