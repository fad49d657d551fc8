"""Process credit: values of states by completion, their cost, and the credit made of them."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd
import pytest
import torch

from baselines import find_method
from otca import credit
from otca.config import CreditConfig, PolicyConfig, SamplerConfig, TrainConfig
from otca.methods import assign_credit
from otca.models.base import build_policy
from otca.sampling import Plan, make_batch, rollout, sigmas_S
from otca.state_values import completion_path, continuation_rewards_NBK, continued_from, process_values, scored_states
from otca.types import Needs, Prompt
from tests.test_baselines import record
from tests.toys import Brightness, toy_config, trained, weights

ROOT = math.sqrt(2)
STEPS = 5
SAMPLER = SamplerConfig(steps=STEPS)


@pytest.fixture(scope="module")
def policy(untrained_pipeline):
    return build_policy(PolicyConfig(path=untrained_pipeline))


def sampled(policy, stochastic):
    """Four samples of one prompt, by ODE or with noise at every step but the last."""
    plan = torch.arange(STEPS) < STEPS - 1 if stochastic else torch.zeros(STEPS, dtype=torch.bool)
    batch = make_batch([Prompt("a", "a red circle")], [0], 4, ("process",))
    return rollout(policy, batch, Plan(SAMPLER, sigmas_S(STEPS, 3.0), plan, plan, 2), Needs.VELOCITY)


def values(policy, record, **settings):
    final_BK = Brightness().score(record.media_BFCHW, None).unsqueeze(1)
    config = TrainConfig(sampler=SAMPLER, credit=CreditConfig(**settings), micro_batch=2)
    out, costs = process_values(policy, record, final_BK, [Brightness()], config)
    return out, costs, final_BK


def test_completing_an_ode_trajectory_changes_nothing(policy):
    """Without noise the completion of every state is the trajectory itself: every value is the final reward, for nothing."""
    record = sampled(policy, stochastic=False)
    out, costs, final_BK = values(policy, record, process_completion=0)
    assert torch.equal(out, final_BK.expand(STEPS + 1, -1, -1)) and costs == {"network_evaluations": 0, "reward_calls": 0}
    forked = dataclasses.replace(record, std_T=torch.ones(STEPS))  # had it been sampled with noise, completions would be made
    out, costs, final_BK = values(policy, forked, process_completion=0)
    torch.testing.assert_close(out, final_BK.expand(STEPS + 1, -1, -1), rtol=0, atol=1e-5)
    assert costs == {"network_evaluations": 4 * (4 + 3 + 2 + 1), "reward_calls": 4 * STEPS}


def test_one_step_is_the_clean_prediction_and_free(policy):
    """The last transition is the clean prediction, so its state takes the final reward, unscored."""
    record = sampled(policy, stochastic=True)
    out, costs, final_BK = values(policy, record, process_completion=1)
    assert costs == {"network_evaluations": 0, "reward_calls": 4 * (STEPS - 1)}
    for state, sigma in enumerate(record.sigma_S[:-1].tolist()):
        clean = record.latents_SB[state] - sigma * record.velocity_TB[state]
        expected = Brightness().score(policy.decode(clean), None)
        torch.testing.assert_close(out[state, :, 0], expected, rtol=0, atol=1e-5)
    assert torch.equal(out[-1], final_BK) and torch.equal(out[-2], final_BK)


def test_continuations_average_fresh_noise(policy):
    """State T − 2 has one noisy step left: its value is the mean over draws of the reward of the ODE step from there."""
    record, draws = sampled(policy, stochastic=True), 3
    out, costs, _ = values(policy, record, process_continuations=draws)
    assert costs == {"network_evaluations": 4 * draws * (4 + 3 + 2 + 1), "reward_calls": 4 * draws * (STEPS - 1)}
    state, every = STEPS - 2, slice(0, 4)
    condition, config = policy.encode([p.text for p in record.prompts]), TrainConfig(sampler=SAMPLER, micro_batch=3)
    ends = [continued_from(policy, record, SAMPLER, state, n, every, condition) for n in range(draws)]
    mean_B = torch.stack([Brightness().score(policy.decode(end), None) for end in ends]).mean(0)
    torch.testing.assert_close(out[state, :, 0], mean_B, rtol=0, atol=1e-5)
    assert not torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], record.latents_SB[-1])
    again_NBK = continuation_rewards_NBK(policy, record, [Brightness()], config, state, range(draws))  # another micro-batch
    torch.testing.assert_close(again_NBK.mean(0), out[state], rtol=0, atol=1e-5)


def test_states_in_between_are_interpolated(policy):
    """Two of five states, 0 and 2 (rounded from 2.5): state 1 is their mean, 3 and 4 lie a third and two thirds to the end."""
    record = sampled(policy, stochastic=True)
    whole, _, _ = values(policy, record)
    out, costs, final_BK = values(policy, record, process_states=2)
    assert costs["reward_calls"] == 4 * 2 and scored_states(STEPS, 2) == [0, 2]
    torch.testing.assert_close(out[[0, 2]], whole[[0, 2]])
    torch.testing.assert_close(out[1], (whole[0] + whole[2]) / 2)
    torch.testing.assert_close(out[3], whole[2] + (final_BK - whole[2]) / 3)


def test_paths_and_subsets():
    assert completion_path(2, 10, 1) == [2, 10] and completion_path(8, 10, 3) == [8, 9, 10]
    assert completion_path(0, 10, 2) == [0, 5, 10] and completion_path(6, 10, 0) == [6, 7, 8, 9, 10]
    assert scored_states(4, 0) == scored_states(4, 9) == [0, 1, 2, 3] and scored_states(6, 3) == [0, 2, 4]
    assert scored_states(6, 3, "early") == [1, 2, 3] and scored_states(4, 0, "early") == scored_states(4, 9, "early") == [1, 2, 3]


def test_generalised_increments_by_hand():
    """Values 0, 1, 3, 2: increments 1, 2, −1; λ = ½: 1 + 1 − ¼, 2 − ½, −1; λ = 1: what is left to gain, 2, 1, −1."""
    value_SBK = torch.tensor([0.0, 1.0, 3.0, 2.0]).view(4, 1, 1)
    increments = credit.value_deltas_TBK(value_SBK)
    assert increments.flatten().tolist() == [1, 2, -1]
    assert credit.gae_TBK(increments, 0.0).flatten().tolist() == [1, 2, -1]
    assert credit.gae_TBK(increments, 0.5).flatten().tolist() == [1.75, 1.5, -1]
    assert credit.gae_TBK(increments, 1.0).flatten().tolist() == [2, 1, -1]


def test_shrinkage_learns_from_the_other_groups_by_hand():
    """Centred values ±1 in both groups; finals ±2 and ±4: each group's slope is what the other's final rewards say."""
    value_SBK = torch.tensor([[[5.0], [3.0], [0.0], [2.0]], [[7.0], [3.0], [6.0], [14.0]]])
    out_SBK = credit.shrunk_values_SBK(value_SBK, torch.tensor([7, 7, 9, 9]), ridge=0.0)
    torch.testing.assert_close(out_SBK[0, :, 0], torch.tensor([4.0, -4.0, -2.0, 2.0]))
    torch.testing.assert_close(out_SBK[1, :, 0], torch.tensor([2.0, -2.0, -4.0, 4.0]))  # final rewards, only centred


def test_shrinkage_never_sees_a_sample_s_own_reward():
    """Changing the rewards of one group moves the values of the others, and its own only at the end."""
    value_SBK = torch.randn(5, 12, 2, generator=torch.Generator().manual_seed(0))
    group_B = torch.arange(12) // 4
    before_SBK = credit.shrunk_values_SBK(value_SBK, group_B)
    value_SBK[-1, :4] += torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    after_SBK = credit.shrunk_values_SBK(value_SBK, group_B)
    assert torch.equal(before_SBK[:-1, :4], after_SBK[:-1, :4]) and not torch.equal(before_SBK[-1, :4], after_SBK[-1, :4])
    assert not torch.equal(before_SBK[:-1, 4:], after_SBK[:-1, 4:])


def test_process_advantages_are_centred_in_the_group_with_rms_one():
    """At each step and objective the groups' means are 0; over trained steps the RMS is 1; a constant objective gives 0."""
    generator = torch.Generator().manual_seed(0)
    value_SBK = torch.rand(6, 8, 3, generator=generator) * torch.tensor([1.0, 100.0, 0.0])
    group_B, trained_T = torch.arange(8) // 4, torch.arange(5) < 4
    advantage_TBK = credit.process_advantage_TBK(value_SBK, group_B, 0.3, trained_T)
    assert advantage_TBK.view(5, 2, 4, 3).mean(2).abs().max() < 1e-5
    rms_K = advantage_TBK[trained_T].square().mean((0, 1)).sqrt()
    torch.testing.assert_close(rms_K, torch.tensor([1.0, 1.0, 0.0]), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("process_credit", [[1.0, ROOT / 2], [0.0, -ROOT / 2]]),  # weights ½ each
        ("process_moca", [[0.5, 0.75 * ROOT], [0.0, -0.75 * ROOT]]),  # final z-scores √2 and √1.5: ¼ and ¾
        ("moca_step", [[0.5, 0.75 * ROOT], [0.0, -0.25 * ROOT]]),  # (2, √2): ¼ and ¾; (0, −√2): ¾ and ¼
    ],
)
def test_objective_weights_of_process_advantages_by_hand(name, expected):
    """Three samples of a group; the first's values rise by (2, 1), then (0, −1), the others' stay: its advantages are those, less
    a third, over their RMS ⅔ and √2/3: (2, √2), (0, −√2). MOCA gives the smaller of one sign half of all, and ρ/K = ¼ to each."""
    first_SK = torch.tensor([[0.0, 0.0], [2.0, 1.0], [2.0, 0.0], [2.0, 0.0]])
    rollout, scores = record(torch.tensor([[3.0, 2.0], [0.0, 1.0], [0.0, 0.0]]), std=(0.3, 0.2, 0.0), groups=1)
    values_SBK = torch.stack([first_SK, torch.zeros(4, 2), torch.zeros(4, 2)], dim=1)
    scores = dataclasses.replace(scores, state_reward_SBK=values_SBK)
    settings = {"method": name, "rewards": ["x", "y"], "credit.rho": 0.5}
    settings |= {"credit.process_shrinkage": False, "credit.process_decay": 0.0}
    credited = assign_credit(find_method(name), rollout, scores, TrainConfig.from_dotted(settings))
    product_TBK = credited.credit_TBK * credited.advantage_BK
    torch.testing.assert_close(product_TBK[:2, 0], torch.tensor(expected), rtol=1e-3, atol=1e-6)


def sampled_run(pipeline, folder, count):
    run = trained(toy_config("otca", pipeline, **{"iterations": 2, "credit.sampled_steps": count}), folder)
    return weights(run), pd.read_csv(folder / "train.csv")


def test_sampling_every_step_is_training_every_step_and_costs_what_it_trains(untrained_pipeline, tmp_path):
    """Five of five steps: each is certain, weighs 1, and the run is the same bit for bit. Two of five: 6 + 2·3 passes."""
    whole, rows = sampled_run(untrained_pipeline, tmp_path / "whole", 0)
    drawn, drawn_rows = sampled_run(untrained_pipeline, tmp_path / "drawn", 5)
    assert rows.equals(drawn_rows) and torch.equal(whole, drawn)
    _, rows = sampled_run(untrained_pipeline, tmp_path / "two", 2)
    assert rows["network_evaluations"].tolist() == [6 * (6 + 2 * 3), 2 * 6 * (6 + 2 * 3)]
    assert (rows["update_norm"] > 0).all() and (rows["first_ratio_deviation"] < 1e-5).all()
