"""Held-out metrics, of the embedded tasks or named by a tier: these score as rewards do, and no arm may train on any."""

from __future__ import annotations

import pytest
import torch

from eval.held_out import held_out_names, held_out_of, set_rate
from eval.metrics.embedded import JudgeAccuracy
from eval.metrics.motion import MotionMetrics
from otca import presets
from otca.__main__ import main as otca_main
from otca.config import EvalConfig
from otca.errors import InputError
from otca.rewards.base import build_reward, check_trained_metrics, measured, score_all
from otca.rewards.clip import ClipScoreB32
from otca.tasks import scenes
from otca.tasks.rewards import Quality
from otca.types import Prompt
from reproduce import all as all_runs
from reproduce import run
from reproduce.one_run import check_trained_arms
from reproduce.table import TABLES, main
from tests.test_score import Rate


def test_named_metrics_score_as_the_rewards_do():
    prompts = scenes.prompts("test", 3)
    media = torch.rand(3, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    held_out = held_out_of("image", EvalConfig(held_out=["quality", "alignment"]))
    found = held_out.items(media, prompts)
    assert list(found) == ["quality", "alignment"]
    assert all(found[name] == build_reward(name).score(media, prompts).tolist() for name in found)
    assert set(held_out.protocol) == set(found) and held_out.traits(media, prompts) == {} == held_out.sets({}, prompts, 1)


def test_rewards_that_depend_on_the_rate_are_told_the_evaluations():
    held_out = held_out_of("video", EvalConfig(held_out=["tests.test_score:Rate", "quality"], fps=12.0))
    media, prompts = torch.zeros(2, 3, 3, 8, 8), [Prompt(str(i), "x") for i in range(2)]
    assert score_all(held_out.scorers[:1], media, prompts).reward_BK.tolist() == [[12.0], [12.0]]
    assert not hasattr(held_out.scorers[1], "fps")
    reward = build_reward("tests.test_score:Rate")
    set_rate([reward], 0.0)  # of pictures
    assert reward.fps == 3.0 == Rate.fps


def test_motion_is_one_name_for_all_its_columns(video):
    held_out = held_out_of("video", EvalConfig(held_out=["motion"], fps=8.0))
    found = held_out.items(video.unsqueeze(0), [Prompt("a", "a red circle")])
    assert found == {name: [value] for name, value in MotionMetrics().score(video, 8.0).items()}
    assert set(found) == set(held_out.protocol)


def test_an_arm_may_not_train_on_what_is_held_out(monkeypatch, capsys):
    monkeypatch.setitem(presets.EVAL, "image/quick", presets.EVAL["image/quick"] | {"held_out": ["quality"]})
    with pytest.raises(InputError, match="base seed 0 trains on quality, which the evaluation of image/quick holds out"):
        check_trained_arms(TABLES["table1"].arms("quick"))
    assert main("table1", "", ["--dry-run"]) == 2
    assert "say --allow-trained-metric" in capsys.readouterr().err
    assert main("table1", "", ["--dry-run", "--allow-trained-metric"]) == 0


@pytest.mark.parametrize(
    "name, held_out",
    [
        ("pickscore", "pickscore"),
        ("otca.rewards.clip:PickScore", "pickscore"),
        ("http://127.0.0.1:8000/pickscore?batch=8", "pickscore"),
        ("http://127.0.0.1:8000/of_mine", "http://127.0.0.1:9000/of_mine"),
        ("videoalign", "videoalign_ta"),
        ("otca.tasks.rewards:Quality", "quality"),
    ],
)
def test_another_name_or_a_part_is_the_same_metric(name, held_out):
    with pytest.raises(InputError, match="mine trains on .*, which the evaluation of image/x holds out"):
        check_trained_metrics("mine", ["clip", name], "image/x", ["motion", held_out])
    check_trained_metrics("mine", ["clip", "videoalign_vq", "otca.tasks.rewards:Aesthetic"], "image/x", ["motion", held_out])


@pytest.mark.parametrize("command", [otca_main, run.main, all_runs.main])
def test_every_command_that_trains_refuses_what_is_held_out(monkeypatch, capsys, command):
    """`otca train`, `reproduce.run` and `reproduce.all`, which all say how to go on."""
    monkeypatch.setitem(presets.EVAL, "image/quick", presets.EVAL["image/quick"] | {"held_out": ["quality"]})
    argv = {
        otca_main: ["train", "--preset", "image/quick", "--dry_run", "true"],
        run.main: ["otca", "--dry-run"],
        all_runs.main: ["--tier", "quick"],
    }[command]
    assert command(argv) == 2
    assert "quality, which the evaluation of image/quick holds out" in capsys.readouterr().err
    if command is not all_runs.main:
        assert command([*argv, "--allow-trained-metric"]) == 0


class Disguised(JudgeAccuracy):
    """The judge by another name."""

    name = "charm"


class OwnClip(ClipScoreB32):
    """A published reward, which derives from another one, by another name."""


class Smooth:
    """A reward that is called as a metric of motion."""

    name = "warping_error_dis"


@pytest.mark.parametrize(
    "preset, reward",
    [
        ("image/quick", "eval.metrics.embedded:JudgeAccuracy"),
        ("image/cpu", "tests.test_held_out:Disguised"),
        ("video/cpu", "eval.metrics.embedded:ClipScore"),  # its model's features make the distances
        ("video/paper", "tests.test_held_out:Smooth"),  # by the name "motion"
    ],
)
def test_no_run_trains_on_what_its_medium_holds_out(capsys, preset, reward):
    """Where the tier names nothing it is the judge, the CLIP model and the metrics of motion and of sets."""
    own = presets.preset(preset).get("rewards", ["alignment", "quality", "aesthetic"])
    argv = ["train", "--preset", preset, "--rewards", f"[{','.join([*own, reward])}]", "--dry_run", "true"]
    assert otca_main(argv) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"preset {preset} trains on {reward}, which the evaluation of {preset} holds out; change one of them, or say" in said
    assert otca_main([*argv, "--allow-trained-metric"]) == 0


def test_recipes_without_an_evaluation_hold_nothing_out(capsys):
    recipes = [name for name in presets.TRAIN if name not in presets.EVAL]
    assert recipes and all(held_out_names(name) == [] for name in recipes)
    assert otca_main(["train", "--preset", recipes[0], "--rewards", "[pickscore,clip]", "--dry_run", "true"]) == 0


def test_a_derived_class_measures_what_its_base_does():
    """Up to the first class that the registry has: CLIP's smaller tower is not the larger one from which its code derives."""
    assert measured("tests.test_held_out:Disguised") == {"charm", "judge_correct"}
    assert measured("reproduce.corrupted:Flipped") == {"alignment"}
    assert measured("clip_b32") == measured("tests.test_held_out:OwnClip") == {"clip_b32"}
    assert measured("tests.test_held_out:Nameless") == {"tests.test_held_out:Nameless"}
    assert issubclass(OwnClip, ClipScoreB32) and measured("otca.tasks.rewards:Quality") == {Quality.name}


class Nameless:
    """Says only once it is made how it is called."""

    def __init__(self):
        self.name = "late"
