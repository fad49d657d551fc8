"""Every setting of a run and of its evaluation, as typed dataclasses: command line, YAML file and manifest are these fields.

A field's type holds its bounds, which are checked where the dataclass is made (otca/bounds.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

from otca.bounds import DECAY, GUIDANCE, MIXTURE, SIZE, SIZE_OR_OWN, Count, NotNegative, Positive, Settings, TwoOrMore, Whole
from otca.errors import InputError


@dataclass(frozen=True)
class PolicyConfig(Settings, group="policy."):
    """The generator that is trained."""

    path: str = "embedded:image"
    """Pipeline folder or hub id; ``embedded:image`` and ``embedded:video`` ship with the package."""
    weights: str = ""
    """LoRA, which is merged, or transformer to start from: file, folder or hub id; of a run here, Flow-GRPO, DanceGRPO, …"""
    tuning: Literal["full", "lora", "none"] = "full"
    """Train every transformer weight, or a LoRA. "none" trains nothing: to sample from a model, all of it in ``precision``."""
    lora_rank: Count = 32
    """Rank of the LoRA."""
    lora_alpha: float = 64.0
    """Scale numerator of the LoRA (the update is alpha/rank · B·A)."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the forward pass and of what is not trained; trained weights and the VAE stay in fp32. "no" is fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    height: Annotated[int, SIZE] = 64
    """Height in pixels."""
    width: Annotated[int, SIZE] = 64
    """Width in pixels."""
    frames: Whole = 0
    """Frames of a video; 0 takes what the checkpoint's otca.json records. Images have one and ignore it."""
    guidance: float = 3.5
    """Guidance scale, for models that embed it (FLUX.1-dev); ignored by those that do not."""
    true_guidance: Annotated[float, GUIDANCE] = 0.0
    """Classifier-free guidance, which doubles the cost; 1 is none, 0 takes what the checkpoint's otca.json records, or none."""
    true_guidance_2: Annotated[float, GUIDANCE] = 0.0
    """The same for Wan2.2's low-noise expert (WanPipeline's guidance_scale_2); 0 takes otca.json's, or true_guidance."""
    max_sequence_length: Whole = 0
    """Text tokens; 0 takes what the checkpoint's otca.json records, or its tokenizer's longest text."""
    prompt_cache: str = ""
    """Folder for encoded prompts, shared by runs: text encoders are in memory only while new prompts are encoded."""
    vae_slicing: bool = False
    """Decode one sample at a time: less memory, the same pixels."""
    distilled: bool = False
    """Use a checkpoint that was distilled to a few steps (Turbo, schnell, lightning), which is refused otherwise."""


@dataclass(frozen=True)
class SamplerConfig(Settings, group="sampler."):
    """How trajectories are drawn for training."""

    kind: Literal["flow_sde", "dance_sde", "cps", "cps_mse"] = "flow_sde"
    """Transition kernel (see otca/sampling.py)."""
    steps: TwoOrMore = 10
    """Denoising steps T."""
    shift: NotNegative = 3.0
    """Time shift s of the noise levels: σ ← s·σ/(1+(s−1)·σ); 1 is linear, 0 the checkpoint's own (FLUX: by resolution)."""
    level: Positive = 0.7
    """Noise level: a of flow_sde and cps, η of dance_sde."""
    shared_noise: bool = False
    """Start all samples of a group from the same initial noise (DanceGRPO)."""


@dataclass(frozen=True)
class StepSelectionConfig(Settings, group="step_selection."):
    """Which transitions are trained."""

    kind: Literal["all", "random_fraction", "first_k", "window", "ode"] = "all"
    """All but the last; a random fraction; the first k or a sliding window, ODE elsewhere; or "ode": no noise, every level."""
    fraction: Annotated[float, MIXTURE] = 0.6
    """Share of steps that random_fraction draws."""
    count: Count = 4
    """Steps of first_k and of the window."""
    stride: Count = 25
    """Iterations after which the window moves on by one step."""


@dataclass(frozen=True)
class LossConfig(Settings, group="loss."):
    """Policy loss."""

    clip_low: Positive = 1e-3
    """Ratio clip below 1, for latents of clip_dims numbers."""
    clip_high: Positive = 1e-3
    """Ratio clip above 1, for latents of clip_dims numbers."""
    clip_dims: Whole = 0
    """Latent numbers of a sample that the clip range was stated for: it scales as 1/√D (see otca/losses.py). 0: its own."""
    step_scale: Literal["exact", "equal"] = "exact"
    """Size of each step's gradient: as the likelihood has it, or the same at every trained step (see otca/losses.py)."""
    advantage_clip: Positive = 5.0
    """Advantages are held within ± this."""
    kl_beta: NotNegative = 0.0
    """Weight of the KL to the frozen starting model; 0 leaves it out."""
    kl_scale: Literal["gaussian", "flow_grpo"] = "gaussian"
    """Scale that kl_beta belongs to (see otca/losses.py)."""


@dataclass(frozen=True)
class OptimizerConfig(Settings, group="optimizer."):
    """AdamW and what surrounds it."""

    learning_rate: Positive = 1e-4
    """Step size."""
    weight_decay: NotNegative = 1e-4
    """Decoupled weight decay."""
    beta1: Annotated[float, DECAY] = 0.9
    """First moment decay."""
    beta2: Annotated[float, DECAY] = 0.999
    """Second moment decay."""
    gradient_clip: Positive = 1.0
    """Largest global gradient norm."""
    updates_per_iteration: Count = 2
    """Optimizer steps an iteration, each on an equal share of the prompts."""
    ema_decay: Annotated[float, DECAY] = 0.0
    """Decay of an exponential average of the weights, kept beside them; 0 keeps none."""


@dataclass(frozen=True)
class CreditConfig(Settings, group="credit."):
    """Settings of the credit rules; a method reads what it needs."""

    rho: Annotated[float, MIXTURE] = 0.5
    """MOCA: share of uniform weights mixed into the min-norm weights [ours]."""
    tcd_epsilon: Positive = 1e-3
    """TCD: floor of a step's progress [ours]."""
    tcd_normalise: Literal["mean", "sum"] = "mean"
    """TCD: weights of a sample average 1 over the trained steps [ours], or sum to 1."""
    tcd_latent: Literal["x_t", "x0_hat"] = "x_t"
    """TCD: measure progress on the states [reader], or on the clean predictions (as CoCA)."""
    tcd_control: Literal["none", "permuted", "averaged"] = "none"
    """TCD: what its weights know. "permuted" shuffles each sample's over its steps, "averaged" makes them a mere schedule."""
    advantage_epsilon: Positive = 1e-4
    """Added to a group's standard deviation."""
    process_decay: Annotated[float, MIXTURE] = 0.3
    """Process credit: λ of the generalised increments; 0 credits a step with its own, 1 with all that follow [ours]."""
    process_shrinkage: bool = True
    """Process credit: shrink each state's value to what it foretells of the final reward, learned from the other groups."""
    process_completion: Whole = 3
    """Process credit: ODE steps from a state to what is scored; 1 is the clean prediction, free; 0 all that are left."""
    process_continuations: Whole = 0
    """Process credit: value a state by the mean over so many stochastic continuations instead, a costly reference; 0 is off."""
    process_states: Whole = 0
    """Process credit: how many states are scored; values in between are interpolated. 0 is all."""
    process_spread: Literal["even", "early"] = "even"
    """Process credit: the scored states are evenly spread, or the first after the noise, which is worth its group's mean."""
    sampled_steps: Whole = 0
    """Train only so many steps of each sample, drawn by the size of their credit and weighted to be unbiased; 0 trains all."""
    match_rms: bool = False
    """Rescale the advantage to the RMS of static weighting, so that methods differ in direction only."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Settings, group="eval."):
    """How a model is judged: ODE sampling on held-out prompts, weights of the last iteration."""

    source: str = "embedded:image/test"
    """Evaluation prompts: embedded:MODALITY/SPLIT or a prompts file."""
    prompts: Count = 120
    """Number of prompts."""
    choice: Literal["first", "even"] = "first"
    """Which prompts of the list: the first, or evenly spread over it, for lists in the order of their topics."""
    samples_per_prompt: Count = 2
    """Images a prompt."""
    weights: Literal["auto", "average", "raw"] = "auto"
    """Weights that are judged: their average (optimizer.ema_decay), the raw ones, or ("auto") the average where there is one."""
    steps: TwoOrMore = 20
    """ODE steps."""
    shift: NotNegative = 3.0
    """Time shift of the noise levels; 0 is the checkpoint's own."""
    batch: Count = 40
    """Samples in one forward pass."""
    height: Annotated[int, SIZE_OR_OWN] = 0
    """Height in pixels; 0 is the policy's own."""
    width: Annotated[int, SIZE_OR_OWN] = 0
    """Width in pixels; 0 is the policy's own."""
    fps: Positive = 8.0
    """Frames a second of videos, for metrics of motion and for files."""
    held_out: list[str] = field(default_factory=list)
    """Held-out metrics, rewards by name, or "motion"; empty means the embedded task's own. No arm may train on one."""


@dataclass(frozen=True)
class ValidationConfig(Settings, group="validation."):
    """How a run follows its own training rewards on prompts that it does not train on, and keeps its best checkpoint."""

    every: Whole = 0
    """Iterations between validations, one before the first and one after the last included; 0 validates never."""
    source: str = "embedded:image/validation"
    """Prompts: embedded:MODALITY/SPLIT or a prompts file."""
    prompts: Count = 48
    """Number of prompts, the first of the list."""
    samples_per_prompt: Count = 2
    """Samples a prompt, with noise of the run's seed."""
    steps: TwoOrMore = 20
    """ODE steps."""


@dataclass(frozen=True)
class TrainConfig(Settings):
    """One training run."""

    method: str = "otca"
    """Name of the method: otca, otca_tcd, otca_moca, or a file of baselines/."""
    seed: Whole = 0
    """Run seed; all noise and prompt order follow from it."""
    iterations: Count = 40
    """Rounds of sampling and updating."""
    prompts: str = "embedded:image/train"
    """Training prompts: embedded:MODALITY/SPLIT, or a .jsonl or .csv file with a column ``prompt`` (or ``text``)."""
    prompts_per_iteration: Count = 4
    """Prompt slots P of an iteration."""
    group_size: TwoOrMore = 8
    """Samples G of a prompt slot."""
    micro_batch: Count = 16
    """Samples in one forward pass, in sampling and in updating alike."""
    rewards: list[str] = field(default_factory=lambda: ["alignment", "quality", "aesthetic"])
    """Training rewards: names, module:class, or addresses of servers as http://127.0.0.1:8000/hpsv2?batch=8."""
    reward_weights: list[float] = field(default_factory=list)
    """Static weight of each reward; empty means equal weights. They are normalised to sum 1."""
    reward_files: str = ""
    """Folder with the files of published rewards, FOLDER/<reward>/<file>; what is not there is looked for in the hub's cache."""
    reward_timeout: NotNegative = 600.0
    """Seconds that a reward may take to score what it is given at once (an iteration's samples); 0 is no limit."""
    reward_fps: NotNegative = 0.0
    """Frames a second that rewards of videos take the samples to have; 0 is each reward's own (VideoAlign: 16, Wan's)."""
    save_every: Count = 10
    """Iterations between checkpoints (there is one after the last, too)."""
    keep_last: Count = 2
    """Checkpoints that stay, the newest ones; the best in validation stays too. With 2 a damaged newest one costs little."""
    patience: Whole = 20
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

    def __post_init__(self) -> None:
        super().__post_init__()
        updates, weights = self.optimizer.updates_per_iteration, self.reward_weights
        if self.prompts_per_iteration % updates:
            said = f"it must be a multiple of optimizer.updates_per_iteration ({updates})"
            raise InputError(f"prompts_per_iteration is {self.prompts_per_iteration}; {said}")
        if not self.rewards:
            raise InputError("rewards is empty; name at least one reward")
        if weights and len(weights) != len(self.rewards):
            raise InputError(f"reward_weights has {len(weights)} entries for {len(self.rewards)} rewards")
        if weights and (min(weights) < 0 or sum(weights) <= 0):
            raise InputError(f"reward_weights is {weights}; weights cannot be negative or all zero")

    @classmethod
    def from_dotted(cls, settings: dict[str, object]) -> TrainConfig:
        """Defaults changed by dotted settings, for example ``{"sampler.steps": 6, "seed": 1}``."""
        groups: dict[str, dict[str, object]] = {}
        for key, value in settings.items():
            group, _, name = key.rpartition(".")
            groups.setdefault(group, {})[name] = value
        kinds = {entry.name: entry.default_factory for entry in dataclasses.fields(cls)}
        return cls(**groups.pop("", {}), **{group: kinds[group](**values) for group, values in groups.items()})

    @property
    def weights_K(self) -> list[float]:
        """Static weights, summing to 1."""
        given = self.reward_weights or [1.0] * len(self.rewards)
        return [w / sum(given) for w in given]

    def shares(self, processes: int = 1) -> tuple[int, int]:
        """Samples of one optimizer step on each process, whole groups, and those of one forward pass; InputError if uneven."""
        prompts, left = divmod(self.prompts_per_iteration // self.optimizer.updates_per_iteration, processes)
        if left:
            said = f"the {prompts * processes + left} prompts of one update must be a multiple of the {processes} processes"
            raise InputError(f"prompts_per_iteration is {self.prompts_per_iteration}: {said}")
        share = prompts * self.group_size
        rows = min(self.micro_batch, share)
        if share % rows:
            raise InputError(f"micro_batch is {self.micro_batch}; it must divide the {share} samples of one update")
        return share, rows
