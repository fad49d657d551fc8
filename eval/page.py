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
from eval.store import FILES, KEY, Store, verdicts
from eval.tables import metric_of
from otca.files import write_atomic

TYPES = {".png": "image/png", ".mp4": "video/mp4"}
PAGE = "index.html"
MOST_BYTES = 2**18  # size up to which a CSV file of a study is shown


def write_page(results: Path) -> Path:
    """Write the page of all tables, studies and stores below ``results``; returns its path."""
    stores = [Store(results, *path.parent.parts[-2:]) for path in sorted(results.glob(f"*/*/{FILES['runs']}"))]
    tables, known = sorted(results.rglob("*/table.csv")), {"table.csv", "prompts.csv", *FILES.values()}
    studies = [p for p in sorted(results.rglob("*.csv")) if p.name not in known and p.stat().st_size < MOST_BYTES]
    sections = [_table(path, results) for path in tables]
    sections += [_section(path.relative_to(results).as_posix(), pd.read_csv(path), path.parent, results) for path in studies]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(files("eval").joinpath("page.html").read_text(encoding="utf-8")).render(
        script=generate_init_offline_itables_html(itables.options.dt_bundle),
        sections=sections,
        runs=[_runs(store, results) for store in stores],
        galleries=[_gallery(store) for store in stores if (store.folder / "gallery" / "prompts.csv").is_file()],
    )
    write_atomic(results / PAGE, text)
    return results / PAGE


def _section(name: str, frame: pd.DataFrame, folder: Path, results: Path, about: str = "") -> dict:
    """A frame as a table to sort, filter and copy, whose cells are text, never markup; figures and files of its folder."""
    for column in frame.select_dtypes("number"):
        frame[column] = frame[column].map(lambda value: float(f"{value:.4g}") if abs(value) < 1000 else float(f"{value:.0f}"))
    shown = itables.to_html_datatable(
        frame,
        connected=False,
        table_id=f"table-{name.replace('/', '-').removesuffix('.csv')}",
        column_filters="header",
        allow_html=False,
        showIndex=False,
        maxBytes=0,
        pageLength=25,
        order=[],
        buttons=["copyHtml5", "csvHtml5", "colvis"],
        classes="display compact",
        show_df_type=False,
    )
    here = [path.relative_to(results).as_posix() for path in sorted(folder.iterdir())]
    figures = [path for path in here if path.endswith(".png")]
    linked = [path for path in here if path.endswith((".csv", ".csv.gz", ".md", ".tex"))]
    return {"name": name, "about": about, "html": shown, "figures": figures, "files": linked}


def _table(path: Path, results: Path) -> dict:
    """One table.csv: the columns that say something."""
    frame = pd.read_csv(path)
    about = f"Baseline {frame['baseline'].iloc[0]}; {frame['budget'].iloc[0]}."
    dull = [c for c in frame if frame[c].isna().all() or (c == "modality" and frame[c].nunique() == 1)]
    frame["metric"] = [metric_of(metric).label for metric in frame["metric"]]
    shown = frame.drop(columns=["baseline", "budget", *dull])
    return _section(path.parent.relative_to(results).as_posix(), shown, path.parent, results, about)


def _runs(store: Store, results: Path) -> dict:
    """Every seed's metrics and budget."""
    values = store.metrics.pivot(index=KEY, columns="metric", values="value")
    runs = store.runs.set_index(KEY)[["network_evaluations", "reward_calls", "train_seconds", "commit", "hash"]]
    about = f"Every run. {', '.join(sorted(set(store.runs['task'].dropna())))}."
    return _section(f"runs/{store.modality}/{store.tier}", values.join(runs).reset_index(), store.folder, results, about)


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
    return {"name": f"gallery/{store.modality}/{store.tier}", "prompts": list(prompts["text"]), "strips": shown}
