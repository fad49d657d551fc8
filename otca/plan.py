"""What a run needs before it is launched: memory a GPU by part, network evaluations, FLOPs, hours.

The policy is built without weights and its passes run on shapes alone (`otca/shapes.py`), so that activations and FLOPs are
counted, not estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import nn

from otca import presets
from otca.bounds import FRACTION, check_bound
from otca.config import TrainConfig
from otca.errors import InputError
from otca.methods import Method
from otca.models.base import Policy
from otca.models.loading import TEXT_ENCODERS
from otca.models.texts import MEMORY_BYTES
from otca.rewards.base import find_reward, is_remote
from otca.rewards.published import PublishedReward
from otca.sampling import plan_of
from otca.shapes import empty_policy, measure_passes
from otca.state_values import path_evaluations, planned_paths
from otca.types import Needs

GPUS = {"h200": (141, 989), "h100": (80, 989), "a100": (80, 312), "l40s": (48, 362), "rtx4090": (24, 165)}
"""Name → memory (GB) and dense bf16 tensor TFLOP/s, of NVIDIA's data sheets."""

LAUNCH = Path(__file__).parent / "launch"
"""Configs of `accelerate launch`."""
SHARDINGS = ("none", "fsdp2")
UTILISATION = 0.35
"""Share of a GPU's bf16 TFLOP/s that hours are reckoned with; an assumption until it is measured."""


@dataclass(frozen=True)
class Costs:
    """Of one sample in one iteration, without guidance (which doubles the evaluations)."""

    sampling: int
    """Evaluations without gradient: its steps, and what completions of its states cost."""
    trained_steps: int
    scored_media: int
    """Media that are decoded and scored: the final one, and what its states are valued by."""
    per_step: int
    """Evaluations of a trained step."""

    @property
    def evaluations(self) -> int:
        """All of them. With ``credit.sampled_steps``, samples whose credit is 0 at every step cost less."""
        return self.sampling + self.trained_steps * self.per_step


def costs_of(config: TrainConfig, method: Method) -> Costs:
    """What a sample costs; which of its steps are drawn is chance, how many is not."""
    steps, settings, completions, media = plan_of(config, 1.0, config.micro_batch), config.credit, 0, 1
    if Needs.STATE_REWARDS in method.needs(config):
        paths = planned_paths(steps.stochastic_T, settings)
        completions = path_evaluations(paths, settings)
        media += max(settings.process_continuations, 1) * sum(map(bool, paths.values()))
    trained = int(steps.trained_T.sum())
    trained = min(trained, settings.sampled_steps or trained)
    return Costs(config.sampler.steps + completions, trained, media, method.evaluations_per_step(config))


@dataclass(frozen=True)
class Plan:
    """Bytes on one GPU by part, and the run's costs. ``flops`` by phase of one iteration, over all processes.

    ``host``: bytes of the host's memory that one process takes while it loads, weights as they lie before they are moved.
    """

    parameters: dict[str, int]
    trained: int
    memory: dict[str, int]
    peaks: dict[str, int]
    host: int
    evaluations: int
    reward_calls: int
    flops: dict[str, float]
    iterations: int
    checkpoint: int
    unknown_rewards: list[str]

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    def fits(self, gigabytes: float) -> bool:
        """Whether the peak fits, with 5 % left for the CUDA context and fragmentation."""
        return self.peak <= 0.95 * gigabytes * 1e9

    def hours(self, tflops: float, utilisation: float, processes: int) -> float:
        """Hours of the run's network and decoder passes; rewards and text encoders are not in it."""
        return self.iterations * sum(self.flops.values()) / (tflops * 1e12 * utilisation * processes) / 3600


def plan(config: TrainConfig, method: Method, processes: int = 1, sharding: str = "none") -> Plan:
    """What a run of ``config`` needs on each of ``processes`` GPUs. Raises InputError where the model is not known here."""
    if sharding not in SHARDINGS:
        raise InputError(f"sharding is {sharding!r}; choose from {', '.join(SHARDINGS)}")
    per_iteration = config.prompts_per_iteration * config.group_size
    share, (_, rows) = per_iteration // processes, config.shares(processes)
    policy, components = empty_policy(config.policy)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in components.items()}
    trained, weights = policy.trainable_parameters(), {name: _bytes(part) for name, part in components.items()}
    if sharding == "fsdp2":  # blocks are gathered in the forward pass's precision, so nothing is cast within it
        policy, _ = empty_policy(config.policy, policy.dtype)
    forward, both, decode, latent_bytes, media_bytes = measure_passes(policy, config, rows)
    trained_bytes = sum(p.nbytes for p in trained)
    kept = sum(flag in method.needs(config) for flag in (Needs.VELOCITY, Needs.MEAN))  # beside the states
    record, media = (config.sampler.steps * (1 + kept) + 1) * latent_bytes * share, media_bytes * share
    encodings = sum(math.prod(shape) for shape in policy.text_shapes()) * policy.dtype.itemsize
    texts = sum(weights.get(name, 0) for name in TEXT_ENCODERS)
    copies = 1 + bool(config.loss.kl_beta) + bool(config.optimizer.ema_decay) + bool(method.forward_loss)
    divide = processes if sharding == "fsdp2" else 1
    networks = sum(size for name, size in weights.items() if name.startswith("transformer")) // divide
    reward_bytes, unknown = _reward_bytes(config.rewards)
    resident = {
        "transformer weights": networks + (_largest_blocks(policy) if divide > 1 else 0),
        "text encoders": 0 if config.policy.prompt_cache else texts,
        "VAE": weights.get("vae", 0),
        "rewards": reward_bytes,
        "optimizer": 2 * trained_bytes // divide,
        "copies of trained weights": copies * trained_bytes // divide,
        "rollout record": record + media,
        "encoded prompts": min(encodings * config.prompts_per_iteration, MEMORY_BYTES),
    }
    gradients = trained_bytes // divide * (2 if processes > 1 and divide == 1 else 1)  # DDP has buckets of its own
    passes = {"forward pass (sampling)": forward, "decoding": decode, "forward and backward pass (update)": both}
    held, costs = sum(resident.values()), costs_of(config, method)
    update = both.flops + (costs.per_step - 3) * forward.flops
    flops = {"sampling": costs.sampling * forward.flops, "decoding": costs.scored_media * decode.flops}
    flops["update"] = costs.trained_steps * update
    samples = config.iterations * per_iteration
    return Plan(
        parameters=parameters,
        trained=sum(p.numel() for p in trained),
        memory=resident | {"gradients": gradients} | {name: made.peak for name, made in passes.items()},
        peaks={
            "encoding prompts": sum(resident[name] for name in ("transformer weights", "VAE", "rewards")) + texts,
            "sampling": held + max(forward.peak, decode.peak, media),  # the media are joined from parts
            "updating": held + gradients + both.peak,
        },
        host=sum(weights.values()) - (texts if config.policy.prompt_cache else 0),
        evaluations=samples * costs.evaluations * policy.forwards_per_velocity,
        reward_calls=samples * costs.scored_media * len(config.rewards),
        flops={phase: per_iteration * count / rows for phase, count in flops.items()},
        iterations=config.iterations,
        checkpoint=trained_bytes * (3 + bool(config.optimizer.ema_decay) + bool(method.forward_loss)),
        unknown_rewards=unknown,
    )


def _bytes(network: nn.Module) -> int:
    return sum(p.nbytes for p in network.parameters())


def _largest_blocks(policy: Policy) -> int:
    """Bytes, in inference precision, of the two largest blocks that shards are gathered for at the same time."""
    blocks = {name for part in policy.network.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    sizes = sorted(sum(p.numel() for p in m.parameters()) for m in policy.network.modules() if type(m).__name__ in blocks)
    return sum(sizes[-2:]) * policy.dtype.itemsize


def _reward_bytes(names: list[str]) -> tuple[int, list[str]]:
    """Bytes of the rewards' networks on a GPU, and the rewards that cannot be built here, which are not in it."""
    sizes, unknown = {}, []
    for name in (name for name in names if not is_remote(name)):  # else its network is in the memory of another process
        try:
            reward_class = find_reward(name)
        except InputError:
            unknown.append(name)
            continue
        if issubclass(reward_class, PublishedReward):
            sizes[reward_class.card.folder] = round(reward_class.card.memory * 1e9)
        else:
            networks = [value for value in vars(reward_class()).values() if isinstance(value, nn.Module)]
            sizes |= {id(network): _bytes(network) for network in networks}
    return sum(sizes.values()), unknown


def describe(config: TrainConfig, method: Method, gpu: str, utilisation: float, processes: int, sharding: str) -> str:
    """A run's plan as text, and whether it fits. Raises InputError for a GPU that is not known, or a share that cannot be."""
    if gpu not in GPUS:
        raise InputError(f"gpu is {gpu!r}; choose from {', '.join(GPUS)}")
    check_bound("utilisation", utilisation, FRACTION)
    made = plan(config, method, processes, sharding)
    gigabytes, tflops = GPUS[gpu]
    unit, size = ("GiB", 2**30) if made.peak >= 2**30 else ("MiB", 2**20)
    each, hours = sum(made.flops.values()), made.hours(tflops, utilisation, processes)
    parts = made.memory | {f"peak while {phase}": peak for phase, peak in made.peaks.items()}
    fits = "fits" if made.fits(gigabytes) else "does not fit"
    lines = [
        f"parameters: {made.trained:,} trained; " + ", ".join(f"{n} {c:,}" for n, c in made.parameters.items()),
        "",
        f"memory a GPU, {unit}",
        *(f"  {name:36} {part / size:10.2f}" for name, part in parts.items()),
        f"  {fits} {gpu} ({gigabytes} GB), with 5 % left for the CUDA context and fragmentation",
        f"  while loading, of the host's memory: {made.host / size:.2f} a process, {processes * made.host / size:.2f} in all",
        *(f"  not in it: the networks of {name}, which cannot be built here" for name in made.unknown_rewards),
        "",
        f"{made.iterations:,} iterations, {made.evaluations:,} network evaluations, {made.reward_calls:,} reward calls",
        f"FLOPs an iteration: {each:.3g} (" + ", ".join(f"{n} {f / each:.0%}" for n, f in made.flops.items()) + ")",
        f"hours on {processes} × {gpu} at {utilisation:.0%} of {tflops} TFLOP/s (assumed): {hours:.3g}; GPU hours: "
        f"{hours * processes:.3g}; without rewards and text encoders",
        f"checkpoint: {made.checkpoint / size:.2f} {unit} each, of which two are kept",
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Recipe:
    """A preset of a published model, where it is launched (a config of otca/launch, which says on how many GPUs), and what by."""

    preset: str
    title: str
    launch: str
    gpu: str
    method: str = "otca"

    @property
    def machine(self) -> tuple[int, str]:
        """Processes and sharding, as `plan` takes them."""
        settings = yaml.safe_load((LAUNCH / f"{self.launch}.yaml").read_text())
        return settings["num_processes"], "fsdp2" if settings["distributed_type"] == "FSDP" else "none"

    def commands(self, config: TrainConfig) -> tuple[list[str], str]:
        """What fetches its prompts and rewards before, and how it is launched (on each machine, with its rank)."""
        sources = [config.prompts, *([config.validation.source] if config.validation.every else [])]
        rewards = {name: find_reward(name) for name in config.rewards}
        fetched = {r.card.folder: name for name, r in rewards.items() if issubclass(r, PublishedReward) and r.card.files}
        before = [f"python -m otca prompts --list {Path(source).stem}" for source in sources]
        before += [f"python -m otca rewards --fetch {name}" for name in fetched.values()]
        run = f"-m otca train --preset {self.preset} --method {self.method}"
        return before, f"accelerate launch --config_file otca/launch/{self.launch}.yaml {run}"


RECIPES = tuple(Recipe(name, **settings) for name, settings in presets.RECIPES.items())


def describe_recipes(find_method: Callable[[str], Method], recipes: tuple[Recipe, ...] = RECIPES) -> str:
    """Memory, network evaluations and GPU hours of each recipe, then the commands; planned from shapes, not measured."""
    heads = f"{'GiB a GPU':>9} {'fits':>12} {'host GiB':>8} {'iterations':>10} {'evaluations':>12} {'GPU hours':>9}"
    lines, before, launches = [f"{'recipe':46} {heads}"], {}, []
    for recipe in recipes:
        method, (processes, sharding), (gigabytes, tflops) = find_method(recipe.method), recipe.machine, GPUS[recipe.gpu]
        config = presets.train_config(recipe.preset, method.name, method.settings, 0)
        made = plan(config, method, processes, sharding)
        fits = f"{'yes' if made.fits(gigabytes) else 'no'} ({gigabytes} GB)"
        hours = made.hours(tflops, UTILISATION, processes) * processes
        numbers = f"{made.host / 2**30:8.0f} {made.iterations:10,} {made.evaluations:12,} {hours:9,.0f}"
        lines.append(f"{recipe.title:46} {made.peak / 2**30:9.1f} {fits:>12} {numbers}")
        prepared, launch = recipe.commands(config)
        before |= dict.fromkeys(prepared)
        launches.append(f"# {recipe.title}\n{launch}")
    lines += [f"Hours at {UTILISATION:.0%} of the GPU's bf16 TFLOP/s (assumed), without rewards and text encoders.", ""]
    lines += ["# once, with network: prompts and rewards (gated models: accept their licence on the hub, log in)"]
    return "\n".join([*lines, *before, *launches]) + "\n"
