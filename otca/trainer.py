"""The trainer: one loop for every method. `Trainer.step` is one iteration, a line a stage:

plan ─► rollout ─► rewards ─► state values ─► credit ─► update
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from otca import checkpoint
from otca.config import TrainConfig
from otca.distributed import asks_for_fsdp, check_launch, gathered, over_processes, process_state, refill, total
from otca.errors import InputError, RewardError, TrainingError
from otca.files import run_lock, writable_folder
from otca.methods import Method, assign_credit
from otca.models.base import Policy, build_policy
from otca.models.loading import INFERENCE
from otca.parser import flat_settings
from otca.prompts import load_prompts, prompt_order
from otca.rewards.base import AsyncScoring, Reward, build_rewards, check_prompts, score_all
from otca.runs import RowLog, begin_run
from otca.sampling import Batch, Plan, make_batch, plan_of, rollout, slots_of, timed
from otca.signals import Terminated, defer_signals
from otca.state_values import process_values
from otca.types import Credit, Needs, Scores, Trajectory
from otca.update import Updater
from otca.validation import Validation
from otca.value_head import ValueHead

log = logging.getLogger(__name__)

CONSTANT = 1e-6
"""Rewards whose standard deviation over an iteration is at most this times their mean are the same for all samples."""


class Trainer:
    """State of a run: policy, optimizer, progress. The run folder gets checkpoints, train.csv and timing.csv."""

    def step(self) -> dict[str, float]:
        """One iteration: returns its row and moves ``progress`` on. Phase times are left in ``seconds``."""
        config, method, iteration, self.seconds = self.config, self.method, self.progress.iteration, {}
        plan = plan_of(config, self.policy.shift, self.micro_batch, iteration)
        sampled, scores, costs = collect(
            self.policy, self.batch(iteration), plan, self.rewards, method.needs(config), config, self.value_head, self.seconds
        )
        with timed(self.seconds, "credit"):
            credit = assign_credit(method, sampled, scores, config, partial(total, self.accelerator))
        with timed(self.seconds, "update"):
            update = self.updater.run(sampled, credit, plan, iteration)
        return self._row(scores, credit, update, costs)

    def __init__(self, config: TrainConfig, method: Method, folder: Path, make_policy=build_policy):
        """Load everything; ``make_policy`` gives the policy, as `build_policy` does. Raises InputError for what cannot be."""
        if config.policy.tuning == "none":
            raise InputError("policy.tuning is none, which trains nothing; use full or lora")
        if config.policy.precision == "fp16" and not torch.cuda.is_available():
            raise InputError("policy.precision is fp16, which needs a GPU; use bf16 or no")
        if method.forward_loss and config.step_selection.kind != "ode":
            raise InputError(f"step_selection.kind is {config.step_selection.kind}; {method.name} samples by ode")
        if absent := [name for name in config.trackers if importlib.util.find_spec(name) is None]:  # accelerate would drop it
            raise InputError(f"trackers: {absent[0]} is not installed; run pip install {absent[0]} or leave it out")
        self.config, self.method, self.folder = config, method, writable_folder(folder)
        self.accelerator = Accelerator(
            mixed_precision=config.policy.precision, log_with=config.trackers or None, project_dir=self.folder
        )
        self.main, device = self.accelerator.is_main_process, self.accelerator.device
        check_launch(self.accelerator, INFERENCE[config.policy.precision])
        _, self.micro_batch = config.shares(self.accelerator.num_processes)
        self.prompts = load_prompts(config.prompts)
        known = [[prompt.id, prompt.text, prompt.spec] for prompt in self.prompts]
        self.progress = checkpoint.Progress(prompts=hashlib.sha256(json.dumps(known).encode()).hexdigest()[:12])
        self.rewards = build_rewards(config.rewards, device, config.reward_files, config.reward_timeout, config.reward_fps)
        check_prompts(self.rewards, self.prompts, config.prompts)
        # networks that are to lie in shards are cut block by block: no GPU ever holds one whole
        self.policy = make_policy(config.policy, device, networks_on=torch.device("cpu") if asks_for_fsdp() else None)
        settings = config.optimizer
        optimizer = torch.optim.AdamW(
            self.policy.trainable_parameters(),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        if self.policy.experts > 1:  # a backward pass reaches one of them
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.policy.network, self.optimizer = self.accelerator.prepare(self.policy.network, optimizer)
        self.updater = Updater(config, method, self.policy, self.optimizer, self.accelerator)
        self.parameters = self.updater.parameters
        self.value_head = None
        if Needs.VALUE_HEAD in method.needs(config):
            self.value_head = ValueHead.of(self.policy, config, partial(total, self.accelerator))
        self.seconds = {}

    def run(self, on_row: Callable[[dict], None] | None = None, judge: Callable | None = None) -> None:
        """Train from the newest whole checkpoint, if any, to the last iteration; ``on_row`` sees each row of train.csv.

        ``judge`` adds held-out metrics to validation. What stops it leaves a checkpoint of the last iteration's end.
        """
        self.restore()
        self.folder.mkdir(parents=True, exist_ok=True)
        config, progress = self.config, self.progress
        rows = RowLog(self.folder / "train.csv", progress.iteration) if self.main else None
        times = RowLog(self.folder / "timing.csv", progress.iteration, sparse=True) if self.main else None
        validation = Validation(config, self.policy, self.rewards, self.accelerator, self.folder, progress.iteration, judge)
        left = range(progress.iteration, config.iterations)
        ahead = chain((p for i in left for p in self.batch(i).prompts), validation.prompts)
        self.policy.encode_ahead(p.text for p in ahead)
        if config.trackers:
            settings = flat_settings(asdict(config))
            self.accelerator.init_trackers("otca", config={key: str(value) for key, value in settings.items()})
        try:
            with self.updater.averaged():
                validation.run_if_due(progress.iteration)
            while progress.iteration < config.iterations:
                started = time.perf_counter()
                with defer_signals(lambda: self.updater.moved):
                    row = self.step()
                    self.seconds["total"] = time.perf_counter() - started
                    if self.main:
                        rows.append(row)
                        times.append({"iteration": row["iteration"]} | self.seconds)
                    self.updater.moved = False
                if on_row and self.main:
                    on_row(row)
                self.accelerator.log({k: v for k, v in row.items() if k != "iteration"}, step=row["iteration"])
                with self.updater.averaged():
                    better = validation.run_if_due(progress.iteration)
                if better or progress.iteration % config.save_every == 0 or progress.iteration == config.iterations:
                    self._save()
                    self._prune(validation.best)
                self._stop_at_constant_rewards()
            self._prune(validation.best)  # also what an earlier start was killed over
        except (RewardError, TrainingError, KeyboardInterrupt, Terminated) as stop:
            self._save_on_the_way_out(stop)
            raise
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def judge(self, weights: str = "auto") -> bool:
        """Give the policy the weights that are to be judged, once training is over (``eval.weights``); whether the average."""
        averaged = checkpoint.averages(weights, bool(self.updater.average), str(self.folder))
        if averaged:
            refill(self.policy.network, self.parameters, self.updater.average)
        return averaged

    def restore(self) -> None:
        """Take up the latest valid checkpoint, once; damaged newer ones are named and made anew."""
        if self.progress.iteration:
            return
        found: list[Path | None] = [None]
        if self.main:
            found[0], integrity_errors = checkpoint.latest_valid_checkpoint(self.folder)
            for damage in integrity_errors:
                log.warning("%s: going on from %s instead", damage, found[0].name)
        broadcast_object_list(found)
        if found[0] is None:
            return
        now = self.progress.prompts
        self.progress = checkpoint.load_checkpoint(found[0], self.policy, self.optimizer, self._copies())
        if (self.progress.prompts or now) != now:
            said = f"prompts {self.config.prompts} are not those that {self.folder} was trained on so far"
            raise InputError(f"{said}; restore them, or start another run, with policy.weights {found[0]}")
        self.progress.prompts = now
        self.updater.skipped_in_a_row = self.progress.skipped_in_a_row
        if self.accelerator.scaler is not None and self.progress.scaler:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        self.accelerator.wait_for_everyone()
        if self.main:  # later ones are damaged, and made anew
            for path in checkpoint.checkpoints(self.folder)[::-1]:
                if path == found[0]:
                    break
                shutil.rmtree(path)

    def _save(self) -> None:
        progress, scaler = self.progress, self.accelerator.scaler
        progress.skipped_in_a_row = self.updater.skipped_in_a_row
        progress.scaler = dict(scaler.state_dict()) if scaler is not None else {}
        checkpoint.save_checkpoint(self.folder, progress, self.policy, self.optimizer, self._copies(), write=self.main)

    def _copies(self) -> checkpoint.Copies:
        return self.updater.copies() | {"value_head": self.value_head.state if self.value_head else []}

    def _prune(self, best: int | None) -> None:
        if self.main:
            checkpoint.remove_prunable(self.folder, self.config.save_every, self.config.keep_last, best)

    def _save_on_the_way_out(self, stop: BaseException) -> None:
        """Keep the last iteration's end, unless the weights have left it; note on ``stop`` where the same command goes on."""
        if not self.updater.moved and not self.updater.sharded:  # shards are written by all processes together
            try:
                self._save()
            except InputError as error:
                stop.add_note(str(error))
        kept = checkpoint.checkpoints(self.folder)
        stop.add_note(f"the same command goes on from iteration {checkpoint.iteration_of(kept[-1]) if kept else 0}")

    def _stop_at_constant_rewards(self) -> None:
        """Warn of rewards that were the same for every sample of the iteration; raise RewardError once patience is over."""
        for name, count in self.progress.constant_in_a_row.items():
            said = f"reward {name!r} was the same for all samples in {count} iterations in a row"
            if self.config.patience and count >= self.config.patience:
                raise RewardError(f"{said} (patience): it cannot train anything; mend it, leave it out, or raise patience")
            if count and self.main:
                log.warning("iteration %d: %s", self.progress.iteration - 1, said)

    def _row(self, scores: Scores, credit: Credit, update: dict[str, float], costs: dict[str, int]) -> dict[str, float]:
        """The iteration's row of train.csv, over all processes; counts the iteration, its costs, and constant rewards.

        A forward pass of one sample at one step is 1, its backward 2 more; passes of other weights and completions count too.
        """
        (steps, samples), trained = credit.advantage_TB.shape, int((credit.step_weight_TB != 0).sum())
        velocities = steps * samples + trained * self.method.evaluations_per_step(self.config)
        own = {"network_evaluations": velocities * self.policy.forwards_per_velocity}
        own |= {"reward_calls": samples * len(self.rewards)}
        spent = gathered(self.accelerator, {name: own[name] + costs.get(name, 0) for name in own}).sum(0)
        values = {f"reward_{name}": mean for name, mean in zip(scores.names, scores.reward_BK.mean(0).tolist())}
        values |= {f"std_{name}": std for name, std in zip(scores.names, scores.reward_BK.std(0, correction=0).tolist())}
        values = over_processes(self.accelerator, values | credit.diagnostics | update)
        progress, counts = self.progress, self.progress.constant_in_a_row
        progress.network_evaluations += int(spent[0])
        progress.reward_calls += int(spent[1])
        constant = {name: values[f"std_{name}"] <= CONSTANT * abs(values[f"reward_{name}"]) for name in scores.names}
        progress.constant_in_a_row = {name: counts.get(name, 0) + 1 if same else 0 for name, same in constant.items()}
        row = {"iteration": progress.iteration} | values
        row |= {"network_evaluations": progress.network_evaluations, "reward_calls": progress.reward_calls}
        progress.iteration += 1
        return row

    def batch(self, iteration: int) -> Batch:
        """What this process samples in an iteration; prompts come from an endless list, shuffled by the seed alone."""
        config, prompts = self.config, self.config.prompts_per_iteration
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        slots = slots_of(rank, world, prompts, config.optimizer.updates_per_iteration)
        order = prompt_order(len(self.prompts), config.seed, iteration * prompts, prompts)
        chosen = [self.prompts[order[slot]] for slot in slots]
        return make_batch(chosen, slots, config.group_size, (config.seed, iteration), config.sampler.shared_noise)


def collect(
    policy: Policy,
    batch: Batch,
    plan: Plan,
    rewards: list[Reward],
    needs: Needs,
    config: TrainConfig,
    value_head: ValueHead | None = None,
    seconds: dict[str, float] | None = None,
) -> tuple[Trajectory, Scores, dict[str, int]]:
    """All that a method's credit is made of, and what state values cost; ``seconds``, if given, gains the time of each phase.

    ``value_head`` learns from what it values; a method that needs one must be given it.
    """
    seconds = {} if seconds is None else seconds
    background = AsyncScoring(rewards)
    sampled = rollout(policy, batch, plan, needs, seconds, background.add)
    with timed(seconds, "rewards"):
        scores = score_all(rewards, sampled.media_BFCHW, sampled.prompts, background)
    if not needs & (Needs.STATE_REWARDS | Needs.VALUE_HEAD):
        return sampled, scores, {}
    with timed(seconds, "process"):
        if Needs.VALUE_HEAD in needs:
            values_SBK, costs = value_head.values_SBK(sampled, scores.reward_BK), {}
        else:
            values_SBK, costs = process_values(policy, sampled, scores.reward_BK, rewards, config)
    return sampled, replace(scores, state_reward_SBK=values_SBK), costs


@contextmanager
def locked_run(folder: Path, config: TrainConfig, override: bool = False, trainer: Trainer | None = None) -> Iterator[None]:
    """Keep a run's folder, begun with its config, to this command; all its processes enter together, the main one writes."""
    processes = process_state()
    with run_lock(folder) if processes.is_main_process else nullcontext():
        if trainer:
            trainer.restore()  # what cannot be taken up ends the command before the config is written
        if processes.is_main_process:
            reached = checkpoint.checkpoints(folder)
            begin_run(folder, config, override, checkpoint.iteration_of(reached[-1]) if reached else 0)
        processes.wait_for_everyone()
        yield


def train_in(folder: Path, config: TrainConfig, method: Method, override: bool = False) -> None:
    """Train into a run's folder, or go on there, and show how far it is."""
    trainer = Trainer(config, method, folder)
    with (
        locked_run(folder, config, override, trainer),
        tqdm(total=config.iterations, unit="iteration", disable=not trainer.main) as bar,
    ):

        def show(row: dict[str, float]) -> None:
            bar.n = row["iteration"] + 1
            bar.set_postfix_str(" ".join(f"{r.name} {row[f'reward_{r.name}']:.3f}" for r in trainer.rewards))

        trainer.run(show)
