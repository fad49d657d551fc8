"""Keep generated numbers in the README generated: blocks between markers are replaced from files, never typed."""

from __future__ import annotations

from pathlib import Path

from otca.errors import InputError
from otca.files import write_atomic


def update_readme(name: str, source: Path, readme: Path = Path("README.md")) -> None:
    """Put the file's text, its title left out, between ``<!-- name -->`` and ``<!-- /name -->``, where the README has them."""
    text = readme.read_text()
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in text:
        return
    if end not in text:
        raise InputError(f"{readme}: {start} has no {end}; add it")
    head, rest = text.split(start, 1)
    _, tail = rest.split(end, 1)
    body = source.read_text().split("\n", 1)[1].strip().replace("\n## ", "\n#### ")
    write_atomic(readme, f"{head}{start}\n{body}\n{end}{tail}")
