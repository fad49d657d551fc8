"""ZeRO stages 1 and 2 by DeepSpeed: weights whole on every process, the optimizer's moments (stage 2: gradients too) in shards.

accelerate makes the engine; here is what the trainer asks of it, and what of DeepSpeed's config cannot be honoured.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate import Accelerator

from otca.config import TrainConfig
from otca.errors import InputError
from otca.models.base import Policy

STAGES = (1, 2)
BUCKET = 500_000_000
"""Gradients that are exchanged at a time, at most: DeepSpeed's own default, of which a LoRA needs a fraction."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of every weight."""


def configure(accelerator: Accelerator, config: TrainConfig, micro_batch: int) -> None:
    """Let the run's settings rule DeepSpeed's. Raises InputError where the launcher asks of it what would not be done."""
    plugin = accelerator.state.deepspeed_plugin
    given = vars(plugin).setdefault("given", copy.deepcopy(plugin.deepspeed_config))  # a table's next arm has the same plugin
    if config.policy.precision == "fp16":
        raise InputError("policy.precision is fp16, whose gradients DeepSpeed would not scale here; use bf16 or no")
    _refuse(given)
    autocast = {"enabled": config.policy.precision == "bf16", "dtype": "bfloat16", "lower_precision_safe_modules": []}
    ours = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "train_batch_size": micro_batch * accelerator.num_processes,
        "gradient_accumulation_steps": 1,  # the loss is already that of its share
        "gradient_clipping": config.optimizer.gradient_clip,
        "torch_autocast": autocast,  # else the engine switches the policy's off; no gradient is exchanged in bf16
    }
    for key, value in ours.items():
        if given.get(key, "auto") not in ("auto", value):
            raise InputError(f"DeepSpeed's {key} is {given[key]}, but the run's settings make it {value}; leave it out")
    plugin.deepspeed_config.update(ours)


def _refuse(given: dict[str, Any]) -> None:
    zero = given["zero_optimization"]
    if zero["stage"] not in STAGES:
        raise InputError(
            f"DeepSpeed's zero_stage is {zero['stage']}; the trainer drives {STAGES[0]} and {STAGES[1]}. To have the weights in "
            "shards too, launch with FSDP2 (otca/launch/eight_gpus_fsdp2.yaml)"
        )
    for part in ("offload_optimizer", "offload_param"):
        device = (zero.get(part) or {}).get("device")
        if device not in (None, "none"):
            raise InputError(f"DeepSpeed's {part} is to {device}, which the trainer does not drive; leave it out")
    for section in ("optimizer", "scheduler"):
        if section in given:
            raise InputError(f"DeepSpeed's config has a section {section}, which the run's settings decide; leave it out")
    for kind in ("bf16", "fp16"):
        if given.get(kind, {}).get("enabled") not in (None, False, "auto"):
            raise InputError(f"DeepSpeed's {kind} is enabled, which casts trained weights; leave it out, set policy.precision")


def prepare(accelerator: Accelerator, policy: Policy, optimizer: torch.optim.Optimizer) -> Zero:
    """Hand the policy's network to DeepSpeed's engine, which takes its place. Raises InputError for several experts."""
    if policy.experts > 1:
        raise InputError(
            f"the policy has {policy.experts} experts, and DeepSpeed's optimizer would move one that an update does not train; "
            "launch with FSDP2 (otca/launch/eight_gpus_fsdp2.yaml)"
        )
    parameters = policy.trainable_parameters()
    plugin = accelerator.state.deepspeed_plugin
    if plugin.given["zero_optimization"].get("reduce_bucket_size", "auto") == "auto":
        plugin.deepspeed_config["zero_optimization"]["reduce_bucket_size"] = min(BUCKET, sum(p.numel() for p in parameters))
    policy.network, _ = accelerator.prepare(policy.network, optimizer)
    return Zero(policy.network, parameters, keep=accelerator.is_main_process)


class Zero:
    """DeepSpeed's engine in the optimizer's place: it exchanges, clips and steps; checkpoints see one with whole moments."""

    def __init__(self, engine, parameters: list[torch.nn.Parameter], keep: bool):
        """``engine``: a DeepSpeedEngine over ``parameters``; ``keep``: whether this process is to hold what is saved."""
        self.engine, self.parameters, self.keep = engine, parameters, keep

    def exchange(self, last: bool) -> None:
        """Say before a forward pass whether its gradient is the step's last: stage 1 exchanges then, stage 2 each time."""
        self.engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: torch.Tensor) -> None:
        """Add a gradient to those of the step."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> float:
        """Clip and step; returns the gradient's norm, infinite where it is not finite and the step was skipped."""
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def release(self) -> torch.nn.Module:
        """Give the network back, without the hooks by which it would stay in memory with the engine; no step can follow."""
        self.engine.destroy()
        return self.engine.module

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The layout in which `load_state_dict` takes moments: whole, in CPU memory."""
        return [{"params": [torch.empty(p.shape) for p in self.parameters]}]

    def state_dict(self) -> dict[str, Any]:
        """Moments of every parameter by its index, whole and on the CPU, for the process that keeps them.

        Every process must ask for it at the same time.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        state: dict[int, dict[str, torch.Tensor]] = {}
        for index, parameter in enumerate(self.parameters if self._inner.state else ()):
            whole = {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
            if self.keep:
                state[index] = {"step": self._step()} | {name: value.cpu() for name, value in whole.items()}
        return {"state": state, "param_groups": []}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take up saved moments, and the weights as they now are in the network, of which the optimizer has a copy."""
        from deepspeed.utils import safe_set_full_optimizer_state
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

        outer, state = self.engine.optimizer, saved["state"]
        outer.refresh_fp32_params()
        self._inner.state.clear()
        if not state:
            return
        for group, flat in zip(outer.bit16_groups, outer.single_partition_of_fp32_groups, strict=True):
            step = state[0]["step"].to(flat.device, copy=True)
            self._inner.state[flat] = {"step": step} | {name: torch.zeros_like(flat) for name in MOMENTS}
            lazy_init_hp_params_optimizer_state(group, flat, self._inner.state)
        for index, parameter in enumerate(self.parameters):
            for name in MOMENTS:
                safe_set_full_optimizer_state(parameter, state[index][name], name)

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """torch's optimizer, over this process's shard alone."""
        return self.engine.optimizer.optimizer

    def _step(self) -> torch.Tensor:
        return torch.as_tensor(next(iter(self._inner.state.values()))["step"]).clone().cpu()
