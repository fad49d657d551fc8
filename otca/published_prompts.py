"""Published prompt lists (``prompt_lists.yaml``): where they lie, what they hold, their checksums. Fetching needs the network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from otca.errors import InputError, one_line
from otca.files import write_atomic
from otca.prompts import load_prompts

TIMEOUT = 60
"""Seconds without an answer after which a fetch gives up."""


@dataclass(frozen=True)
class PublishedList:
    """A list at a pinned commit. ``checksum`` is ``sha256:`` or, where only git's own is known, ``git:`` and the blob's id."""

    url: str
    file: str
    checksum: str
    what: str


LISTS = {
    name: PublishedList(**entry)
    for name, entry in yaml.safe_load(Path(__file__).with_name("prompt_lists.yaml").read_text(encoding="utf-8")).items()
}


def fetch_list(name: str, folder: Path) -> Path:
    """Download a list, check it, write it and read it once; a file that is already there is checked and kept.

    Raises InputError for an unknown name, no network, or content that does not match the checksum (nothing is written then).
    """
    if name not in LISTS:
        raise InputError(f"unknown prompt list {name!r}; choose from {', '.join(LISTS)}")
    listed = LISTS[name]
    path = folder / listed.file
    if path.is_file():
        _check(listed, path.read_bytes(), f"{path} (delete it to fetch it anew)")
        return path
    try:
        content = httpx.get(listed.url, timeout=TIMEOUT, follow_redirects=True).raise_for_status().content
    except httpx.HTTPError as error:
        raise InputError(
            f"{listed.url} cannot be fetched ({one_line(error)}); download it elsewhere and put it at {path}"
        ) from error
    _check(listed, content, listed.url)
    write_atomic(path, content)
    load_prompts(str(path))
    return path


def _check(listed: PublishedList, content: bytes, where: str) -> None:
    kind, _, expected = listed.checksum.partition(":")
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    found = (git if kind == "git" else hashlib.sha256(content)).hexdigest()
    if found != expected:
        raise InputError(f"{where} is not the published list: expected {kind} {expected[:16]}…, found {found[:16]}…")
