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
from huggingface_hub import ModelCardData

import otca
from eval.columns import METRICS
from eval.markup import markdown
from eval.published_row import RESULTS, published_row
from otca.config import TrainConfig
from otca.models.base import PIPELINES
from otca.models.pipeline import Policy
from otca.models.weights import LORA_FILE

SAMPLES = "samples.png"
"""File of the sample grid."""
STEPS, FPS = 20, 8
"""How samples are drawn and shown."""
LICENCE = Path(__file__).parent.parent / "LICENSE"
"""This repository's; an installed copy lacks it."""
OWN_GUIDANCE = ("flux", "qwen_image", "qwen_image_21")
"""Families whose pipelines take classifier-free guidance as ``true_cfg_scale``."""


@dataclass(frozen=True)
class Exported:
    """What a card tells of: the run's settings, the checkpoint's state.json, the policy, what was written.

    ``lora``, ``whole``: the folder holds a LoRA, or a pipeline of its own. ``prompts``: those of the grid; ``seed``: of the
    first one's noise. ``manifest`` and ``values`` (its metrics) are of a run whose evaluation is of these weights, else None and
    empty. ``changed``: settings were changed on the way. ``results``: folder of published tables, which need not be there.
    """

    settings: TrainConfig
    progress: Mapping[str, object]
    policy: Policy
    lora: bool
    whole: bool
    prompts: list[str]
    seed: int
    manifest: Mapping[str, object] | None
    values: Mapping[str, float]
    changed: bool
    results: Path = RESULTS

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
    source, policy = files("eval").joinpath("model_card.md.jinja").read_text(encoding="utf-8"), exported.settings.policy
    manifest = exported.manifest or {}
    where = [str(manifest.get(key, "")) for key in ("modality", "tier", "method", "hash")]
    return environment.from_string(source).render(
        e=exported,
        metadata=_metadata(exported).to_yaml(),
        settings=exported.settings,
        training=_training(exported),
        metrics=list(_metrics(exported)),
        published=published_row(exported.results, *where) if manifest else [],
        where=where,
        dtype={"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[policy.precision],
        shift=exported.settings.sampler.shift or exported.policy.shift,
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


def _training(exported: Exported) -> dict[str, object]:
    """What a run was trained with, as the card's table shows it."""
    settings, progress, policy = exported.settings, exported.progress, exported.settings.policy
    rewards = [f"{name} ({weight:g})" for name, weight in zip(settings.rewards, settings.weights_K)]
    rank = f", rank {policy.lora_rank}, alpha {policy.lora_alpha:g}" if policy.tuning == "lora" else ""
    rows = {
        "Method": settings.method,
        "Seed": settings.seed,
        "Iterations": f"{progress['iteration']:,} of {settings.iterations:,}",
        "Rewards (weights)": ", ".join(rewards),
        "Prompts": settings.prompts,
        "Samples an iteration": f"{settings.prompts_per_iteration} prompts × {settings.group_size}",
        "Base model": exported.base,
        "Started from": Path(policy.weights).name,
        "Tuning": f"{policy.tuning}{rank}{' (merged into the network)' if rank and not exported.lora else ''}",
        "Network evaluations": f"{progress['network_evaluations']:,}",
        "Reward calls": f"{progress['reward_calls']:,}",
        "Software": software((exported.manifest or {}).get("code")),
    }
    return {name: value for name, value in rows.items() if value != ""}


def software(code: Mapping[str, object] | None) -> str:
    """Version and commit that made the run, as its manifest names them; nothing without."""
    if not code:
        return ""
    commit = f", commit {code['commit']}" if code.get("commit") else ""
    return f"OTCA {code.get('version')}{commit}{' and changes since' if code.get('changed') else ''}"


def _metrics(exported: Exported) -> Iterator[tuple[str, str, str, str]]:
    """The run's own metrics: label, value, which is better, whether it is held out."""
    order = {metric: i for i, metric in enumerate(METRICS)}
    for metric in sorted(exported.values, key=lambda m: order.get(m, len(order))):
        style = METRICS.get(metric)
        label = style.label if style else metric
        label = f"Accuracy: {label.lower()}" if metric.startswith("accuracy/") else label
        better = {True: "higher", False: "lower", None: "–"}[style.higher_is_better if style else None]
        held_out = bool(style) and style.held_out and metric not in exported.settings.rewards
        yield label, f"{exported.values[metric]:.{style.decimals if style else 4}f}", better, "yes" if held_out else "no"


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
