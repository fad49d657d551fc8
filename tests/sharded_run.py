"""A run whose weights lie in shards, launched by torchrun: what accelerate's FSDP2 does on GPUs, on gloo.

ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m tests.sharded_run FOLDER '{"policy.path": …}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard

from baselines import find_method
from otca.config import TrainConfig
from otca.sharding import is_sharded
from otca.trainer import Trainer
from tests.processes import leave


def prepare(accelerator: Accelerator, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple:
    """`fully_shard` in the place of accelerate's `prepare`, which refuses it without a GPU."""
    blocks = {name for part in network.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    for part in list(network.modules()):
        if type(part).__name__ in blocks:
            fully_shard(part)
    fully_shard(network)
    kept = {key: value for key, value in optimizer.defaults.items() if key in ("lr", "betas", "weight_decay", "fused")}
    return network, torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], **kept)


def main() -> None:
    """Train; the last line says how many of the trained parameters lie in shards."""
    torch.set_num_threads(1)
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    Accelerator.prepare = prepare
    trainer = Trainer(TrainConfig.from_dotted(settings), find_method(settings["method"]), folder)
    trainer.run()
    if trainer.accelerator.is_main_process:
        print(f"{sum(is_sharded([p]) for p in trainer.parameters)} of {len(trainer.parameters)} sharded")
    leave()


if __name__ == "__main__":
    main()
