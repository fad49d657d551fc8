"""Runs under DeepSpeed, one after another, launched by accelerate with a config of otca/launch: as on GPUs, but on gloo.

accelerate launch --config_file otca/launch/eight_gpus_deepspeed.yaml --num_processes 2 -m tests.deepspeed_run \
    '{"FOLDER": {"policy.path": …}, …}'
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from pathlib import Path

import torch
from accelerate import PartialState

from tests.processes import leave


def on_gloo() -> None:
    """Tell accelerate, which takes DeepSpeed for a matter of GPUs, of the processes on a CPU; DeepSpeed is to compile nothing."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    PartialState(backend="gloo")


def trained(folder: Path, settings: dict) -> tuple[weakref.ref, str]:
    """Train; the engine that did it, and how the optimizer's moments lay."""
    from baselines import find_method
    from otca.config import TrainConfig
    from otca.trainer import Trainer

    trainer = Trainer(TrainConfig.from_dotted(settings), find_method(settings["method"]), folder)
    trainer.run()
    engine, whole = trainer.optimizer.engine, sum(p.numel() for p in trainer.parameters)
    shard = sum(flat.numel() for flat in engine.optimizer.single_partition_of_fp32_groups)
    stage = engine.zero_optimization_stage()
    return weakref.ref(engine), f"ZeRO-{stage}: moments of {shard} of {whole} weights on the first process"


def main() -> None:
    """Train each, and say of each how its moments lay; the last line is how many engines are still in memory."""
    torch.set_num_threads(1)
    on_gloo()
    engines, said = zip(*(trained(Path(folder), settings) for folder, settings in json.loads(sys.argv[1]).items()))
    gc.collect()
    if PartialState().is_main_process:
        print(*said, f"{sum(engine() is not None for engine in engines)} engines left", sep="\n")
    leave()


if __name__ == "__main__":
    main()
