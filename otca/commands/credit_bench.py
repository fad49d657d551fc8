"""``python -m otca credit-bench RULE.py``: how well a rule of one's own credits steps, against the truth set."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from otca.parser import make_parser, parse

FOLDER = Path("results/credit_fidelity")


def parser() -> ArgumentParser:
    """The rule, and the truth set that it is scored against."""
    said = "Score a function credit(latents_SBD, reward_BK, group_B) of a Python file, which is run, against the true credit."
    out = make_parser("credit-bench", said)
    out.add_argument("rule", type=str, help="Python file with the function")
    out.add_argument("--modality", type=str, default="image", help="whose truth set: image or video")
    out.add_argument("--truth", type=str, default="", help=f"truth set (default: {FOLDER}/truth-MODALITY.safetensors)")
    out.add_argument("--out", type=str, default="", help="CSV for the scores with their intervals")
    return out


def run(argv: list[str]) -> None:
    """Print one line an objective."""
    from eval.evaluate import write_rows
    from eval.truth_set import read_rule, score

    given = parse(parser(), argv)
    rows = score(read_rule(Path(given.rule)), Path(given.truth or FOLDER / f"truth-{given.modality}.safetensors"))
    if given.out:
        write_rows(rows, Path(given.out))
    shown = [name for name in rows if not name.endswith(("_low", "_high"))]
    print(rows[shown].to_string(index=False, float_format="%.3f"))
    for row in rows.to_dict("records"):
        bounds = f"95 % CI {row['pooled_low']:.3f} to {row['pooled_high']:.3f}"
        print(f"{row['objective']}: pooled correlation {row['pooled']:.3f}, {bounds}")
