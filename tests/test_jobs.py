"""How many jobs go side by side: one reading of ``--jobs`` for every script that has it; nothing starts on a wrong one."""

from __future__ import annotations

import os

import pytest
import torch

import reproduce.all
from otca.errors import InputError
from reproduce import ablations, credit_fidelity, grid, jobs, method, runner, table1, table2, table3, table4, tune

QUICK = {"method": "--dry-run", "tune": "--winners"}
"""Of the scripts that have no --render, the option that also ends soon."""
SCRIPTS = {
    **{s.TABLE.name: lambda argv, table=s.TABLE: table.main("", argv) for s in (table1, table2, table3, table4)},
    "ablations": ablations.main,
    "all": reproduce.all.main,
    "method": lambda argv: method.main(["otca", *argv]),
    "tune": tune.main,
    "credit_fidelity": credit_fidelity.main,
}


@pytest.mark.parametrize("given", ["-1", "0", "two", "1.5", "9" * 5000])
@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_no_number_above_0_is_refused_before_anything_starts(monkeypatch, capsys, script, given):
    for module, name in ((runner, "_workers"), (grid, "_submit"), (grid, "progress_text")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("nothing may start"))
    for options in ([], [QUICK.get(script, "--render")]):
        assert SCRIPTS[script]([*options, "--jobs", given]) == 2
        said = capsys.readouterr()
        assert said.err == f"{script}: error: --jobs {given[:20]}: give a number above 0, or leave it out\n" and not said.out
    if script == "all":
        assert reproduce.all.main(["--progress", "--jobs", given]) == 2


def test_left_out_it_is_one_a_core_and_one_with_a_gpu(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (jobs.jobs_of(""), jobs.jobs_of("7")) == (3, 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (jobs.jobs_of(""), jobs.jobs_of("7")) == (1, 7)


def test_counts_of_other_options_are_read_alike():
    assert (jobs.count_of("--seeds", ""), jobs.count_of("--seeds", "3")) == (0, 3)
    with pytest.raises(InputError, match="^--seeds 0: give a number above 0, or leave it out$"):
        jobs.count_of("--seeds", "0")
