"""Presets for published models: every value says where it comes from, and evaluation prompts cover their lists."""

from __future__ import annotations

import json
import re

from otca import presets
from otca.config import EvalConfig
from otca.prompts import evaluation_prompts

MARK = re.compile(r"# \[(paper|reader|ours|sibling: [^\]]+)\]")
PUBLISHED = [name for name, settings in presets.TRAIN.items() if "/" in str(settings.get("policy.path", ""))]


def values_of(path):
    """Lines of a preset's file that set a value of training or evaluation."""
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        section = line if line[0] not in " #" else section
        if section in ("train:", "eval:") and line.startswith("  "):
            yield line


def test_every_value_for_published_models_is_marked():
    bases = [path for path in presets.BASES.glob("*.yaml") if not path.stem.startswith("embedded_")]
    lines = [line for path in (*bases, *(presets.CONFIGS / f"{name}.yaml" for name in PUBLISHED)) for line in values_of(path)]
    assert len(PUBLISHED) == 14 and len(lines) > 170
    assert [line for line in lines if not MARK.search(line)] == []


def test_evaluation_prompts_cover_a_list_in_the_order_of_its_topics(tmp_path):
    """Ten prompts of three topics: the first four are of one, four evenly spread ones of all, in the list's order."""
    topics = ["a"] * 5 + ["b"] * 3 + ["c"] * 2
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{topic} {i}"}) + "\n" for i, topic in enumerate(topics)))
    first, even = (evaluation_prompts(EvalConfig(source=str(path), prompts=4, choice=choice)) for choice in ("first", "even"))
    assert [p.text for p in first] == ["a 0", "a 1", "a 2", "a 3"]
    assert [p.text for p in even] == ["a 1", "a 3", "b 6", "c 8"]
    everything = evaluation_prompts(EvalConfig(source=str(path), prompts=99, choice="even"))
    assert [p.text for p in everything] == [f"{topic} {i}" for i, topic in enumerate(topics)]
