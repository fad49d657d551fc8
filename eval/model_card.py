"""What `otca export` writes: weights, samples, settings, and a model card (``model_card.md.jinja``) that says how to load them.

Prompts, names and paths come from outside: in the card's text they are escaped, in its code they are Python literals.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

import diffusers
import jinja2
import pandas as pd
from huggingface_hub import ModelCardData

import otca
from eval.columns import METRICS, Metric
from eval.generate import generate, noise_seed
from eval.markup import markdown, markdown_table
from eval.plots import contact_sheet, sample_grid
from eval.store import Store, run_values
from eval.tables import headline, primary_of, said
from otca.checkpoint import load_weights
from otca.config import EvalConfig, TrainConfig
from otca.distributed import process_state
from otca.export import export_weights
from otca.models.base import PIPELINES, build_policy
from otca.models.pipeline import Policy
from otca.models.weights import LORA_FILE
from otca.runs import OVERRIDDEN, config_of, is_finished, read_manifest

SAMPLES = "samples.png"  # file of the sample grid
STEPS, FPS = 20, 8  # how samples are drawn and shown
ROOT = Path(__file__).parent.parent
LICENCE, RESULTS = ROOT / "LICENSE", ROOT / "results"
"""This repository's own, and its published tables; an installed copy may lack them."""
OWN_GUIDANCE = ("flux", "qwen_image", "qwen_image_21")
"""Families whose pipelines take classifier-free guidance as ``true_cfg_scale``."""


def write_export(run: Path, checkpoint: Path, weights: str, samples: int, results: Path, folder: Path) -> None:
    """Write everything but the hashes into an empty folder; ``weights`` as ``eval.weights``, ``samples`` in the grid."""
    settings, progress = config_of(run), json.loads((checkpoint / "state.json").read_text())
    policy = build_policy(settings.policy, process_state().device)
    averaged = load_weights(checkpoint, policy, weights)
    prompts, seed = _draw_samples(policy, settings, samples, folder)
    lora, whole = export_weights(policy, folder)
    manifest = read_manifest(run) if is_finished(run) and progress["iteration"] == settings.iterations else None
    if manifest is not None and (manifest["protocol"].get("weights") == "average") != averaged:
        manifest = None  # its scores are of other weights
    for name in ("config.yaml", OVERRIDDEN):
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    path, family = settings.policy.path, PIPELINES[policy.pipeline_class]
    embedded = path.startswith("embedded:")
    hub_id = path if not (whole or embedded) and re.fullmatch(r"[\w.-]+/[\w.-]+", path) else None
    base = path if embedded or hub_id else Path(path).name  # without where on this machine it lies
    licence = "Apache-2.0 (https://www.apache.org/licenses/LICENSE-2.0), as the base model, which ships with the software."
    if not embedded:
        said = "see the base model's licence, which also says what they may be used for."
        licence = f"These weights are derived from {markdown(base)}: {said}"
    method = re.sub(r"[^\w.@-]", "-", settings.method)
    metadata = ModelCardData(
        base_model=hub_id,  # the hub takes no base model but one of its own
        base_model_relation=("adapter" if lora else "finetune") if hub_id else None,
        license="apache-2.0" if embedded else "other",
        license_name=None if embedded else "see-the-base-models-licence",
        license_link=f"https://huggingface.co/{hub_id}" if hub_id else None,
        library_name="diffusers",
        pipeline_tag="text-to-video" if policy.is_video else "text-to-image",
        tags=["otca", method, "reinforcement-learning", "grpo", family, *(["lora"] if lora else [])],
    )
    where = [str((manifest or {}).get(key, "")) for key in ("modality", "tier", "method", "hash")]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"md": markdown, "literal": repr}
    card = environment.from_string(files("eval").joinpath("model_card.md.jinja").read_text(encoding="utf-8")).render(
        metadata=metadata.to_yaml(),
        settings=settings,
        progress=progress,
        policy=policy,
        lora_alone=lora,
        whole=whole,
        embedded=embedded,
        base=base,
        prompts=prompts,
        changed=(folder / OVERRIDDEN).is_file(),
        samples_each=f"{settings.prompts_per_iteration} prompts × {settings.group_size}",
        rewards=", ".join(f"{name} ({weight:g})" for name, weight in zip(settings.rewards, settings.weights_K)),
        start=Path(settings.policy.weights).name,
        code=(manifest or {}).get("code"),
        metrics=list(_metrics(run_values(run), settings.rewards)) if manifest else [],
        published=published_row(results, *where) if manifest else [],
        results_there=results.is_dir(),
        where=where,
        dtype={"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[settings.policy.precision],
        shift=settings.sampler.shift or policy.shift,
        arguments=_arguments(policy, family, prompts[0] if prompts else "a prompt of your own", seed),
        licence=licence,
        samples_file=SAMPLES,
        lora_file=LORA_FILE,
        fps=FPS,
        versions={"diffusers": diffusers.__version__, "otca": otca.__version__},
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    own = embedded and LICENCE.is_file()  # of foreign bases the licence is named and not invented
    (folder / "LICENSE").write_text(LICENCE.read_text(encoding="utf-8") if own else f"{licence}\n", encoding="utf-8")


def _draw_samples(policy: Policy, settings: TrainConfig, count: int, folder: Path) -> tuple[list[str], int]:
    """Write a grid of samples of the run's validation prompts; returns these, and the seed of the first one's noise."""
    if not count:
        return [], 0
    source, shift = settings.prompts, settings.sampler.shift
    if settings.validation.every:
        source = settings.validation.source
    elif source.startswith("embedded:"):
        source = f"{source.partition('/')[0]}/validation"
    config = EvalConfig(source=source, prompts=count, samples_per_prompt=1, steps=STEPS, shift=shift, batch=1)
    media_BFCHW, prompts = generate(policy, config, settings.seed)
    media_BFHWC = (media_BFCHW * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
    pictures = [[clip[0] if len(clip) == 1 else contact_sheet(clip)] for clip in media_BFHWC]
    texts = [prompt.text for prompt in prompts]
    sample_grid(pictures, texts, [settings.method], folder / SAMPLES)
    return texts, noise_seed(prompts[0], 0, settings.seed)


def published_row(results: Path, modality: str, tier: str, method: str, run_hash: str) -> list[str]:
    """The method's row of the first table by name below ``results``, as paragraphs of Markdown; empty where none has it."""
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


def _metrics(values: Mapping[str, float], rewards: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """The run's own metrics: label, value, which is better, whether it is held out."""
    for metric in [*(name for name in METRICS if name in values), *(name for name in values if name not in METRICS)]:
        style = METRICS.get(metric, Metric(metric, higher_is_better=None, held_out=False, decimals=4))
        label = f"Accuracy: {style.label.lower()}" if metric.startswith("accuracy/") else style.label
        better = {True: "higher", False: "lower", None: "–"}[style.higher_is_better]
        yield label, f"{values[metric]:.{style.decimals}f}", better, "yes" if style.held_out and metric not in rewards else "no"


def _arguments(policy: Policy, family: str, prompt: str, seed: int) -> list[str]:
    """Of the pipeline's call that draws the first sample of the grid, as its family has them."""
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
    out = [repr(prompt), *(f"{name}={value!r}" for name, value in named.items())]
    if family != "wan":  # WanPipeline has noise levels of its own
        out.append(f"sigmas=[1 - i / {STEPS} for i in range({STEPS})]")
    return [*out, f"generator=torch.Generator().manual_seed({seed})"]
