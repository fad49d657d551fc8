"""What the README tells users to type works as written."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import baselines
from otca.cli import COMMANDS
from otca.config import EvalConfig, TrainConfig
from otca.credit import group_zscore
from otca.rewards.base import build_reward
from otca.serving import make_app
from otca.types import Prompt
from tests.servers import running
from tests.toys import toy_config, trained

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
_LISTED = subprocess.check_output(["git", "ls-files", "*.md", ":!CHANGELOG.md"], cwd=ROOT, text=True)
PAGES = sorted(ROOT / name for name in _LISTED.split())
"""The changelog is left out: it names what there was."""


def example(name: str) -> str:
    """The code between two marks of the README."""
    block = README.read_text().split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
    return re.fullmatch(r"\s*```python\n(.*)```\s*", block, re.DOTALL)[1]


@pytest.fixture
def worst_first(tmp_path, monkeypatch):
    """The README's example saved in a folder that `baselines` also looks in."""
    (tmp_path / "worst_first.py").write_text(example("add-a-method"))
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    yield baselines.find_method("worst_first")
    sys.modules.pop("baselines.worst_first", None)


def test_the_example_of_a_method_trains(worst_first, untrained_pipeline, tmp_path):
    trained(toy_config(worst_first.name, untrained_pipeline, **{"sampler.steps": 4}), tmp_path / "run")
    row = pd.read_csv(tmp_path / "run" / "train.csv").iloc[0]
    assert row["update_norm"] > 0 and row["first_ratio_deviation"] == 0
    weights = [row[f"weight_step_{t}"] for t in range(4)]
    assert weights[0] > weights[1] > weights[2] > weights[3] == 0 and sum(weights) == pytest.approx(3, rel=1e-4)
    assert row["weight_red"] + row["weight_blue"] == pytest.approx(1, rel=1e-4)


def test_the_example_of_a_judge_scores_behind_a_server(tmp_path, monkeypatch):
    """Grey has no colour; red and blue halves have, by the paper's formula: opponents (1, ½) and (0, −1)."""
    (tmp_path / "colourfulness.py").write_text(example("add-a-judge"))
    monkeypatch.syspath_prepend(tmp_path)
    media = torch.full((2, 1, 3, 8, 8), 0.5)
    media[1], media[1, 0, 0, :, :4], media[1, 0, 2, :, 4:] = 0, 1, 1
    with running(make_app(build_reward("colourfulness:Colourfulness"))) as address:
        reward = build_reward(f"{address}/colourfulness")
        scores = reward.score(media, [Prompt("0", "grey"), Prompt("1", "red and blue")])
        assert (reward.licence, reward.range) == ("Apache-2.0", (0.0, 1.0)) and "Hasler" in reward.source
    expected = (0.5**2 + 0.75**2) ** 0.5 + 0.3 * (0.5**2 + 0.25**2) ** 0.5
    assert scores.tolist() == pytest.approx([0, expected], abs=1e-2)
    sys.modules.pop("colourfulness", None)


def test_a_judges_environment_needs_no_more_than_is_said(tmp_path):
    """What a server imports, and what else is installed here is not to be had."""
    (tmp_path / "colourfulness.py").write_text(example("add-a-judge"))
    page = " ".join((ROOT / "otca/rewards/README.md").read_text().split())
    said = page.split("There `serve-reward` needs")[1].split("(tested at")[0]
    needed = {"".join(re.findall("^[a-z_]+", name)) for name in re.findall("`(.+?)`", said.lower())}
    required = (README.parent / "requirements.txt").read_text().lower()
    absent = {re.split(r"[=\[]", line)[0] for line in required.splitlines() if line and line[0] not in "# "} - needed
    absent = {"cv2", "open_clip", *absent} - {"filelock", "packaging", "tqdm"}  # which torch, accelerate and its hub bring
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(absent)!r})); sys.path.insert(0, {str(tmp_path)!r})\n"
        "import otca.cli, otca.distributed, otca.serving\n"
        "from otca.rewards.base import build_reward\n"
        "otca.serving.make_app(build_reward('colourfulness:Colourfulness')); print('served')"
    )
    assert {"torch", "uvicorn"} <= needed and {"diffusers", "transformers"} <= absent
    done = subprocess.run([sys.executable, "-c", code], cwd=README.parent, capture_output=True, text=True)
    assert done.stdout == "served\n", done.stderr


def test_the_example_of_use_elsewhere_runs():
    names: dict = {}
    exec(compile(example("use-it-elsewhere"), "README.md", "exec"), names)
    advantage_TB, zscore_BK = names["advantage_TB"], group_zscore(names["reward_BK"], names["group_B"])
    assert advantage_TB.shape == (6, 8) and (advantage_TB[-1] == 0).all()
    agree_B = (zscore_BK > 0).all(1) | (zscore_BK < 0).all(1)
    assert (advantage_TB[:-1, agree_B].sign() == zscore_BK[agree_B, 0].sign()).all()


def test_flags_of_the_deviation_ledger_are_settings():
    """Each setting that the ledger names is one that the command line takes; each row says what the paper says and we do."""
    table = (ROOT / "otca/DEVIATIONS.md").read_text()
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 25 and all(len(row) == 4 and all(cell.strip() for cell in row) for row in rows)
    settings = {**dataclasses.asdict(TrainConfig()), "eval": dataclasses.asdict(EvalConfig())}
    known = {*settings, *(f"{part}.{name}" for part, own in settings.items() if isinstance(own, dict) for name in own)}
    named = {name for row in rows for name in re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)?)`", row[3])}
    assert len(named) > 25 and named - known <= {"otca", "otca_moca", "otca_tcd", "moca_step"}  # which are methods


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_commands_exist(page):
    """Links to files and to headings of this repository; modules after ``python -m`` and commands of otca."""
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            file = file / "README.md" if file.is_dir() else file
            heads = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, target
    for module in re.findall(r"(?:python|\S) -m ((?:otca|reproduce|eval)[\w.]*)", text):
        assert importlib.util.find_spec(module.rstrip(".")), module
    for command in re.findall(r"(?:-m |`)otca ([a-z][a-z-]*)", text):
        assert command in COMMANDS, command
