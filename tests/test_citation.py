"""CITATION.cff has what the Citation File Format 1.2 asks for, of this software and of the paper."""

from __future__ import annotations

from pathlib import Path

import yaml

import otca

ROOT = Path(__file__).parent.parent
CITED = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_software_is_cited_with_its_version_and_date_and_the_paper_beside_it():
    assert CITED["cff-version"] == "1.2.0" and CITED["version"] == otca.__version__ and CITED["license"] == "Apache-2.0"
    [latest, *_] = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert latest == f"## {CITED['version']}, {CITED['date-released']}"
    [paper] = CITED["references"]
    assert paper["url"] == "https://arxiv.org/abs/2604.19234" and "preferred-citation" not in CITED
