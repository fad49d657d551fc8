"""Each rival's formula against a case worked by hand, and a real iteration of every one of them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from baselines import coca, dance_grpo, diffusion_nft, find_method, grpo_guard, tempflow_grpo
from otca.config import TrainConfig
from otca.errors import InputError
from otca.losses import NoisedSample, Transition, surrogate, velocity_distance
from otca.methods import assign_credit
from otca.models.base import build_policy
from otca.plan import costs_of
from otca.sampling import select_steps
from otca.types import Scores, Trajectory
from otca.update import noised_at
from tests.toys import toy_config, trained, trainer_of, weights

RIVALS = ("flow_grpo", "dance_grpo", "mix_grpo", "tempflow_grpo", "flow_grpo_fast", "gdpo", "grpo_guard", "coca", "dense_grpo")


def record(reward_BK, latents_SB=None, velocity_TB=None, std=(0.3, 0.2, 0.1, 0.0), groups=2):
    """A rollout of four steps, the last untrained; one-dimensional latents unless given."""
    count, steps = len(reward_BK), len(std)
    if latents_SB is None:
        latents_SB = torch.randn(steps + 1, count, 6, generator=torch.Generator().manual_seed(0))
    rollout = Trajectory(
        latents_SB=latents_SB,
        std_T=torch.tensor(std, dtype=torch.float64),
        log_prob_TB=torch.zeros(steps, count),
        sigma_S=torch.linspace(1, 0, steps + 1, dtype=torch.float64),
        trained_T=torch.arange(steps) < steps - 1,
        media_BFCHW=torch.zeros(count, 1, 3, 2, 2),
        prompts=[None] * count,
        group_B=torch.arange(count) * groups // count,
        seed_B=list(range(count)),
        velocity_TB=velocity_TB,
    )
    return rollout, Scores(reward_BK, tuple(f"r{k}" for k in range(reward_BK.shape[1])), {})


def credit_of(name, rollout, scores, **changes):
    settings = find_method(name).settings | changes | {"rewards": ["x"] * scores.reward_BK.shape[1]}
    return assign_credit(find_method(name), rollout, scores, TrainConfig.from_dotted(settings))


def transition(log_prob, old, advantage_BK, **others):
    """One transition of B samples with a one-dimensional mean."""
    log_prob_B, advantage_BK = torch.tensor(log_prob), torch.tensor(advantage_BK)
    zeros = torch.zeros(len(log_prob_B), 1)
    defaults = dict(mean=zeros, old_mean=zeros, std=1.0, delta=1.0, clip_low=0.1, clip_high=0.1)
    return Transition(log_prob_B - torch.tensor(old), advantage_BK.sum(1), advantage_BK, **(defaults | others))


def test_uniform_grpo_standardises_the_sum_and_static_weighting_each_objective():
    """One group, rewards (0, 2), (0, 4), (3, 0), weights ½.

    Sums 1, 2, 1.5: mean 1.5, variance 1/6. Apart: means 1 and 2, standard deviations √2 and √(8/3).
    """
    reward_BK = torch.tensor([[0.0, 2.0], [0.0, 4.0], [3.0, 0.0]])
    uniform, static = (
        credit_of(name, *record(reward_BK, groups=1), **{"credit.advantage_epsilon": 1e-9}).advantage_TB
        for name in ("uniform_grpo", "static_multi_reward")
    )
    torch.testing.assert_close(uniform, (torch.tensor([-0.5, 0.5, 0.0]) * math.sqrt(6)).expand(4, 3))
    first, second = torch.tensor([-1.0, -1.0, 2.0]) / math.sqrt(2), torch.tensor([0.0, 2.0, -2.0]) / math.sqrt(8 / 3)
    torch.testing.assert_close(static, ((first + second) / 2).expand(4, 3))


def test_flow_grpo_divides_by_the_spread_of_all_rewards():
    """Sums .5·(r1 + r2): groups (1, 3) and (10, 14), means 2 and 12; std of (1, 3, 10, 14) is √27.5: ∓1/√27.5, ∓2/√27.5."""
    reward_BK = torch.tensor([[1.0, 1.0], [2.0, 4.0], [8.0, 12.0], [14.0, 14.0]])
    advantage_TB = credit_of("flow_grpo", *record(reward_BK)).advantage_TB
    expected = torch.tensor([-1.0, 1.0, -2.0, 2.0]) / (math.sqrt(27.5) + 1e-4)
    torch.testing.assert_close(advantage_TB, expected.expand(4, 4))


def test_dance_grpo_clips_each_reward_apart():
    """r = 1.5, clip ± .1, parts (1, −1): fused 0 would give no loss; apart: −1.1 + 1.5 = 0.4."""
    step = transition([math.log(1.5)], [0.0], [[1.0, -1.0]])
    torch.testing.assert_close(dance_grpo.loss(step), torch.tensor([0.4]))
    torch.testing.assert_close(surrogate(step), torch.tensor([0.0]))
    agreeing = transition([math.log(1.5)], [0.0], [[1.0, 2.0]])
    torch.testing.assert_close(dance_grpo.loss(agreeing), surrogate(agreeing))


def test_dance_grpo_parts_are_weighted_scores():
    """Two objectives of weights ¼ and ¾ and z-scores ∓1: parts ∓¼ and ±¾."""
    reward_BK = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    credit = credit_of("dance_grpo", *record(reward_BK, groups=1), reward_weights=[1.0, 3.0])
    torch.testing.assert_close(credit.advantage_TBK[0], torch.tensor([[-0.25, 0.75], [0.25, -0.75]]))


def test_tempflow_weights_steps_by_their_noise():
    """Noise .3, .2, .1 over three trained steps: weights 1.5, 1, .5, nothing on the last."""
    rollout, scores = record(torch.tensor([[0.0], [1.0]]), groups=1)
    torch.testing.assert_close(tempflow_grpo.noise_weights_T(rollout), torch.tensor([1.5, 1.0, 0.5, 0.0]))
    advantage_TB = credit_of("tempflow_grpo", rollout, scores).advantage_TB
    torch.testing.assert_close(advantage_TB[:, 1], torch.tensor([1.5, 1.0, 0.5, 0.0]), rtol=1e-3, atol=0)


def test_gdpo_whitens_over_the_batch():
    """One group disagrees with itself (z cancel to 0), the other does not (∓1): fused (0, 0, −1, 1), std √½."""
    reward_BK = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    advantage_TB = credit_of("gdpo", *record(reward_BK)).advantage_TB
    torch.testing.assert_close(advantage_TB[0], torch.tensor([0.0, 0.0, -1.0, 1.0]) * math.sqrt(2), rtol=1e-3, atol=1e-6)


def test_grpo_guard_removes_bias_and_scale():
    """std .5, Δ .2, means 1 apart: b = 1 / (2·.25) = 2, so a log-ratio of −2 becomes ratio 1 and the loss −A/Δ."""
    moved = dict(mean=torch.ones(1, 1), std=0.5, delta=0.2)
    torch.testing.assert_close(grpo_guard.loss(transition([-2.0], [0.0], [[3.0]], **moved)), torch.tensor([-15.0]))
    up = transition([-2.0 + 0.1], [0.0], [[3.0]], **moved)
    torch.testing.assert_close(grpo_guard.loss(up), torch.tensor([-15.0 * math.exp(0.05)]))


def test_coca_windows_share_alike():
    """Twenty steps make ten windows of two: the first rises from the start's own similarity, shares sum to 1."""
    angle = torch.linspace(math.pi / 2, 0, 21)
    shares = coca.contributions_TB(torch.stack([angle.cos(), angle.sin()], dim=1).unsqueeze(1))[:, 0]
    assert torch.equal(shares[::2], shares[1::2]) and shares.sum() == pytest.approx(1, abs=1e-6)
    cosine = angle.cos()
    rise = float((cosine[1] + cosine[2]) / 2 - cosine[0]), float((cosine[19] + cosine[20]) / 2 - cosine[0])
    assert float(shares[0]) == pytest.approx(rise[0] / rise[1] / 2, rel=1e-4)


def test_coca_by_hand():
    """Three samples of one group, clean predictions the latents themselves. Similarities to the end and what is to come of them:

    (−1, 0, 0, 1, 1): shares ½, 0, ½, 0, from each step on 1, ½, ½, 0; (0, ¼, 1, 1, 1): 1, ¾, 0, 0; (0, 0, 0, 0, 1): 1, 1, 1, 1.
    Rewards 0, 1, 5: z = (−2, −1, 3) / √(14/3), the last held at 1 by the clip.
    """
    cosine_SB = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 0.25, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    latents_SB = torch.stack([cosine_SB, (1 - cosine_SB**2).sqrt()], dim=2)
    rollout, scores = record(torch.tensor([[0.0], [1.0], [5.0]]), latents_SB, torch.zeros(4, 3, 2), groups=1)
    credit = credit_of("coca", rollout, scores, **{"loss.advantage_clip": 1.0, "credit.advantage_epsilon": 1e-9})
    z = [-2 / math.sqrt(14 / 3), -1 / math.sqrt(14 / 3), 1.0]
    for t, shares in enumerate([(1, 1, 1), (0.5, 0.75, 1), (0.5, 0, 1)]):
        shaped = [a * b for a, b in zip(z, shares)]
        mean = sum(shaped) / 3
        spread = math.sqrt(sum((value - mean) ** 2 for value in shaped) / 3)
        expected = torch.tensor([(value - mean) / spread for value in shaped])
        torch.testing.assert_close(credit.credit_TBK[t, :, 0], expected)
    assert torch.equal(credit.advantage_BK, torch.ones(3, 1))


@pytest.mark.parametrize("name, stochastic, trained", [("mix_grpo", 4, 4), ("flow_grpo_fast", 2, 2), ("dance_grpo", 5, 3)])
def test_methods_choose_their_steps(name, stochastic, trained):
    """Of six steps, the last never: a window of four, the first two, int(.6·5) = 3 at random."""
    chosen = TrainConfig.from_dotted(find_method(name).settings).step_selection
    stochastic_T, trained_T = select_steps(chosen, 6, 0, np.random.default_rng(0))
    assert (int(stochastic_T.sum()), int(trained_T.sum())) == (stochastic, trained)


def test_dense_grpo_scores_increments_step_by_step():
    """Two samples, values (0, 1, 1, 3) and (0, 0, 2, 2) over four states: increments (1, 0, 2) and (0, 2, 0) → ±1 each step."""
    rollout, scores = record(torch.tensor([[3.0], [2.0]]), std=(0.3, 0.2, 0.0), groups=1)
    values_SB = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0], [3.0, 2.0]])
    scores = dataclasses.replace(scores, state_reward_SBK=values_SB.unsqueeze(2))
    advantage_TB = credit_of("dense_grpo", rollout, scores).advantage_TB
    torch.testing.assert_close(advantage_TB[:, 0], torch.tensor([1.0, -1.0, 1.0]), rtol=1e-3, atol=0)


def noised(velocity, old, advantage, clip=5.0):
    """One sample, one dimension: clean 1, noisy 2 at σ = ½, so the right velocity is 2."""
    value = torch.tensor([[1.0]])
    return NoisedSample(value, 2 * value, 0.5, torch.tensor([[velocity]]), torch.tensor([[old]]), torch.tensor([advantage]), clip)


def test_diffusion_nft_by_hand():
    """v = 3, v_old = 1, β = .1: v⁺ = 1.2, v⁻ = .8, x̂0 = 1.4 and 1.6, errors .16/.4 and .36/.6; A = 2.5 of 5: r = ¾."""
    loss = diffusion_nft.forward_loss(noised(3.0, 1.0, 2.5))
    torch.testing.assert_close(loss, torch.tensor([5 / 0.1 * (0.75 * 0.4 + 0.25 * 0.6)]))
    best = diffusion_nft.forward_loss(noised(3.0, 1.0, 9.0))  # r is held at 1
    torch.testing.assert_close(best, torch.tensor([5 / 0.1 * 0.4]))
    assert [diffusion_nft.old_policy_decay(n) for n in (1, 100, 500, 9999)] == [0.001, 0.1, 0.5, 0.5]


@pytest.mark.parametrize("advantage, sign", [(5.0, -1), (-5.0, 1), (0.0, 0)])
def test_diffusion_nft_pulls_toward_good_samples_and_away_from_bad_ones(advantage, sign):
    """At v = v_old = 1, below the right velocity 2: descent raises v for a good sample, lowers it for a bad one."""
    level = noised(1.0, 1.0, advantage)
    velocity = level.velocity.clone().requires_grad_()
    loss = diffusion_nft.forward_loss(dataclasses.replace(level, velocity=velocity))
    (gradient,) = torch.autograd.grad(loss.sum(), velocity)
    assert float(gradient.sign()) == sign


def test_the_forward_process_mixes_clean_latents_with_each_seeds_noise(untrained_pipeline):
    """At σ = ¼: three quarters of the latents and a quarter of noise that depends on the seed and the level alone."""
    policy = build_policy(TrainConfig.from_dotted({"policy.path": untrained_pipeline}).policy)
    sigma_S = torch.tensor([1.0, 0.25, 0.0])
    clean = policy.noise([torch.Generator().manual_seed(i) for i in (5, 6)])
    at_end = noised_at(policy, clean, [1, 2], 2, sigma_S)
    assert torch.equal(at_end, clean)
    noise = noised_at(policy, torch.zeros_like(clean), [1, 2], 1, sigma_S) / 0.25
    torch.testing.assert_close(noised_at(policy, clean, [1, 2], 1, sigma_S), 0.75 * clean + 0.25 * noise)
    assert float(noise.std()) == pytest.approx(1, abs=0.2) and not torch.equal(noise[0], noise[1])
    torch.testing.assert_close(noised_at(policy, torch.zeros_like(clean), [2, 1], 1, sigma_S), 0.25 * noise.flip(0))
    assert not torch.equal(noised_at(policy, torch.zeros_like(clean), [1, 2], 0, sigma_S), noise)


def test_velocities_are_as_far_apart_as_their_mean_square():
    """Differences (1, −2) and (0, 4): 2.5 and 8."""
    velocity, reference = torch.tensor([[1.0, 0.0], [3.0, 5.0]]), torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    torch.testing.assert_close(velocity_distance(velocity, reference), torch.tensor([2.5, 8.0]))


def nft_config(pipeline, **changes):
    return toy_config("diffusion_nft", pipeline, **{"iterations": 3, "save_every": 1, "sampler.steps": 4} | changes)


def test_diffusion_nft_trains_counts_and_resumes(untrained_pipeline, tmp_path):
    """Cost: T passes of sampling, then per level 3 of the policy, 1 each of old policy and reference; resumes bit for bit."""
    whole = trained(nft_config(untrained_pipeline), tmp_path / "whole")
    rows = pd.read_csv(tmp_path / "whole" / "train.csv")
    assert rows.notna().all(axis=None) and (rows["update_norm"] > 0).all() and (rows["clip_fraction"] == 0).all()
    assert rows["network_evaluations"].iloc[0] == 6 * (4 + 4 * 5) == 6 * costs_of(whole.config, whole.method).evaluations
    assert rows["kl"].iloc[0] == 0 and rows["kl"].iloc[2] > 0
    once = trainer_of(nft_config(untrained_pipeline, iterations=1), tmp_path / "parts")
    start = [p.detach().clone() for p in once.parameters]
    once.run()
    for old, before, after in zip(once.updater.old_policy, start, once.parameters):  # it follows all but a thousandth of the way
        torch.testing.assert_close(old, 0.001 * before + 0.999 * after.detach())
    resumed = trained(nft_config(untrained_pipeline), tmp_path / "parts")
    assert torch.equal(weights(whole), weights(resumed))
    assert all(torch.equal(a, b) for a, b in zip(whole.updater.old_policy, resumed.updater.old_policy))
    assert not all(torch.equal(x, y) for x, y in zip(whole.parameters, whole.updater.old_policy))


def test_diffusion_nft_refuses_noise(untrained_pipeline, tmp_path):
    with pytest.raises(InputError, match="step_selection.kind is all; diffusion_nft samples by ode"):
        trainer_of(nft_config(untrained_pipeline, **{"step_selection.kind": "all"}), tmp_path)


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_trains(untrained_pipeline, tmp_path, name):
    """One real iteration: ratio exactly 1 before the first update, finite rows, moved weights, costs counted."""
    trainer = trained(toy_config(name, untrained_pipeline), tmp_path)
    row = pd.read_csv(tmp_path / "train.csv").iloc[0]
    assert row.notna().all() and row["first_ratio_deviation"] == 0 and row["update_norm"] > 0
    per_step = 4 if name == "flow_grpo" else 3  # the reference's pass counts
    steps = {"mix_grpo": 4, "flow_grpo_fast": 2, "dance_grpo": 3}.get(name, 5)
    completions = 5 + 4 + 3 + 2 + 1 if name == "dense_grpo" else 0  # the first step of each is the rollout's own
    assert row["network_evaluations"] == 6 * (6 + steps * per_step + completions)
    assert row["network_evaluations"] == 6 * costs_of(trainer.config, trainer.method).evaluations
    assert row["reward_calls"] == 6 * 2 * (6 if name == "dense_grpo" else 1)
