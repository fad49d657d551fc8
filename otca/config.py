"""Every setting of a run, as typed dataclasses: the command line, the YAML file and the manifest are these fields.

Bad values are refused where the dataclass is made, in one line that names the setting, the value and the way out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from otca.bounds import at_least, positive, validate_fields
from otca.credit_config import CreditConfig
from otca.errors import InputError
from otca.eval_config import ValidationConfig


@dataclass(frozen=True)
class PolicyConfig:
    """The generator that is trained."""

    path: str = "embedded:image"
    """Pipeline folder or hub id; ``embedded:image`` and ``embedded:video`` ship with the package."""
    weights: str = ""
    """LoRA, which is merged, or transformer to start from: file, folder or hub id; of a run here, Flow-GRPO, DanceGRPO, …"""
    family: Literal[
        "auto", "flux", "flux2", "flux2_klein", "sd3", "qwen_image", "qwen_image_21", "z_image", "wan", "hunyuan_video", "ltx2"
    ] = "auto"
    """Which adapter drives it; "auto" reads it from the pipeline's model_index.json."""
    tuning: Literal["full", "lora", "none"] = "full"
    """Train every transformer weight, or a LoRA. "none" trains nothing: to sample from a model, all of it in ``precision``."""
    lora_rank: int = 32
    """Rank of the LoRA."""
    lora_alpha: float = 64.0
    """Scale numerator of the LoRA (the update is alpha/rank · B·A)."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the forward pass and of what is not trained; trained weights and the VAE stay in fp32. "no" is fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    height: int = 64
    """Height in pixels."""
    width: int = 64
    """Width in pixels."""
    frames: int = 0
    """Frames of a video; 0 takes what the checkpoint's otca.json records. Images have one and ignore it."""
    guidance: float = 3.5
    """Guidance scale, for models that embed it (FLUX.1-dev); ignored by those that do not."""
    true_guidance: float = 0.0
    """Classifier-free guidance against the empty prompt (FluxPipeline's true_cfg_scale); above 1 it doubles the cost.
    0 takes what the checkpoint's otca.json records, or 1 (none)."""
    true_guidance_2: float = 0.0
    """The same for Wan2.2's low-noise expert (WanPipeline's guidance_scale_2); 0 takes otca.json's, or true_guidance."""
    max_sequence_length: int = 0
    """Text tokens; 0 takes what the checkpoint's otca.json records, or its tokenizer's longest text."""
    prompt_cache: str = ""
    """Folder for encoded prompts, shared by runs: text encoders are in memory only while new prompts are encoded."""
    vae_slicing: bool = False
    """Decode one sample at a time: less memory, the same pixels."""
    distilled: bool = False
    """Use a checkpoint that was distilled to a few steps (Turbo, schnell, lightning), which is refused otherwise."""

    def __post_init__(self):
        validate_fields(self, "policy.")
        at_least("policy.lora_rank", self.lora_rank, 1)
        for name in ("true_guidance", "true_guidance_2"):
            value = getattr(self, name)
            if value != 0 and value < 1:
                raise InputError(f"policy.{name} is {value}; use 1 (none) or more, or 0 for the checkpoint's own")
        for name in ("frames", "max_sequence_length"):
            if getattr(self, name) < 0:
                raise InputError(f"policy.{name} is {getattr(self, name)}; use 1 or more, or 0 for the checkpoint's own")
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < 16 or value % 16:
                raise InputError(f"policy.{name} is {value}; it must be a positive multiple of 16")


@dataclass(frozen=True)
class SamplerConfig:
    """How trajectories are drawn for training."""

    kind: Literal["flow_sde", "dance_sde", "cps", "cps_mse"] = "flow_sde"
    """Transition kernel (see otca/sampling.py)."""
    steps: int = 10
    """Denoising steps T."""
    shift: float = 3.0
    """Time shift s of the noise levels: σ ← s·σ/(1+(s−1)·σ); 1 is linear, 0 the checkpoint's own (FLUX: by resolution)."""
    level: float = 0.7
    """Noise level: a of flow_sde and cps, η of dance_sde."""
    shared_noise: bool = False
    """Start all samples of a group from the same initial noise (DanceGRPO)."""

    def __post_init__(self):
        validate_fields(self, "sampler.")
        at_least("sampler.steps", self.steps, 2)
        at_least("sampler.shift", self.shift, 0)
        positive("sampler.level", self.level)


@dataclass(frozen=True)
class StepSelectionConfig:
    """Which transitions are trained."""

    kind: Literal["all", "random_fraction", "first_k", "window", "ode"] = "all"
    """All but the last; a random fraction; the first k; a sliding window (untrained steps of these two by ODE); or "ode":
    no noise at all and every level trained, for methods that train on the forward process."""
    fraction: float = 0.6
    """Share of steps that random_fraction draws."""
    count: int = 4
    """Steps of first_k and of the window."""
    stride: int = 25
    """Iterations after which the window moves on by one step."""

    def __post_init__(self):
        validate_fields(self, "step_selection.")
        if not 0 < self.fraction <= 1:
            raise InputError(f"step_selection.fraction is {self.fraction}; it must lie in (0, 1]")
        at_least("step_selection.count", self.count, 1)
        at_least("step_selection.stride", self.stride, 1)


@dataclass(frozen=True)
class LossConfig:
    """Policy loss."""

    clip_low: float = 1e-3
    """Ratio clip below 1, for latents of clip_dims numbers."""
    clip_high: float = 1e-3
    """Ratio clip above 1, for latents of clip_dims numbers."""
    clip_dims: int = 0
    """Latent numbers of a sample that the clip range was stated for: it scales as 1/√D (see otca/losses.py). 0: its own."""
    step_scale: Literal["exact", "equal"] = "exact"
    """Size of each step's gradient: as the likelihood has it, or the same at every trained step (see otca/losses.py)."""
    advantage_clip: float = 5.0
    """Advantages are held within ± this."""
    kl_beta: float = 0.0
    """Weight of the KL to the frozen starting model; 0 leaves it out."""
    kl_scale: Literal["gaussian", "flow_grpo"] = "gaussian"
    """Scale that kl_beta belongs to (see otca/losses.py)."""

    def __post_init__(self):
        validate_fields(self, "loss.")
        for name in ("clip_low", "clip_high", "advantage_clip"):
            positive(f"loss.{name}", getattr(self, name))
        at_least("loss.clip_dims", self.clip_dims, 0)
        if self.kl_beta < 0:
            raise InputError(f"loss.kl_beta is {self.kl_beta}; it cannot be negative")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and what surrounds it."""

    learning_rate: float = 1e-4
    """Step size."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    beta1: float = 0.9
    """First moment decay."""
    beta2: float = 0.999
    """Second moment decay."""
    gradient_clip: float = 1.0
    """Largest global gradient norm."""
    updates_per_iteration: int = 2
    """Optimizer steps an iteration, each on an equal share of the prompts."""
    ema_decay: float = 0.0
    """Decay of an exponential average of the weights, kept beside them; 0 keeps none."""

    def __post_init__(self):
        validate_fields(self, "optimizer.")
        positive("optimizer.learning_rate", self.learning_rate)
        positive("optimizer.gradient_clip", self.gradient_clip)
        at_least("optimizer.updates_per_iteration", self.updates_per_iteration, 1)
        at_least("optimizer.weight_decay", self.weight_decay, 0)
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"optimizer.{name} is {getattr(self, name)}; it must lie in [0, 1)")


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    method: str = "otca"
    """Name of the method: otca, otca_tcd, otca_moca, or a file of baselines/."""
    seed: int = 0
    """Run seed; all noise and prompt order follow from it."""
    iterations: int = 40
    """Rounds of sampling and updating."""
    prompts: str = "embedded:image/train"
    """Training prompts: embedded:MODALITY/SPLIT, or a .jsonl or .csv file with a column ``prompt`` (or ``text``)."""
    prompts_per_iteration: int = 4
    """Prompt slots P of an iteration."""
    group_size: int = 8
    """Samples G of a prompt slot."""
    micro_batch: int = 16
    """Samples in one forward pass, in sampling and in updating alike."""
    rewards: list[str] = field(default_factory=lambda: ["alignment", "quality", "aesthetic"])
    """Training rewards: names, module:class, or addresses of servers as http://127.0.0.1:8000/hpsv2?batch=8."""
    reward_weights: list[float] = field(default_factory=list)
    """Static weight of each reward; empty means equal weights. They are normalised to sum 1."""
    reward_files: str = ""
    """Folder with the files of published rewards, FOLDER/<reward>/<file>; what is not there is looked for in the hub's cache."""
    reward_timeout: float = 600.0
    """Seconds that a reward may take to score what it is given at once (an iteration's samples); 0 is no limit."""
    reward_fps: float = 0.0
    """Frames a second that rewards of videos take the samples to have; 0 is each reward's own (VideoAlign: 16, Wan's)."""
    save_every: int = 10
    """Iterations between checkpoints (there is one after the last, too)."""
    keep_last: int = 2
    """Checkpoints that stay, the newest ones; the best in validation stays too. With 2 a damaged newest one costs little."""
    patience: int = 20
    """Updates in a row without a finite gradient, or iterations in a row with a constant reward, that end a run; 0: never."""
    trackers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    """Live trackers, through accelerate; none unless asked for."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    step_selection: StepSelectionConfig = field(default_factory=StepSelectionConfig)
    credit: CreditConfig = field(default_factory=CreditConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self):
        validate_fields(self)
        at_least("seed", self.seed, 0)
        at_least("patience", self.patience, 0)
        at_least("group_size", self.group_size, 2)
        for name in ("iterations", "prompts_per_iteration", "micro_batch", "save_every", "keep_last"):
            at_least(name, getattr(self, name), 1)
        updates = self.optimizer.updates_per_iteration
        if self.prompts_per_iteration % updates:
            raise InputError(
                f"prompts_per_iteration is {self.prompts_per_iteration}; "
                f"it must be a multiple of optimizer.updates_per_iteration ({updates})"
            )
        at_least("reward_timeout", self.reward_timeout, 0)
        at_least("reward_fps", self.reward_fps, 0)
        if not self.rewards:
            raise InputError("rewards is empty; name at least one reward")
        if self.reward_weights and len(self.reward_weights) != len(self.rewards):
            raise InputError(f"reward_weights has {len(self.reward_weights)} entries for {len(self.rewards)} rewards")
        if self.reward_weights and (min(self.reward_weights) < 0 or sum(self.reward_weights) <= 0):
            raise InputError(f"reward_weights is {self.reward_weights}; weights cannot be negative or all zero")

    @classmethod
    def from_dotted(cls, settings: dict[str, object]) -> TrainConfig:
        """Defaults changed by dotted settings, for example ``{"sampler.steps": 6, "seed": 1}``."""
        nested: dict[str, dict[str, object]] = {}
        top: dict[str, object] = {}
        for key, value in settings.items():
            group, _, name = key.rpartition(".")
            (nested.setdefault(group, {}) if group else top)[name] = value
        parts = {f.name: f.default_factory for f in dataclasses.fields(cls) if f.name in nested}
        return cls(**top, **{group: parts[group](**values) for group, values in nested.items()})

    @property
    def weights_K(self) -> list[float]:
        """Static weights, summing to 1."""
        given = self.reward_weights or [1.0] * len(self.rewards)
        return [w / sum(given) for w in given]

    def samples_per_update(self, processes: int = 1) -> int:
        """Samples of one optimizer step on each process: whole groups. Raises InputError where they cannot be shared evenly."""
        prompts = self.prompts_per_iteration // self.optimizer.updates_per_iteration
        if prompts % processes:
            said = f"the {prompts} prompts of one update must be a multiple of the {processes} processes"
            raise InputError(f"prompts_per_iteration is {self.prompts_per_iteration}: {said}")
        return prompts // processes * self.group_size

    def rows_per_pass(self, processes: int = 1) -> int:
        """Samples in one forward pass on each process. Raises InputError where they do not divide one update's."""
        share = self.samples_per_update(processes)
        rows = min(self.micro_batch, share)
        if share % rows:
            raise InputError(f"micro_batch is {self.micro_batch}; it must divide the {share} samples of one update")
        return rows
