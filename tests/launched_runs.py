"""Trainings one after the other in the processes of one launch; shards as accelerate's FSDP2 lays them on GPUs, on gloo.

ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m tests.launched_runs '[{"folder": …, "settings": {…}, "sharded": false}]'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.fsdp import fully_shard

from baselines import find_method
from otca.config import TrainConfig
from otca.sharding import is_sharded, shard_precision
from otca.trainer import Trainer
from tests.processes import leave

WHOLE = Accelerator.prepare


def prepare_shards(accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple:
    """`fully_shard` in the place of accelerate's `prepare`, which refuses it without a GPU."""
    blocks = {name for part in network.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    for part in list(network.modules()):
        if type(part).__name__ in blocks:
            fully_shard(part)
    fully_shard(network)
    kept = {key: value for key, value in optimizer.defaults.items() if key in ("lr", "betas", "weight_decay", "fused")}
    return network, torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], **kept)


def train(folder: str, settings: dict, sharded: bool) -> None:
    """Train; a line says how many of the trained parameters lie in shards."""
    Accelerator.prepare = prepare_shards if sharded else WHOLE
    trainer = Trainer(TrainConfig.from_dotted(settings), find_method(settings["method"]), Path(folder))
    trainer.run()
    if trainer.accelerator.is_main_process:
        print(f"{Path(folder).name}: {sum(is_sharded([p]) for p in trainer.parameters)} of {len(trainer.parameters)} sharded")
    trainer.accelerator.wait_for_everyone()
    AcceleratorState._reset_state()


class Level(nn.Module):
    """Says in which precision it computes."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 1 + 2**-12]))

    def forward(self, timestep):
        """Scale a noise level."""
        print(f"level: {timestep.item()} {timestep.dtype} {self.scale.dtype} {self.scale.tolist()}\n", end="")
        return (self.scale * timestep).sum()


def main() -> None:
    """Train all, then gather one network in bf16."""
    torch.set_num_threads(1)
    for run in json.loads(sys.argv[1]):
        train(**run)
    network = Level()
    fully_shard(network, mp_policy=shard_precision(torch.bfloat16))
    network(torch.tensor(513.5)).backward()
    print(f"gradient: {network.scale.dtype} {network.scale.grad.dtype}\n", end="")
    leave()


if __name__ == "__main__":
    main()
