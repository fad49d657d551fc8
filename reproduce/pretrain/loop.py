"""A resumable, seeded training loop for the small models: step n draws its data from (seed, n) alone."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


def train(
    name: str,
    modules: dict[str, torch.nn.Module],
    loss_at: Callable[[int, np.random.Generator, torch.Generator], torch.Tensor],
    steps: int,
    learning_rate: float,
    folder: Path,
    seed: int = 0,
    weight_decay: float = 0.01,
    ema_decay: float = 0.0,
    warmup: int = 100,
    decay_from: int = 0,
    save_every: int = 250,
) -> dict[str, torch.nn.Module]:
    """Minimise ``loss_at(step, numpy_rng, torch_generator)`` with AdamW; returns ``modules``, in eval mode.

    The rate warms up linearly and, from step ``decay_from`` on, falls to zero along a cosine.
    State goes to ``folder/<name>.pt`` every ``save_every`` steps (written aside, then renamed); the same call resumes
    from it. With ``ema_decay`` > 0 the modules end with the averaged weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    net = torch.nn.ModuleDict(modules)
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99))
    average = [p.detach().clone() for p in parameters] if ema_decay else []
    done, elapsed, average_loss = 0, 0.0, float("nan")
    if path.exists():
        state = torch.load(path, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        average, done, elapsed = state["average"], state["done"], state["elapsed"]

    net.train()
    for step in range(done, steps):
        started = time.perf_counter()
        decayed = max(0, step - decay_from) / (steps - decay_from)
        scale = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * decayed))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * scale
        loss = loss_at(step, np.random.default_rng([seed, step]), torch.Generator().manual_seed(seed * 10**7 + step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if average:
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(ema_decay, (step + 1) / (step + 10)))
        value = loss.item()
        average_loss = value if math.isnan(average_loss) else 0.98 * average_loss + 0.02 * value
        elapsed += time.perf_counter() - started
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            aside = path.with_suffix(".tmp")
            torch.save(state | {"done": step + 1, "elapsed": elapsed}, aside)
            os.replace(aside, path)
            left = elapsed / (step + 1) * (steps - step - 1)
            print(f"{name}: step {step + 1}/{steps} loss {average_loss:.5f} {elapsed:.0f} s, {left:.0f} s left", flush=True)
    if not math.isfinite(average_loss) and done < steps:
        sys.exit(f"{name}: the loss is {average_loss} after {steps} steps; lower the learning rate")
    if average:
        with torch.no_grad():
            for p, mean in zip(parameters, average):
                p.copy_(mean)
    net.eval()
    return modules
