"""Ablations over the parts of the credit, family by family, on the embedded image task.

    python -m reproduce.ablations --family tcd            train what is missing, write runs/results/ablations/tcd/quick/
    python -m reproduce.ablations --family tcd --render   rebuild results/ablations/tcd/quick/ from published rows
    python -m reproduce.ablations --tier cpu              every family

Methods share prompts, initial noise and seeds, and runs are shared among families and with Table 1.
"""

from __future__ import annotations

import sys

from eval.tables import EQUAL_CALLS, EQUAL_EVALUATIONS
from otca.signals import run_command
from reproduce.table import EMBEDDED, Table, parser_of, run_tables
from reproduce.variants import MATCHED, SAMPLED, STRESSED

BASIS = ("base", "static_multi_reward")
RIVALS = "flow_grpo dance_grpo mix_grpo tempflow_grpo flow_grpo_fast grpo_guard gdpo coca dense_grpo diffusion_nft"


def _family(name: str, title: str, methods: str, *notes: str, budget: str = EQUAL_CALLS) -> Table:
    return Table(
        name=f"ablations/{name}",
        title=f"Ablation: {title}",
        modalities=("image",),
        methods=(*BASIS, *(m for m in dict.fromkeys(methods.split()) if m not in BASIS)),
        metrics=("accuracy", "alignment", "quality", "aesthetic", "clip_score", "kernel_distance", "diversity"),
        notes=(*notes, "Images alone.", EMBEDDED),
        budget=budget,
        wide=True,
    )


FAMILIES = {
    "tcd": _family(
        "tcd",
        "readings and controls of TCD",
        "otca_tcd otca_tcd@x0_hat otca_tcd@permuted otca_tcd@averaged otca_tcd@epsilon.1 otca_tcd@sum tempflow_grpo coca",
        "otca_tcd: progress of x_t, ε = 1e-3, weights that average 1. @permuted: each sample's weights in a random order of its "
        "steps; @averaged: their mean over samples, a mere schedule; @sum: weights that sum to 1.",
    ),
    "moca": _family(
        "moca",
        "credit over objectives",
        "uniform_grpo gdpo otca_moca@rho0 otca_moca otca_moca@rho1 moca_step "
        + " ".join(m + ("-rms" if "@" in m else "@rms") for m in MATCHED),
        "uniform_grpo sums raw rewards; static_multi_reward sums z-scores; otca_moca has ρ = 0.5; @rho1 is static weighting up "
        "to rounding; moca_step is min-norm at every step.",
        "rms: the advantage rescaled to the root mean square of static_multi_reward's, so that only its direction differs.",
    ),
    "process": _family(
        "process",
        "process credit",
        "process_credit process_credit@clean process_credit@early3 process_credit@baseline process_credit@truth4 dense_grpo otca",
        "process_credit: increments of a three-step ODE completion's rewards (@clean: of the clean prediction's; @early3: of "
        "three early states; @baseline: λ = 1); dense_grpo: of the whole completion's; @truth4: of 4 continuations' mean.",
    ),
    "sampling": _family(
        "sampling",
        "steps, sampler, group size, step scale",
        " ".join(
            ["otca", *(f"{m}@{v}" for v in ("T5", "T10", "dance_sde", "cps", "G4", "G32", "exact", "equal") for m in SAMPLED)]
        ),
        "T: denoising steps; G: samples of a group at equal samples an iteration; exact, equal: loss.step_scale.",
    ),
    "corrupted": _family(
        "corrupted",
        "one corrupted reward",
        " ".join([*STRESSED, *(f"{m}@flipped" for m in STRESSED)]),
        "flipped: alignment turned round for a third of the images, in training alone.",
    ),
    "budget": _family(
        "budget",
        "trained steps a sample",
        "flow_grpo_fast otca otca@3steps otca@1steps process_credit process_credit@3steps process_credit@1steps",
        "@3steps, @1steps: so many trained steps of each sample, drawn by the size of their credit and weighted to be unbiased.",
    ),
    "rivals": _family(
        "rivals",
        "rival methods",
        f"uniform_grpo {RIVALS} otca process_credit",
        "Each rival keeps what its file in baselines/ sets (sampler, step selection, clipping, KL); all else is the tier's.",
    ),
    "rivals-equal": _family(
        "rivals-equal",
        "rival methods at equal network evaluations",
        "uniform_grpo " + " ".join(f"{m}@equal" for m in RIVALS.split()) + " otca process_credit@equal",
        "@equal: as many iterations as the evaluations of static_multi_reward pay for.",
        budget=EQUAL_EVALUATIONS,
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Parse, run, print the families asked for; exit code 2 with one line where the input cannot be used."""
    parser = parser_of("ablations", __doc__)
    parser.add_argument("--family", choices=(*FAMILIES, "all"), default="all", help="which family (default: all)")
    args = parser.parse_args(argv)
    chosen = list(FAMILIES.values()) if args.family == "all" else [FAMILIES[args.family]]
    return run_command("ablations", lambda: run_tables(chosen, args))


if __name__ == "__main__":
    sys.exit(main())
