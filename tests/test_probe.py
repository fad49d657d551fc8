"""The probe: one fixed rollout a run, the same for every method, whose credit is the method's own."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from baselines import find_method
from otca.config import EvalConfig
from otca.trainer import Trainer
from reproduce.one_run import COLUMNS, MOST_PROMPTS, credited, probe, rows_of, shown_prompts
from tests.toys import toy_config

EVALUATION = EvalConfig(prompts=24)


def made(name, pipeline, folder):
    return Trainer(toy_config(name, pipeline), find_method(name), folder / name)


def test_every_skill_has_one_prompt():
    prompts = shown_prompts(EVALUATION)
    skills = [prompt.spec["skill"] for prompt in prompts]
    assert len(set(skills)) == len(skills) == 6 <= MOST_PROMPTS


def test_methods_see_the_same_rollout_and_credit_it_their_own_way(untrained_pipeline, tmp_path):
    tables = {}
    for name in ("static_multi_reward", "otca", "process_credit"):
        trainer = made(name, untrained_pipeline, tmp_path)
        found = credited(trainer, shown_prompts(EVALUATION)[:2])
        tables[name] = rows_of(*found, trainer.config.group_size)
        assert list(tables[name]) == COLUMNS and len(tables[name]) == 2 * 5 * 2  # prompts, trained steps of six, objectives
        latents = found[0].latents_SB
    static, otca, process = tables.values()
    assert static["reward"].equals(otca["reward"]) and static["reward"].equals(process["reward"])
    by_step = static.groupby(["prompt_id", "objective"])["credit"].nunique()
    assert (by_step == 1).all()  # static weighting gives every step the same
    assert otca.groupby(["prompt_id", "objective"])["credit"].nunique().max() > 1
    assert not static["sigma"].is_monotonic_decreasing and static["step"].max() == 4
    _, scores, credit = found
    row = process[(process["step"] == 3) & (process["objective"] == scores.names[1])].iloc[1]
    assert row["credit"] == pytest.approx(float(credit.advantage_TBK[3, trainer.config.group_size, 1]))
    assert torch.equal(latents, credited(trainer, shown_prompts(EVALUATION)[:2])[0].latents_SB)


def test_a_method_of_the_forward_process_has_none(untrained_pipeline, tmp_path):
    probe(made("diffusion_nft", untrained_pipeline, tmp_path), EVALUATION, tmp_path)
    assert not list(tmp_path.glob("*.csv"))
    probe(made("gdpo", untrained_pipeline, tmp_path), EVALUATION, tmp_path)
    rows = pd.read_csv(tmp_path / "probe.csv")
    assert len(rows) == 6 * 5 and set(rows["objective"]) == {"all"}
