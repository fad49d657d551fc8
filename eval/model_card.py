"""Model card of an exported checkpoint (``model_card.md.jinja``): what it is, how it was trained, its metrics, how to load it.

Prompts, names and paths come from outside: in the text they are escaped, in the code they are Python literals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import diffusers
import jinja2
import pandas as pd
from huggingface_hub import ModelCardData

import otca
from eval.columns import METRICS, Metric
from eval.markup import markdown, markdown_table
from eval.store import Store
from eval.tables import headline, primary_of, said
from otca.config import TrainConfig
from otca.models.base import PIPELINES
from otca.models.pipeline import Policy
from otca.models.weights import LORA_FILE

SAMPLES = "samples.png"  # file of the sample grid
STEPS, FPS = 20, 8  # how samples are drawn and shown
ROOT = Path(__file__).parent.parent
LICENCE, RESULTS = ROOT / "LICENSE", ROOT / "results"
"""This repository's own, and its published tables; an installed copy may lack them."""
OWN_GUIDANCE = ("flux", "qwen_image", "qwen_image_21")
"""Families whose pipelines take classifier-free guidance as ``true_cfg_scale``."""


@dataclass(frozen=True)
class Exported:
    """What a card tells of."""

    settings: TrainConfig
    progress: Mapping[str, object]  # the checkpoint's state.json
    policy: Policy
    lora: bool  # the folder holds a LoRA
    whole: bool  # or a pipeline of its own
    prompts: list[str]  # of the sample grid
    seed: int  # of the first sample's noise
    manifest: Mapping[str, object] | None  # of the run, where its evaluation is of these weights
    values: Mapping[str, float]  # its metrics
    changed: bool  # settings were changed on the way
    results: Path  # folder of published tables, which need not be there

    @property
    def family(self) -> str:
        """Key of `otca.models.base.FAMILIES`."""
        return PIPELINES[self.policy.pipeline_class]

    @property
    def embedded(self) -> bool:
        """Whether the base ships with this software."""
        return self.settings.policy.path.startswith("embedded:")

    @property
    def hub_id(self) -> str | None:
        """The base's name on the hub, if it is there."""
        path = self.settings.policy.path
        return path if not (self.whole or self.embedded) and re.fullmatch(r"[\w.-]+/[\w.-]+", path) else None

    @property
    def base(self) -> str:
        """The base model without where on this machine it lies."""
        path = self.settings.policy.path
        return path if self.embedded or self.hub_id else Path(path).name


def model_card(exported: Exported) -> str:
    """README.md of the exported folder: YAML front matter and Markdown."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"md": markdown, "literal": repr}
    source = files("eval").joinpath("model_card.md.jinja").read_text(encoding="utf-8")
    settings, policy = exported.settings, exported.settings.policy
    manifest = exported.manifest or {}
    where = [str(manifest.get(key, "")) for key in ("modality", "tier", "method", "hash")]
    return environment.from_string(source).render(
        e=exported,
        metadata=_metadata(exported).to_yaml(),
        settings=settings,
        samples_each=f"{settings.prompts_per_iteration} prompts × {settings.group_size}",
        rewards=", ".join(f"{name} ({weight:g})" for name, weight in zip(settings.rewards, settings.weights_K)),
        start=Path(policy.weights).name,
        code=manifest.get("code"),
        metrics=list(_metrics(exported)),
        published=published_row(exported.results, *where) if manifest else [],
        where=where,
        dtype={"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[policy.precision],
        shift=settings.sampler.shift or exported.policy.shift,
        arguments=_arguments(exported),
        licence=_licence(exported),
        samples_file=SAMPLES,
        lora_file=LORA_FILE,
        fps=FPS,
        versions={"diffusers": diffusers.__version__, "otca": otca.__version__},
    )


def licence_text(exported: Exported) -> str:
    """Text of the folder's LICENSE: the embedded models' own; of foreign bases the licence is named and not invented."""
    return LICENCE.read_text(encoding="utf-8") if exported.embedded and LICENCE.is_file() else _licence(exported) + "\n"


def _licence(exported: Exported) -> str:
    if exported.embedded:
        return "Apache-2.0 (https://www.apache.org/licenses/LICENSE-2.0), as the base model, which ships with the software."
    name = markdown(exported.base)
    return f"These weights are derived from {name}: see the base model's licence, which also says what they may be used for."


def _metadata(exported: Exported) -> ModelCardData:
    """Metadata as the hub reads it; it takes no base model but one of its own."""
    link = f"https://huggingface.co/{exported.hub_id}" if exported.hub_id else None
    adapter = ["lora"] if exported.lora else []
    method = re.sub(r"[^\w.@-]", "-", exported.settings.method)
    return ModelCardData(
        base_model=exported.hub_id,
        base_model_relation=("adapter" if adapter else "finetune") if exported.hub_id else None,
        license="apache-2.0" if exported.embedded else "other",
        license_name=None if exported.embedded else "see-the-base-models-licence",
        license_link=link,
        library_name="diffusers",
        pipeline_tag="text-to-video" if exported.policy.is_video else "text-to-image",
        tags=["otca", method, "reinforcement-learning", "grpo", exported.family, *adapter],
    )


def published_row(results: Path, modality: str, tier: str, method: str, run_hash: str) -> list[str]:
    """Paragraphs of Markdown, all text in them plain; empty where no table of the modality and tier has the method.

    It is the first table by name below ``results``. ``run_hash``: it is said whether the row was made from that run too.
    """
    for path in sorted(path for path in results.rglob("table.csv") if path.parent.name == tier):
        table = pd.read_csv(path).assign(best=False)
        part = table[(table["modality"] == modality) & table["method"].isin([method, table["baseline"].iloc[0]])]
        if not (part["method"] == method).any():
            continue
        runs = Store(results, modality, tier).runs
        known = run_hash in set(runs.loc[runs["method"] == method, "hash"])
        where = f"{path.parent.relative_to(results).as_posix()} of the published results, {part['n_seeds'].max()} seeds"
        metric = primary_of(part, "accuracy")
        return [
            f"*{markdown(where)}*. This run is {'one' if known else 'not one'} of them.",
            markdown_table(headline(part, metric)),
            *([markdown(said(part, metric))] if method != part["baseline"].iloc[0] else []),
        ]
    return []


def _metrics(exported: Exported) -> Iterator[tuple[str, str, str, str]]:
    """The run's own metrics: label, value, which is better, whether it is held out."""
    known = [metric for metric in METRICS if metric in exported.values]
    for metric in [*known, *(metric for metric in exported.values if metric not in METRICS)]:
        style = METRICS.get(metric, Metric(metric, higher_is_better=None, held_out=False, decimals=4))
        label = f"Accuracy: {style.label.lower()}" if metric.startswith("accuracy/") else style.label
        better = {True: "higher", False: "lower", None: "–"}[style.higher_is_better]
        held_out = style.held_out and metric not in exported.settings.rewards
        yield label, f"{exported.values[metric]:.{style.decimals}f}", better, "yes" if held_out else "no"


def _arguments(exported: Exported) -> list[str]:
    """Of the pipeline's call that draws the first sample of the grid, as its family has them."""
    policy, family = exported.policy, exported.family
    embedded, scales = policy.protocol.get("guidance"), policy.true_guidance
    scales = scales[: policy.experts] if isinstance(scales, tuple) else (scales,)
    named: dict[str, object] = {"height": policy.height, "width": policy.width}
    named |= {"num_frames": policy.frames} if policy.is_video else {}
    named |= {"num_inference_steps": STEPS}
    if embedded is not None:
        named |= {"guidance_scale": embedded}
    if family in OWN_GUIDANCE:
        named |= {"negative_prompt": "", "true_cfg_scale": scales[0]} if scales[0] > 1 else {}
    elif embedded is None and family != "hunyuan_video":  # whose guider has it
        less = 1 if family == "z_image" else 0  # its scale counts from 0
        named |= {name: scale - less for name, scale in zip(("guidance_scale", "guidance_scale_2"), scales)}
    if family != "hunyuan_video":
        named |= {"max_sequence_length": policy.max_sequence_length}
    out = [repr(exported.prompts[0] if exported.prompts else "a prompt of your own"), *(f"{k}={v!r}" for k, v in named.items())]
    if family != "wan":  # WanPipeline has noise levels of its own
        out.append(f"sigmas=[1 - i / {STEPS} for i in range({STEPS})]")
    return [*out, f"generator=torch.Generator().manual_seed({exported.seed})"]
