"""The reward contract, the registry, and the scoring loop that fails loudly."""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import torch

from otca.config import TrainConfig
from otca.errors import InputError, RewardError, nearest, one_line
from otca.rewards.published import CLASSES, PublishedReward, load_published
from otca.rewards.workers import Late, Workers, as_here, joined
from otca.types import Prompt, Scores

REGISTRY = {
    "alignment": "otca.tasks.rewards:Alignment",
    "quality": "otca.tasks.rewards:Quality",
    "aesthetic": "otca.tasks.rewards:Aesthetic",
    "vq": "otca.tasks.rewards:VisualQuality",
    "mq": "otca.tasks.rewards:MotionQuality",
    "ta": "otca.tasks.rewards:TextAlignment",
    **CLASSES,
}
"""Name → ``module:class``. A dotted ``module:class`` is accepted anywhere a name is, and so is the address of a server."""


class Reward(Protocol):
    """A scorer, also of held-out metrics. Higher is better; ``range`` is (lowest, highest); ``source`` cites the definition.

    Optional: a float ``fps``, the frames a second that media are taken to have, where scores depend on it; a static
    ``check_prompt(prompt)``, which raises InputError for a prompt that it cannot judge; ``submit(media_BFCHW, prompts)`` of one
    that computes elsewhere, which returns at once the futures of the scores of consecutive samples. `build_reward` gives it
    ``seconds``, for which `score_all` waits at most.
    """

    name: str
    range: tuple[float, float]
    source: str
    licence: str
    revision: str

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Score media in [0, 1], shape (B, F, 3, H, W), against B prompts: float32 (B,)."""


def build_reward(
    name: str,
    device: str | torch.device = "cpu",
    files: str | Path = "",
    timeout: float = TrainConfig.reward_timeout,
    fps: float = TrainConfig.reward_fps,
) -> Reward:
    """A reward of the registry, a ``module:class`` of the user's own, or a client of the server at an address.

    Published rewards live on ``device`` and look for their weights in ``files/<reward>/``, then in the hub's cache. A scoring
    takes at most ``timeout`` seconds, and the ``fps`` of the media is told to rewards that depend on it, unless they are 0.
    """
    reward_class = find_reward(name)
    if is_remote(name):
        reward = reward_class(name)
    elif issubclass(reward_class, PublishedReward):
        reward = load_published(reward_class, files, torch.device(device))
    else:
        try:
            reward = reward_class()
        except InputError:
            raise
        except Exception as error:  # of foreign code, any
            raise InputError(f"reward {name!r}: its class cannot be made without arguments ({error!r}); mend it") from error
    if lacking := [part for part in ("name", "score") if not hasattr(reward, part)]:
        raise InputError(f"reward {name!r}: the class has no {' and no '.join(lacking)}; a reward needs both")
    if not isinstance(reward.name, str) or not reward.name.isprintable() or set(reward.name) & set(',"'):
        raise InputError(f"reward {name!r}: it is called {reward.name!r}, which heads no column; use letters, digits and _")
    if fps and hasattr(reward, "fps"):
        reward.fps = fps
    vars(reward)["seconds"] = timeout  # which a frozen class takes too
    return reward


def build_rewards(names: Sequence[str], *settings: object) -> list[Reward]:
    """`build_reward` of each, with its further arguments. Raises InputError where two would fill the same column."""
    rewards = [build_reward(name, *settings) for name in names]
    twice = [name for name, times in Counter(reward.name for reward in rewards).items() if times > 1]
    if twice:
        raise InputError(f"rewards {', '.join(names)}: two of them are called {twice[0]!r}; name each but once")
    return rewards


def check_prompts(rewards: Sequence[Reward], prompts: Sequence[Prompt], source: str) -> None:
    """Raise InputError for prompts that a reward cannot judge: without a spec that a verifier can read, without quoted text.

    It names the first, and says how many there are. ``rewards`` may be classes: what is checked needs no model.
    """
    readers = [reward.name for reward in rewards if hasattr(reward, "reads_drawings")]
    if readers and not all(prompt.spec for prompt in prompts):
        near = [f" (do you mean {name}?)" for name in REGISTRY if any(name.startswith(f"{own}_") for own in readers)]
        raise InputError(
            f"rewards {', '.join(readers)} need the spec of each prompt, and {source} has prompts without{''.join(near[:1])}; "
            "take prompts of the embedded tasks or rewards that read any text (`otca rewards`)"
        )
    for reward in rewards:
        errors = []
        for prompt in prompts if hasattr(reward, "check_prompt") else ():
            try:
                reward.check_prompt(prompt)
            except InputError as error:
                errors.append(error)
        if errors:
            others = f" (the first of {len(errors)} such prompts of {source})" if len(errors) > 1 else ""
            raise InputError(f"{errors[0]}{others}") from errors[0]


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
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # of foreign code, any
        raise InputError(f"reward {name!r}: {module}:{attribute} cannot be imported ({one_line(error)})") from error
    if not isinstance(found, type):
        raise InputError(f"reward {name!r}: {module}:{attribute} is of type {type(found).__name__} and no class")
    return found


def measured(name: str) -> set[str]:
    """Names of what a reward measures, however it is named: its own, and those of what it derives from or adds up.

    Of a class only what it says is known, not what it computes. What is no reward of the registry, no class and no address (a
    metric of the evaluation's own) stands for itself.
    """
    name = _served_name(name)
    if name not in REGISTRY and ":" not in name:
        return {name}
    found, out = find_reward(name), set()
    for base in found.__mro__:
        out |= {own for own in [_own_name(base)] if own and ("name" in vars(base) or "card" in vars(base))}
        if f"{base.__module__}:{base.__qualname__}" in REGISTRY.values():
            break
    return {*(out or {name}), *getattr(found, "adds_up", ())}


def column_of(name: str) -> str:
    """The column that a reward fills, as far as its class says."""
    return _served_name(name) if is_remote(name) else _own_name(find_reward(name)) or name


def _served_name(name: str) -> str:
    if not is_remote(name):
        return name
    from otca.rewards.remote import parsed  # whose packages a judge's server may lack

    return parsed(name)[1]


def _own_name(kind: type) -> str | None:
    """What a class calls itself; None where it says so only once it is made."""
    own = kind.card.name if issubclass(kind, PublishedReward) and hasattr(kind, "card") else getattr(kind, "name", None)
    return own if isinstance(own, str) else None


def check_trained_metrics(who: object, rewards: Sequence[str], place: str, held_out: Sequence[str]) -> None:
    """Raise InputError where ``who`` would train on what the evaluation of ``place`` holds out, under whatever name."""
    kept = set().union(*map(measured, held_out))
    both = [name for name in rewards if measured(name) & kept]
    if both:
        raise InputError(
            f"{who} trains on {', '.join(both)}, which the evaluation of {place} holds out; change one of them, or say "
            "--allow-trained-metric"
        )


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
            said = "media hold NaN or Inf, which no reward is asked about"
            raise RewardError(f"{said}: {_name(bad)}; see to the model that made them")
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


def score_all(
    rewards: list[Reward], media_BFCHW: torch.Tensor, prompts: list[Prompt], background: AsyncScoring | None = None
) -> Scores:
    """Score every sample with every reward; raises `RewardError` on an exception, NaN, Inf, a wrong shape, or no end in time.

    ``background`` has been given these very media. Rewards that compute elsewhere do so at once, and are waited for last.
    """
    if background is None:
        background = AsyncScoring(rewards)
        background.add(media_BFCHW, prompts)
    value_KB, seconds = {}, {}
    try:
        for k in sorted(range(len(rewards)), key=lambda k: background.parts_K[k] is not None):
            reward, parts, started = rewards[k], background.parts_K[k], time.perf_counter()
            limit = getattr(reward, "seconds", 0.0)
            if parts is None and limit:
                parts = [Workers(1, f"reward {reward.name}").submit(as_here(reward.score), media_BFCHW, prompts)]
            try:
                value_B = joined(parts, limit) if parts else reward.score(media_BFCHW, prompts)
            except Late as error:
                said = f"reward {reward.name!r} has not scored {_name(prompts)} within {limit:g} s"
                raise RewardError(f"{said}; if it is only slow, raise reward_timeout (0 is no limit)") from error
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
        said = f"returned {type(value_B).__name__} of shape {shape}, expected a tensor of shape ({len(prompts)},)"
        raise RewardError(f"reward {name!r} {said} for {_name(prompts)}")
    bad = [p for p, ok in zip(prompts, torch.isfinite(value_B).tolist()) if not ok]
    if bad:
        raise RewardError(f"reward {name!r} returned NaN or Inf for {_name(bad)}")
    return value_B.detach().float()


def _name(prompts: list[Prompt]) -> str:
    shown = ", ".join(f"{p.id} ({p.text[:60]!r})" for p in prompts[:3])
    return f"{len(prompts)} prompts: {shown}{', …' if len(prompts) > 3 else ''}"
