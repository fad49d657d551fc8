"""Published prompt lists: where they lie, what they hold, and their checksums. Fetching them needs the network."""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from otca.errors import InputError
from otca.files import write_atomic
from otca.prompts import load_prompts

RAW = "https://raw.githubusercontent.com"
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
    "dancegrpo_image": PublishedList(
        f"{RAW}/XueZeyue/DanceGRPO/15cc71d53cc2e6e18a68ee607d5fb6ba9a99e344/assets/prompts.txt",
        "dancegrpo_image.txt",
        "git:b47234e475645222ca9a0bb7742ebf4d08123855",
        "DanceGRPO's image training prompts, filtered from HPDv2",
    ),
    "dancegrpo_video": PublishedList(
        f"{RAW}/XueZeyue/DanceGRPO/15cc71d53cc2e6e18a68ee607d5fb6ba9a99e344/assets/video_prompts.txt",
        "dancegrpo_video.txt",
        "sha256:c96ceb6c93c16809f6fef53d6d488c34c78823e5edd20f6d907d90c9e5653db1",
        "DanceGRPO's 50,000 video training prompts, filtered from VidProM",
    ),
    "flow_grpo_ocr": PublishedList(
        f"{RAW}/yifan123/flow_grpo/ac4c86e8cae021841f1fde853d340e0db67690dd/dataset/ocr/train.txt",
        "flow_grpo_ocr.txt",
        "git:3ce0521b77b0a9031191d66ecc36ebaaf27a3922",
        "Flow-GRPO's training prompts for text rendering; the text to render stands in quotation marks",
    ),
    "flow_grpo_ocr_test": PublishedList(
        f"{RAW}/yifan123/flow_grpo/ac4c86e8cae021841f1fde853d340e0db67690dd/dataset/ocr/test.txt",
        "flow_grpo_ocr_test.txt",
        "sha256:4dd8caf3ab6ade73bd376c7d14c6ca49b6eacfb1bd321e22c40714ae4a98d4dc",
        "Flow-GRPO's 1,018 test prompts for text rendering",
    ),
    "flow_grpo_geneval": PublishedList(
        f"{RAW}/yifan123/flow_grpo/ac4c86e8cae021841f1fde853d340e0db67690dd/dataset/geneval/train_metadata.jsonl",
        "flow_grpo_geneval.jsonl",
        "git:0b97e8a6802c08fc7537cd00c76ae79c851bddcb",
        "Flow-GRPO's training prompts in GenEval's six skills",
    ),
    "flow_grpo_geneval_test": PublishedList(
        f"{RAW}/yifan123/flow_grpo/ac4c86e8cae021841f1fde853d340e0db67690dd/dataset/geneval/test_metadata.jsonl",
        "flow_grpo_geneval_test.jsonl",
        "git:27cdaf5cc1356fe15aeadbb8df55682ca74228f0",
        "Flow-GRPO's test prompts in GenEval's six skills",
    ),
    "parti": PublishedList(
        f"{RAW}/google-research/parti/5a657978134374ce28973948331b319adef164bd/PartiPrompts.tsv",
        "parti.tsv",
        "sha256:fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb",
        "PartiPrompts, 1,632 prompts by category and challenge",
    ),
    "vbench": PublishedList(
        f"{RAW}/Vchitect/VBench/45e79ec14e69a2187202c675d2dbce1a71843d53/vbench/VBench_full_info.json",
        "vbench.json",
        "sha256:5dd2de80ee43cda750b2b72ea7023657c0b90d3702041c7e4608c65dbe50dccd",
        "VBench's prompts with the dimensions that each serves",
    ),
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
        with urllib.request.urlopen(listed.url, timeout=TIMEOUT) as answer:
            content = answer.read()
    except (OSError, http.client.HTTPException) as error:  # refused, timed out, reset or cut off in the middle
        reason = getattr(error, "reason", error)
        raise InputError(f"{listed.url} cannot be fetched ({reason}); download it elsewhere and put it at {path}") from error
    _check(listed, content, listed.url)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    load_prompts(str(path))
    return path


def _check(listed: PublishedList, content: bytes, where: str) -> None:
    kind, _, expected = listed.checksum.partition(":")
    if kind == "git":
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:
        found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise InputError(f"{where} is not the published list: expected {kind} {expected[:16]}…, found {found[:16]}…")
