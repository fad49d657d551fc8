"""Exported folders: stock diffusers draws our pictures from them, the card's code runs as written, foreign text stays text."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image

from eval.plots import CELL, GRID_HEAD, GRID_LEFT
from eval.store import publish
from eval.tables import build_table, write_table
from otca.__main__ import main
from otca.checkpoint import Progress, save_checkpoint
from otca.config import PolicyConfig, TrainConfig, ValidationConfig
from otca.export import export_weights
from otca.files import HASHES, verify_hashes
from otca.models.base import build_policy
from otca.runs import RunSpec, begin_run, finish_run, read_manifest
from tests.made_runs import make_run as make_published

CALL = dict(prompt="a red circle", height=64, width=64, num_inference_steps=3, output_type="pt", max_sequence_length=16)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Of the samples, and of the card's code."""
    monkeypatch.setattr("eval.model_card.STEPS", 4)


def make_run(folder: Path, config: TrainConfig, iterations=(2,)):
    """A run whose trained weights are the start's plus noise; returns its policy, as of the last checkpoint."""
    begin_run(folder, config)
    policy = build_policy(config.policy)
    generator = torch.Generator().manual_seed(1)
    for n in iterations:
        with torch.no_grad():
            for p in policy.trainable_parameters():
                p += 0.03 * torch.randn(p.shape, generator=generator)
        save_checkpoint(folder, Progress(n, 120 * n, 16 * n), policy, torch.optim.AdamW(policy.trainable_parameters()), {})
    return policy


def configured(path: str, **changes) -> TrainConfig:
    policy = PolicyConfig(path=path, lora_rank=2, lora_alpha=8.0, **changes.pop("policy", {}))
    return TrainConfig(**{"iterations": 2, "policy": policy} | changes)


def export(capsys, *argv, code=0) -> str:
    """What the command says, in its one line."""
    capsys.readouterr()
    assert main(["export", *map(str, argv)]) == code
    said = capsys.readouterr()
    return (said.err if code else said.out).strip()


def run_card(folder: Path, monkeypatch, working: Path | None = None) -> None:
    """Run the card's code as written, in the exported folder (or in another, where a base with the hub's name lies)."""
    [code] = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.S | re.M)
    monkeypatch.chdir(folder)
    if working is not None:
        monkeypatch.chdir(working)
        code = code.replace('folder = "."', f"folder = {str(folder)!r}")
    exec(compile(code, "README.md", "exec"), {})


def front(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def first_cell(folder: Path) -> np.ndarray:
    """The grid's first picture at its own size: it is enlarged threefold there."""
    grid_HWC = np.asarray(Image.open(folder / "samples.png").convert("RGB"), int)
    return grid_HWC[GRID_HEAD : GRID_HEAD + CELL : 3, GRID_LEFT : GRID_LEFT + CELL : 3]


def assert_card_draws_the_first_cell(out: Path, monkeypatch) -> None:
    """Equal but for single levels where rounding to 8 bits falls the other way."""
    run_card(out, monkeypatch)
    levels = np.abs(np.asarray(Image.open(out / "sample.png"), int) - first_cell(out))
    assert levels.max() <= 1 and levels.astype(bool).mean() < 1e-3


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_stock_diffusers_draws_our_picture_bit_for_bit(toy_pipeline, tmp_path, monkeypatch, capsys, tuning):
    out = tmp_path / "out"
    policy = make_run(tmp_path / "run", configured(toy_pipeline, policy={"tuning": tuning}))
    assert "exported" in export(capsys, tmp_path / "run", out, "--samples", 2)
    arguments = CALL | {"latents": policy.noise([torch.Generator().manual_seed(5)])}
    stock = DiffusionPipeline.from_pretrained(out if tuning == "full" else toy_pipeline)
    if tuning == "lora":
        stock.load_lora_weights(out)
        assert not (out / "transformer").exists() and not (out / "vae").exists()
    stock.vae.to(memory_format=torch.channels_last)  # as ours decodes
    assert torch.equal(stock(**arguments).images, policy.pipeline(**arguments).images)
    base = DiffusionPipeline.from_pretrained(toy_pipeline)
    assert not torch.allclose(base(**arguments).images, policy.pipeline(**arguments).images, atol=1e-3)
    assert_card_draws_the_first_cell(out, monkeypatch)
    (out / "sample.png").unlink()
    verify_hashes(out)
    assert set(json.loads((out / HASHES).read_text())) == {
        p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file() and p.name != HASHES
    }
    names = [p for p in out.rglob("*.json") if toy_pipeline in p.read_text() or "_name_or_path" in p.read_text()]
    assert not names and (out / "config.yaml").read_bytes() == (tmp_path / "run" / "config.yaml").read_bytes()
    card = (out / "README.md").read_text()
    assert front(out) == {
        "license": "other",
        "license_name": "see-the-base-models-licence",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["otca", "reinforcement-learning", "grpo", "flux", *(["lora"] if tuning == "lora" else [])],
    }
    for line in ("| Network evaluations | 240 |", "| Reward calls | 32 |", "| Seed | 0 |", "| Iterations | 2 of 2 |"):
        assert line in card
    assert "This checkpoint was not evaluated" in card and "see the base model's licence" in (out / "LICENSE").read_text()
    assert ("| Tuning | lora, rank 2, alpha 8 |" in card) == (tuning == "lora")


def test_whole_networks_of_a_hub_model_come_alone(toy_pipeline, tmp_path, monkeypatch, capsys):
    """The base is found by name in another folder, as the hub's cache would have it."""
    (tmp_path / "hub" / "some").mkdir(parents=True)
    (tmp_path / "hub" / "some" / "base-1.0").symlink_to(toy_pipeline)
    run, out = tmp_path / "run", tmp_path / "out"

    def away_from_it(policy, folder):
        monkeypatch.chdir(tmp_path)
        return export_weights(policy, folder)

    monkeypatch.chdir(tmp_path / "hub")
    monkeypatch.setattr("eval.model_card.export_weights", away_from_it)
    policy = make_run(run, configured("some/base-1.0"))
    export(capsys, run, out, "--samples", 0)
    assert {p.name for p in out.iterdir()} == {"README.md", "LICENSE", "config.yaml", "transformer", HASHES}
    assert front(out)["base_model"] == "some/base-1.0" and front(out)["base_model_relation"] == "finetune"
    assert front(out)["license_link"] == "https://huggingface.co/some/base-1.0"
    run_card(out, monkeypatch, tmp_path / "hub")
    assert (tmp_path / "hub" / "sample.png").is_file()
    saved = type(policy.pipeline.transformer).from_pretrained(out / "transformer").state_dict()
    assert all(torch.equal(saved[key], value) for key, value in policy.pipeline.transformer.state_dict().items())


def test_guidance_and_noise_levels_of_sd3(untrained_sd3, tmp_path, monkeypatch, capsys):
    settings = {"true_guidance": 2.0, "max_sequence_length": 12}
    make_run(tmp_path / "run", configured(untrained_sd3, policy=settings))
    export(capsys, tmp_path / "run", tmp_path / "out", "--samples", 1)
    assert_card_draws_the_first_cell(tmp_path / "out", monkeypatch)


def test_two_experts(untrained_experts, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    settings = {"tuning": "lora", "frames": 9, "max_sequence_length": 20, "true_guidance": 2.0}
    policy = make_run(tmp_path / "run", configured(untrained_experts, policy=settings, prompts="embedded:video/train"))
    export(capsys, tmp_path / "run", out, "--samples", 1)
    assert front(out)["pipeline_tag"] == "text-to-video"
    run_card(out, monkeypatch)
    assert (out / "sample.mp4").stat().st_size > 0
    stock = DiffusionPipeline.from_pretrained(untrained_experts)
    stock.load_lora_weights(out)
    stock.load_lora_weights(out / "transformer_2", load_into_transformer_2=True)
    arguments = CALL | {"latents": policy.noise([torch.Generator().manual_seed(5)]), "num_frames": 9}
    arguments |= {"max_sequence_length": 20, "guidance_scale": 1.0}
    assert torch.equal(stock(**arguments).frames, policy.pipeline(**arguments).frames)


def test_a_lora_on_top_of_other_weights_is_merged_with_them(toy_pipeline, tmp_path, monkeypatch, capsys):
    lora = {"tuning": "lora"}
    make_run(tmp_path / "first", configured(toy_pipeline, policy=lora))
    export(capsys, tmp_path / "first", tmp_path / "start", "--samples", 0)
    policy = make_run(tmp_path / "run", configured(toy_pipeline, policy=lora | {"weights": str(tmp_path / "start")}))
    export(capsys, tmp_path / "run", tmp_path / "out", "--samples", 1)
    arguments = CALL | {"latents": policy.noise([torch.Generator().manual_seed(5)])}
    pictures = DiffusionPipeline.from_pretrained(tmp_path / "out")(**arguments).images
    torch.testing.assert_close(pictures, policy.pipeline(**arguments).images, rtol=0, atol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "(merged into the network)" in card and "| Started from | start |" in card
    assert "lora" not in front(tmp_path / "out")["tags"]
    assert_card_draws_the_first_cell(tmp_path / "out", monkeypatch)


@pytest.fixture
def evaluated(toy_pipeline, tmp_path) -> Path:
    """A run with two checkpoints, whose last one was evaluated on two prompts, two samples each."""
    run = tmp_path / "run"
    config = configured(toy_pipeline, rewards=["alignment", "clip_score"], reward_weights=[3.0, 1.0])
    policy = make_run(run, config, (1, 2))
    scores = {"prompt_id": ["a", "a", "b", "b"], "sample": [0, 1] * 2, "skill": ["counting"] * 2 + ["position"] * 2}
    scores |= {"text": ["x", "x", "y", "y"], "alignment": [0.1, 0.2, 0.3, 0.4], "judge_correct": [1, 1, 0, 1]}
    pd.DataFrame(scores | {"clip_score": 0.5}).to_csv(run / "scores.csv.gz", index=False)
    pd.DataFrame({"metric": ["kernel_distance"], "value": [0.0125], "n": [4]}).to_csv(run / "sets.csv", index=False)
    finish_run(run, RunSpec("image", "mine", "otca", 0), dataclasses.asdict(config), {}, {"policy": policy.protocol})
    return run


def test_the_card_has_the_runs_own_metrics_where_they_are_of_its_weights(evaluated, tmp_path, capsys):
    export(capsys, evaluated, tmp_path / "out", "--samples", 0)
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "| Alignment | 0.250 | higher | no |",
        "| Accuracy | 0.750 | higher | yes |",
        "| Accuracy: position | 0.500 | higher | yes |",
        "| CLIP score | 0.500 | higher | no |",  # held out elsewhere, but this run trained on it
        "| Kernel distance | 0.0125 | lower | yes |",
        "| Rewards (weights) | alignment (0.75), clip\\_score (0.25) |",
        "| Software | OTCA ",
    ):
        assert line in card
    made = read_manifest(evaluated)["code"]
    assert (made["commit"] or "") in card and ("and changes since" in card) == made["changed"]
    export(capsys, evaluated, tmp_path / "older", "--checkpoint", "1", "--samples", 0)
    card = (tmp_path / "older" / "README.md").read_text()
    assert "This checkpoint was not evaluated on test prompts, so it is in no published table." in card
    assert "| Iterations | 1 of 2 |" in card and "Accuracy" not in card and "Published table" not in card


def test_the_card_has_its_methods_row_of_the_published_table(evaluated, tmp_path, monkeypatch, capsys):
    """Of the tables in --results, by default this repository's, which know no tier of that name; an installed copy has none."""

    def card(name: str, *options) -> str:
        export(capsys, evaluated, tmp_path / name, "--samples", 0, *options)
        return (tmp_path / name / "README.md").read_text()

    root, methods = tmp_path / "results", ("static_multi_reward", "otca")
    runs = [make_published(tmp_path / "runs", method, seed, 0.5 + 0.1 * seed) for method in methods for seed in range(3)]
    store = publish(runs, root, "image", "quick")
    write_table(build_table(store, methods), root / "table1/mine", "Table 1", [])
    (root / "image/quick").rename(root / "image/mine")
    text = card("other", "--results", root)
    assert "| otca | 0.600 [0.500, 0.700] | 0.000 [0.000, 0.000] | 1.000 | 0.50 |" in text
    assert "This run is not one of them" in text
    rows = root / "image/mine/runs.csv"
    rows.write_text(rows.read_text().replace(read_manifest(runs[-1])["hash"], read_manifest(evaluated)["hash"]))
    assert "This run is one of them." in card("same", "--results", root)
    assert "No published table has the method *otca* at the tier *mine* (image)." in card("default")
    monkeypatch.setattr("eval.model_card.RESULTS", tmp_path / "nowhere")
    assert "no published tables were at hand at the export" in card("none")


def test_names_and_prompts_from_outside_stay_text(toy_pipeline, tmp_path, monkeypatch, capsys):
    evil = "```\n<script>alert(1)</script> [x](http://y) ''' \\ \u202e *b* | $z$"
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": evil}) + "\n")
    method = "a|b<img src=x> --- license: mit"
    validation = ValidationConfig(every=1, source=str(tmp_path / "p.jsonl"))  # whose prompts are sampled
    config = configured(toy_pipeline, validation=validation, method=method, rewards=["m_o:<i>"])
    make_run(tmp_path / "run", config)
    export(capsys, tmp_path / "run", tmp_path / "out", "--samples", 1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert front(tmp_path / "out")["license"] == "other" and front(tmp_path / "out")["tags"][1].startswith("a-b-img-src-x")
    text, code = card.split("```python\n")[0], card.split("```python\n")[1].split("\n```\n")[0]
    after = card.split("\n```\n", 1)[1]
    assert card.count("\n```") == 2 and repr(evil) in code and "\\u202e" in code
    for part in (text, after):
        assert not re.search(r"(?<!\\)<(script|img|i)\b", part) and "](http" not in part.replace("\\](http", "")
    assert "\\<script\\>alert(1)\\</script\\> [x\\](http://y)" in after
    run_card(tmp_path / "out", monkeypatch)


def test_refusals_leave_nothing_behind(evaluated, toy_pipeline, tmp_path, capsys):
    def refused(*argv) -> str:
        return export(capsys, evaluated, tmp_path / "out", "--samples", 0, *argv, code=2)

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    assert "is there already; name a folder that is new or empty" in export(capsys, evaluated, tmp_path / "full", code=2)
    assert "is not there (there are: last, 1, 2)" in refused("--checkpoint", "7")
    (evaluated / "sets.csv").write_text("metric,value,n\nkernel_distance,0,4\n")
    assert "is damaged" in refused()
    (evaluated / "manifest.json").unlink()
    weights = evaluated / "checkpoints" / "iteration_000002" / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert "is damaged: expected SHA-256" in refused()
    weights.write_bytes(whole)
    base = shutil.copytree(toy_pipeline, tmp_path / "base")
    (base / "scheduler" / "extra.bin").write_text("")
    config = (evaluated / "config.yaml").read_text()
    (evaluated / "config.yaml").write_text(config.replace(toy_pipeline, str(base)))
    assert "scheduler has pickled weights alone" in refused()
    (evaluated / "config.yaml").write_text("policy: {path: x, charm: 1}\n")
    assert "'policy.charm' is unknown" in refused()
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_an_empty_folder_is_filled_and_licences_of_local_bases_come_along(toy_pipeline, tmp_path, capsys):
    base, out = shutil.copytree(toy_pipeline, tmp_path / "base"), tmp_path / "out"
    for name, text in (("LICENSE.md", "theirs"), ("notes.txt", "private"), ("vae/loader.py", "raise SystemExit")):
        (base / name).write_text(text)
    make_run(tmp_path / "run", configured(str(base)))
    out.mkdir()
    export(capsys, tmp_path / "run", out, "--samples", 0)
    assert (out / "BASE-LICENSE.md").read_text() == "theirs"
    assert not (out / "notes.txt").exists() and not list(out.rglob("*.py")) and not (out / "samples.png").exists()


def test_embedded_models_keep_their_licence_and_cards_cite_as_the_citation_file_does(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "run", configured("embedded:image", policy={"tuning": "lora"}))
    out = tmp_path / "out"
    export(capsys, tmp_path / "run", out, "--samples", 1)
    assert front(out)["license"] == "apache-2.0" and "base_model" not in front(out)
    assert (out / "LICENSE").read_text() == (Path(__file__).parent.parent / "LICENSE").read_text()
    assert_card_draws_the_first_cell(out, monkeypatch)
    said = (out / "README.md").read_text().split("## Citation")[1]
    cited = yaml.safe_load((Path(__file__).parent.parent / "CITATION.cff").read_text())
    [paper] = cited["references"]
    people = ", ".join(f"{person['given-names']} {person['family-names']}" for person in paper["authors"])
    for part in (cited["title"], f"Version {cited['version']}", people, paper["title"], paper["url"], str(paper["year"])):
        assert part in said
