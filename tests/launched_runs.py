"""A command and trainings one after the other in the processes of one launch, since what costs is to load torch.

ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m tests.launched_runs \
    '["--out=…", …]' '[{"folder": …, "settings": {…}, "sharded": false}, …]' PORT

The first list holds the arguments of `otca train`; the port is a free one. Shards lie as accelerate's FSDP2 lays them on GPUs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.fsdp import fully_shard

from otca import cli
from otca.config import TrainConfig
from otca.distributed import is_sharded, process_state, shard_precision
from tests.processes import gloo_workers, leave
from tests.toys import trained

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


def run_command(arguments: list[str], port: str) -> None:
    """`otca train`; a line says whether gloo had workers before it, and how many are left. The processes meet again at a port."""
    process_state()
    before = gloo_workers()
    cli.train(arguments)
    print(f"{before > 0} {gloo_workers()}\n", end="")
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": port}  # the launcher's store knows the first group
    AcceleratorState._reset_state(reset_partial_state=True)


def train(folder: str, settings: dict, sharded: bool) -> None:
    """Train; a line says how many of the trained parameters lie in shards."""
    Accelerator.prepare = prepare_shards if sharded else WHOLE
    trainer = trained(TrainConfig.from_dotted(settings), Path(folder))
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
    """Run the command, train all, then gather one network in bf16."""
    torch.set_num_threads(1)
    command, runs, port = sys.argv[1:]
    run_command(json.loads(command), port)
    for run in json.loads(runs):
        train(**run)
    network = Level()
    fully_shard(network, mp_policy=shard_precision(torch.bfloat16))
    network(torch.tensor(513.5)).backward()
    print(f"gradient: {network.scale.dtype} {network.scale.grad.dtype}\n", end="")
    leave()


if __name__ == "__main__":
    main()
