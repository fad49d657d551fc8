"""Trajectories of a study of credit, and the Monte-Carlo truth about each of their steps (METHOD §2.3); resumable.

A study's model is trained by static multi-reward GRPO on a seed of its own and looked at before, halfway and at the end.
Everything lies in ``runs/credit_fidelity/<modality>/``: ``train/``, then per stage ``trajectories.safetensors``, a file of state
values for each `Valuation`, and one of continuations for each state and block.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from baselines import find_method
from otca import checkpoint, presets, schedules
from otca.config import TrainConfig
from otca.credit_config import CreditConfig
from otca.files import write_atomic
from otca.models.base import Policy, build_policy
from otca.prompts import load_prompts, prompt_order
from otca.rewards.base import build_reward, score_all
from otca.rollout import Batch, make_batch, rollout
from otca.state_values import continuation_rewards_NBK, process_values
from otca.trainer import Trainer
from otca.types import Scores, Trajectory

STAGES = ("base", "half", "end")
TRAINED_BY, SEED = "static_multi_reward", 300
"""What trains the studied model, on a seed that no table uses."""
BLOCK = 16
"""Continuations of a state that are made, and kept, together."""


@dataclass(frozen=True)
class Valuation:
    """How a credit values a state: the reward of an ODE completion of ``length`` steps (0 = to the end), or by regression.

    Of all states, or of ``states`` of them with the others in between, spread as `CreditConfig.process_spread` says.
    """

    length: int
    decoder: str = "vae"
    by: str = "reward"
    states: int = 0
    spread: str = "even"

    @classmethod
    def of(cls, settings: CreditConfig) -> Valuation:
        """What a config's credit asks for."""
        if settings.process_value == "regression":
            return REGRESSED
        subset = (settings.process_states, settings.process_spread) if settings.process_states else ()
        return cls(settings.process_completion, settings.process_decoder, "reward", *subset)

    @property
    def file(self) -> str:
        """Name of the file of its values."""
        if self == REGRESSED:
            return "values_regression.safetensors"
        return f"values_{self.decoder}_{self.length}{f'_{self.spread}{self.states}' if self.states else ''}.safetensors"


REGRESSED = Valuation(1, by="regression")
VALUATIONS = (
    *(Valuation(length) for length in (1, 2, 3, 0)),
    *(Valuation(length, "linear") for length in (1, 3)),
    *(Valuation(3, states=3, spread=spread) for spread in ("early", "even")),
    REGRESSED,
)
"""What is kept beside the truth, for the credits that read it."""


@dataclass(frozen=True)
class Study:
    """``prompts`` groups of ``group_size`` trajectories of ``steps`` transitions; ``draws`` continuations of each state.

    Draws come in blocks of `BLOCK`; more of them are added to those that are there. ``settings``: what the run that trains the
    model changes of the quick tier.
    """

    modality: str
    prompts: int
    group_size: int
    steps: int
    draws: int
    settings: tuple[tuple[str, object], ...] = ()

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return Path("runs/credit_fidelity") / self.modality

    @property
    def config(self) -> TrainConfig:
        """Settings of the run that trains the model."""
        config = presets.train_config(f"{self.modality}/quick", TRAINED_BY, dict(self.settings), SEED)
        return dataclasses.replace(config, save_every=config.iterations // 2)

    @property
    def sampling(self) -> TrainConfig:
        """The same with the study's own number of steps."""
        config = self.config
        return dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, steps=self.steps))

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the rewards."""
        return tuple(build_reward(name).name for name in self.config.rewards)

    @property
    def blocks(self) -> list[range]:
        """The draws, block by block."""
        return [range(first, min(first + BLOCK, self.draws)) for first in range(0, self.draws, BLOCK)]

    @property
    def states(self) -> range:
        """States whose future is uncertain: all but the last two, between which lies the noiseless step."""
        return range(self.steps - 1)


IMAGE_RUN = {
    "iterations": 30,
    "group_size": 8,
    "sampler.level": 0.7,
    "optimizer.learning_rate": 1e-4,
    "optimizer.updates_per_iteration": 2,
}
"""64 samples an iteration: the quick image tier as it was when the published study was made."""

STUDIES = {
    study.modality: study for study in (Study("image", 32, 8, 10, 64, tuple(IMAGE_RUN.items())), Study("video", 16, 8, 8, 32))
}


def train(study: Study) -> None:
    """Train the studied model; its checkpoints halfway and at the end are kept."""
    Trainer(study.config, find_method(TRAINED_BY), study.folder / "train").run()


def stage_policy(study: Study, stage: str) -> Policy:
    """The model as it is at a stage."""
    policy = build_policy(study.config.policy)
    if stage != "base":
        policy.load(checkpoint.checkpoints(study.folder / "train")[STAGES.index(stage) - 1])
    return policy


def batch_of(study: Study, stage: str) -> Batch:
    """The study's samples: training prompts, with noise of their own at every stage."""
    prompts = load_prompts(study.config.prompts)
    chosen = [prompts[i] for i in prompt_order(len(prompts), SEED, 0, study.prompts)]
    return make_batch(chosen, list(range(study.prompts)), study.group_size, ("credit fidelity", SEED, stage))


@torch.no_grad()
def sample(study: Study, stage: str) -> None:
    """Write ``trajectories.safetensors``: latents, velocities, and rewards of what they end in."""
    path = study.folder / stage / "trajectories.safetensors"
    if path.exists():
        return
    config, policy = study.sampling, stage_policy(study, stage)
    rewards = [build_reward(name) for name in config.rewards]
    steps = study.steps
    plan = schedules.StepPlan(*(torch.arange(steps) < steps - 1 for _ in range(2)))
    sigma_S = schedules.sigmas_S(steps, config.sampler.shift or policy.shift)
    keep = frozenset({"velocity"})
    sampled = rollout(policy, batch_of(study, stage), config.sampler, sigma_S, plan, config.micro_batch, keep)
    final_BK = score_all(rewards, sampled.media_BFCHW, sampled.prompts).reward_BK
    tensors = {name: getattr(sampled, name) for name in ("latents_SB", "velocity_TB", "log_prob_TB", "std_T", "sigma_S")}
    tensors |= {"trained_T": sampled.trained_T, "final_BK": final_BK}
    _save(tensors, path)


@torch.no_grad()
def value(study: Study, stage: str, valuation: Valuation) -> None:
    """Write the values (S, B, K) of every state of every trajectory."""
    path = study.folder / stage / valuation.file
    if path.exists():
        return
    config, policy = study.sampling, stage_policy(study, stage)
    rewards = [build_reward(name) for name in config.rewards]
    sampled, final = load_trajectories(study, stage)
    ends = sampled.latents_SB[-1].split(config.micro_batch)
    sampled = dataclasses.replace(sampled, media_BFCHW=torch.cat([policy.decode(latents) for latents in ends]))
    changes = {"process_completion": valuation.length, "process_decoder": valuation.decoder, "process_value": valuation.by}
    changes |= {"process_states": valuation.states, "process_spread": valuation.spread}
    config = dataclasses.replace(config, credit=dataclasses.replace(config.credit, **changes, process_continuations=0))
    _save({"value_SBK": process_values(policy, sampled, final.reward_BK, rewards, config)[0]}, path)


def block_file(study: Study, stage: str, state: int, block: range) -> Path:
    """Where the rewards of a block of a state's continuations lie."""
    return study.folder / stage / f"continuations_{state:02d}_{block.start:03d}-{block.stop - 1:03d}.safetensors"


def continue_state(study: Study, stage: str, state: int, block: range) -> None:
    """Write the rewards (N, B, K) of a block of continuations of one state of every trajectory."""
    path = block_file(study, stage, state, block)
    if path.exists():
        return
    config, policy = study.sampling, stage_policy(study, stage)
    rewards = [build_reward(name) for name in config.rewards]
    sampled, _ = load_trajectories(study, stage)
    _save({"draws_NBK": continuation_rewards_NBK(policy, sampled, rewards, config, state, block)}, path)


def load_trajectories(study: Study, stage: str) -> tuple[Trajectory, Scores]:
    """The sampled trajectories without their media, and their final scores."""
    tensors = load_file(study.folder / stage / "trajectories.safetensors")
    batch = batch_of(study, stage)
    final_BK = tensors.pop("final_BK")
    media = torch.empty(len(batch.prompts), 0)  # what is scored already is not kept
    sampled = Trajectory(**tensors, media_BFCHW=media, prompts=batch.prompts, group_B=batch.group_B, seed_B=batch.seed_B)
    return sampled, Scores(final_BK, study.objectives, {})


def load_values(study: Study, stage: str) -> dict[Valuation, torch.Tensor]:
    """Values of all states by each valuation, (S, B, K)."""
    return {of: load_file(study.folder / stage / of.file)["value_SBK"] for of in VALUATIONS}


def load_draws(study: Study, stage: str) -> torch.Tensor:
    """Rewards of all continuations, (S, N, B, K) over the uncertain states."""
    parts = [[load_file(block_file(study, stage, s, block))["draws_NBK"] for block in study.blocks] for s in study.states]
    return torch.stack([torch.cat(blocks) for blocks in parts])


def tasks(study: Study, continued: bool = True) -> list[list[functools.partial]]:
    """What is to be done, in rounds; the tasks of a round are independent of each other. The last one continues every state."""
    return [
        [functools.partial(train, study)],
        [functools.partial(sample, study, stage) for stage in STAGES],
        [functools.partial(value, study, stage, valuation) for stage in STAGES for valuation in VALUATIONS],
        [
            functools.partial(continue_state, study, stage, state, block)
            for block in study.blocks
            for stage in STAGES
            for state in study.states
            if continued
        ],
    ]


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    write_atomic(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
