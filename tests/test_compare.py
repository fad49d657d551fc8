"""`reproduce.compare` on small runs with known answers, and every comparison that it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from eval.markup import markdown
from eval.stats import smallest_detectable
from otca.config import TrainConfig
from otca.runs import RunSpec, _short_hash, begin_run, finish_run
from reproduce import compare

ROOT = Path(__file__).parent.parent
PROTOCOL = {"sampler": "ode", "steps": 20, "prompts": "embedded:image/test", "policy": {"checkpoint": "embedded:image"}}


def make(root, method, seed, accuracy, modality="image", tier="quick", cost=(1000, 100), protocol=None, config=None, **columns):
    """A finished run of ten prompts with one sample each; ``accuracy`` is a multiple of 0.1 or a verdict an item."""
    folder = root / modality / tier / method / f"seed{seed}"
    folder.mkdir(parents=True)
    settings = TrainConfig(method=method.partition("@")[0], seed=seed, **(config or {}))
    begin_run(folder, settings)
    names = [name.rpartition(":")[2].lower() for name in settings.rewards]
    pd.DataFrame({"iteration": [0], "reward_calls": [1]} | {f"reward_{n}": [0.5] for n in names}).to_csv(folder / "train.csv")
    correct = accuracy if isinstance(accuracy, list) else [i < round(10 * accuracy) for i in range(10)]
    count = len(correct)
    scores = {"prompt_id": [f"p{i}" for i in range(count)], "sample": 0, "skill": "counting", "text": "x"}
    scores |= {"alignment": 0.5, "judge_correct": correct} | columns
    pd.DataFrame(scores).to_csv(folder / "scores.csv.gz", index=False)
    pd.DataFrame(
        {"metric": ["kernel_distance"], "value": [0.1 + accuracy if isinstance(accuracy, float) else 0.1], "n": [10]}
    ).to_csv(folder / "sets.csv", index=False)
    budget = dict(zip(("network_evaluations", "reward_calls"), cost))
    name, _, variant = method.partition("@")
    arm = RunSpec(modality, tier, name, seed, variant)
    finish_run(folder, arm, dataclasses.asdict(settings), budget, PROTOCOL | {"noise_seed": seed} | (protocol or {}))
    return folder


@pytest.fixture
def results(tmp_path):
    """The published baseline: accuracies .4, .5, .6."""
    for seed, accuracy in enumerate((0.4, 0.5, 0.6)):
        make(tmp_path / "results", "static_multi_reward", seed, accuracy)
    return tmp_path / "results"


@pytest.fixture
def mine(results, tmp_path):
    """A method's folder: .5, .7, .9, better by .1, .2, .3."""
    for seed, accuracy in enumerate((0.5, 0.7, 0.9)):
        make(tmp_path / "runs", "mine", seed, accuracy)
    return tmp_path / "runs" / "image" / "quick" / "mine"


def run(capsys, results, *argv, code=0) -> str:
    """What the command prints; where it refuses, its one line."""
    capsys.readouterr()
    assert compare.main([*map(str, argv), "--rows", str(results)]) == code
    said = capsys.readouterr()
    assert not code or (said.err.count("\n") == 1 and not said.out)
    return said.err if code else said.out


def test_three_pairs_by_hand(results, mine, capsys):
    """Differences .1, .2, .3: mean .2, half-width .1·4.302653/√3 = .248, p = 1 − √(12/14) = .074."""
    out = run(capsys, results, mine)
    detectable = smallest_detectable(0.1 * 4.302652729911275 / 3**0.5, 3)
    assert f"| Accuracy ↑ | mine | 0.200 | [−0.048, 0.448] | 0.074 | 3 | 1.00 | {detectable:.3f} |" in out
    assert "| Kernel distance ↓ | mine | 0.2000 | [−0.0484, 0.4484] | 0.074 | 3 | 0.00 |" in out  # more distance is worse
    assert "| Alignment ↑ (trained) | mine | 0.000 | [0.000, 0.000] | 1.000 | 3 | 0.50 | – |" in out
    assert "- mine: equal budget (1,000 network evaluations, 100 reward calls a run); seeds 0, 1, 2\n" in out
    assert (
        "- Accuracy: mine is not distinguishable from static\\_multi\\_reward with 3 seeds; a single comparison, not adjusted."
        in out
    )
    assert out == run(capsys, results, *sorted(mine.glob("seed*"), reverse=True))  # single runs, in any order
    only = run(capsys, results, mine, "--metric", "kernel_distance")
    assert "Accuracy" not in only and "- Kernel distance: mine is not distinguishable" in only


def test_clear_differences_are_told_with_their_side(results, tmp_path, capsys):
    for seed, better in enumerate((0.7, 0.8, 1.0)):  # by .3, .3, .4
        make(tmp_path / "runs", "up", seed, better)
    out = run(capsys, results, tmp_path / "runs/image/quick/up")
    assert "- Accuracy: up is better than static\\_multi\\_reward (3 seeds); a single comparison, not adjusted." in out
    assert "\np is of a single comparison, not adjusted; what else was tried is not counted.\n" in out and "Published" not in out
    out = run(capsys, results, tmp_path / "runs/image/quick/up", "--metric", "kernel_distance")
    assert "- Kernel distance: up is worse than" in out
    out = run(capsys, results, results / "image/quick/static_multi_reward", "--against", tmp_path / "runs/image/quick/up")
    assert "- Accuracy: static\\_multi\\_reward is worse than up (3 seeds); a single" in out


def test_seeds_without_a_partner_are_left_out(results, mine, tmp_path, capsys):
    make(tmp_path / "runs", "mine", 7, 0.0)
    out = run(capsys, results, mine)
    assert "seeds 0, 1, 2; without a partner and left out: 7" in out and "| Accuracy ↑ | mine | 0.200 |" in out
    assert "also has" not in out and "WARNING" not in out


def test_seeds_of_the_baseline_that_are_not_used_are_named_and_chosen_ones_warned_of(results, mine, capsys):
    first = run(capsys, results, mine / "seed0", mine / "seed1")
    assert "; seeds 0, 1\n  - the baseline also has seeds 2, not used\n" in first and "WARNING" not in first
    chosen = run(capsys, results, mine / "seed0", mine / "seed2")
    said = "  - WARNING: not the first seeds (0, 1): choosing seeds invalidates a comparison\n"
    assert f"; seeds 0, 2\n  - the baseline also has seeds 1, not used\n{said}" in chosen
    assert "not the first seeds (0): choosing" in run(capsys, results, mine / "seed2")
    other_side = run(capsys, results, mine, "--against", results / "image/quick/static_multi_reward/seed1")
    assert "not the first seeds (0): choosing" in other_side and "also has" not in other_side


def test_several_methods_are_rivals_of_one_another(results, mine, tmp_path, capsys):
    """Holm: the smaller p of two is doubled. A method of the baseline's name is told apart."""
    for seed, accuracy in enumerate((0.3, 0.6, 0.7)):
        make(tmp_path / "runs", "static_multi_reward", seed, accuracy)
    out = run(capsys, results, mine, mine.parent / "static_multi_reward", "--metric", "accuracy")
    assert "| Accuracy ↑ | mine | 0.200 | [−0.048, 0.448] | 0.148 |" in out
    assert "| Accuracy ↑ | static\\_multi\\_reward (given) | 0.033 |" in out
    assert "\np is adjusted over the 2 rivals given here; what else was tried is not counted.\n" in out
    assert "single comparison" not in out


def test_the_untrained_model_is_no_rival(results, mine, capsys):
    """Its p and, beside it, that of the one rival are as they are."""
    for seed in range(3):
        make(results, "base", seed, 0.3, cost=(0, 0))
    out = run(capsys, results, mine, results / "image/quick/base", "--metric", "accuracy", "--unequal-budget")
    assert "| Accuracy ↑ | mine | 0.200 | [−0.048, 0.448] | 0.074 |" in out and "p is of a single comparison" in out
    assert out.count("; a single comparison, not adjusted.") == 2


def test_one_seed_has_intervals_over_prompts(results, tmp_path, capsys):
    """Two prompts of two samples: their means differ by .5 and 0, and resampling two values ends at both of them."""
    two = {"prompt_id": ["a", "a", "b", "b"], "sample": [0, 1, 0, 1], "skill": ["counting"] * 2 + ["position"] * 2}
    make(tmp_path / "base", "one", 5, [0, 1, 1, 0], **two)
    folder = make(tmp_path / "own", "two", 5, [1, 1, 0, 1], **two)
    out = run(capsys, results, folder, "--against", tmp_path / "base/image/quick/one")
    assert "LEAVE OUT THE VARIANCE OF TRAINING" in out and "distinguishable" not in out
    assert "decides" not in out and "adjusted" not in out  # there is no p
    assert "| Accuracy ↑ | 0.250 | [0.000, 0.500] | 2 | 0.75 |" in out
    assert "| Counting ↑ | 0.500 | – | 1 | 1.00 |" in out and "| Kernel distance ↓ | 0.0000 | – | – | – |" in out


def test_unequal_cost_is_refused_unless_asked_for(results, tmp_path, capsys):
    for seed in range(3):
        make(tmp_path / "runs", "dear", seed, 0.9, cost=(3000, 100))
        make(tmp_path / "runs", "near", seed, 0.9, cost=(1005, 99))
    dear = tmp_path / "runs/image/quick/dear"
    assert "dear had 3.00 times the network evaluations of static_multi_reward;" in run(capsys, results, dear, code=2)
    out = run(capsys, results, dear, "--unequal-budget")
    assert "- dear: UNEQUAL BUDGET, 3.00 × network evaluations of static\\_multi\\_reward (3,000 " in out
    assert "- near: equal budget" in run(capsys, results, tmp_path / "runs/image/quick/near")
    (free,) = [make(results, "base", 0, 0.3, cost=(0, 0))]
    said = run(capsys, results, free, code=2)
    assert "0.00 times the network evaluations and 0.00 times the reward calls" in said
    assert "inf times the network" in run(capsys, results, tmp_path / "runs/image/quick/near", "--against", "base", code=2)


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"tier": "cpu"},
            "results holds no published runs of image/cpu, such as static_multi_reward; give a folder like results/",
        ),
        ({"protocol": {"steps": 50}}, "evaluated by different protocols (steps: 20 → 50)"),
        ({"protocol": {"prompts": "mine.txt"}}, "different protocols (prompts: embedded:image/test → mine.txt)"),
        ({"protocol": {"policy": {"checkpoint": "other"}}}, "(policy.checkpoint: embedded:image → other)"),
        ({"config": {"prompts": "embedded:image/test"}}, "trained on different prompts (embedded:image/train → "),
        ({"text": "y"}, "judged on different prompts (scores.csv.gz)"),
        ({"config": {"rewards": ["alignment", "clip_score"]}, "clip_score": 0.5}, "was trained on clip_score, which the"),
        ({"config": {"rewards": ["http://h:1/videoalign"]}, "videoalign_ta": 0.5}, "was trained on videoalign_ta, which the"),
        ({"config": {"rewards": ["my.module:Frechet_Distance"]}}, "was trained on frechet_distance, which the"),  # of its tier
        ({"config": {"rewards": ["my.module:Clip_Score"]}, "clip_score": 0.5}, "was trained on clip_score, which the"),
        ({"config": {"rewards": ["http://h:1/clip_score?batch=8"]}, "clip_score": 0.5}, "was trained on clip_score, which the"),
    ],
)
def test_what_is_not_alike_is_refused(results, tmp_path, capsys, changes, said):
    assert said in run(capsys, results, make(tmp_path / "runs", "mine", 0, 0.5, **changes), code=2)


def test_other_refusals(results, mine, tmp_path, capsys):
    assert "nothing holds no finished run" in run(capsys, results, "nothing", code=2)
    said = run(capsys, tmp_path / "nonsense", mine, code=2)
    assert f"--rows {tmp_path / 'nonsense'} holds no published runs of image/quick, such as static_multi_reward;" in said
    other = make(tmp_path / "x", "mine", 0, 0.5)
    assert "are the same method and seed" in run(capsys, results, mine, other, code=2)
    elsewhere = make(tmp_path / "x", "mine", 0, 0.5, tier="study")
    said = run(capsys, results, mine, elsewhere, code=2)
    assert "mine ran at image/study, static_multi_reward at image/quick; compare runs of one modality and tier" in said
    lone = make(tmp_path / "x", "mine", 9, 0.5)
    said = run(capsys, results, lone, code=2)
    assert "no common seeds: mine has [9], static_multi_reward [0, 1, 2]" in said
    own = results / "image/quick/static_multi_reward"
    assert "are one and the same run" in run(capsys, results, own, code=2)
    said = run(capsys, results, mine, "--against", "static_reward", code=2)
    assert "--against static_reward: no folder of runs, and not published at image/quick; did you mean 'static_multi" in said
    assert "(there: static_multi_reward)\n" in said
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "seed0").symlink_to(mine / "seed0")
    (tmp_path / "mixed" / "seed1").symlink_to(own / "seed1")
    assert "mixed holds several methods" in run(capsys, results, mine, "--against", tmp_path / "mixed", code=2)
    assert "metric 'charm' is not one that all these runs have (alignment, accuracy," in run(
        capsys, results, mine, "--metric", "charm", code=2
    )
    said = run(capsys, results, mine, "--metric", "acuracy", code=2)
    assert "all these runs have; did you mean 'accuracy'? (alignment, accuracy," in said
    scores = mine / "seed1" / "sets.csv"
    scores.write_text(scores.read_text() + "\n")
    assert "seed1 cannot be compared:" in run(capsys, results, mine, code=2)
    manifest = json.loads((mine / "seed0" / "manifest.json").read_text())
    (mine / "seed0" / "manifest.json").write_text(json.dumps(manifest | {"budget": {"network_evaluations": 1}}))
    assert "manifest.json was edited" in run(capsys, results, mine, code=2)


def test_runs_that_are_not_finished_are_told_from_damaged_ones(results, mine, capsys):
    """In a method's folder, by themselves, and on the other side."""
    (mine / "seed1" / "manifest.json").unlink()
    said = f"run {mine / 'seed1'} is not finished (no manifest.json): wait for its command, or start that again\n"
    for given in ([mine], [mine / "seed1"], [results / "image/quick/static_multi_reward", "--against", mine / "seed1"]):
        assert run(capsys, results, *given, code=2).endswith(said)


def test_published_runs_compare(capsys):
    """Table 1's row of OTCA, from the same statistics."""
    out = run(capsys, ROOT / "results", ROOT / "results/image/quick/otca", "--metric", "accuracy")
    assert "| Accuracy ↑ | otca | 0.008 | [−0.098, 0.114] |" in out


@pytest.mark.parametrize("modality, table, method", [("image", 1, "otca"), ("image", 1, "process_credit"), ("video", 2, "otca")])
def test_published_arms_are_told_with_what_their_table_shows(capsys, modality, table, method):
    """p, pairs and what is shown are the published table's own, whichever of its seeds are given."""
    text = (ROOT / f"results/table{table}/cpu/table.md").read_text().partition("## Accuracy: difference from")[2]
    [row] = [line.split(" | ") for line in text.splitlines() if line.startswith(f"| {markdown(method)} | ")]
    said = f"- Published Table {table}: {modality} (cpu tier), table{table}/cpu: Accuracy, {markdown(method)} against "
    said += f"static\\_multi\\_reward, {row[4]} pairs: p (Holm) {row[3]}, adjusted over its 7 rivals; shows: {row[-1][:-2]}.\n"
    folder = ROOT / "results" / modality / "cpu" / method
    for given in ([folder], [folder / "seed1"], [folder / "seed0", folder / "seed1"]):
        assert said in run(capsys, ROOT / "results", *given, "--metric", "accuracy", "--unequal-budget")


def test_only_the_very_runs_of_a_table_are_told_with_it(capsys, tmp_path):
    """Another baseline, and other runs of a published name, are not what the table has."""
    folder = ROOT / "results/image/quick/otca"
    assert "Published" not in run(capsys, ROOT / "results", folder, "--against", "uniform_grpo", "--metric", "accuracy")
    assert "Published" in run(capsys, ROOT / "results", shutil.copytree(folder, tmp_path / "copy"), "--metric", "accuracy")
    path = tmp_path / "copy" / "seed0" / "manifest.json"
    manifest = json.loads(path.read_text()) | {"machine": "another"}
    manifest.pop("hash")
    path.write_text(json.dumps(manifest | {"hash": _short_hash(manifest)}))
    assert "Published" not in run(capsys, ROOT / "results", tmp_path / "copy", "--metric", "accuracy")
