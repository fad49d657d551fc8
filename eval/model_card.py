"""Model card of an exported checkpoint: what it is, what it was trained with, its metrics and its method's row of the published
table, how to load it, its limits.

Prompts, names and paths come from outside: in the text they are escaped, in the code they are Python literals.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import yaml

from eval.columns import METRICS
from eval.markup import Grid, markdown, markdown_table
from eval.published_row import RESULTS, published_row
from otca.config import TrainConfig
from otca.export import Layout
from otca.models.weights import LORA_FILE

SAMPLES = "samples.png"
"""File of the sample grid."""

REPOSITORY = Path(__file__).parent.parent

LIMITS = (
    "It was made for research on training methods: to be compared with other checkpoints made by the same software.",
    "It was optimised for automatic rewards. What these miss may have got worse, and what they like without reason may have "
    "got more (reward hacking); only the held-out metrics, where there are any, speak about that.",
    "It is one run of one seed, and shows nothing about its method: methods are compared over paired seeds, with intervals.",
    "Nothing was done for safety: no filter was added, and no test was made of what it shows.",
)
TOY = (
    "Its base draws a few coloured shapes at 64 pixels from a small grammar of prompts. It is of no use beyond such experiments."
)
INHERITED = "Uses, limits and biases of the base model hold for it as well."


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn; ``seed`` is that of a generator which draws the noise of the first prompt's sample.

    ``guidance`` is embedded in the model, ``true_guidance`` needs a second pass (one value a network); None leaves a
    setting to the pipeline, and so does a ``shift`` of 0. Pictures have 0 ``frames``.
    """

    prompts: tuple[str, ...]
    seed: int
    steps: int
    shift: float
    height: int
    width: int
    frames: int
    fps: float
    true_guidance: tuple[float, ...]
    guidance: float | None
    max_sequence_length: int | None


@dataclass(frozen=True)
class Exported:
    """What a card tells of: the run's config.yaml, the checkpoint's state.json, what was written.

    ``manifest`` (manifest.json) and ``values`` (its metrics) are of a run whose evaluation is this checkpoint's, else None;
    ``changed``: settings were changed on the way; ``results``: folder of published tables, which need not be there.
    """

    settings: TrainConfig
    progress: Mapping[str, object]
    layout: Layout
    sampling: Sampling
    manifest: Mapping[str, object] | None
    values: Mapping[str, float] | None
    changed: bool
    results: Path = RESULTS

    @property
    def base(self) -> str:
        """The base model as the run names it: ``embedded:NAME``, a folder or a hub id."""
        return self.settings.policy.path

    @property
    def embedded(self) -> bool:
        """Whether the base ships with this software."""
        return self.base.startswith("embedded:")

    @property
    def hub_id(self) -> str | None:
        """The base's name on the hub, if it is there."""
        local = self.layout.whole or self.embedded or not re.fullmatch(r"[\w.-]+/[\w.-]+", self.base)
        return None if local else self.base

    @property
    def base_name(self) -> str:
        """The base model without where on this machine it lies."""
        return self.base if self.embedded or self.hub_id else Path(self.base).name


def model_card(exported: Exported) -> str:
    """README.md of the exported folder: YAML front matter and Markdown."""
    settings, progress = exported.settings, exported.progress
    name = f"{settings.method}, seed {settings.seed}, {progress['iteration']} iterations"
    what = "A LoRA for" if exported.layout.lora else "A fine-tuned"
    beside = " and the software that made it, whose base model it needs" if exported.embedded and exported.layout.lora else ""
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(exported), sort_keys=False, allow_unicode=True, width=1000)}---",
        f"# {markdown(exported.base_name)}: {markdown(name)}",
        f"{what} {markdown(exported.base_name)}, trained by reinforcement learning against automatic rewards with the method "
        f"*{markdown(settings.method)}*. Exported by `python -m otca export`; `{SAMPLES}` shows samples, `config.yaml` holds "
        "every setting, `sha256.json` the hash of every file.",
        "## Training",
        markdown_table(_training(exported)),
        *(["Settings were changed on the way: see `overridden.jsonl`."] if exported.changed else []),
        "## Results",
        *_results(exported),
        *_published(exported),
        "## Use",
        f"With diffusers {diffusers.__version__}{beside}:",
        f"```python\n{loading_code(exported)}```",
        *_samples(exported),
        "## Intended use and limits",
        "\n".join(f"- {line}" for line in (*LIMITS, TOY if exported.embedded else INHERITED)),
        "## Licence",
        licence(exported),
        "## Citation",
        _citation(),
    ]
    return "\n\n".join(parts) + "\n"


def licence(exported: Exported) -> str:
    """One paragraph of plain Markdown: the licence of the weights, which for foreign bases is named and not invented."""
    if exported.embedded:
        return "Apache-2.0, as the base model, which ships with the software that trained it: see `LICENSE`."
    name = markdown(exported.base_name)
    return f"These weights are derived from {name}: see the base model's licence, which also says what they may be used for."


def _front_matter(exported: Exported) -> dict[str, object]:
    """Metadata as the hub reads it; it takes no base model but one of its own."""
    family = exported.layout.family
    adapter = ["lora"] if exported.layout.lora else []
    out: dict[str, object] = {}
    if exported.hub_id:
        out |= {"base_model": exported.hub_id, "base_model_relation": "adapter" if adapter else "finetune"}
    if exported.embedded:
        out |= {"license": "apache-2.0"}
    else:
        out |= {"license": "other", "license_name": "see-the-base-models-licence"}
        out |= {"license_link": f"https://huggingface.co/{exported.hub_id}"} if exported.hub_id else {}
    method = re.sub(r"[^\w.@-]", "-", exported.settings.method)
    return out | {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-video" if family == "wan" else "text-to-image",
        "tags": list(dict.fromkeys(["otca", method, "reinforcement-learning", "grpo", family, *adapter])),
    }


def _training(exported: Exported) -> Grid:
    """Two columns: what, and its value."""
    settings, progress, policy = exported.settings, exported.progress, exported.settings.policy
    weights = settings.reward_weights
    rewards = [f"{name} ({weights[i]:g})" if weights else str(name) for i, name in enumerate(settings.rewards)]
    code = (exported.manifest or {}).get("code")
    rank = f", rank {policy.lora_rank}, alpha {policy.lora_alpha:g}" if policy.tuning == "lora" else ""
    rows = {
        "Method": settings.method,
        "Seed": settings.seed,
        "Iterations": f"{progress['iteration']:,} of {settings.iterations:,}",
        "Rewards" + (" (weights)" if weights else ""): ", ".join(rewards),
        "Prompts": settings.prompts,
        "Samples an iteration": f"{settings.prompts_per_iteration} prompts × {settings.group_size}",
        "Base model": exported.base_name,
        **({"Started from": Path(policy.weights).name} if policy.weights else {}),
        "Tuning": f"{policy.tuning}{rank}{' (merged into the network)' if exported.layout.merged else ''}",
        "Network evaluations": f"{progress['network_evaluations']:,}",
        "Reward calls": f"{progress['reward_calls']:,}",
        **({"Software": software(code)} if isinstance(code, dict) else {}),
    }
    return {"Setting": list(rows), "Value": [str(value) for value in rows.values()]}


def software(code: Mapping[str, object]) -> str:
    """Version and commit that made the run, as its manifest names them."""
    commit = f", commit {code.get('commit')}" if code.get("commit") else ""
    return f"OTCA {code.get('version')}{commit}{' and changes since' if code.get('changed') else ''}"


def _results(exported: Exported) -> list[str]:
    """The run's own metrics, one by one, or why there are none."""
    if exported.values is None:
        return ["This checkpoint was not evaluated on test prompts, so it is in no published table."]
    trained = {str(name) for name in exported.settings.rewards}
    rows = []
    for metric in sorted(exported.values, key=lambda m: list(METRICS).index(m) if m in METRICS else len(METRICS)):
        style = METRICS.get(metric)
        decimals, label = (style.decimals, style.label) if style else (4, metric)
        label = f"Accuracy: {label.lower()}" if metric.startswith("accuracy/") else label
        better = {True: "higher", False: "lower", None: "–"}[style.higher_is_better if style else None]
        held_out = "yes" if style and style.held_out and metric not in trained else "no"
        rows.append((label, f"{exported.values[metric]:.{decimals}f}", better, held_out))
    heads = ("Metric", "Value", "Better", "Held out")
    return [
        markdown_table({head: [row[i] for row in rows] for i, head in enumerate(heads)}),
        "Means over the samples of the test prompts. What is not held out was, or may have been, trained on.",
    ]


def _published(exported: Exported) -> list[str]:
    """The row of the published table that has the method at the run's tier, or that there is none."""
    if exported.manifest is None:
        return []
    modality, tier, method = (str(exported.manifest[key]) for key in ("modality", "tier", "method"))
    row = published_row(exported.results, modality, tier, method, str(exported.manifest["hash"]))
    title, arm = "## Published table", f"the method *{markdown(method)}* at the tier *{markdown(tier)}* ({markdown(modality)})"
    if row:
        return [title, *row]
    if not exported.results.is_dir():
        return [title, f"No published tables were at hand at the export; they may or may not have {arm}."]
    return [title, f"No published table has {arm}."]


def _samples(exported: Exported) -> list[str]:
    """The grid and its prompts; what the code above has to do with it."""
    prompts = exported.sampling.prompts
    if not prompts:
        return []
    read, again = " The frames of a clip are read row by row.", " The code above makes the first of them again, but for rounding."
    same = read if exported.layout.family == "wan" else again
    return [
        "## Samples",
        f"![Samples for the prompts below]({SAMPLES})",
        f"From fixed noise, not selected.{same} Prompts:",
        "\n".join(f"- {markdown(prompt)}" for prompt in prompts),
    ]


# ------------------------------------------------------------------------------------------------------------- the code
def loading_code(exported: Exported) -> str:
    """Python that loads the exported folder by diffusers and draws the first sample of the grid."""
    layout, sampling, policy = exported.layout, exported.sampling, exported.settings.policy
    dtype = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[policy.precision]
    imports = {"DiffusionPipeline"} | ({"FlowMatchEulerDiscreteScheduler"} if sampling.shift else set())
    imports |= set() if layout.lora or layout.whole else {"AutoModel"}
    lines = ["import torch", f"from diffusers import {', '.join(sorted(imports))}"]
    lines += ["from diffusers.utils import export_to_video"] if layout.family == "wan" else []
    lines += ["from otca.files import resolve_model"] if layout.lora and exported.embedded else []
    lines += ["", 'folder = "."  # this folder, or its name on the hub']
    base = f"resolve_model({exported.base!r})" if exported.embedded else repr(exported.base)
    if layout.whole:
        lines.append(f"pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.{dtype})")
    elif layout.lora:
        lines.append(f"pipeline = DiffusionPipeline.from_pretrained({base}, dtype=torch.{dtype})")
        lines.append(f"pipeline.load_lora_weights(folder, weight_name={LORA_FILE!r})")
        for name in layout.networks[1:]:
            options = f"subfolder={name!r}, weight_name={LORA_FILE!r}, load_into_{name}=True"
            lines.append(f"pipeline.load_lora_weights(folder, {options})")
    else:
        for name in layout.networks:
            lines.append(f"{name} = AutoModel.from_pretrained(folder, subfolder={name!r}, dtype=torch.{dtype})")
        given = ", ".join(f"{name}={name}" for name in layout.networks)
        lines.append(f"pipeline = DiffusionPipeline.from_pretrained({base}, {given}, dtype=torch.{dtype})")
    if sampling.shift:
        lines.append(f"pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift={sampling.shift!r})")
    lines += [f"{'frames' if layout.family == 'wan' else 'image'} = pipeline("]
    lines += [f"    {argument}," for argument in _arguments(exported)]
    if layout.family == "wan":
        lines += [").frames[0]", f'export_to_video(frames, "sample.mp4", fps={sampling.fps:g})']
    else:
        lines += [").images[0]", 'image.save("sample.png")']
    return "\n".join(lines) + "\n"


def _arguments(exported: Exported) -> list[str]:
    """Of the pipeline's call, as its family has them."""
    family, sampling = exported.layout.family, exported.sampling
    named: dict[str, object] = {"height": sampling.height, "width": sampling.width}
    if family == "wan":
        named |= {"num_frames": sampling.frames}
    named |= {"num_inference_steps": sampling.steps}
    if family == "flux":
        named |= {"guidance_scale": sampling.guidance} if sampling.guidance is not None else {}
        named |= {"negative_prompt": "", "true_cfg_scale": sampling.true_guidance[0]} if sampling.true_guidance[0] > 1 else {}
    else:
        named |= dict(zip(("guidance_scale", "guidance_scale_2")[: len(exported.layout.networks)], sampling.true_guidance))
    if sampling.max_sequence_length:
        named |= {"max_sequence_length": sampling.max_sequence_length}
    out = [repr(sampling.prompts[0] if sampling.prompts else "a prompt of your own"), *(f"{k}={v!r}" for k, v in named.items())]
    if family != "wan":  # WanPipeline has noise levels of its own
        out.append(f"sigmas=[1 - i / {sampling.steps} for i in range({sampling.steps})]")
    return [*out, f"generator=torch.Generator().manual_seed({sampling.seed})"]


def _citation() -> str:
    """The software and the works it builds on, as CITATION.cff has them."""
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    return "\n".join(f"- {_reference(entry)}" for entry in (cited, *cited.get("references", ())))


def _reference(entry: Mapping[str, object]) -> str:
    people: Sequence[Mapping[str, str]] = entry.get("authors", ())
    names = ", ".join(p.get("name") or f"{p.get('given-names', '')} {p.get('family-names', '')}".strip() for p in people)
    version = [f"Version {entry['version']}"] if entry.get("version") else []
    dates = [str(entry[key]) for key in ("year", "date-released") if entry.get(key)]
    where = [identifier["value"] for identifier in entry.get("identifiers", ())]
    where += [entry[key] for key in ("url", "repository-code") if entry.get(key)]
    return markdown(". ".join([*([names] if names else []), str(entry["title"]), *version, *dates, *where]) + ".")
