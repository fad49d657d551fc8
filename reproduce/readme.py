"""Keep generated numbers in the README generated: blocks between markers are replaced from files, never typed."""

from __future__ import annotations

import re
from pathlib import Path

from otca.errors import InputError
from otca.files import write_atomic


def update_readme(name: str, text: str, readme: Path = Path("README.md")) -> None:
    """Put a text, less its title, between ``<!-- name -->`` and ``<!-- /name -->``, if the README has them."""
    page = readme.read_text()
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in page:
        return
    if end not in page:
        raise InputError(f"{readme}: {start} has no {end}; add it")
    head, rest = page.split(start, 1)
    _, tail = rest.split(end, 1)
    body = text.partition("\n")[2] if text.startswith("# ") else text
    body = re.sub("^## ", "#### ", body.strip(), flags=re.MULTILINE)
    write_atomic(readme, f"{head}{start}\n{body}\n{end}{tail}")
