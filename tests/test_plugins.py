"""The credit elsewhere: a loop by hand that is the engine, and drop-ins for loops of other repositories."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import torch

from otca import credit
from otca.config import TrainConfig
from otca.methods import METHODS
from otca.prompts import load_prompts, prompt_order
from otca.rewards.base import build_rewards
from otca.trainer import Trainer
from reproduce.plugins import flow_grpo, grpo_loop
from reproduce.plugins.flow_factory import Otca


def test_the_loop_by_hand_is_the_engine_bit_for_bit(tmp_path):
    settings = {"method": "otca", "iterations": 2, "prompts_per_iteration": 2, "group_size": 3, "micro_batch": 6}
    settings |= {"sampler.steps": 4, "optimizer.updates_per_iteration": 1, "rewards": ["alignment", "quality"]}
    config = TrainConfig.from_dotted(settings)
    trainer = Trainer(config, METHODS["otca"], tmp_path)
    start = [p.detach().clone() for p in trainer.parameters]
    trainer.run()
    moved = [p.detach().clone() for p in trainer.parameters]
    with torch.no_grad():
        for p, s in zip(trainer.parameters, start):
            p.copy_(s)
    prompts, rewards = load_prompts(config.prompts), build_rewards(config.rewards)
    optimizer = torch.optim.AdamW(trainer.parameters, lr=config.optimizer.learning_rate, weight_decay=1e-4, fused=True)
    for iteration in range(2):
        chosen = [prompts[i] for i in prompt_order(len(prompts), config.seed, 2 * iteration, 2)]
        grpo_loop.iterate(trainer.policy, optimizer, rewards, chosen, (config.seed, iteration), group=3, steps=4)
    assert all(torch.equal(a, b) for a, b in zip(trainer.parameters, moved))
    assert not torch.equal(moved[0], start[0])


# ------------------------------------------------------------------------------------------------------- Flow-GRPO


def flow_grpo_samples(latents_BS: torch.Tensor) -> dict[str, torch.Tensor]:
    """What its loop holds after sampling: states before and after each step, and log-probabilities (B, steps)."""
    steps = latents_BS.shape[1] - 1
    return {
        "latents": latents_BS[:, :-1],
        "next_latents": latents_BS[:, 1:],
        "log_probs": torch.zeros(len(latents_BS), steps),
        "timesteps": torch.linspace(1000, 100, steps).repeat(len(latents_BS), 1),
    }


PROMPTS = ["a cat", "a dog", "a cat", "a dog", "a cat", "a dog"]


def rewards_of(count: int) -> dict[str, np.ndarray]:
    """Its gathered rewards: objectives (N,), their average at every step, and a strict accuracy that is no objective."""
    ocr, pickscore = np.random.default_rng(0).normal(size=(2, count)).astype(np.float32)
    average = ((ocr + pickscore) / 2)[:, None].repeat(4, axis=1)
    return {"ocr": ocr, "pickscore": pickscore, "avg": average, "ocr_strict_accuracy": ocr}


def test_flow_grpo_gets_the_whole_of_otca():
    latents = torch.randn(6, 6, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    rewards = rewards_of(6)
    ours = flow_grpo.otca_advantages(flow_grpo_samples(latents), PROMPTS, rewards, ["ocr", "pickscore"], 4)
    reward_BK = torch.tensor(np.stack([rewards["ocr"], rewards["pickscore"]], axis=1))
    group_B = torch.tensor([0, 1, 0, 1, 0, 1])
    expected = credit.otca_advantage_TB(reward_BK, group_B, latents.transpose(0, 1), clip=1e9)
    assert ours.shape == (6, 4)
    torch.testing.assert_close(torch.from_numpy(ours), expected[:4].T)


def test_flow_grpo_without_credit_to_share_is_its_own_advantage():
    """One objective and states that stay: every step weighs 1, so the advantage is (r − mean) / (std + 1e-4) of its tracker."""
    rewards = rewards_of(6)
    ours = flow_grpo.otca_advantages(flow_grpo_samples(torch.ones(6, 6, 4)), PROMPTS, rewards, ["ocr"], 4)
    for text in set(PROMPTS):
        own = np.array([r for r, p in zip(rewards["ocr"], PROMPTS) if p == text], dtype=np.float64)
        given = ours[[p == text for p in PROMPTS]]
        np.testing.assert_allclose(given, np.tile(((own - own.mean()) / (own.std() + 1e-4))[:, None], 4), rtol=1e-5)


def test_flow_grpo_on_two_processes_is_that_on_one():
    latents = torch.randn(6, 6, 4, generator=torch.Generator().manual_seed(1))
    rewards, parts = rewards_of(6), []

    def advantages(rows, gather):
        return flow_grpo.otca_advantages(flow_grpo_samples(latents[rows]), PROMPTS, rewards, ["ocr", "pickscore"], 4, gather)

    def first_of_two(own):
        parts.append(own)
        return torch.cat([own, own])

    advantages(slice(0, 3), first_of_two), advantages(slice(3, 6), first_of_two)
    both = advantages(slice(0, 3), lambda own: torch.cat(parts))
    np.testing.assert_allclose(both, advantages(slice(0, 6), lambda own: own))


# ---------------------------------------------------------------------------------------------------- Flow-Factory


class Sample:
    """One of its samples: tensors without a batch axis, and what stages add in ``extra_kwargs``."""

    def __init__(self, unique_id, **fields):
        self.unique_id, self.extra_kwargs = unique_id, {}
        self.fields = fields

    def __getattr__(self, name):
        return self.fields[name]


class Adapter:
    """A model of one number: the log-probability of a step is θ times that step's state."""

    def __init__(self):
        self.theta = torch.tensor(0.5, requires_grad=True)
        self.scheduler = SimpleNamespace(train_timesteps=torch.arange(3))

    def inference(self, seed, trajectory_indices="all"):
        states = torch.randn(5, 2, generator=torch.Generator().manual_seed(seed))
        kept = list(range(5)) if trajectory_indices == "all" else trajectory_indices
        return Sample(seed % 2, all_latents=states[kept], timesteps=torch.tensor([1000.0, 800.0, 600.0, 400.0]))

    def forward(self, t, latents, compute_log_prob=True):
        return SimpleNamespace(log_prob=self.theta * latents.sum(1) if compute_log_prob else None)


class Processor:
    """Its advantage processor with all samples of a group on one process."""

    def collect_group_rewards(self, samples, rewards):
        collected = {name: value.numpy() for name, value in rewards.items()}
        return collected, np.unique([s.unique_id for s in samples], return_inverse=True)[1]

    def _to_local(self, values):
        return torch.as_tensor(values)


class GRPOTrainer:
    """The stages of its trainer, as far as the hooks reach: arguments are filtered by signature, advantages are (B,)."""

    def __init__(self, adapter):
        self.adapter, self.accelerator, self.processor = adapter, SimpleNamespace(device="cpu"), Processor()
        self.ratios = []

    def sample(self, count):
        return [self.adapter.inference(seed=i, trajectory_indices=[0, 1, 2, 3]) for i in range(count)]

    def compute_advantages(self, samples, rewards, store_to_samples=True, aggregation_func=None):
        return aggregation_func(self.processor, samples, rewards, store_to_samples)

    def optimize(self, samples):
        stacked = {name: torch.stack([s.fields[name] for s in samples]) for name in ("all_latents", "timesteps")}
        stacked |= {name: torch.stack([s.extra_kwargs[name] for s in samples]) for name in samples[0].extra_kwargs}
        old = [(0.5 * stacked["all_latents"][:, t].sum(1)) for t in range(3)]
        for t in self.adapter.scheduler.train_timesteps:
            given = {"t": stacked["timesteps"][:, t], "latents": stacked["all_latents"][:, t], "unknown": None} | stacked
            if inspect.signature(self.adapter.forward).parameters.keys() == {"t", "latents", "compute_log_prob"}:
                given = {name: given[name] for name in ("t", "latents")}
            ratio = (self.adapter.forward(**given).log_prob - old[t]).exp()
            self.ratios.append(ratio.detach())
            (-stacked["advantage"] * ratio).mean().backward()


class OtcaTrainer(Otca, GRPOTrainer):
    pass


def test_flow_factory_trains_by_the_whole_of_otca():
    """dL/dθ = −Σ_t mean_B A_TB · Σ latents, with otca's A_TB; ratios stay exactly 1; the final state is kept."""
    trainer = OtcaTrainer(adapter=Adapter())
    samples = trainer.sample(6)
    rewards = {name: torch.randn(6, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(("pick", "clip"))}
    trainer.compute_advantages(samples, rewards)
    trainer.optimize(samples)
    latents_SB = torch.stack([s.all_latents for s in samples], dim=1)
    expected_TB = credit.otca_advantage_TB(torch.stack([*rewards.values()], 1), torch.arange(6) % 2, latents_SB)
    gradient = -sum((expected_TB[t] * latents_SB[t].sum(1)).mean() for t in range(3))
    assert all(torch.equal(ratio, torch.ones(6)) for ratio in trainer.ratios)
    torch.testing.assert_close(trainer.adapter.theta.grad, gradient)
    assert trainer.adapter.forward(t=torch.zeros(1), latents=torch.zeros(1, 2), compute_log_prob=False).log_prob is None
