"""CITATION.cff has what the Citation File Format 1.2 asks for, of this software and of the paper."""

from __future__ import annotations

import datetime
from pathlib import Path

import yaml

import otca

ROOT = Path(__file__).parent.parent
CITED = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_software_is_cited_with_its_version_and_date():
    assert CITED["cff-version"] == "1.2.0" and CITED["type"] == "software" and CITED["license"] == "Apache-2.0"
    assert "paper" in CITED["message"] and CITED["title"].startswith("OTCA") and CITED["authors"]
    assert CITED["version"] == otca.__version__
    datetime.date.fromisoformat(CITED["date-released"])
    [latest, *_] = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert latest == f"## {CITED['version']}, {CITED['date-released']}"


def test_the_paper_is_a_reference_beside_the_software_and_does_not_hide_it():
    assert "preferred-citation" not in CITED
    [paper] = CITED["references"]
    assert paper["url"] == "https://arxiv.org/abs/2604.19234" and len(paper["authors"]) == 7
