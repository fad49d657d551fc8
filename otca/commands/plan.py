"""``python -m otca plan``: what a run needs before it is launched."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from otca.commands.train import PRECEDENCE, resolve, run_parser


def parser() -> ArgumentParser:
    """The settings of a run, and the machine that it is to run on."""
    from otca.plan import GPUS, SHARDINGS, UTILISATION

    gpus = ", ".join(f"{name} ({memory} GB, {tflops} TFLOP/s)" for name, (memory, tflops) in GPUS.items())
    out = run_parser("plan", f"What a run needs before it is launched; nothing is downloaded or trained. {PRECEDENCE}")
    out.add_argument("--processes", type=int, default=1, help="processes, one a GPU")
    out.add_argument("--sharding", type=str, default="none", help=f"how weights are spread: {' or '.join(SHARDINGS)}")
    out.add_argument("--gpu", type=str, default="h100", help=f"GPU: {gpus}")
    out.add_argument(
        "--utilisation", type=float, default=UTILISATION, help="share of the GPU's TFLOP/s that is reached (assumed)"
    )
    out.add_argument("--recipes", action="store_true", help="what every recipe at scale needs, with its commands, and stop")
    return out


def run(argv: list[str]) -> None:
    """Print what the run needs, or the recipes."""
    from otca.plan import check_gpu, describe, plan

    if "--recipes" in argv:
        from baselines import find_method
        from otca.recipes import describe_recipes

        print(describe_recipes(find_method), end="")
        return
    given, config, method = resolve(parser(), argv)
    check_gpu(given.gpu, given.utilisation)
    made = plan(config, method, given.processes, given.sharding)
    print(describe(made, given.gpu, given.utilisation, given.processes), end="")
