"""Recipes at scale: the runs that users start from, the machine that each is made for, and what it needs there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from otca import presets
from otca.config import TrainConfig
from otca.methods import Method
from otca.plan import GPUS, UTILISATION, Plan, plan
from otca.rewards.base import find_reward
from otca.rewards.published import PublishedReward

LAUNCH = Path(__file__).parent / "launch"
"""Configs of `accelerate launch`."""


@dataclass(frozen=True)
class Recipe:
    """A preset and a method, the launcher's config (of otca/launch) and the GPUs; ``sharding`` as `plan` takes it."""

    title: str
    preset: str
    method: str
    launch: str
    processes: int
    sharding: str
    gpu: str

    @property
    def command(self) -> str:
        """How it is launched (on several machines: on each, with its rank and the first one's address)."""
        config = f"otca/launch/{self.launch}.yaml"
        return f"accelerate launch --config_file {config} -m otca train --preset {self.preset} --method {self.method}"

    def config(self, method: Method) -> TrainConfig:
        """Its settings."""
        return presets.train_config(self.preset, self.method, method.settings, 0)

    def preparation(self, method: Method) -> list[str]:
        """What fetches its prompts and rewards before; the model itself is downloaded by the run."""
        config = self.config(method)
        validated = [config.validation.source] if config.validation.every else []
        lists = [f"python -m otca prompts --list {Path(source).stem}" for source in (config.prompts, *validated)]
        rewards = {name: find_reward(name) for name in config.rewards}
        fetched = {r.card.place: name for name, r in rewards.items() if issubclass(r, PublishedReward) and r.card.files}
        return [*lists, *(f"python -m otca rewards --fetch {name}" for name in fetched.values())]

    def plan(self, method: Method) -> Plan:
        """What it needs on its machine."""
        return plan(self.config(method), method, self.processes, self.sharding)


def _recipe(name: str, title: str, launch: str, gpu: str, method: str = "otca") -> Recipe:
    """A preset's recipe; processes and sharding are those of the launcher's config."""
    settings = yaml.safe_load((LAUNCH / f"{launch}.yaml").read_text())
    sharding = "fsdp2" if settings["distributed_type"] == "FSDP" else "none"
    return Recipe(title, name, method, launch, settings["num_processes"], sharding, gpu)


RECIPES = tuple(_recipe(name, **settings) for name, settings in presets.RECIPES.items())


def describe_recipes(find_method: Callable[[str], Method], recipes: tuple[Recipe, ...] = RECIPES) -> str:
    """Memory, network evaluations and GPU hours of each recipe, then the commands; planned from shapes, not measured."""
    heads = f"{'GiB a GPU':>9} {'fits':>12} {'host GiB':>8} {'iterations':>10} {'evaluations':>12} {'GPU hours':>9}"
    lines = [f"{'recipe':46} {heads}"]
    for recipe in recipes:
        made, (gigabytes, tflops) = recipe.plan(find_method(recipe.method)), GPUS[recipe.gpu]
        fits = f"{'yes' if made.fits(gigabytes) else 'no'} ({gigabytes} GB)"
        hours = made.hours(tflops, UTILISATION, recipe.processes) * recipe.processes
        lines.append(
            f"{recipe.title:46} {made.peak / 2**30:9.1f} {fits:>12} {made.host / 2**30:8.0f} {made.iterations:10,} "
            f"{made.evaluations:12,} {hours:9,.0f}"
        )
    lines += [f"Hours at {UTILISATION:.0%} of the GPU's bf16 TFLOP/s (assumed), without rewards and text encoders.", ""]
    before = list(dict.fromkeys(line for recipe in recipes for line in recipe.preparation(find_method(recipe.method))))
    lines += ["# once, with network: prompts and rewards (gated models: accept their licence on the hub, log in)", *before]
    return "\n".join([*lines, *(f"# {recipe.title}\n{recipe.command}" for recipe in recipes)]) + "\n"
