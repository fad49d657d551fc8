"""What each recipe at scale needs, by `python -m otca plan`: results/plans/recipes.csv, and the README's table.

python -m reproduce.recipes            plan every recipe (shapes alone, a few minutes), write the rows and the table
python -m reproduce.recipes --render   rebuild the table from the published rows alone
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from baselines import find_method
from eval.evaluate import write_rows
from otca import presets
from otca.plan import GPUS, UTILISATION, plan
from otca.rewards.base import find_reward
from otca.rewards.published import PublishedReward
from reproduce.readme import update_readme

ROWS = Path("results/plans/recipes.csv")


@dataclass(frozen=True)
class Recipe:
    """A run that users start from: preset, method, launcher's config and the machine it is made for."""

    title: str
    preset: str
    method: str
    launch: str
    processes: int
    sharding: str
    gpu: str

    @property
    def command(self) -> str:
        """How it is launched (on several machines: on each, with its rank and the first one's address)."""
        config = f"otca/launch/{self.launch}.yaml"
        return f"accelerate launch --config_file {config} -m otca train --preset {self.preset} --method {self.method}"

    @property
    def preparation(self) -> list[str]:
        """What fetches its prompts and rewards before; the model itself is downloaded by the run."""
        config = presets.train_config(self.preset, self.method, find_method(self.method).settings, 0)
        validated = [config.validation.source] if config.validation.every else []
        lists = [f"python -m otca prompts --list {Path(source).stem}" for source in (config.prompts, *validated)]
        rewards = {name: find_reward(name) for name in config.rewards}
        fetched = {r.card.place: name for name, r in rewards.items() if issubclass(r, PublishedReward) and r.card.files}
        return [*lists, *(f"python -m otca rewards --fetch {name}" for name in fetched.values())]


RECIPES = (
    Recipe("SD3.5 medium, LoRA, one 24 GB GPU", "image/sd35m-lora", "otca", "one_gpu", 1, "none", "rtx4090"),
    Recipe("FLUX.1-dev, LoRA, one 80 GB GPU", "image/flux-lora", "otca", "one_gpu", 1, "none", "h100"),
    Recipe("FLUX.1-dev, full, 8 GPUs (the paper's)", "image/paper", "otca", "eight_gpus_fsdp2", 8, "fsdp2", "h100"),
    Recipe("Wan2.1-T2V-1.3B, LoRA, one 80 GB GPU", "video/wan21-1.3b-lora", "otca", "one_gpu", 1, "none", "h100"),
    Recipe("Wan2.2-T2V-A14B, full, 32 GPUs (the paper's)", "video/paper", "otca", "four_nodes_fsdp2", 32, "fsdp2", "h100"),
    Recipe("Validation: Flow-GRPO, SD3.5 medium, OCR", "validate/sd35m_flow_grpo", "flow_grpo", "eight_gpus", 8, "none", "h100"),
)


def planned(recipe: Recipe) -> dict[str, object]:
    """One row: the recipe's plan in GiB, and what it costs."""
    method = find_method(recipe.method)
    config = presets.train_config(recipe.preset, recipe.method, method.settings, 0)
    made = plan(config, method, recipe.processes, recipe.sharding)
    gigabytes, tflops = GPUS[recipe.gpu]
    hours = made.hours(tflops, UTILISATION, recipe.processes)
    return {
        "recipe": recipe.title,
        "gpu": recipe.gpu,
        "gpu_gb": gigabytes,
        "processes": recipe.processes,
        "trained_parameters": made.trained,
        "encoding_peak_gib": made.encoding_peak / 2**30,
        "sampling_peak_gib": made.sampling_peak / 2**30,
        "update_peak_gib": made.update_peak / 2**30,
        "host_gib": made.host / 2**30,
        "fits": made.fits(gigabytes),
        "iterations": made.iterations,
        "network_evaluations": made.evaluations,
        "pflop_an_iteration": sum(made.flops.values()) / 1e15,
        "hours": hours,
        "gpu_hours": hours * recipe.processes,
        "without": " ".join(made.unknown_rewards),
    }


def render() -> str:
    """The table from the published rows; the README's block is replaced by it."""
    rows = pd.read_csv(ROWS, keep_default_na=False)
    lines = [
        "| Recipe | GiB a GPU: encoding / sampling / update | Fits | Host GiB a process | Iterations | Network evaluations "
        "| GPU hours |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows.itertuples():
        fits = f"{'yes' if row.fits else 'no'} ({row.gpu_gb} GB)"
        memory = f"{row.encoding_peak_gib:.1f} / {row.sampling_peak_gib:.1f} / {row.update_peak_gib:.1f}"
        lines.append(
            f"| {row.recipe} | {memory} | {fits} | {row.host_gib:.0f} | {row.iterations:,} | {row.network_evaluations:,} "
            f"| {row.gpu_hours:,.0f} |"
        )
    said = (
        f"Planned, not measured: {UTILISATION:.0%} of {_peaks(rows)} bf16 TFLOP/s; hours without rewards and text encoders. "
        "Host: each process reads all weights before they are moved or cut."
    )
    lines += ["", said]
    before = list(dict.fromkeys(line for recipe in RECIPES for line in recipe.preparation))
    lines += ["", "```bash", "# once, with network: prompts and rewards (gated models: accept their licence on the hub, log in)"]
    lines += [*before, *(f"# {recipe.title}\n{recipe.command}" for recipe in RECIPES), "```"]
    text = "\n".join(lines) + "\n"
    update_readme("recipes", text)
    return text


def _peaks(rows: pd.DataFrame) -> str:
    return " and ".join(f"{GPUS[gpu][1]} ({gpu})" for gpu in rows["gpu"].unique())


def main(argv: list[str] | None = None) -> int:
    """Parse, plan, write, print."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.recipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--render", action="store_true", help="only rebuild the table from the published rows")
    args = parser.parse_args(argv)
    if not args.render:
        write_rows(pd.DataFrame([planned(recipe) for recipe in RECIPES]), ROWS)
    print(render(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
