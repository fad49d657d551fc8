"""All published results as one page that works from disk: ``results/index.html``, by jinja2 and itables, everything escaped."""

from __future__ import annotations

import base64
from importlib.resources import files
from pathlib import Path

import itables
import jinja2
import pandas as pd
from itables.javascript import generate_init_offline_itables_html

from eval.plots import COLORS
from eval.store import FILES, Store, verdicts
from eval.tables import metric_of
from otca.files import write_atomic

TYPES = {".png": "image/png", ".mp4": "video/mp4"}
PAGE, FIGURES = (
    "index.html",
    ("curves", "curves-network_evaluations", "curves-seconds", "trade-offs", "credit", "dots", "profile"),
)
"""The page, and the figures of a table's folder that it shows, by the start of their names."""
SHOWN = {
    "n_seeds": "seeds",
    "ci_low": "low",
    "ci_high": "high",
    "diff_low": "diff low",
    "diff_high": "diff high",
    "p_holm": "p (Holm)",
}
"""Heads of columns of table.csv where they are not its own names."""


def write_page(results: Path) -> Path:
    """Write the page of all tables and stores below ``results``; returns its path."""
    stores = [Store(results, *path.parent.parts[-2:]) for path in sorted(results.glob(f"*/*/{FILES['runs']}"))]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(files("eval").joinpath("page.html").read_text(encoding="utf-8")).render(
        script=generate_init_offline_itables_html(itables.options.dt_bundle),
        tables=[_table(path, results) for path in sorted(results.rglob("*/table.csv"))],
        studies=[_study(path, results) for path in _studies(results)],
        stores=[_runs(store) for store in stores],
        galleries=[_gallery(store) for store in stores if (store.folder / "gallery" / "prompts.csv").is_file()],
    )
    write_atomic(results / PAGE, text)
    return results / PAGE


def _interactive(frame: pd.DataFrame, name: str, rows: int = 25) -> str:
    """A frame as a table to sort, filter and copy; its cells are text, never markup."""
    for column in frame.select_dtypes("number"):
        frame[column] = frame[column].map(lambda value: float(f"{value:.4g}") if abs(value) < 1000 else float(f"{value:.0f}"))
    return itables.to_html_datatable(
        frame,
        connected=False,
        table_id=f"table-{name.replace('/', '-')}",
        column_filters="header",
        allow_html=False,
        showIndex=False,
        maxBytes=0,
        pageLength=rows,
        order=[],
        buttons=["copyHtml5", "csvHtml5", "colvis"],
        classes="display compact",
        show_df_type=False,
    )


def _table(path: Path, results: Path) -> dict:
    """One table.csv: the columns that say something, and its figures as links."""
    name = path.parent.relative_to(results).as_posix()
    frame = pd.read_csv(path)
    facts = {column: frame[column].iloc[0] for column in ("baseline", "budget")}
    alone = [c for c in frame if c in facts or frame[c].isna().all() or (c == "modality" and frame[c].nunique() == 1)]
    frame["metric"] = [metric_of(metric).label for metric in frame["metric"]]
    figures = [file for start in FIGURES for file in sorted(path.parent.glob(f"{start}*.png"))]
    figures = list(dict.fromkeys(file.relative_to(results).as_posix() for file in figures))
    shown = _interactive(frame.drop(columns=alone).rename(columns=SHOWN), name)
    return {
        "name": name,
        "facts": facts,
        "html": shown,
        "figures": figures,
        "files": [f"{name}/table.{e}" for e in ("csv", "md", "tex")],
    }


def _studies(results: Path) -> list[Path]:
    """Small CSV files that are neither tables nor stores."""
    known = {"table.csv", "prompts.csv", *FILES.values()}
    return [path for path in sorted(results.rglob("*.csv")) if path.name not in known and path.stat().st_size < 2**18]


def _study(path: Path, results: Path) -> dict:
    name = path.relative_to(results).as_posix()
    pictures = [file.relative_to(results).as_posix() for file in sorted(path.parent.glob("*.png"))]
    return {"name": name, "html": _interactive(pd.read_csv(path), name.removesuffix(".csv")), "figures": pictures}


def _runs(store: Store) -> dict:
    """Every seed's metrics and budget."""
    values = store.metrics.pivot(index=["method", "seed"], columns="metric", values="value")
    runs = store.runs.set_index(["method", "seed"])[["network_evaluations", "reward_calls", "train_seconds", "commit", "hash"]]
    name = f"{store.modality}/{store.tier}"
    task = ", ".join(sorted(set(store.runs["task"].dropna())))
    return {
        "name": name,
        "task": task,
        "html": _interactive(values.join(runs).reset_index(), f"runs/{name}"),
        "files": FILES.values(),
    }


def _gallery(store: Store) -> dict:
    """Strips of the same prompts and noise, a method beside the other; embedded."""
    folder = store.folder / "gallery"
    prompts = pd.read_csv(folder / "prompts.csv", dtype=str, keep_default_na=False)
    strips = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in TYPES}
    order = sorted(strips, key=lambda method: (list(COLORS).index(method) if method in COLORS else len(COLORS), method))
    right = verdicts(store, order, list(prompts["prompt_id"]))
    shown = []
    for method in order:
        content = base64.b64encode(strips[method].read_bytes()).decode("ascii")
        source = f"data:{TYPES[strips[method].suffix]};base64,{content}"
        shown.append({"method": method, "source": source, "plays": strips[method].suffix == ".mp4", "right": right[method]})
    return {"name": f"{store.modality}/{store.tier}", "prompts": list(prompts["text"]), "strips": shown}
