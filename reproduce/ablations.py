"""Ablations over the parts of the credit, family by family, on the embedded image task.

    python -m reproduce.ablations --family tcd            train what is missing, write runs/results/ablations/tcd/quick/
    python -m reproduce.ablations --family tcd --render   rebuild results/ablations/tcd/quick/ from published rows
    python -m reproduce.ablations --tier cpu              every family

Methods share prompts, initial noise and seeds, and runs are shared among families and with Table 1.
"""

from __future__ import annotations

import argparse
import sys

from eval.tables import EQUAL_CALLS, EQUAL_EVALUATIONS
from reproduce.run import run_script
from reproduce.table import EMBEDDED, Table, parser_of, run_tables
from reproduce.variants import SAMPLED, SETTINGS, STRESSED

METRICS = ("accuracy", "alignment", "quality", "aesthetic", "clip_score", "kernel_distance", "diversity")
RIVALS = "flow_grpo dance_grpo mix_grpo tempflow_grpo flow_grpo_fast grpo_guard gdpo coca dense_grpo diffusion_nft"
NAMED = (
    (
        *("tcd", "readings and controls of TCD", "otca_tcd otca_tcd@x0_hat otca_tcd@permuted otca_tcd@averaged"),
        "otca_tcd: progress of x_t, ε = 1e-3, weights that average 1. @permuted: each sample's weights in a random order of its "
        "steps; @averaged: their mean over samples, a mere schedule.",
    ),
    (
        *("moca", "credit over objectives", "otca_moca@rho0 otca_moca otca_moca@rho1 moca_step"),
        "otca_moca has ρ = 0.5; @rho1 is static weighting up to rounding; moca_step is min-norm at every step.",
    ),
    (
        *("process", "process credit", "process_credit process_credit@clean process_credit@early3 process_credit@baseline"),
        "process_credit: increments of a three-step ODE completion's rewards (@clean: of the clean prediction's; @early3: of "
        "three early states; @baseline: λ = 1).",
    ),
    (
        *("sampling", "steps, group size, step scale", " ".join(["otca", *(f"{m}@{v}" for v in SETTINGS for m in SAMPLED)])),
        "T: denoising steps; G: samples of a group at equal samples an iteration; exact, equal: loss.step_scale.",
    ),
    (
        *("corrupted", "one corrupted reward", " ".join([*STRESSED, *(f"{m}@flipped" for m in STRESSED)])),
        "flipped: alignment turned round for a third of the images, in training alone.",
    ),
    (
        *("budget", "trained steps a sample", "otca@3steps otca@1steps process_credit@3steps process_credit@1steps"),
        "@3steps, @1steps: so many trained steps of each sample, drawn by the size of their credit and weighted to be unbiased.",
    ),
    (
        *("equal", "process credit at equal network evaluations", "otca process_credit@equal process_credit@early3-equal"),
        "@equal: as many iterations as the evaluations of static_multi_reward pay for.",
    ),
    (
        *("rivals", "rival methods", f"uniform_grpo {RIVALS} otca process_credit"),
        "Each rival keeps what its file in baselines/ sets (sampler, step selection, clipping, KL); all else is the tier's.",
    ),
)
"""Name, title, rows beside base and static weighting, note."""
FAMILIES = {
    name: Table(
        name=f"ablations/{name}",
        title=f"Ablation: {title}",
        modalities=("image",),
        methods=tuple(dict.fromkeys(("base", "static_multi_reward", *rows.split()))),
        metrics=METRICS,
        notes=(note, "Images alone.", EMBEDDED),
        budget=EQUAL_EVALUATIONS if name == "equal" else EQUAL_CALLS,
        wide=name != "rivals",
    )
    for name, title, rows, note in NAMED
}


def main(argv: list[str] | None = None) -> int:
    """Make and print the families asked for."""
    parser = parser_of("ablations", __doc__)
    parser.add_argument("--family", choices=(*FAMILIES, "all"), default="all", help="which family (default: all)")
    return run_script(parser, _make, argv)


def _make(args: argparse.Namespace) -> int:
    chosen = list(FAMILIES.values()) if args.family == "all" else [FAMILIES[args.family]]
    return run_tables("ablations", chosen, args)


if __name__ == "__main__":
    sys.exit(main())
