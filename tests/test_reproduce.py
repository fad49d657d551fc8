"""The inner steps of `make reproduce` and of the --render check, on a tiny tier; and "it learns"."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from eval.tables import EQUAL_CALLS, EQUAL_EVALUATIONS
from otca.config import TrainConfig
from otca.files import sha256
from otca.methods import METHODS
from reproduce.table import _budget_notes
from tests.processes import ran

ROOT = Path(__file__).parent.parent

TINY = """
import sys
sys.path.insert(0, {root!r})
import otca.presets as presets
presets.TRAIN["image/tiny"] = {{
    "iterations": 2, "prompts_per_iteration": 2, "group_size": 2, "sampler.steps": 2, "save_every": 1,
    "policy.path": {pipeline!r},
}}
presets.EVAL["image/tiny"] = {{"prompts": 6, "samples_per_prompt": 2, "steps": 2}}
presets.TRAIN["video/tiny"] = presets.VIDEO | {{
    "iterations": 1, "prompts_per_iteration": 2, "group_size": 2, "micro_batch": 2, "sampler.steps": 2, "save_every": 1,
    "policy.path": {wan!r}, "policy.max_sequence_length": 20, "policy.frames": 9,
}}
presets.EVAL["video/tiny"] = presets.EVAL["video/quick"] | {{"prompts": 7, "samples_per_prompt": 1, "steps": 2}}
presets.TRAIN["image/spread"] = presets.TRAIN["image/tiny"] | {{"prompts_per_iteration": 4}}
presets.EVAL["image/spread"] = presets.EVAL["image/tiny"] | {{"prompts": 5, "samples_per_prompt": 3, "batch": 4}}
presets.SEEDS |= {{"tiny": 2, "spread": 1}}
from reproduce import publish, table1, table2, table3
from tests.processes import gloo_workers
sys.exit({call})
"""


def working_folder(folder, readme, **paths):
    """A function that runs a call of the reproduce package there, on the tiny tiers; returns what it printed."""
    (folder / "README.md").write_text(readme)

    def run(call, code=0, processes=1):
        script = folder / "call.py"
        script.write_text(TINY.format(root=str(ROOT), call=call, **paths))
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
        done = ran([sys.executable, *launcher, script], cwd=folder, ACCELERATE_USE_CPU="true")
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, untrained_pipeline, untrained_wan):
    """A working folder in which the tiny Table 1 was made with two workers, published and rendered."""
    folder = tmp_path_factory.mktemp("reproduce")
    blocks = ("table1-tiny", "cost-table1-image-tiny")
    readme = "# x\n" + "".join(f"<!-- {name} -->\nSTALE\n<!-- /{name} -->\n" for name in blocks) + "end\n"
    run = working_folder(folder, readme, pipeline=untrained_pipeline, wan=untrained_wan)
    made = run('table1.TABLE.main("", ["--tier", "tiny", "--jobs", "2"])')
    run('publish.main(["--tier", "tiny"])')
    run('table1.TABLE.main("", ["--tier", "tiny", "--render"])')
    return folder, run, made


def test_table_is_made_and_printed(tiny):
    folder, _, made = tiny
    assert "written: runs/table1/tiny" in made and r"| otca\_moca |" in made
    table = pd.read_csv(folder / "runs/table1/tiny/table.csv")
    assert set(table["method"]) == {"base", "uniform_grpo", "static_multi_reward", "otca_tcd", "otca_moca", "otca"}
    assert set(table["n_seeds"]) == {2}
    trained = table[table["method"] != "base"]
    assert trained["network_evaluations"].nunique() == 1 and trained["reward_calls"].nunique() == 1
    assert {"alignment", "quality", "aesthetic", "accuracy", "clip_score", "kernel_distance", "diversity"} <= set(table["metric"])
    for name in ("table.md", "table.tex", "grid.png"):
        assert (folder / "runs/table1/tiny" / name).stat().st_size > 0


def test_figures_are_the_same_from_runs_and_from_published_rows(tiny):
    folder, _, _ = tiny
    drawn = ("curves", "curves-evaluations", "curves-seconds", "credit", "trade-offs", "rewards-accuracy", "profiles")
    made, rendered = ({p.name for p in (folder / root / "table1/tiny").glob("*.svg")} for root in ("runs", "results"))
    assert made == rendered == {f"{name}.svg" for name in drawn}
    for name in [f"{name}{suffix}" for name in drawn for suffix in (".png", ".svg")]:
        assert sha256(folder / "runs/table1/tiny" / name) == sha256(folder / "results/table1/tiny" / name)


def test_arms_share_prompts_and_noise(tiny):
    """Before the first update every method saw the same samples: equal first rows of rewards."""
    folder, _, _ = tiny
    columns = ["reward_alignment", "reward_quality", "reward_aesthetic", "network_evaluations", "reward_calls"]
    first = [
        pd.read_csv(run / "train.csv")[columns].iloc[0].tolist()
        for run in sorted((folder / "runs/image/tiny").glob("*/seed1"))
        if run.parent.name != "base"
    ]
    assert len(first) == 5 and all(row == first[0] for row in first)


def test_a_finished_run_is_not_repeated(tiny):
    folder, run, _ = tiny
    before = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("manifest.json")}
    run('table1.TABLE.main("", ["--tier", "tiny"])')
    assert before and before == {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("manifest.json")}


def test_render_rebuilds_byte_for_byte(tiny):
    """Invariant 8: csv, md, tex and the README block, from published rows alone."""
    folder, run, _ = tiny
    names = ("table.csv", "table.md", "table.tex", "sources.json")
    published = {n: sha256(folder / "results/table1/tiny" / n) for n in names}
    assert published == {n: sha256(folder / "runs/table1/tiny" / n) for n in names}
    readme = (folder / "README.md").read_text()
    assert "STALE" not in readme and "otca_moca" in readme.replace("\\", "") and readme.endswith("end\n")
    for name in names:
        (folder / "results/table1/tiny" / name).unlink()
    (folder / "runs").rename(folder / "elsewhere")
    run('table1.TABLE.main("", ["--tier", "tiny", "--render"])')
    (folder / "elsewhere").rename(folder / "runs")
    assert published == {n: sha256(folder / "results/table1/tiny" / n) for n in names}
    assert (folder / "README.md").read_text() == readme


def test_manifest_describes_the_run(tiny):
    folder, _, _ = tiny
    run = folder / "results/image/tiny/otca/seed1"
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["method"], manifest["seed"], manifest["tier"]) == ("otca", 1, "tiny")
    assert manifest["files"] == {
        n: sha256(run / n) for n in ("config.yaml", "train.csv", "scores.csv.gz", "sets.csv", "probe.csv")
    }
    assert manifest["budget"]["reward_calls"] == 2 * 4 * 3
    assert manifest["protocol"]["sampler"] == "ode"


def test_missing_runs_end_with_one_line(tiny):
    folder, run, _ = tiny
    (folder / "results/image/tiny/otca/seed0").rename(folder / "aside")
    said = run('table1.TABLE.main("", ["--tier", "tiny", "--render"])', code=2)
    (folder / "aside").rename(folder / "results/image/tiny/otca/seed0")
    assert said.startswith("table1: error:") and said.count("\n") == 1


def test_costs_are_published_apart_from_the_rows(tiny):
    """cost.csv has one row a run and its sentence is in the README; no manifest depends on the clock."""
    folder, _, _ = tiny
    cost = pd.read_csv(folder / "results/image/tiny/cost.csv")
    assert len(cost) == 12 and (cost["evaluate_seconds"] > 0).all()
    assert (cost["train_seconds"] > 0).tolist() == (cost["method"] != "base").tolist()
    assert "Measured: 12 runs" in (folder / "README.md").read_text()
    assert "cost.json" not in (folder / "results/image/tiny/otca/seed1/manifest.json").read_text()


def test_what_is_published_counts_as_made(tiny, tmp_path):
    """Restored runs are those that were published, with their cost; the table's command trains nothing, and tables agree."""
    folder, run, _ = tiny
    (folder / "runs").rename(tmp_path / "runs")
    try:
        assert run('publish.main(["--tier", "tiny", "--restore"])') == "restored 12 runs of image/tiny\n"
        assert run('publish.main(["--tier", "tiny", "--restore"])') == "restored 0 runs of image/tiny\n"
        for manifest in sorted((tmp_path / "runs").rglob("manifest.json")):
            place = manifest.relative_to(tmp_path / "runs").parent
            for name in (*json.loads(manifest.read_text())["files"], "manifest.json", "cost.json"):
                own, restored = (
                    json.loads(p.read_text()) if name == "cost.json" else sha256(p)
                    for p in (manifest.parent / name, folder / "runs" / place / name)
                )
                assert own == restored, place / name
        run('table1.TABLE.main("", ["--tier", "tiny"])')
        assert not list((folder / "runs").rglob("timing.csv"))  # which every training leaves
        for name in ("table.csv", "table.md"):
            assert sha256(folder / "runs/table1/tiny" / name) == sha256(tmp_path / "runs/table1/tiny" / name)
    finally:
        shutil.rmtree(folder / "runs", ignore_errors=True)
        (tmp_path / "runs").rename(folder / "runs")


def test_what_is_damaged_is_not_restored(tiny, tmp_path):
    folder, run, _ = tiny
    rows = folder / "results/image/tiny/otca/seed0/train.csv"
    kept = rows.read_bytes()
    (folder / "runs").rename(tmp_path / "runs")
    try:
        rows.write_bytes(kept + b"\n")
        said = run('publish.main(["--tier", "tiny", "--restore"])', code=2)
        assert said.startswith("publish: error: run results/image/tiny/otca/seed0 cannot be restored:") and said.count("\n") == 1
        assert not (folder / "runs/image/tiny/otca/seed0").exists()
        said = run('publish.main(["--tier", "none", "--restore"])', code=2)
        assert said == "publish: error: nothing is published below results/image/none; take another --modality or --tier\n"
    finally:
        rows.write_bytes(kept)
        shutil.rmtree(folder / "runs", ignore_errors=True)
        (tmp_path / "runs").rename(folder / "runs")


def test_tables_2_and_3_share_runs(tmp_path, untrained_pipeline, untrained_wan):
    """Videos end to end: Table 2 trains and evaluates, Table 3 repeats nothing, both render byte for byte."""
    from eval.media import read_video

    run = working_folder(tmp_path, "# x\n", pipeline=untrained_pipeline, wan=untrained_wan)
    run('table2.TABLE.main("", ["--tier", "tiny", "--jobs", "2"])')
    sealed = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("manifest.json")}
    run('table3.TABLE.main("", ["--tier", "tiny"])')
    assert len(sealed) == 12 and sealed == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("manifest.json")}
    run('publish.main(["--modality", "video", "--tier", "tiny"])')
    run('table2.TABLE.main("", ["--tier", "tiny", "--render"]) or table3.TABLE.main("", ["--tier", "tiny", "--render"])')
    for name in ("table2", "table3"):
        made, rendered = (tmp_path / root / name / "tiny" for root in ("runs", "results"))
        for file in ("table.csv", "table.md", "table.tex"):
            assert (made / file).read_bytes() == (rendered / file).read_bytes()
        drawn = {file for file in ("grid.png", "clips.webp", "clips.mp4", "curves.svg") if (rendered / file).is_file()}
        assert len(drawn) == (4 if name == "table2" else 0)  # the pictures of these runs are Table 2's
    accuracy, motion = (set(pd.read_csv(tmp_path / "results" / t / "tiny/table.csv")["metric"]) for t in ("table2", "table3"))
    assert {"vq", "mq", "ta", "accuracy", "direction_accuracy"} <= accuracy
    assert {"dynamic_degree_dis", "motion_smoothness_dis", "warping_error_dis", "temporal_flickering"} <= motion
    assert not accuracy & motion
    clips = sorted((tmp_path / "results/video/tiny/otca/seed0/media").glob("*.webp"))
    assert len(clips) == 7 and read_video(clips[0]).frames_FCHW.shape == (9, 3, 64, 64)
    assert len(read_video(clips[0].with_suffix(".mp4")).frames_FCHW) == 9


def test_a_launcher_s_processes_make_a_table_together(tmp_path, untrained_pipeline):
    """Two processes share training and evaluation (15 samples, an odd number); rows are one process's, files are whole.

    No worker of gloo outlives the command: one that still held a tensor would abort the interpreter as it ends.
    """
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        run = working_folder(folder, "", pipeline=untrained_pipeline, wan="")
        call = 'table1.TABLE.main("", ["--tier", "spread", "--jobs", "1"]) or print(f"{gloo_workers()} workers left\\n", end="")'
        out = run(call, processes=processes)
        assert out.count("written: runs/table1/spread") == 1 and out.count("0 workers left\n") == processes
    runs = sorted(path.parent.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("manifest.json"))
    assert len(runs) == 6
    for run in runs:
        alone, together = (tmp_path / n / run for n in "12")
        rows = [pd.read_csv(folder / "scores.csv.gz") for folder in (alone, together)]
        assert len(rows[0]) == 15
        pd.testing.assert_frame_equal(*rows, rtol=1e-3, atol=1e-4)
        pd.testing.assert_frame_equal(*(pd.read_csv(folder / "sets.csv") for folder in (alone, together)), rtol=1e-2, atol=1e-4)
        assert sorted(p.name for p in (alone / "media").iterdir()) == sorted(p.name for p in (together / "media").iterdir())
        budgets = [json.loads((folder / "manifest.json").read_text())["budget"] for folder in (alone, together)]
        assert budgets[0] == budgets[1]


EARLY_STEPS = {
    "prompts_per_iteration": 8,
    "group_size": 16,
    "micro_batch": 32,
    "sampler.level": 0.9,
    "step_selection.kind": "first_k",
    "step_selection.count": 2,
    "optimizer.learning_rate": 1.5e-4,
    "optimizer.updates_per_iteration": 1,
    "iterations": 28,
}
"""Alignment is decided early and rewards it sparsely: large batches, the first two steps only."""


@pytest.mark.parametrize(
    "reward, settings, errors",
    [("aesthetic", {"iterations": 12, "optimizer.learning_rate": 3e-4}, 5.0), ("alignment", EARLY_STEPS, 2.0)],
    ids=["aesthetic", "alignment"],
)
def test_it_learns(tmp_path, reward, settings, errors):
    """A minute of training for one reward raises it, on prompts and noise never trained on, by so many standard errors."""
    from otca.rewards.base import build_reward, score_all
    from otca.rollout import make_batch, rollout
    from otca.schedules import StepPlan
    from otca.tasks.scenes import prompts
    from otca.trainer import Trainer

    fixed = {"rewards": [reward], "sampler.steps": 6, "save_every": 100}
    trainer = Trainer(TrainConfig.from_dotted(fixed | settings), METHODS["otca"], tmp_path / "run")
    never = torch.zeros(6, dtype=torch.bool)
    batch = make_batch(prompts("validation", 960), list(range(960)), 1, ("probe",))

    def probe():
        sampled = rollout(trainer.policy, batch, trainer.config.sampler, trainer.sigma_S, StepPlan(never, never), 32)
        return score_all([build_reward(reward)], sampled.media_BFCHW, sampled.prompts).reward_BK[:, 0]

    before = probe()
    trainer.run()
    gain = probe() - before
    print(f"{reward}: {before.mean():.4f}, gain {gain.mean():.4f}, standard error {gain.std() / len(gain) ** 0.5:.4f}")
    assert gain.mean() > errors * gain.std() / len(gain) ** 0.5 > 0


def test_arms_beyond_the_budget_of_their_table_are_named():
    """By what they spent of everything that the label calls equal; the untrained model spends nothing."""
    spent = {"base": (0, 0), "static_multi_reward": (100, 60), "otca": (100, 60), "coca": (101, 60), "process_credit": (143, 360)}
    rows = [("image", EQUAL_CALLS, "static_multi_reward", name, *of) for name, of in spent.items()] * 2
    table = pd.DataFrame(rows, columns=["modality", "budget", "baseline", "method", "network_evaluations", "reward_calls"])
    [note] = _budget_notes(table)
    said = "Not at that budget, in multiples of static_multi_reward: process_credit ("
    assert note == f"{said}1.43 × network evaluations, 6.00 × reward calls)."
    assert _budget_notes(table[table["method"] != "process_credit"]) == []
    equal = table.assign(budget=EQUAL_EVALUATIONS, network_evaluations=100 * (table["method"] != "base"))
    assert _budget_notes(equal) == []
