"""The page itself: one HTML file of template, style, script and data, locked by a content security policy.

Nothing is loaded: samples are ``data:`` addresses, and the policy allows no other source. Data lie in a JSON block in which no
character can end the block or start markup; the script puts them on the page as text alone. The same results give the same
bytes: nothing depends on the clock, on absolute paths or on the order of files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import quote

from eval.page.galleries import galleries
from eval.page.tables import IN_FULL, documents, other_files
from eval.tables import DIFFERENCE_HEADS
from otca.errors import InputError

SCRIPTS = ("dom.js", "rows.js", "tables.js", "curves.js", "galleries.js", "page.js")
"""Files of the script, in the order in which they are joined."""


def build_page(results: Path, out: Path) -> str:
    """The page of everything published below ``results``, for the place ``out``, from which its links to rows lead.

    Raises InputError where ``results`` is no folder of published results, or on a part of it that cannot be used.
    """
    if not results.is_dir():
        raise InputError(f"--results {results}: no such folder; give the folder of the published results, such as results")
    tables, samples = documents(results), galleries(results)
    if not any(table["runs"] for table in tables):
        raise InputError(f"--results {results}: no published table there (a table.md beside a sources.json); render one first")
    root = Path(os.path.relpath(results.resolve(), out.resolve().parent)).as_posix()
    data = {
        "root": "./" if root == "." else f"./{quote(root)}/",
        "documents": tables,
        "galleries": samples,
        "files": other_files(results, tables),
        "in_full": IN_FULL,
        "difference_heads": DIFFERENCE_HEADS,
    }
    style, script = _packaged("page.css"), "\n".join(map(_packaged, SCRIPTS))
    return Template(_packaged("page.html")).substitute(
        policy=policy(style, script), style=style, script=script, data=json_block(data), root=data["root"]
    )


def json_block(data: object) -> str:
    """JSON for a ``<script>`` block: ``<``, ``>``, ``&`` and all that is not ASCII (so also U+2028 and U+2029) as ``\\uXXXX``."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def policy(style: str, script: str) -> str:
    """The content security policy: this style, this script, samples from ``data:`` addresses, and nothing else."""
    sources = {
        "default-src": "'none'",
        "img-src": "data:",
        "media-src": "data:",
        "style-src": f"'{_digest(style)}'",
        "script-src": f"'{_digest(script)}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {source}" for name, source in sources.items())


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _packaged(name: str) -> str:
    """A file of this package, as text."""
    return (files("eval.page") / name).read_text(encoding="utf-8")
