"""How a model is judged, at the end and on the way: settings, typed and refused as those of a run are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from otca.bounds import at_least, positive, validate_fields
from otca.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How a model is judged: ODE sampling on held-out prompts, weights of the last iteration."""

    source: str = "embedded:image/test"
    """Evaluation prompts: embedded:MODALITY/SPLIT or a prompts file."""
    prompts: int = 120
    """Number of prompts."""
    choice: Literal["first", "even"] = "first"
    """Which prompts of the list: the first, or evenly spread over it, for lists in the order of their topics."""
    samples_per_prompt: int = 2
    """Images a prompt."""
    weights: Literal["auto", "average", "raw"] = "auto"
    """Weights of a trained model that are judged: their average (optimizer.ema_decay), the trained ones themselves, or ("auto")
    the average where the run keeps one."""
    steps: int = 20
    """ODE steps."""
    shift: float = 3.0
    """Time shift of the noise levels; 0 is the checkpoint's own."""
    batch: int = 40
    """Samples in one forward pass."""
    height: int = 0
    """Height in pixels; 0 is the policy's own."""
    width: int = 0
    """Width in pixels; 0 is the policy's own."""
    fps: float = 8.0
    """Frames a second of videos, for metrics of motion and for files."""
    held_out: list[str] = field(default_factory=list)
    """Held-out metrics, rewards by name, or "motion"; empty means the embedded task's own. No arm may train on one."""

    def __post_init__(self):
        validate_fields(self, "eval.")
        for name in ("prompts", "samples_per_prompt", "batch"):
            at_least(f"eval.{name}", getattr(self, name), 1)
        at_least("eval.steps", self.steps, 2)
        positive("eval.fps", self.fps)
        for name in ("height", "width"):
            if getattr(self, name) < 0 or getattr(self, name) % 16:
                raise InputError(f"eval.{name} is {getattr(self, name)}; use a multiple of 16, or 0 for the policy's own")
        at_least("eval.shift", self.shift, 0)


@dataclass(frozen=True)
class ValidationConfig:
    """How a run follows its own training rewards on prompts that it does not train on, and keeps its best checkpoint."""

    every: int = 0
    """Iterations between validations, one before the first and one after the last included; 0 validates never."""
    source: str = "embedded:image/validation"
    """Prompts: embedded:MODALITY/SPLIT or a prompts file."""
    prompts: int = 48
    """Number of prompts, the first of the list."""
    samples_per_prompt: int = 2
    """Samples a prompt, with noise of the run's seed."""
    steps: int = 20
    """ODE steps."""

    def __post_init__(self):
        validate_fields(self, "validation.")
        at_least("validation.every", self.every, 0)
        for name in ("prompts", "samples_per_prompt"):
            at_least(f"validation.{name}", getattr(self, name), 1)
        at_least("validation.steps", self.steps, 2)
