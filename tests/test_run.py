"""Workers share a set of runs, what fails is named, progress is counted; variants and tuning make the configs that they say."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from eval.store import Store, publish
from otca import presets
from otca.errors import InputError, RewardError, TrainingError
from otca.files import run_lock
from otca.rewards.base import build_reward
from otca.runs import RunSpec, begin_run
from reproduce import judged, one_run, run, tune, workers
from reproduce.corrupted import Flipped
from reproduce.table import TABLES, arms_of
from reproduce.variants import VARIANTS, named_arm
from tests.made_runs import ITERATIONS, make_run

ARMS = [RunSpec("image", "quick", "otca", seed) for seed in range(4)]


def pretend(arm: RunSpec, root) -> None:
    """A run in a moment, under its lock, as `run_arm` makes one; seed 3 fails."""
    folder = root / arm.path
    folder.mkdir(parents=True, exist_ok=True)
    with run_lock(folder):
        if arm.seed == 3:
            raise RewardError("reward 'x' returned NaN")
        time.sleep(0.1)
        make_run(root, arm.name, arm.seed)


def test_workers_share_the_runs_pass_over_finished_ones_and_name_failures(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "run_arm", pretend)
    make_run(tmp_path, "otca", 0)
    before = (tmp_path / ARMS[0].path / "manifest.json").stat().st_mtime_ns
    with multiprocessing.get_context("fork").Pool(2) as pool:
        lines = pool.map(work, [tmp_path, tmp_path])
    assert (tmp_path / ARMS[0].path / "manifest.json").stat().st_mtime_ns == before
    assert all(workers.is_finished(tmp_path / arm.path) for arm in ARMS[:3]) and not workers.is_finished(tmp_path / ARMS[3].path)
    assert {line for of in lines for line in of} == {"image otca seed 3: reward 'x' returned NaN"}


def work(root) -> list[str]:
    failed: list[str] = []
    workers.Job(tuple(ARMS), root)._work(failed)
    return failed


class Started:
    """A worker of submitit's that is over."""

    def __init__(self, lines):
        self.lines, self.paths, self.job_id = lines, self, "7"
        self.result_pickle = self.stderr = self

    def exists(self):
        return self.lines is not None

    def result(self):
        return self.lines

    def done(self):
        return True


@pytest.mark.parametrize(
    "lines, said",
    [
        (["image otca seed 3: no"], "1 runs failed, the first: image otca seed 3"),
        (None, "was killed"),
        ([], "4 of 4 runs are unfinished"),
    ],
)
def test_what_is_not_finished_in_the_end_is_an_error(tmp_path, monkeypatch, lines, said):
    monkeypatch.setattr(workers, "_executor", lambda *_: type("Executor", (), {"submit": lambda self, job: Started(lines)})())
    with pytest.raises(TrainingError, match=said):
        workers.run_arms(ARMS, tmp_path, 1)


def test_slurm_is_looked_for_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workers.shutil, "which", lambda name: None)
    assert run.main(["otca", "--slurm", "gpu", "--jobs", "2"]) == 2
    assert "--slurm gpu: srun and sbatch not found on PATH" in capsys.readouterr().err
    assert run.main(["otca", "--gpus", "1"]) == 2 and "--gpus 1 goes with --slurm" in capsys.readouterr().err
    for wrong in ("0", "-1", "x"):
        with pytest.raises(SystemExit):
            run.main(["otca", "--jobs", wrong])


def test_progress_counts_iterations_and_the_runs_of_others(tmp_path, capsys, monkeypatch):
    config = presets.train_config("image/quick", "otca", {"iterations": 4}, 0)
    monkeypatch.setattr(workers, "arm_config", lambda arm: config)
    make_run(tmp_path, "otca", 0)
    begun = tmp_path / ARMS[1].path
    begin_run(begun, config)
    (begun / "train.csv").write_text("iteration\n0\n1\n")
    assert [workers.iterations_of(arm, tmp_path) for arm in ARMS[:3]] == [(ITERATIONS + 1, 5), (2, 5), (0, 5)]
    with run_lock(begun):
        run.show_progress(ARMS, tmp_path, 2)
    said = capsys.readouterr().out
    assert "1 done, 1 running, 2 left" in said and "hours with 2 workers" in said
    run.show_made(ARMS[:1], tmp_path)
    assert "Hacking gap" in (said := capsys.readouterr().out) and "0.500" in said


def test_a_run_of_an_embedded_task_is_followed_unless_its_preset_says_how(monkeypatch):
    config = one_run.arm_config(ARMS[0])
    assert config.validation.every == max(1, config.iterations // one_run.VALIDATIONS)
    assert config.validation.steps == config.sampler.steps and config.validation.source == "embedded:image/validation"
    monkeypatch.setitem(presets.TRAIN, "image/quick", dict(presets.preset("image/quick")) | {"validation.every": 7})
    assert one_run.arm_config(ARMS[0]).validation.every == 7
    assert one_run.task_of("image/quick") == "otca-image-v2" and one_run.task_of("image/paper") == "prompts/parti.tsv"


# ------------------------------------------------------------------------------------------------------------- variants
@pytest.mark.parametrize("modality", ["image", "video"])
def test_the_verifier_accepts_what_was_asked_for_alone(modality):
    """Renders of six specs, and the same with one attribute changed."""
    task, rng = judged.TASKS[modality], np.random.default_rng(1)
    prompts = task.grammar.prompts("test", 6, seed=1)
    drawn = [task.draw(prompt.spec, rng) for prompt in prompts]
    for scenes, verdict in ((drawn, 1.0), ([task.grammar.change_one_attribute(scene, rng) for scene in drawn], 0.0)):
        media = torch.from_numpy(np.stack([task.render(scene) for scene in scenes]))
        assert one_run.Verdict(modality).score(media, prompts).tolist() == [verdict] * 6


def test_every_run_of_every_table_has_a_config():
    for tier in ("quick", "cpu"):
        for arm in arms_of(TABLES.values(), tier):
            if arm.seed == 0:
                config = one_run.arm_config(arm)
                assert config.seed == 0 and config.prompts_per_iteration * config.group_size > 0
    with pytest.raises(InputError, match="unknown variant 'otca@nonsense'"):
        named_arm("image", "quick", "otca@nonsense", 0)


def test_group_sizes_keep_the_samples_of_an_iteration():
    assert {v["group_size"] * v["prompts_per_iteration"] for n, v in VARIANTS.items() if "@G" in n} == {128}


def test_the_corrupted_reward_is_turned_round_for_a_third():
    from otca.prompts import load_prompts

    prompts = load_prompts("embedded:image/validation", 200)
    media = torch.rand(200, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    honest, lying = build_reward("alignment").score(media, prompts), Flipped().score(media, prompts)
    turned = (lying - (1 - honest)).abs() < 1e-6
    assert ((lying == honest) | turned).all() and 0.2 < (lying != honest).float().mean() < 0.45
    assert torch.equal(lying, Flipped().score(media, prompts)) and Flipped.name == "alignment"


# --------------------------------------------------------------------------------------------------------------- tuning
def test_every_method_gets_the_same_grid_and_the_winner_has_the_highest_product():
    assert {"otca_tcd", "value_head", "dense_grpo"} < {*tune.compared()} and not any("@" in name for name in tune.compared())
    arms = tune.arms("image", "quick", ("otca", "uniform_grpo"))
    assert {arm.seed for arm in arms} == {101, 102, 103} and len(arms) == 2 * 3 * len(tune.GRID)
    rows = pd.DataFrame(tune.GRID, columns=tune.FACTORS).assign(method="otca", seed=101)
    inside = rows.assign(a=[0.9, 0.6, 0.5, 0.6, 0.6], b=[0.1, 0.6, 0.7, 0.5, 0.5])
    best = tune.winners(inside).loc["otca"]
    assert best["rate"] == 1 and best["kl"] == 1 and not best["at_edge"]
    assert tune.winners(inside.assign(b=1.0)).loc["otca", ["rate", "at_edge"]].tolist() == [0.5, True]
    assert tune.winners(inside.assign(a=[0, 0, 0, 0, 1.0])).loc["otca", ["kl", "at_edge"]].tolist() == [2, True]


@pytest.mark.slow
def test_a_published_run_comes_out_again(tmp_path):
    """The newest code makes the published rows of one run anew: on the same kind of processor bit for bit, else nearly so."""
    stores = [Store(Path("results"), modality, "quick") for modality in ("image", "video")]
    published = next((store for store in stores if "otca" in store.methods), None)
    if published is None:
        pytest.skip("nothing is published at the quick tier")
    arm = named_arm(published.modality, "quick", "otca", 0)
    one_run.run_arm(arm, tmp_path)
    made = publish([tmp_path / arm.path], tmp_path / "results", published.modality, "quick")
    old = published.metrics.query("method == 'otca' and seed == 0").set_index("metric")["value"]
    new = made.metrics.set_index("metric")["value"]
    machine = published.runs.query("method == 'otca' and seed == 0")["hardware"].iloc[0]
    assert new.to_dict() == pytest.approx(old.to_dict(), rel=0 if machine == one_run.hardware() else 0.05, abs=1e-12)
