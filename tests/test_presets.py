"""Presets for published models: every value says where it comes from, and evaluation prompts cover their lists."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from otca import presets, published_presets
from otca.config import EvalConfig, TrainConfig
from otca.prompts import evaluation_prompts

SOURCES = [Path(module.__file__).read_text() for module in (presets, published_presets)]
MARK = re.compile(r"# \[(paper|reader|ours|sibling: [^\]]+)\]")
PUBLISHED = [name for name, settings in presets.TRAIN.items() if "/" in str(settings.get("policy.path", ""))]


def settings_of(node: ast.AST):
    """Every ``"key": value`` of the dictionaries below a node."""
    for found in ast.walk(node):
        if isinstance(found, ast.Dict):
            yield from ((key.value, value) for key, value in zip(found.keys, found.values) if isinstance(key, ast.Constant))


def marked_sections(source):
    """Dictionaries that hold values for published models: the shared ones, and the entries of TRAIN and EVAL for such models."""
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        name = getattr(target, "id", "")
        if name in ("LORA", "FLUX", "WAN", "IMAGES_LORA"):
            yield name, node.value
        elif name in ("TRAIN", "EVAL"):
            if not isinstance(node.value, ast.Dict):
                continue
            named = PUBLISHED if name == "TRAIN" else [tier for tier in presets.EVAL if tier.endswith("/paper")]
            yield from (
                (f"{name} {key.value}", value) for key, value in zip(node.value.keys, node.value.values) if key.value in named
            )


def test_every_value_for_published_models_is_marked():
    seen = 0
    for source in SOURCES:
        lines = source.splitlines()
        for section, node in marked_sections(source):
            for key, value in settings_of(node):
                line = lines[value.end_lineno - 1]
                assert MARK.search(line), f"{section}: {key} bears no mark: {line.strip()}"
                seen += 1
    assert len(PUBLISHED) == 14 and seen > 200


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_for_published_models_resolve(name):
    config = TrainConfig.from_dotted(presets.preset(name))
    assert config.policy.path.count("/") == 1 and config.policy.precision == "bf16"


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
