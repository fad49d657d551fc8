"""Monte-Carlo truth: what each step of a trajectory was worth to each objective; resumable.

The value of a state is the mean reward of stochastic continuations from it, the true credit of a step the difference of its two
states' values. A study samples as its tier trains, from a model that static multi-reward GRPO trains on a seed of no table:
before, halfway and at the end. Its folder holds ``train/`` and, per stage, trajectories, state values and continuations.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from baselines import find_method
from otca import checkpoint, presets
from otca.config import CreditConfig, TrainConfig
from otca.files import write_atomic
from otca.models.base import Policy, build_policy
from otca.prompts import load_prompts, prompt_order
from otca.rewards.base import Reward, build_reward
from otca.sampling import Batch, condition_of, make_batch, plan_of, velocity_at
from otca.state_values import continuation_rewards_NBK, process_values
from otca.trainer import Trainer, collect
from otca.types import Needs, Scores, Trajectory
from otca.value_head import ValueHead

STAGES = ("base", "half", "end")
TRAINED_BY, SEED = "static_multi_reward", 300
"""What trains the studied model, on a seed that no table uses."""
BLOCK = 16
"""Continuations of a state that are made, and kept, together."""
ROWS = 128
"""Samples in a forward pass: there is no backward pass that limits them to the tier's micro-batch."""


Valuation = tuple[int, int, str]
"""How a credit values a state: `CreditConfig`'s process_completion, process_states and process_spread."""
VALUATIONS: tuple[Valuation, ...] = (*((length, 0, "even") for length in (1, 2, 3, 0)), (3, 3, "early"), (3, 3, "even"))
"""What is kept beside the truth, for the credits that read it."""
HEAD, HEAD_BATCHES = "head", 40
"""Values by a value head, which has learned from so many iterations' samples of the stage's model."""


def valuation_of(settings: CreditConfig) -> Valuation:
    """What a config's credit asks for; the spread says nothing where all states are valued."""
    return settings.process_completion, settings.process_states, settings.process_spread if settings.process_states else "even"


@dataclass(frozen=True)
class Study:
    """``prompts`` groups of ``group_size`` trajectories, ``draws`` continuations of a state; more draws are added to old ones."""

    modality: str
    prompts: int
    draws: int
    group_size: int = 8
    root: Path = Path("runs/credit_fidelity")

    @property
    def folder(self) -> Path:
        return self.root / self.modality

    @property
    def config(self) -> TrainConfig:
        place = f"{self.modality}/cpu"
        settings = find_method(TRAINED_BY).settings | presets.tuned(place, TRAINED_BY)
        config = presets.train_config(place, TRAINED_BY, settings, SEED)
        return dataclasses.replace(config, save_every=config.iterations // 2)

    @property
    def objectives(self) -> tuple[str, ...]:
        return tuple(build_reward(name).name for name in self.config.rewards)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First and last draw of each block."""
        return [(first, min(first + BLOCK, self.draws) - 1) for first in range(0, self.draws, BLOCK)]

    @property
    def states(self) -> range:
        """States whose future is uncertain: all but the last two, between which lies the noiseless step."""
        return range(self.config.sampler.steps - 1)

    def loaded(self, stage: str) -> tuple[TrainConfig, Policy, list[Reward]]:
        """Settings of sampling, the model as it is at a stage, and the rewards."""
        config = dataclasses.replace(self.config, micro_batch=ROWS)
        policy = build_policy(config.policy)
        if stage != "base":
            policy.load(checkpoint.checkpoints(self.folder / "train")[STAGES.index(stage) - 1])
        return config, policy, [build_reward(name) for name in config.rewards]

    def batch(self, stage: str) -> Batch:
        """The study's samples: training prompts, with noise of their own at every stage."""
        prompts = load_prompts(self.config.prompts)
        chosen = [prompts[i] for i in prompt_order(len(prompts), SEED, 0, self.prompts)]
        return make_batch(chosen, list(range(self.prompts)), self.group_size, ("credit fidelity", SEED, stage))


STUDIES = {study.modality: study for study in (Study("image", 32, 64), Study("video", 16, 32))}


def kept(name: str) -> Callable:
    """Of a function (study, stage, …) → tensors: keep them in a stage's file of that name, made once; calls return its path."""

    def keep(make: Callable[..., dict[str, torch.Tensor]]) -> Callable[..., Path]:
        @functools.wraps(make)
        def made(study: Study, stage: str, *more: object) -> Path:
            path = study.folder / stage / f"{name.format(*more)}.safetensors"
            if not path.exists():
                with torch.no_grad():
                    tensors = make(study, stage, *more)
                write_atomic(path, save({key: tensor.contiguous() for key, tensor in tensors.items()}))
            return path

        return made

    return keep


def train(study: Study) -> None:
    """Train the studied model; its checkpoints halfway and at the end are kept."""
    Trainer(study.config, find_method(TRAINED_BY), study.folder / "train").run()


@kept("trajectories")
def sample(study: Study, stage: str) -> dict[str, torch.Tensor]:
    """Latents, velocities, and rewards of what they end in."""
    config, policy, rewards = study.loaded(stage)
    plan = plan_of(config, policy.shift, config.micro_batch, selection="all")
    sampled, scores, _ = collect(policy, study.batch(stage), plan, rewards, Needs.VELOCITY, config)
    names = ("latents_SB", "velocity_TB", "log_prob_TB", "std_T", "sigma_S", "trained_T")
    return {name: getattr(sampled, name) for name in names} | {"final_BK": scores.reward_BK}


@kept("values_{}_{}_{}")
def value(study: Study, stage: str, length: int, count: int, spread: str) -> dict[str, torch.Tensor]:
    """Values (S, B, K) of every state of every trajectory, by a `Valuation`."""
    config, policy, rewards = study.loaded(stage)
    sampled, final = load_trajectories(study, stage)
    changes = {"process_completion": length, "process_states": count, "process_spread": spread, "process_continuations": 0}
    config = dataclasses.replace(config, credit=dataclasses.replace(config.credit, **changes))
    return {"value_SBK": process_values(policy, sampled, final.reward_BK, rewards, config)[0]}


@kept("values_head")
def value_by_head(study: Study, stage: str) -> dict[str, torch.Tensor]:
    """The same by a value head."""
    config, policy, rewards = study.loaded(stage)
    plan, head = plan_of(config, policy.shift, config.micro_batch), ValueHead.of(policy, config)
    prompts, count = load_prompts(config.prompts), config.prompts_per_iteration
    for batch in range(1, HEAD_BATCHES + 1):
        chosen = [prompts[i] for i in prompt_order(len(prompts), SEED, batch * count, count)]
        samples = make_batch(chosen, list(range(count)), config.group_size, ("value head", SEED, stage, batch))
        collect(policy, samples, plan, rewards, Needs.VALUE_HEAD, config, head)
    sampled, final = load_trajectories(study, stage)
    condition = condition_of(policy, sampled.prompts, slice(None))
    with policy.hidden_states() as hidden:
        for t, x in enumerate(sampled.latents_SB[:-1]):
            velocity_at(policy, x, t, sampled.sigma_S, condition)
    sampled = dataclasses.replace(sampled, hidden_TBD=torch.stack([rows_BD[-len(sampled.prompts) :] for rows_BD in hidden]))
    return {"value_SBK": head.values_SBK(sampled, final.reward_BK)}


@kept("continuations_{:02d}_{:03d}-{:03d}")
def continue_state(study: Study, stage: str, state: int, first: int, last: int) -> dict[str, torch.Tensor]:
    """Rewards (N, B, K) of a block of continuations of one state of every trajectory."""
    config, policy, rewards = study.loaded(stage)
    sampled, draws = load_trajectories(study, stage)[0], range(first, last + 1)
    return {"draws_NBK": continuation_rewards_NBK(policy, sampled, rewards, config, state, draws)}


def load_trajectories(study: Study, stage: str) -> tuple[Trajectory, Scores]:
    """The sampled trajectories without their media, and their final scores."""
    tensors, batch = load_file(sample(study, stage)), study.batch(stage)
    final_BK = tensors.pop("final_BK")
    media = torch.empty(len(batch.prompts), 0)  # what is scored already is not kept
    sampled = Trajectory(**tensors, media_BFCHW=media, prompts=batch.prompts, group_B=batch.group_B, seed_B=batch.seed_B)
    return sampled, Scores(final_BK, study.objectives, {})


def load_values(study: Study, stage: str) -> dict[Valuation | str, torch.Tensor]:
    """Values of all states by each valuation, and by the value `HEAD`, (S, B, K)."""
    completed = {of: load_file(value(study, stage, *of))["value_SBK"] for of in VALUATIONS}
    return completed | {HEAD: load_file(value_by_head(study, stage))["value_SBK"]}


def load_draws(study: Study, stage: str) -> torch.Tensor:
    """Rewards of all continuations, (S, N, B, K) over the uncertain states."""
    files = [[continue_state(study, stage, state, *block) for block in study.blocks] for state in study.states]
    return torch.stack([torch.cat([load_file(file)["draws_NBK"] for file in blocks]) for blocks in files])


def continuations(study: Study, stage: str) -> list[functools.partial]:
    """Tasks that continue every state of a stage's trajectories; independent of each other."""
    return [functools.partial(continue_state, study, stage, state, *block) for block in study.blocks for state in study.states]


def tasks(study: Study, continued: bool = True) -> list[list[functools.partial]]:
    """What is to be done, in rounds; the tasks of a round are independent of each other. The last one continues every state."""
    return [
        [functools.partial(train, study)],
        [functools.partial(sample, study, stage) for stage in STAGES],
        [functools.partial(value, study, stage, *valuation) for stage in STAGES for valuation in VALUATIONS]
        + [functools.partial(value_by_head, study, stage) for stage in STAGES],
        [task for stage in STAGES if continued for task in continuations(study, stage)],
    ]
