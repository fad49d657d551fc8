"""The trainer: sample, score, assign credit, update; one loop for every method."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from otca import checkpoint, losses, schedules
from otca.budget import evaluations_per_step
from otca.config import TrainConfig
from otca.errors import InputError, RewardError
from otca.files import writable_folder
from otca.methods import Method, assign_credit
from otca.policies.base import build_policy, swapped
from otca.process import process_values
from otca.processes import gathered, over_processes, refuse_deepspeed, refuse_dropped_plugin, refuse_split_launch, total
from otca.prompts import load_prompts, prompt_order
from otca.rewards.base import Background, build_rewards, refuse_prompts_without_spec, score_all
from otca.rollout import Batch, condition_of, make_batch, noised_at, rollout, slots_of, transition_at, velocity_at
from otca.schedules import StepPlan
from otca.sharding import is_sharded, whole
from otca.tracking import RowLog, flat_settings, require_trackers, timed
from otca.types import Credit, Prompt, Rollout


class Trainer:
    """State of a run: policy, optimizer, progress. The run folder gets checkpoints, train.csv and timing.csv."""

    def __init__(self, config: TrainConfig, method: Method, folder: Path, make_policy=build_policy):
        """Load everything; ``make_policy(config.policy, device)`` gives the policy. Raises InputError for what cannot be."""
        self.config, self.method, self.folder = config, method, writable_folder(folder)
        require_trackers(config.trackers)
        if config.policy.precision == "fp16" and not torch.cuda.is_available():
            raise InputError("policy.precision is fp16, which needs a GPU; use bf16 or no")
        refuse_deepspeed()
        self.accelerator = Accelerator(
            mixed_precision=config.policy.precision, log_with=config.trackers or None, project_dir=self.folder
        )
        refuse_split_launch(self.accelerator)
        refuse_dropped_plugin(self.accelerator)
        self.share = config.samples_per_update(self.accelerator.num_processes)
        self.micro_batch = min(config.micro_batch, self.share)
        if self.share % self.micro_batch:
            raise InputError(f"micro_batch is {config.micro_batch}; it must divide the {self.share} samples of one update")
        self.prompts = load_prompts(config.prompts)
        self.rewards = build_rewards(config.rewards, self.accelerator.device, config.reward_files)
        refuse_prompts_without_spec(self.rewards, self.prompts, config.prompts)
        self.policy = make_policy(config.policy, self.accelerator.device)
        if method.forward_loss and config.step_selection.kind != "ode":
            raise InputError(f"step_selection.kind is {config.step_selection.kind}; {method.name} samples by ode")
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.policy.trainable_parameters(),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._prepare()
        self.parameters = self.policy.trainable_parameters()
        self.sharded = is_sharded(self.parameters)
        self.reference = [p.detach().clone() for p in self.parameters] if config.loss.kl_beta else []
        self.average = [p.detach().clone() for p in self.parameters] if config.optimizer.ema_decay else []
        self.lagged = [p.detach().clone() for p in self.parameters] if method.forward_loss else []
        self.sigma_S = schedules.sigmas_S(config.sampler.steps, config.sampler.shift or self.policy.shift)
        self.progress = checkpoint.Progress()
        self.seconds: dict[str, float] = {}

    def _prepare(self) -> None:
        """Hand network and optimizer to accelerate, which may wrap the network (DDP) or cut it into shards (FSDP2)."""
        if self.policy.experts > 1:  # a backward pass reaches one of them
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.policy.network, self.optimizer = self.accelerator.prepare(self.policy.network, self.optimizer)

    # -------------------------------------------------------------------------------------------------------- loop

    def run(self, on_row: Callable[[dict], None] | None = None) -> None:
        """Train from the newest checkpoint, if any, to the last iteration; ``on_row`` sees each row of train.csv."""
        found = checkpoint.checkpoints(self.folder)
        if found:
            self.progress = checkpoint.load_checkpoint(found[-1], self.policy, self.optimizer, self._copies())
        main = self.accelerator.is_main_process
        rows = RowLog(self.folder / "train.csv", self.progress.iteration) if main else None
        times = RowLog(self.folder / "timing.csv", self.progress.iteration) if main else None
        left = range(self.progress.iteration, self.config.iterations)
        self.policy.encode_ahead(p.text for iteration in left for p in self._prompts_of(iteration)[0])
        if self.config.trackers:
            self.accelerator.init_trackers("otca", config=flat_settings(dataclasses.asdict(self.config)))
        while self.progress.iteration < self.config.iterations:
            started = time.perf_counter()
            try:
                row = self.step()
            except RewardError:
                if not self.sharded:  # shards are written by all processes together, and this one may be alone in failing
                    self._save()
                raise
            self.seconds["total"] = time.perf_counter() - started
            if main:
                rows.append(row)
                times.append({"iteration": row["iteration"]} | self.seconds)
                if on_row:
                    on_row(row)
            self.accelerator.log({k: v for k, v in row.items() if k != "iteration"}, step=row["iteration"])
            if self.progress.iteration % self.config.save_every == 0 or self.progress.iteration == self.config.iterations:
                self._save()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _save(self) -> None:
        main = self.accelerator.is_main_process
        checkpoint.save_checkpoint(self.folder, self.progress, self.policy, self.optimizer, self._copies(), write=main)

    def _copies(self) -> dict[str, list[torch.Tensor]]:
        """Weights that the run keeps beside the trained ones and needs to go on."""
        return {"average": self.average, "lagged": self.lagged}

    def step(self) -> dict[str, float]:
        """One iteration: returns its row and moves ``progress`` on. Phase times are left in ``seconds``."""
        config, self.seconds = self.config, {}
        rng = np.random.default_rng([config.seed, self.progress.iteration, 11])
        selection = config.step_selection
        plan = schedules.plan_steps(
            selection.kind,
            config.sampler.steps,
            self.progress.iteration,
            rng,
            selection.fraction,
            selection.count,
            selection.stride,
        )
        batch = self._batch()
        needs = self.method.needs(config)
        keep = needs - {"process"}
        background = Background(self.rewards)
        sampled = rollout(
            self.policy, batch, config.sampler, self.sigma_S, plan, self.micro_batch, keep, self.seconds, background.add
        )
        with timed(self.seconds, "rewards"):
            scores = score_all(self.rewards, sampled.media_BFCHW, sampled.prompts, background)
        scores = dataclasses.replace(scores, total=functools.partial(total, self.accelerator))
        extra: dict[str, int] = {}
        if "process" in needs:
            with timed(self.seconds, "process"):
                final_BK = scores.reward_BK
                values, extra = process_values(self.policy, sampled, final_BK, self.rewards, config, scores.total)
                scores = dataclasses.replace(scores, process_reward_SBK=values)
        with timed(self.seconds, "credit"):
            credit = assign_credit(self.method, sampled, scores, config)
        with timed(self.seconds, "update"):
            update = self._update(sampled, credit, plan)
        self._count(credit, extra)
        values = {f"reward_{name}": r for name, r in zip(scores.names, scores.reward_BK.mean(0).tolist())}
        values |= {f"std_{name}": s for name, s in zip(scores.names, scores.reward_BK.std(0, correction=0).tolist())}
        values |= credit.diagnostics | update
        values = over_processes(self.accelerator, values)
        row = {"iteration": self.progress.iteration} | values
        row |= {"network_evaluations": self.progress.network_evaluations, "reward_calls": self.progress.reward_calls}
        self.progress.iteration += 1
        return row

    def _prompts_of(self, iteration: int) -> tuple[list[Prompt], list[int]]:
        """Prompts and slots of this process, taken from an endless shuffled list that depends on the seed alone."""
        config, prompts = self.config, self.config.prompts_per_iteration
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        slots = slots_of(rank, world, prompts, config.optimizer.updates_per_iteration)
        order = prompt_order(len(self.prompts), config.seed, iteration * prompts, prompts)
        return [self.prompts[order[s]] for s in slots], slots

    def _batch(self) -> Batch:
        config, iteration = self.config, self.progress.iteration
        chosen, slots = self._prompts_of(iteration)
        return make_batch(chosen, slots, config.group_size, (config.seed, iteration), config.sampler.shared_noise)

    # ------------------------------------------------------------------------------------------------------ update

    def _update(self, sampled: Rollout, credit: Credit, plan: StepPlan) -> dict[str, float]:
        """One pass over the samples: each optimizer step sees an equal share, every trained transition of it.

        Gradients accumulate over (transition, micro-batch) pairs, so memory does not grow with T. Micro-batches are
        those of the rollout: before the first step of an iteration every ratio is exactly 1 in fp32. Only where steps are
        sampled (``credit.sampled_steps``) are they made anew, of the samples that train the step.
        """
        config, count, share, micro_batch = self.config, len(sampled.prompts), self.share, self.micro_batch
        totals = {"loss": 0.0, "kl": 0.0, "clip_fraction": 0.0, "gradient_norm": 0.0, "first_ratio_deviation": 0.0}
        before = [p.detach().clone() for p in self.parameters]
        for first in range(0, count, share):
            steps, own = torch.nonzero(plan.trained_T).flatten().tolist(), range(first, first + share)
            pairs = [(t, slice(a, a + micro_batch)) for t in steps for a in own[::micro_batch]]
            full = len(pairs)
            if config.credit.sampled_steps:
                drawn = {t: first + torch.nonzero(credit.step_weight_TB[t, first : first + share]).flatten() for t in steps}
                pairs = [(t, rows) for t in steps for rows in drawn[t].split(micro_batch) if len(rows)]
                pairs = pairs or [
                    (steps[0], slice(first, first + micro_batch))
                ]  # weights of 0: every process takes part in each update
            backward = self._backward_forward_process if self.method.forward_loss else self._backward
            for index, (t, rows) in enumerate(pairs):
                with self._exchange(last=index + 1 == len(pairs)):
                    condition = condition_of(self.policy, sampled.prompts, rows)
                    backward(sampled, credit, plan, t, rows, condition, full, totals, first == 0)
            norm = self.accelerator.clip_grad_norm_(self.parameters, config.optimizer.gradient_clip)
            totals["gradient_norm"] += float(whole(norm))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.average:
                torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - config.optimizer.ema_decay)
        updates = config.optimizer.updates_per_iteration
        if self.lagged:
            decay = self.method.lag((self.progress.iteration + 1) * updates)
            torch._foreach_lerp_(self.lagged, [p.detach() for p in self.parameters], 1 - decay)
        out = {k: v if k == "first_ratio_deviation" else v / updates for k, v in totals.items()}
        squared = sum(float(whole((p.detach() - b).square().sum())) for p, b in zip(self.parameters, before))
        return out | {"update_norm": squared**0.5}

    def _exchange(self, last: bool):
        """Context of a backward pass: processes exchange gradients in the last one alone; shards, to save memory, in each."""
        return nullcontext() if last or self.sharded else self.accelerator.no_sync(self.policy.network)

    def _backward(self, sampled, credit, plan, t, rows, condition, pairs, totals, first_update) -> None:
        """Loss and gradient of one transition of one micro-batch."""
        config, sigma_S = self.config, self.sigma_S
        x, prev = sampled.latents_SB[t, rows], sampled.latents_SB[t + 1, rows]
        velocity = velocity_at(self.policy, x, t, sigma_S, condition)
        _, log_prob_B, mean, std = transition_at(config.sampler, plan, t, sigma_S, x, velocity, prev=prev)
        old_B = sampled.log_prob_TB[t, rows]
        delta = float(sigma_S[t] - sigma_S[t + 1])
        low, high = config.loss.clip_low, config.loss.clip_high
        transition = losses.Transition(
            log_prob_B=log_prob_B,
            old_log_prob_B=old_B,
            advantage_B=credit.advantage_TB[t, rows].to(log_prob_B),
            advantage_BK=credit.advantage_TBK[t, rows].to(log_prob_B),
            mean=mean,
            old_mean=None if sampled.mean_TB is None else sampled.mean_TB[t, rows],
            std=std,
            delta=delta,
            clip_low=low,
            clip_high=high,
        )
        loss_B, kl_B = self.method.loss(transition), None
        if config.loss.kl_beta:
            with torch.no_grad(), swapped(self.policy.network, self.parameters, self.reference):
                reference = velocity_at(self.policy, x, t, sigma_S, condition)
            mean_ref = transition_at(config.sampler, plan, t, sigma_S, x, reference, prev=prev)[2]
            kl_B = losses.kl_to_reference(mean, mean_ref, std, delta, config.loss.kl_scale)
        self._accumulate(loss_B, kl_B, credit.step_weight_TB[t, rows], pairs, totals)
        ratio_B = (log_prob_B.detach() - old_B).exp()
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
        level = losses.Noised(clean, noisy, float(sigma_S[t]), velocity, old_velocity, advantage_B, limit)
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
        self.accelerator.backward(loss)
        totals["loss"] += float(loss.detach())

    # ---------------------------------------------------------------------------------------------------- counting

    def _count(self, credit: Credit, extra: dict[str, int]) -> None:
        """A forward pass of one sample at one step is 1, its backward 2 more; passes of other models and completions too."""
        steps, samples = credit.advantage_TB.shape
        trained = int((credit.step_weight_TB != 0).sum())
        per_step = evaluations_per_step(self.config, self.method)
        evaluations = (steps * samples + trained * per_step) * self.policy.forwards_per_velocity
        calls = samples * len(self.rewards)
        own = {"evaluations": evaluations + extra.get("network_evaluations", 0), "calls": calls + extra.get("reward_calls", 0)}
        everyone = gathered(self.accelerator, own).sum(0)
        self.progress.network_evaluations += int(everyone[0])
        self.progress.reward_calls += int(everyone[1])
