"""Ablations over the parts of the credit, family by family, on the embedded image task.

    python -m reproduce.ablations --family temporal            train what is missing, write runs/ablations/temporal/quick/
    python -m reproduce.ablations --family temporal --render   rebuild results/ablations/temporal/quick/ from published rows
    python -m reproduce.ablations --tier cpu                   every family of the tier: `targets` is of study, the others are not

Arms share prompts, initial noise and seeds, and are shared among families and with Table 1.
"""

from __future__ import annotations

import argparse
import sys

from eval.tables import EQUAL_CALLS, EQUAL_EVALUATIONS
from otca.signals import run_command
from reproduce.table import Table, parser_of, run_commands
from reproduce.variants import CORRUPTIONS, SAMPLED, STRESSED

BASIS = ("base", "static_multi_reward")
METRICS = ("alignment", "quality", "aesthetic", "accuracy", "clip_score", "kernel_distance")
NOTES = (
    "Images alone: on videos these arms were not run, but for those of Tables 2 to 4.",
    "Embedded task: the numbers are this repository's own, not the paper's.",
)


def _family(name: str, title: str, methods: str, *notes: str, budget: str = EQUAL_CALLS, curves: str = "", **settings) -> Table:
    return Table(
        name=f"ablations/{name}",
        title=f"Ablation: {title}",
        media=("image",),
        methods=(*BASIS, *methods.split()),
        primary="accuracy",
        metrics=METRICS,
        notes=(*notes, *NOTES),
        budget=budget,
        curves=tuple(curves.split()),
        wide=True,
        **settings,
    )


FAMILIES = {
    "temporal": _family(
        "temporal",
        "credit over steps",
        "otca_tcd otca_tcd@permuted otca_tcd@averaged tempflow_grpo coca process_credit process_credit@clean dense_grpo "
        "process_credit@truth4",
        "static_multi_reward weighs every step alike. @permuted: each sample's TCD weights in a random order of its steps; "
        "@averaged: their mean over samples, a mere schedule.",
        "process_credit: increments of a three-step ODE completion's rewards (@clean: of the clean prediction's); dense_grpo: "
        "of the whole completion's; @truth4: of the mean over 4 stochastic continuations of each state, a reference for what "
        "knowing the truth is worth (its cost is counted).",
    ),
    "objective": _family(
        "objective",
        "credit over objectives",
        """uniform_grpo gdpo otca_moca@rho0 otca_moca@rho0.1 otca_moca@rho0.25 otca_moca otca_moca@rho1 moca_step process_credit
        uniform_grpo@rms gdpo@rms otca_moca@rho0-rms otca_moca@rho0.1-rms otca_moca@rho0.25-rms otca_moca@rms
        moca_step@rms process_credit@rms""",
        "uniform_grpo sums raw rewards; static_multi_reward sums z-scores; otca_moca has ρ = 0.5; @rho1 is static weighting up "
        "to rounding.",
        "rms: the advantage rescaled to the root mean square of static_multi_reward's, so that arms differ in direction only; "
        "static_multi_reward and @rho1 have it already.",
    ),
    "tcd": _family(
        "tcd",
        "readings of TCD",
        "otca_tcd otca_tcd@x0_hat otca_tcd@epsilon.01 otca_tcd@epsilon.1 otca_tcd@sum",
        "otca_tcd: progress of x_t, ε = 1e-3, weights that average 1. @sum: weights that sum to 1, a T′ times smaller advantage.",
    ),
    "sampling": _family(
        "sampling",
        "steps, sampler and group size",
        " ".join(["otca", *(f"{m}@{v}" for v in ["T5", "T10", "T20", "dance_sde", "cps", "G4", "G8"] for m in SAMPLED)]),
        "static_multi_reward and otca: 6 steps of flow_sde, groups of 16. G4 and G8 keep 128 samples an iteration.",
    ),
    "stress": _family(
        "stress",
        "one corrupted reward",
        " ".join([*(m for m in STRESSED if m not in BASIS), *(f"{m}@{kind}" for kind in CORRUPTIONS for m in STRESSED)]),
        "noise: aesthetic replaced by noise; flipped: alignment turned round for a third of the images; scaled: aesthetic times "
        "100; constant: quality divided by 1000. Evaluation uses the honest rewards. Noise and flips are drawn for every image "
        "that is scored, so for process credit for every completion of a state.",
    ),
    "rivals": _family(
        "rivals",
        "rival methods",
        """uniform_grpo flow_grpo dance_grpo mix_grpo tempflow_grpo flow_grpo_fast grpo_guard gdpo coca dense_grpo diffusion_nft
        otca process_credit process_credit@clean""",
        "Each rival keeps what its file in baselines/ sets (sampler, step selection, clipping, KL); all else is the tier's.",
    ),
    "rivals-equal": _family(
        "rivals-equal",
        "rival methods at equal network evaluations",
        """uniform_grpo flow_grpo@equal dance_grpo@equal mix_grpo@equal tempflow_grpo flow_grpo_fast@equal grpo_guard gdpo coca
        dense_grpo@equal diffusion_nft@equal otca otca@3steps-equal process_credit@equal process_credit@clean
        process_credit@3steps-equal""",
        "@equal: as many iterations as the evaluations of static_multi_reward pay for; the others cost the same an iteration.",
        budget=EQUAL_EVALUATIONS,
        versus=("process_credit@equal",),
    ),
    "targets": _family(
        "targets",
        "does better credit train better?",
        """uniform_grpo otca_tcd otca_moca otca process_credit@equal process_credit@baseline-equal otca_moca@equal40
        process_credit@baseline-equal40""",
        "@equal: as many iterations as the evaluations of static_multi_reward pay for; @equal40: 40 % of that.",
        "process_credit: gains of one step, λ = 0.3, sized by their RMS over all steps; @baseline: the reward less the state's "
        "value (λ = 1, an unbiased gradient whatever the value), of RMS 1 at every step.",
        budget=EQUAL_EVALUATIONS,
    ),
    "budget": _family(
        "budget",
        "trained steps a sample",
        """uniform_grpo flow_grpo_fast otca otca@3steps otca@1steps otca_tcd otca_tcd@3steps otca_tcd@1steps
        process_credit process_credit@3steps process_credit@1steps""",
        "@3steps, @1steps: so many of the 5 trained steps of each sample (about a half, about a quarter), drawn by the size of "
        "their credit and weighted to be unbiased; equal iterations, fewer network evaluations.",
        curves="uniform_grpo flow_grpo_fast otca otca@3steps otca@1steps "
        "process_credit process_credit@3steps process_credit@1steps",
    ),
}


def families(tier: str) -> list[Table]:
    """The families of a tier: at `study`, whose runs are longer, it is ``targets``; at the others all the rest."""
    return [family for name, family in FAMILIES.items() if (name == "targets") == (tier == "study")]


def main(argv: list[str] | None = None) -> int:
    """Parse, run, print the families asked for; exit code 2 with one line where the input cannot be used."""
    parser = parser_of("ablations", __doc__)
    parser.add_argument("--family", choices=(*FAMILIES, "all"), default="all", help="which family (default: all of the tier)")
    args: argparse.Namespace = parser.parse_args(argv)
    chosen = families(args.tier) if args.family == "all" else [FAMILIES[args.family]]
    return run_command("ablations", lambda: run_commands(chosen, args))


if __name__ == "__main__":
    sys.exit(main())
