"""The update: gradients of a method's loss over the trained transitions, and the optimizer steps made of them."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator

from otca import losses
from otca.config import TrainConfig
from otca.distributed import gathered, is_sharded, whole
from otca.errors import TrainingError, memory_named
from otca.methods import Method
from otca.models.base import Policy, swapped
from otca.sampling import Plan, condition_of, generator, transition_at, velocity_at, velocity_slopes
from otca.types import Credit, Trajectory


class Updater:
    """The trained weights, what is kept beside them (reference, average, old policy), and the optimizer that moves them."""

    def __init__(self, config: TrainConfig, method: Method, policy: Policy, optimizer, accelerator: Accelerator):
        self.config, self.method, self.policy = config, method, policy
        self.optimizer, self.accelerator = optimizer, accelerator
        self.share, self.micro_batch = config.shares(accelerator.num_processes)
        self.parameters = policy.trainable_parameters()
        self.sharded = is_sharded(self.parameters)
        self.reference = self._copied() if config.loss.kl_beta else []
        self.average = self._copied() if config.optimizer.ema_decay else []
        self.old_policy = self._copied() if method.forward_loss else []
        self.skipped_in_a_row = 0
        self.moved = False
        """Whether the weights may have left those of the last iteration's end."""

    def _copied(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.parameters]

    def copies(self) -> dict[str, list[torch.Tensor]]:
        """Weights that the run keeps beside the trained ones and needs to go on."""
        return {"average": self.average, "old_policy": self.old_policy}

    def averaged(self) -> AbstractContextManager:
        """Let the policy answer with averaged weights within the block, where the run keeps them."""
        return swapped(self.policy.network, self.parameters, self.average) if self.average else nullcontext()

    def run(self, sampled: Trajectory, credit: Credit, plan: Plan, iteration: int) -> dict[str, float]:
        """One pass over the samples: each optimizer step sees an equal share, every trained transition of it.

        Returns the means over steps for the iteration's row. A step whose gradient is not finite is skipped and counted;
        raises TrainingError after ``config.patience`` of them in a row.
        """
        config, updates = self.config, self.config.optimizer.updates_per_iteration
        scales = self._step_scales(plan)
        totals = dict.fromkeys(("loss", "kl", "clip_fraction", "gradient_norm", "first_ratio_deviation"), 0.0)
        before, skipped = self._copied(), 0
        for first in range(0, len(sampled.prompts), self.share):
            self._accumulate_share(sampled, credit, plan, first, scales, totals)
            with memory_named("in the optimizer's step", "the number of trained weights (policy.tuning lora)"):
                norm = self._step()
            totals["gradient_norm"] += norm
            finite = math.isfinite(norm)
            skipped += not finite
            self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
            if config.patience and self.skipped_in_a_row >= config.patience:
                said = f"the gradient was not finite in {self.skipped_in_a_row} updates in a row (patience), the last in"
                rate = f"optimizer.learning_rate ({config.optimizer.learning_rate:g})"
                raise TrainingError(f"{said} iteration {iteration}; lower {rate} or use policy.precision bf16 or no")
            if finite:
                self._follow(self.average, config.optimizer.ema_decay)
        self.moved = True
        self._follow(self.old_policy, self.method.old_policy_decay((iteration + 1) * updates))
        out = {k: v if k == "first_ratio_deviation" else v / updates for k, v in totals.items()}
        squared = sum(float(whole((p.detach() - b).square().sum())) for p, b in zip(self.parameters, before))
        return out | {"update_norm": squared**0.5, "skipped_updates": skipped}

    def _follow(self, copies: list[torch.Tensor], decay: float) -> None:
        """copies ← decay · copies + (1 − decay) · weights, where there are any."""
        if copies:
            torch._foreach_lerp_(copies, [p.detach() for p in self.parameters], 1 - decay)

    def _step_scales(self, plan: Plan) -> tuple[dict[int, float], dict[int, float]]:
        """κ_t and the KL's factor of each trained step (see `losses`): 1 with ``loss.step_scale: exact``."""
        steps, loss = torch.nonzero(plan.trained_T).flatten().tolist(), self.config.loss
        if loss.step_scale == "exact" or self.method.forward_loss:
            return dict.fromkeys(steps, 1.0), dict.fromkeys(steps, 1.0)
        sigma, sampler = plan.sigma_S.tolist(), plan.sampler
        slopes = [velocity_slopes(sampler.kind, sigma[t], sigma[t + 1], sampler.level, sigma[1]) for t in steps]
        deltas = [sigma[t] - sigma[t + 1] if loss.kl_scale == "flow_grpo" else 1.0 for t in steps]
        drifts = [drift**2 * delta for (_, drift), delta in zip(slopes, deltas)]
        ratio, kl = losses.equal_step_scales([slope for slope, _ in slopes], drifts)
        return dict(zip(steps, ratio)), dict(zip(steps, kl))

    def _step(self) -> float:
        """Clip the gradient and move the weights by it, unless it is not finite; returns its norm."""
        norm = float(whole(self.accelerator.clip_grad_norm_(self.parameters, self.config.optimizer.gradient_clip)))
        if math.isfinite(norm) or self.accelerator.scaler is not None:  # the scaler of fp16 skips by itself, and then scales less
            self.moved = True
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _accumulate_share(self, sampled, credit, plan: Plan, first: int, scales, totals: dict[str, float]) -> None:
        """Gradients of one optimizer step, that of the samples from ``first`` on; adds to what the row reports.

        They accumulate over (transition, micro-batch) pairs, so memory does not grow with T. Micro-batches are
        those of the rollout: before the first step of an iteration every ratio is exactly 1 in fp32. Only where steps are
        sampled (``credit.sampled_steps``) are they made anew, of the samples that train the step.
        """
        size, end, steps = self.micro_batch, first + self.share, plan.trained_T.nonzero().flatten().tolist()
        passes = [(t, slice(start, start + size)) for t in steps for start in range(first, end, size)]
        full = len(passes)
        if self.config.credit.sampled_steps:
            drawn = {t: first + torch.nonzero(credit.step_weight_TB[t, first:end]).flatten() for t in steps}
            # where nothing was drawn, weights are 0: every process takes part in each update
            passes = [(t, rows) for t in steps for rows in drawn[t].split(size) if len(rows)] or passes[:1]
        counted = len(passes)
        if self.sharded:  # shards are gathered by all processes together: one with fewer passes adds some that weigh nothing
            passes += passes[:1] * (int(gathered(self.accelerator, {"passes": counted}).max()) - counted)
        said = f"micro_batch ({size})"
        smaller = said if self.config.policy.gradient_checkpointing else f"{said} or set policy.gradient_checkpointing"
        losses_of = self._noise_level if self.method.forward_loss else self._transition
        for index, (t, rows) in enumerate(passes, 1):
            # processes exchange gradients in the last pass alone; shards, to save memory, in each
            alone = nullcontext() if index == len(passes) or self.sharded else self.accelerator.no_sync(self.policy.network)
            with alone, memory_named(f"in the backward pass of step {t}", smaller):
                loss_B, report = losses_of(sampled, credit, plan, t, rows, scales)
                part, weight_B = len(loss_B) / size, credit.step_weight_TB[t, rows].to(loss_B) * (index <= counted)
                loss = (weight_B * loss_B).mean() * part / full
                self.accelerator.backward(loss)
            if index > counted:
                continue
            totals["loss"] += float(loss.detach())
            for name in ("kl", "clip_fraction"):
                totals[name] += report.get(name, 0.0) * part / full
            if first == 0:  # no weight has moved since the rollout
                totals["first_ratio_deviation"] = max(totals["first_ratio_deviation"], report.get("ratio_deviation", 0.0))

    def _velocity_of(self, weights: list[torch.Tensor], x, t: int, plan: Plan, condition) -> torch.Tensor:
        """Velocity under other weights than the trained ones, without gradient."""
        with torch.no_grad(), swapped(self.policy.network, self.parameters, weights):
            return velocity_at(self.policy, x, t, plan.sigma_S, condition)

    def _transition(self, sampled: Trajectory, credit: Credit, plan: Plan, t: int, rows, scales):
        """Losses (B,) of one transition of one micro-batch, the KL's share included, and what the row reports of it."""
        loss, condition = self.config.loss, condition_of(self.policy, sampled.prompts, rows)
        x, prev = sampled.latents_SB[t, rows], sampled.latents_SB[t + 1, rows]
        velocity = velocity_at(self.policy, x, t, plan.sigma_S, condition)
        _, log_prob_B, mean, std = transition_at(plan, t, x, velocity, prev=prev)
        low, high = (losses.clip_range(clip, x[0].numel(), loss.clip_dims) for clip in (loss.clip_low, loss.clip_high))
        transition = losses.Transition(
            log_ratio_B=log_prob_B - sampled.log_prob_TB[t, rows],
            advantage_B=credit.advantage_TB[t, rows].to(log_prob_B),
            advantage_BK=credit.advantage_TBK[t, rows].to(log_prob_B),
            mean=mean,
            old_mean=None if sampled.mean_TB is None else sampled.mean_TB[t, rows],
            std=std,
            delta=float(plan.sigma_S[t] - plan.sigma_S[t + 1]),
            clip_low=low,
            clip_high=high,
            ratio_scale=scales[0][t],
        )
        ratio_B = transition.scaled_log_ratio_B.detach().exp()
        report = {"clip_fraction": float(((ratio_B < 1 - low) | (ratio_B > 1 + high)).float().mean())}
        report["ratio_deviation"] = float((transition.log_ratio_B.detach().exp() - 1).abs().max())
        if not loss.kl_beta:
            return self.method.loss(transition), report
        reference = self._velocity_of(self.reference, x, t, plan, condition)
        mean_ref = transition_at(plan, t, x, reference, prev=prev)[2]
        kl_B = losses.kl_to_reference(mean, mean_ref, std, transition.delta, loss.kl_scale) * scales[1][t]
        return self.method.loss(transition) + loss.kl_beta * kl_B, report | {"kl": float(kl_B.detach().mean())}

    def _noise_level(self, sampled: Trajectory, credit: Credit, plan: Plan, t: int, rows, scales):
        """The same of one noise level, for methods with a `forward_loss`, which report nothing of it."""
        condition, clean = condition_of(self.policy, sampled.prompts, rows), sampled.latents_SB[-1, rows]
        seed_B = [sampled.seed_B[i] for i in torch.arange(len(sampled.seed_B))[rows]]
        noisy = noised_at(self.policy, clean, seed_B, t, plan.sigma_S)
        old_velocity = self._velocity_of(self.old_policy, noisy, t, plan, condition)
        velocity = velocity_at(self.policy, noisy, t, plan.sigma_S, condition)
        advantage_B, limit = credit.advantage_TB[t, rows].to(velocity), self.config.loss.advantage_clip
        level = losses.NoisedSample(clean, noisy, float(plan.sigma_S[t]), velocity, old_velocity, advantage_B, limit)
        if not self.config.loss.kl_beta:
            return self.method.forward_loss(level), {}
        kl_B = losses.velocity_distance(velocity, self._velocity_of(self.reference, noisy, t, plan, condition))
        return self.method.forward_loss(level) + self.config.loss.kl_beta * kl_B, {"kl": float(kl_B.detach().mean())}


def noised_at(policy: Policy, clean, seed_B: list[int], t: int, sigma_S: torch.Tensor):
    """Clean latents noised to level t, x = (1 − σ)·clean + σ·noise, each sample with noise of its own seed and level."""
    noise = policy.noise([generator(seed, f"forward {t}") for seed in seed_B])
    sigma = float(sigma_S[t])
    return (1 - sigma) * clean + sigma * noise
