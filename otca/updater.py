"""The update: gradients of a method's loss over the trained transitions, and the optimizer steps made of them."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save

from otca import losses, samplers
from otca.config import TrainConfig
from otca.distributed import gathered
from otca.errors import TrainingError
from otca.files import write_atomic
from otca.memory import memory_named
from otca.methods import Method
from otca.models.base import Policy, swapped
from otca.rollout import condition_of, noised_at, transition_at, velocity_at
from otca.schedules import StepPlan
from otca.sharding import is_sharded, whole
from otca.types import Credit, Trajectory
from otca.zero import Zero

REFUSED = "not_finite.safetensors"
"""File of a run's folder with the batch whose gradient was not finite: latents, log-probabilities, advantages, prompts."""


class Updater:
    """The trained weights, what is kept beside them (reference, average, lagged), and the optimizer that moves them."""

    def __init__(
        self,
        config: TrainConfig,
        method: Method,
        policy: Policy,
        optimizer: torch.optim.Optimizer | Zero,
        accelerator: Accelerator,
        sigma_S: torch.Tensor,
        share: int,
        micro_batch: int,
        folder: Path,
    ):
        """``share``: samples of one optimizer step on this process, a multiple of ``micro_batch``; ``folder`` is the run's."""
        self.folder = folder
        self.config, self.method, self.policy, self.sigma_S = config, method, policy, sigma_S
        self.optimizer, self.accelerator, self.share, self.micro_batch = optimizer, accelerator, share, micro_batch
        self.parameters = policy.trainable_parameters()
        self.zero = optimizer if isinstance(optimizer, Zero) else None
        self.sharded = is_sharded(self.parameters) or self.zero is not None
        self.reference = self._copied() if config.loss.kl_beta else []
        self.average = self._copied() if config.optimizer.ema_decay else []
        self.lagged = self._copied() if method.forward_loss else []
        self.skipped_in_a_row = 0
        self.moved = False
        """Whether the weights may have left those of the last iteration's end."""

    def _copied(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.parameters]

    def copies(self) -> dict[str, list[torch.Tensor]]:
        """Weights that the run keeps beside the trained ones and needs to go on."""
        return {"average": self.average, "lagged": self.lagged}

    def averaged(self) -> AbstractContextManager:
        """Let the policy answer with averaged weights within the block, where the run keeps them."""
        return swapped(self.policy.network, self.parameters, self.average) if self.average else nullcontext()

    def run(self, sampled: Trajectory, credit: Credit, plan: StepPlan, iteration: int) -> dict[str, float]:
        """One pass over the samples: each optimizer step sees an equal share, every trained transition of it.

        Returns the means over steps for the iteration's row. A step whose gradient is not finite is skipped and counted;
        raises TrainingError after ``config.patience`` of them in a row, with the batch kept in `REFUSED`.
        """
        config, updates = self.config, self.config.optimizer.updates_per_iteration
        self.ratio_scale, self.kl_factor = self._step_scales(plan)
        totals = dict.fromkeys(("loss", "kl", "clip_fraction", "gradient_norm", "first_ratio_deviation"), 0.0)
        before, skipped = self._copied(), 0
        for first in range(0, len(sampled.prompts), self.share):
            self._accumulate_share(sampled, credit, plan, first, totals)
            with memory_named("in the optimizer's step", "the number of trained weights (policy.tuning lora)"):
                norm = self._step()
            totals["gradient_norm"] += norm
            finite = math.isfinite(norm)
            skipped += not finite
            self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
            if config.patience and self.skipped_in_a_row >= config.patience:
                self._give_up(sampled, credit, iteration)
            if self.average and finite:
                torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - config.optimizer.ema_decay)
        self.moved = True
        if self.lagged:
            decay = self.method.lag((iteration + 1) * updates)
            torch._foreach_lerp_(self.lagged, [p.detach() for p in self.parameters], 1 - decay)
        out = {k: v if k == "first_ratio_deviation" else v / updates for k, v in totals.items()}
        squared = sum(float(whole((p.detach() - b).square().sum())) for p, b in zip(self.parameters, before))
        return out | {"update_norm": squared**0.5, "skipped_updates": skipped}

    def _step_scales(self, plan: StepPlan) -> tuple[dict[int, float], dict[int, float]]:
        """κ_t and the KL's factor of each trained step (see `losses`): 1 with ``loss.step_scale: exact``."""
        steps, loss = torch.nonzero(plan.trained_T).flatten().tolist(), self.config.loss
        ones = dict.fromkeys(steps, 1.0)
        if loss.step_scale == "exact" or self.method.forward_loss:
            return ones, ones
        sigma, sampler = self.sigma_S.tolist(), self.config.sampler
        slopes, drifts = [], []
        for t in steps:
            slope, drift = samplers.velocity_slopes(sampler.kind, sigma[t], sigma[t + 1], sampler.level, sigma[1])
            slopes.append(slope)
            drifts.append(drift**2 * (sigma[t] - sigma[t + 1] if loss.kl_scale == "flow_grpo" else 1.0))
        scales = losses.equal_step_scales(slopes, drifts)
        return dict(zip(steps, scales[0])), dict(zip(steps, scales[1]))

    def _step(self) -> float:
        """Clip the gradient and move the weights by it, unless it is not finite; returns its norm."""
        if self.zero is not None:
            self.moved = True
            return self.zero.step()
        norm = float(whole(self.accelerator.clip_grad_norm_(self.parameters, self.config.optimizer.gradient_clip)))
        if math.isfinite(norm) or self.accelerator.scaler is not None:  # the scaler of fp16 skips by itself, and then scales less
            self.moved = True
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _accumulate_share(self, sampled: Trajectory, credit: Credit, plan: StepPlan, first: int, totals: dict) -> None:
        """Gradients of one optimizer step, that of the samples from ``first`` on.

        They accumulate over (transition, micro-batch) pairs, so memory does not grow with T. Micro-batches are
        those of the rollout: before the first step of an iteration every ratio is exactly 1 in fp32. Only where steps are
        sampled (``credit.sampled_steps``) are they made anew, of the samples that train the step. In shards weights are
        gathered, gradients reduced by all processes together: one with fewer pairs adds passes that weigh nothing.
        """
        share, micro_batch = self.share, self.micro_batch
        steps, own = torch.nonzero(plan.trained_T).flatten().tolist(), range(first, first + share)
        pairs = [(t, slice(a, a + micro_batch)) for t in steps for a in own[::micro_batch]]
        full = len(pairs)
        if self.config.credit.sampled_steps:
            drawn = {t: first + torch.nonzero(credit.step_weight_TB[t, first : first + share]).flatten() for t in steps}
            pairs = [(t, rows) for t in steps for rows in drawn[t].split(micro_batch) if len(rows)]
            pairs = pairs or [
                (steps[0], slice(first, first + micro_batch))
            ]  # weights of 0: every process takes part in each update
        passes = [(t, rows, credit, totals) for t, rows in pairs]
        if self.config.credit.sampled_steps and self.sharded:
            missing = int(gathered(self.accelerator, {"pairs": len(pairs)}).max()) - len(pairs)
            nothing = dataclasses.replace(credit, step_weight_TB=torch.zeros_like(credit.step_weight_TB))
            passes += [(*pairs[0], nothing, dict(totals))] * missing
        backward = self._backward_forward_process if self.method.forward_loss else self._backward
        for index, (t, rows, given, sums) in enumerate(passes, 1):
            with self._exchange(last=index == len(passes)), memory_named(f"in the backward pass of step {t}", self._smaller()):
                condition = condition_of(self.policy, sampled.prompts, rows)
                backward(sampled, given, plan, t, rows, condition, full, sums, first == 0)

    def _smaller(self) -> str:
        """Settings that a backward pass needs less memory with."""
        said = f"micro_batch ({self.micro_batch})"
        return said if self.config.policy.gradient_checkpointing else f"{said} or set policy.gradient_checkpointing"

    def _give_up(self, sampled: Trajectory, credit: Credit, iteration: int) -> None:
        """Keep the batch whose gradient is not finite, and raise TrainingError."""
        path = self.folder / REFUSED
        tensors = {
            "latents_SB": sampled.latents_SB,
            "log_prob_TB": sampled.log_prob_TB,
            "advantage_TB": credit.advantage_TB,
            "step_weight_TB": credit.step_weight_TB,
            "sigma_S": sampled.sigma_S,
        }
        about = {"iteration": str(iteration), "prompts": json.dumps([dataclasses.asdict(p) for p in sampled.prompts])}
        if self.accelerator.is_main_process:
            write_atomic(path, save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata=about))
        raise TrainingError(
            f"the gradient was not finite in {self.skipped_in_a_row} updates in a row (patience), the last in iteration "
            f"{iteration}; its batch is in {path}; lower optimizer.learning_rate "
            f"({self.config.optimizer.learning_rate:g}) or use policy.precision bf16 or no"
        )

    def _exchange(self, last: bool):
        """Context of a backward pass: processes exchange gradients in the last one alone; shards, to save memory, in each."""
        if self.zero is not None:
            self.zero.exchange(last)
        return nullcontext() if last or self.sharded else self.accelerator.no_sync(self.policy.network)

    def _backward(self, sampled, credit, plan, t, rows, condition, pairs, totals, first_update) -> None:
        """Loss and gradient of one transition of one micro-batch."""
        config, sigma_S = self.config, self.sigma_S
        x, prev = sampled.latents_SB[t, rows], sampled.latents_SB[t + 1, rows]
        velocity = velocity_at(self.policy, x, t, sigma_S, condition)
        _, log_prob_B, mean, std = transition_at(config.sampler, plan, t, sigma_S, x, velocity, prev=prev)
        delta = float(sigma_S[t] - sigma_S[t + 1])
        dims, stated = x[0].numel(), config.loss.clip_dims
        low, high = (losses.clip_range(clip, dims, stated) for clip in (config.loss.clip_low, config.loss.clip_high))
        transition = losses.Transition(
            log_ratio_B=log_prob_B - sampled.log_prob_TB[t, rows],
            advantage_B=credit.advantage_TB[t, rows].to(log_prob_B),
            advantage_BK=credit.advantage_TBK[t, rows].to(log_prob_B),
            mean=mean,
            old_mean=None if sampled.mean_TB is None else sampled.mean_TB[t, rows],
            std=std,
            delta=delta,
            clip_low=low,
            clip_high=high,
            ratio_scale=self.ratio_scale[t],
        )
        loss_B, kl_B = self.method.loss(transition), None
        if config.loss.kl_beta:
            with torch.no_grad(), swapped(self.policy.network, self.parameters, self.reference):
                reference = velocity_at(self.policy, x, t, sigma_S, condition)
            mean_ref = transition_at(config.sampler, plan, t, sigma_S, x, reference, prev=prev)[2]
            kl_B = losses.kl_to_reference(mean, mean_ref, std, delta, config.loss.kl_scale) * self.kl_factor[t]
        self._accumulate(loss_B, kl_B, credit.step_weight_TB[t, rows], pairs, totals)
        ratio_B = transition.scaled_log_ratio_B.detach().exp()
        clipped = float(((ratio_B < 1 - low) | (ratio_B > 1 + high)).float().mean())
        totals["clip_fraction"] += clipped * (len(ratio_B) / self.micro_batch) / pairs
        if first_update:
            totals["first_ratio_deviation"] = max(totals["first_ratio_deviation"], float((ratio_B - 1).abs().max()))

    def _backward_forward_process(self, sampled, credit, plan, t, rows, condition, pairs, totals, first_update) -> None:
        """Loss and gradient of one noise level of one micro-batch, for methods with a `forward_loss`."""
        config, sigma_S, clean = self.config, self.sigma_S, sampled.latents_SB[-1, rows]
        noisy = noised_at(self.policy, clean, [sampled.seed_B[i] for i in torch.arange(len(sampled.seed_B))[rows]], t, sigma_S)
        with torch.no_grad(), swapped(self.policy.network, self.parameters, self.lagged):
            old_velocity = velocity_at(self.policy, noisy, t, sigma_S, condition)
        velocity = velocity_at(self.policy, noisy, t, sigma_S, condition)
        advantage_B = credit.advantage_TB[t, rows].to(velocity)
        limit = config.loss.advantage_clip
        level = losses.NoisedSample(clean, noisy, float(sigma_S[t]), velocity, old_velocity, advantage_B, limit)
        loss_B, kl_B = self.method.forward_loss(level), None
        if config.loss.kl_beta:
            with torch.no_grad(), swapped(self.policy.network, self.parameters, self.reference):
                reference = velocity_at(self.policy, noisy, t, sigma_S, condition)
            kl_B = losses.velocity_distance(velocity, reference)
        self._accumulate(loss_B, kl_B, credit.step_weight_TB[t, rows], pairs, totals)

    def _accumulate(self, loss_B, kl_B, weight_B, pairs, totals) -> None:
        """Add one micro-batch's share of the gradient, KL included; ``pairs`` full micro-batches make a whole."""
        if kl_B is not None:
            loss_B = loss_B + self.config.loss.kl_beta * kl_B
            totals["kl"] += float(kl_B.detach().mean()) * (len(kl_B) / self.micro_batch) / pairs
        loss = (weight_B.to(loss_B) * loss_B).mean() * (len(loss_B) / self.micro_batch) / pairs
        (self.zero or self.accelerator).backward(loss)
        totals["loss"] += float(loss.detach())
