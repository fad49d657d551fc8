"""The reward contract, the registry, and the scoring loop that fails loudly."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import torch

from otca.config import TrainConfig
from otca.errors import InputError, RewardError, nearest
from otca.rewards.published import CLASSES, PublishedReward, load_published
from otca.rewards.workers import Late, Workers, answers, as_here
from otca.types import Prompt, Scores

REGISTRY = {
    "alignment": "otca.tasks.rewards:Alignment",
    "quality": "otca.tasks.rewards:Quality",
    "aesthetic": "otca.tasks.rewards:Aesthetic",
    "vq": "otca.tasks.video_rewards:VisualQuality",
    "mq": "otca.tasks.video_rewards:MotionQuality",
    "ta": "otca.tasks.video_rewards:TextAlignment",
    **CLASSES,
}
"""Name → ``module:class``. A dotted ``module:class`` is accepted anywhere a name is, and so is the address of a server."""


class Reward(Protocol):
    """A scorer, also of held-out metrics. Higher is better; ``range`` is (lowest, highest); ``source`` cites the definition.

    Optional: a float ``fps``, the frames a second that media are taken to have, where scores depend on it; a static
    ``check_prompt(prompt)``, which raises InputError for a prompt that it cannot judge; ``submit(media_BFCHW, prompts)`` of one
    that computes elsewhere, which returns at once the futures of the scores of consecutive samples.
    """

    name: str
    range: tuple[float, float]
    source: str
    licence: str
    revision: str

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Score media in [0, 1], shape (B, F, 3, H, W), against B prompts: float32 (B,)."""


class TimeLimitedReward:
    """A reward whose scores are waited for no longer than so many ``seconds``; all else is the reward's own, set or read."""

    def __init__(self, reward: Reward, seconds: float):
        vars(self).update(reward=reward, seconds=seconds)

    def __getattr__(self, name: str):
        return getattr(self.reward, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.reward, name, value)

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """What the reward scores, in a thread of its own. Raises `Late`, and whatever the reward raises.

        A thread that is late, or no longer waited for because of a signal, is told to end.
        """
        future = Workers(1, f"reward {self.reward.name}").submit(as_here(self.reward.score), media_BFCHW, prompts)
        try:
            return answers([future], self.seconds)[0]
        finally:
            if not future.done():
                future.thread.end()


def build_reward(
    name: str,
    device: str | torch.device = "cpu",
    files: str | Path = "",
    timeout: float = TrainConfig.reward_timeout,
    fps: float = TrainConfig.reward_fps,
) -> Reward:
    """Construct a reward of the registry, a ``module:class`` of the user's own, or a client of the server at an address.

    Published rewards live on ``device`` and look for their weights in ``files/<reward>/``, then in the
    hub's cache (`load_published`). A call takes at most ``timeout`` seconds, unless 0 (`TimeLimitedReward`); the ``fps`` of the
    media, unless 0, is told to rewards that depend on it. Raises InputError for an unknown name, for weights that are missing or
    do not fit, and for no answer.
    """
    reward_class = find_reward(name)
    if is_remote(name):
        reward = reward_class(name)
    elif issubclass(reward_class, PublishedReward):
        reward = load_published(reward_class, files, torch.device(device))
    else:
        reward = reward_class()
    if lacking := [part for part in ("name", "score") if not hasattr(reward, part)]:
        raise InputError(f"reward {name!r}: the class has no {' and no '.join(lacking)}; a reward needs both")
    if fps and hasattr(reward, "fps"):
        reward.fps = fps
    return TimeLimitedReward(reward, timeout) if timeout else reward


def build_rewards(
    names: Sequence[str],
    device: str | torch.device = "cpu",
    files: str | Path = "",
    timeout: float = TrainConfig.reward_timeout,
    fps: float = TrainConfig.reward_fps,
) -> list[Reward]:
    """`build_reward` of each. Raises InputError where two would fill the same column."""
    rewards = [build_reward(name, device, files, timeout, fps) for name in names]
    twice = {reward.name for reward in rewards if sum(other.name == reward.name for other in rewards) > 1}
    if twice:
        raise InputError(f"rewards {', '.join(names)}: two of them are called {min(twice)!r}; name each but once")
    return rewards


def check_prompts(rewards: Sequence[Reward], prompts: Sequence[Prompt], source: str) -> None:
    """Raise InputError for prompts that a reward cannot judge: without a spec that a verifier can read, without quoted text.

    It names the first, and says how many there are. ``rewards`` may be classes: what is checked needs no model.
    """
    readers = [reward.name for reward in rewards if hasattr(reward, "reads_drawings")]
    if readers and prompts[0].spec is None:
        raise InputError(
            f"rewards {', '.join(readers)} need the spec of each prompt, and {source} has none; take prompts of the embedded "
            "tasks or rewards that read any text (`otca rewards`)"
        )
    for check in (reward.check_prompt for reward in rewards if hasattr(reward, "check_prompt")):
        errors = [error for prompt in prompts if (error := _error_of(check, prompt))]
        if errors:
            others = f" (the first of {len(errors)} such prompts of {source})" if len(errors) > 1 else ""
            raise InputError(f"{errors[0]}{others}") from errors[0]


def _error_of(check: Callable[[Prompt], None], prompt: Prompt) -> InputError | None:
    try:
        check(prompt)
    except InputError as error:
        return error
    return None


def is_remote(name: str) -> bool:
    """Whether a reward's name is the address of a server (`otca.rewards.remote`)."""
    return name.startswith(("http://", "https://"))


def find_reward(name: str) -> type:
    """The class of a reward, or InputError for a name that is none."""
    target = "otca.rewards.remote:RemoteReward" if is_remote(name) else REGISTRY.get(name, name)
    if ":" not in target:
        known = f"{', '.join(REGISTRY)}, module:class, or http://HOST:PORT/NAME"
        raise InputError(f"unknown reward {name!r}{nearest(name, REGISTRY)} (known: {known})")
    module, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        raise InputError(f"reward {name!r}: {module!r} is no name of a module")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, SyntaxError, AttributeError) as error:
        raise InputError(f"reward {name!r}: {module}:{attribute} cannot be imported ({error})") from error
    if not isinstance(found, type):
        raise InputError(f"reward {name!r}: {module}:{attribute} is of type {type(found).__name__} and no class")
    return found


class AsyncScoring:
    """Scores asked for while sampling goes on: media come in parts, in order, and go to the rewards that can `submit`."""

    def __init__(self, rewards: list[Reward]):
        self.rewards = rewards
        self.parts_K: list[list[Future[torch.Tensor]] | None] = [[] if hasattr(r, "submit") else None for r in rewards]

    def add(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> None:
        """Begin to score the next samples; `score_all` scores them with the other rewards once all are there.

        Raises RewardError for media with NaN or Inf: rounded to 256 levels they would be black or white, and have a score.
        """
        bad = [p for p, ok in zip(prompts, torch.isfinite(media_BFCHW).flatten(1).all(1).tolist()) if not ok]
        if bad:
            self.cancel()
            raise RewardError(
                f"media hold NaN or Inf, which no reward is asked about: {_name(bad)}; see to the model that made them"
            )
        for reward, parts in zip(self.rewards, self.parts_K):
            if parts is not None:
                try:
                    parts += reward.submit(media_BFCHW, prompts)
                except Exception as error:
                    self.cancel()
                    raise _failure(reward, error, prompts) from error

    def cancel(self) -> None:
        """Call off what has not begun."""
        for part in (part for parts in self.parts_K for part in parts or ()):
            part.cancel()


def joined(parts: list[Future[torch.Tensor]], seconds: float = 0.0) -> torch.Tensor:
    """Wait for the scores of consecutive samples: float32 (B,). Raises `Late` after so many seconds, unless 0.

    Where a part fails or is late, those that have not begun are called off.
    """
    try:
        return torch.cat(answers(parts, seconds))
    finally:
        for part in parts:
            part.cancel()


def score_all(
    rewards: list[Reward], media_BFCHW: torch.Tensor, prompts: list[Prompt], background: AsyncScoring | None = None
) -> Scores:
    """Score every sample with every reward; raises `RewardError` on an exception, NaN, Inf, a wrong shape, or no end in time.

    ``background`` has been given these very media, if it is given. Rewards that compute elsewhere do so at once, and are
    waited for last; their ``seconds`` are those of the wait.
    """
    if background is None:
        background = AsyncScoring(rewards)
        background.add(media_BFCHW, prompts)
    value_KB, seconds = {}, {}
    try:
        for k in sorted(range(len(rewards)), key=lambda k: background.parts_K[k] is not None):
            reward, parts, started = rewards[k], background.parts_K[k], time.perf_counter()
            limit = reward.seconds if isinstance(reward, TimeLimitedReward) else 0.0
            try:
                value_B = reward.score(media_BFCHW, prompts) if parts is None else joined(parts, limit)
            except Late as error:
                raise RewardError(
                    f"reward {reward.name!r} has not scored {_name(prompts)} within {limit:g} s; if it is only slow, raise "
                    "reward_timeout (0 is no limit)"
                ) from error
            except Exception as error:
                raise _failure(reward, error, prompts) from error
            value_KB[k] = _checked(reward.name, value_B, prompts).cpu()
            seconds[reward.name] = time.perf_counter() - started
    finally:
        background.cancel()
    reward_BK = torch.stack([value_KB[k] for k in range(len(rewards))], dim=1)
    return Scores(reward_BK=reward_BK, names=tuple(r.name for r in rewards), seconds=seconds)


def _failure(reward: Reward, error: Exception, prompts: list[Prompt]) -> RewardError:
    return RewardError(f"reward {reward.name!r} failed: {error!r} on {_name(prompts)}")


def _checked(name: str, value_B, prompts: list[Prompt]) -> torch.Tensor:
    shape = tuple(getattr(value_B, "shape", ()))
    if not isinstance(value_B, torch.Tensor) or shape != (len(prompts),):
        raise RewardError(
            f"reward {name!r} returned {type(value_B).__name__} of shape {shape}, expected a tensor of shape "
            f"({len(prompts)},) for {_name(prompts)}"
        )
    bad = [p for p, ok in zip(prompts, torch.isfinite(value_B).tolist()) if not ok]
    if bad:
        raise RewardError(f"reward {name!r} returned NaN or Inf for {_name(bad)}")
    return value_B.detach().float()


def _name(prompts: list[Prompt]) -> str:
    shown = ", ".join(f"{p.id} ({p.text[:60]!r})" for p in prompts[:3])
    return f"{len(prompts)} prompts: {shown}{', …' if len(prompts) > 3 else ''}"
