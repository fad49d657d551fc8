"""The value head: what it reads, what it learns, and the credit made of its values."""

from __future__ import annotations

import dataclasses

import torch

from baselines import find_method
from otca.config import PolicyConfig, TrainConfig
from otca.credit import explained_SK, gae_TBK, group_center
from otca.methods import assign_credit
from otca.models.base import build_policy
from otca.sampling import Plan, make_batch, rollout, sigmas_S, velocity_at
from otca.types import Needs, Prompt
from otca.value_head import ValueHead
from tests.test_baselines import record
from tests.test_state_values import SAMPLER, STEPS

EVERY = torch.arange(STEPS) < STEPS - 1


def sampled(policy):
    batch = make_batch([Prompt("a", "a red circle"), Prompt("b", "two blue squares")], [0, 1], 3, ("head",))
    return rollout(policy, batch, Plan(SAMPLER, sigmas_S(STEPS, 3.0), EVERY, EVERY, 2), Needs.VALUE_HEAD)


def test_the_rollout_keeps_what_the_last_layer_was_given(untrained_pipeline):
    policy = build_policy(PolicyConfig(path=untrained_pipeline))
    found, inputs = sampled(policy), []
    hook = policy.pipeline.transformer.norm_out.register_forward_hook(lambda _, given, out: inputs.append(out))
    velocity_at(policy, found.latents_SB[2], 2, found.sigma_S, policy.encode([p.text for p in found.prompts]))
    hook.remove()
    torch.testing.assert_close(found.hidden_TBD[2], inputs[0].mean(1), rtol=1e-4, atol=1e-5)
    head = ValueHead.of(policy, TrainConfig(sampler=SAMPLER))
    assert found.hidden_TBD.shape == (STEPS, 6, len(head.square_TDD[0]))
    assert not policy.pipeline.transformer.proj_out._forward_pre_hooks


def test_with_guidance_the_samples_own_rows_are_the_last(untrained_pipeline):
    plain, guided = (build_policy(PolicyConfig(path=untrained_pipeline, true_guidance=g)) for g in (1.0, 3.0))
    x, condition = sampled(plain).latents_SB[0], plain.encode(["a red circle"] * 6)
    kept = []
    for policy in (plain, guided):
        with policy.hidden_states() as hidden:
            velocity_at(policy, x, 0, sigmas_S(STEPS, 3.0), condition)
        kept.append(hidden[0])
    assert len(kept[1]) == 12
    torch.testing.assert_close(kept[1][-6:], kept[0], rtol=1e-4, atol=1e-5)


def rounds(width, count):
    """Iterations in which the second reward is linear in the hidden states from step 1 on, and the first is chance."""
    head, generator = ValueHead(3, width, 2), torch.Generator().manual_seed(0)
    for _ in range(count):
        found, _ = record(torch.zeros(8, 2), std=(0.3, 0.2, 0.0), groups=2)
        hidden_TBD = torch.randn(3, 8, width, generator=generator)
        reward_BK = torch.stack([torch.randn(8, generator=generator), hidden_TBD[1, :, :3].sum(1)], dim=1)
        hidden_TBD[2] = hidden_TBD[1]
        yield found, reward_BK, head.values_SBK(dataclasses.replace(found, hidden_TBD=hidden_TBD), reward_BK)


def test_it_learns_from_earlier_iterations_alone():
    """At first it knows nothing; then it foretells what hidden states tell, from the step on at which they do."""
    made = list(rounds(20, 300))
    found, reward_BK, first_SBK = made[0]
    assert not first_SBK[:-1].any()
    torch.testing.assert_close(first_SBK[-1], group_center(reward_BK, found.group_B).float())
    values_SBK = torch.cat([value_SBK for _, _, value_SBK in made[200:]], dim=1)
    explained = explained_SK(values_SBK)
    assert explained[1, 1] > 0.8 and explained[2, 1] > 0.8 and (explained[:3, 0] < 0.05).all() and explained[0, 1] < 0.05
    assert (explained[3] == 1).all()


def test_wide_hidden_states_are_projected():
    _, _, values_SBK = list(rounds(300, 60))[-1]
    assert len(ValueHead(3, 300, 2).square_TDD[0]) == 256 and explained_SK(values_SBK)[1, 1] > 0.1


def test_decays_of_each_step_and_objective_by_hand():
    """δ = (1, 2, 4): with λ = (½, 0, …) the first step gets 1 + ½·2, the second its own."""
    increment_TBK = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1).expand(3, 1, 2)
    decay_TK = torch.tensor([[0.5, 1.0], [0.0, 1.0], [0.7, 0.7]])
    assert gae_TBK(increment_TBK, decay_TK)[:, 0].tolist() == [[2.0, 7.0], [2.0, 6.0], [4.0, 4.0]]


def test_without_knowledge_every_step_gets_the_reward_and_with_all_of_it_its_own_gain():
    config = TrainConfig.from_dotted({"method": "value_head", "rewards": ["x", "y"], "credit.sampled_steps": 0})
    rollout, scores = record(torch.randn(8, 2, generator=torch.Generator().manual_seed(1)), std=(0.3, 0.2, 0.0), groups=2)
    final_BK = group_center(scores.reward_BK, rollout.group_B).float()
    known_SBK = torch.stack([torch.zeros(8, 2), final_BK, final_BK, final_BK])  # the first step decides all
    known_SBK[:-1, :, 0] = 0  # of the first objective nothing is foretold
    scores = dataclasses.replace(scores, state_reward_SBK=known_SBK)
    advantage_TBK = assign_credit(find_method("value_head"), rollout, scores, config).advantage_TBK
    torch.testing.assert_close(advantage_TBK[0, :, 0], advantage_TBK[1, :, 0])
    assert advantage_TBK[0, :, 1].abs().min() > 0 and advantage_TBK[1, :, 1].abs().max() < 2e-3
