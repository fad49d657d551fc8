"""Jobs of Slurm, whose commands are played by scripts: what is submitted, what is refused, and a job that is handed back."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reproduce import all as all_runs
from reproduce import credit_fidelity, grid
from reproduce.table import Table
from tests.grids import finished, grid_of, worker_of
from tests.killed import wait_for
from tests.test_survival_tables import TABLE

COMMANDS = {
    # starts at once what it is given, as job 123
    "sbatch": """cp "$1" {folder}/batch.sh
(SLURM_JOB_ID=123 bash {folder}/batch.sh > /dev/null 2>&1 &)
echo "Submitted batch job 123"
""",
    # --unbuffered --output FILE --error FILE COMMAND…
    "srun": """out=$(echo "$3" | sed s/%j/123/\\;s/%t/0/) error=$(echo "$5" | sed s/%j/123/\\;s/%t/0/)
shift 5
exec "$@" >> "$out" 2>> "$error"
""",
    "sacct": """echo "JobID|State|NodeList"
echo "123|RUNNING|node"
""",
    # starts the job again once the process that asks has ended
    "scontrol": """echo "$@" >> {folder}/scontrol.txt
(while kill -0 $PPID; do sleep 0.1; done; SLURM_JOB_ID=123 bash {folder}/batch.sh) > /dev/null 2>&1 &
""",
}


def slurm(folder: Path, **commands: str) -> str:
    """A PATH on which these commands of Slurm come first."""
    (folder / "bin").mkdir()
    for name, script in commands.items():
        path = folder / "bin" / name
        path.write_text("#!/bin/bash\n" + script.format(folder=folder))
        path.chmod(0o755)
    return f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"


def test_a_job_is_submitted_and_handed_back_at_a_preemption(tmp_path, untrained_pipeline):
    """A preempted job gets SIGTERM, then SIGUSR2: it is put into the queue again, and goes on; the command waits for it."""
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(grid_of, tmp_path, untrained_pipeline, 2, 1, "short", 2, PATH=slurm(tmp_path, **COMMANDS))
        pid = worker_of(tmp_path)
        log = tmp_path / "runs/grid/123_0_log.out"
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: "Bypassing signal SIGTERM" in log.read_text())
        os.kill(pid, signal.SIGUSR2)
        done = ended.result()
    assert done.returncode == 0, done.stdout + done.stderr
    assert finished(tmp_path) == set(TABLE.methods[:2])
    batch = (tmp_path / "batch.sh").read_text().splitlines()
    asked = {"partition=short", "cpus-per-task=1", "gpus-per-node=2", "requeue", "time=1440", "signal=USR2@90", "job-name=otca"}
    assert {f"#SBATCH --{option}" for option in asked} <= set(batch)
    assert (tmp_path / "scontrol.txt").read_text().split() == ["requeue", "123"]
    assert log.read_text().count("Starting with JobEnvironment(job_id=123,") == 2


def test_no_gpu_is_asked_for_unless_told(tmp_path, monkeypatch):
    """Whatever the machine that submits has; what sbatch says of the job ends the command in one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    refusing = 'cp "$1" {folder}/batch.sh\necho "sbatch: error: invalid partition specified: long" >&2\nexit 1\n'
    monkeypatch.setenv("PATH", slurm(tmp_path, srun="", sbatch=refusing))
    with pytest.raises(grid.InputError, match="Slurm refused a job: sbatch: error: invalid partition specified: long; see to"):
        grid.run_grid(TABLE.arms("quick")[:1], Path("runs"), 3, "long")
    assert "#SBATCH --partition=long" in (batch := (tmp_path / "batch.sh").read_text()) and "--gpu" not in batch


@pytest.mark.parametrize("has, lacks", [([], "srun and sbatch"), (["srun"], "sbatch")])
def test_a_machine_without_slurm(has, lacks, tmp_path, monkeypatch, capsys):
    slurm(tmp_path, **{name: "" for name in has})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert all_runs.main(["--tier", "quick", "--slurm", "short", "--jobs", "2"]) == 2
    assert capsys.readouterr().err == (
        f"all: error: --slurm short: {lacks} not found on PATH; run this on a login node of the cluster, or leave out --slurm "
        "for local processes\n"
    )


def test_what_is_left_to_the_machine_that_submits(monkeypatch, capsys):
    """With --slurm the tables, but no measurement; without it, both."""
    monkeypatch.setattr(grid, "run_grid", lambda *options: print(*options[2:]))
    monkeypatch.setattr(Table, "write", lambda *_: "table")
    monkeypatch.setattr(credit_fidelity, "make", lambda modality, jobs: print(f"measured: {modality}"))
    assert all_runs.main(["--tier", "cpu", "--slurm", "short", "--jobs", "40", "--gpus", "1"]) == 0
    first, *tables, image, video = capsys.readouterr().out.splitlines()
    assert first == "40 short 1" and tables == ["written: table"] * len(all_runs.TABLES)
    assert [image, video] == [
        f"not measured with --slurm: credit fidelity; start python -m reproduce.credit_fidelity --modality {modality}"
        for modality in ("image", "video")
    ]
    assert all_runs.main(["--tier", "quick", "--jobs", "1"]) == 0
    assert "fidelity" not in capsys.readouterr().out
    assert all_runs.main(["--tier", "cpu", "--jobs", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["measured: image", "measured: video"]
    assert all_runs.main(["--tier", "quick", "--gpus", "1"]) == 2
    assert "--gpus 1 goes with --slurm" in capsys.readouterr().err
    assert all_runs.main(["--tier", "quick", "--slurm", "short", "--gpus", "-1"]) == 2
    assert "--gpus -1: give a number above 0, or leave it out" in capsys.readouterr().err
