"""VBench's dimensions: scores worked by hand, means over the prompts that serve them, quality models in the published layouts."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torchvision import transforms

from eval.media import Video
from eval.metrics import frame_quality
from eval.metrics.encoders import FILES, VBenchFile
from eval.metrics.frame_quality import HEAD, AestheticQuality, ImagingQuality, Musiq
from eval.metrics.vbench import DIMENSIONS, SCORES, dimension_means, is_static, read_entries, read_means, report, vbench_score
from eval.scorers import stillness
from eval.video_writers import write_webp
from otca import cli
from otca.errors import InputError
from otca.files import sha256

TINY = {"width": 12, "hidden": 24, "heads": 2, "layers": 2}
VISION = {"image_size": 224, "width": 64, "layers": 1, "patch_size": 112}
HEAD_FILE = FILES["aesthetic"]
SMALL = dataclasses.replace(FILES["clip_l14"], network="small")
LIST = [
    {"prompt_en": "a still cup", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a dog runs.", "dimension": ["subject_consistency", "dynamic_degree", "motion_smoothness"]},
    {"prompt_en": "a bay, oil painting", "dimension": ["overall_consistency", "aesthetic_quality", "imaging_quality"]},
    {"prompt_en": "a red car", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
    {"prompt_en": "a bay, oil painting", "dimension": ["overall_consistency", "aesthetic_quality", "imaging_quality"]},
    {"prompt_en": "a cat", "dimension": ["aesthetic_quality"]},
]


def scaled(**share: float) -> dict[str, float]:
    """Means that scale to the given shares of their ranges, 0 where none is given."""
    return {name: d.low + share.get(name, 0) * (d.high - d.low) for name, d in DIMENSIONS.items()}


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "VBench_full_info.json"
    path.write_text(json.dumps(LIST))
    return path


def test_scores_by_hand():
    assert vbench_score("quality", scaled(dynamic_degree=1)) == pytest.approx(0.5 / 6.5)
    assert vbench_score("semantic", scaled(scene=1, color=0.5)) == pytest.approx(1.5 / 9)
    assert vbench_score("total", scaled(dynamic_degree=1, scene=1)) == pytest.approx((4 * 0.5 / 6.5 + 1 / 9) / 5)
    beyond = scaled() | {"motion_smoothness": 0.9975 + 0.2915}  # nothing is clipped
    assert vbench_score("quality", beyond) == pytest.approx(2 / 6.5)


def test_scores_of_a_published_row():
    """Gen-3's sixteen means on VBench's leaderboard, per cent, whose scores are 84.11, 75.17 and 82.32."""
    row = (97.10, 96.62, 98.61, 99.23, 60.14, 63.34, 66.82, 87.81, 53.64, 96.4, 80.90, 65.09, 54.57, 24.31, 24.71, 26.69)
    means = {name: value / 100 for name, value in zip(DIMENSIONS, row)}
    assert [round(100 * vbench_score(which, means), 2) for which in SCORES] == [84.11, 75.17, 82.32]


def test_a_score_refuses_what_is_missing():
    quality = {name: mean for name, mean in scaled().items() if DIMENSIONS[name].part == "quality"}
    assert len(quality) == 7 and vbench_score("quality", quality) == 0
    with pytest.raises(InputError, match=r"semantic score needs 9 dimensions; no mean of object_class, .*overall_consistency$"):
        vbench_score("semantic", quality)
    with pytest.raises(InputError, match=r"total score needs 16 dimensions; no mean of scene$"):
        vbench_score("total", scaled() | {"scene": float("nan")})


def scored(**columns) -> pd.DataFrame:
    """Rows as the scoring of a folder makes them: two videos of the dog, one of the bay, the cat's unreadable, six still cups."""
    texts = ["a dog runs."] * 2 + ["a bay, oil painting", "a cat"] + ["a still cup"] * 6
    ids = ["000002"] * 2 + ["000003", "000006"] + ["000001"] * 6
    rows = pd.DataFrame({"file": [f"{i}.mp4" for i in range(10)], "prompt_id": ids, "text": texts, **columns})
    return rows.assign(error=[""] * 3 + ["video 3.mp4 is empty"] + [""] * 6)


def test_a_dimension_is_the_mean_over_the_videos_that_serve_it(listed):
    rows = scored(
        subject_consistency=[0.9, 0.7, *[0.1] * 8],
        aesthetic_quality=[0.1, 0.1, 0.6, np.nan, *[0.1] * 6],
        dynamic_degree_dis=1.0,
        temporal_flickering=[0.5] * 4 + [0.8, 0.9, 0.9, 0.9, 0.9, 1.0],
    )
    table = dimension_means(rows, read_entries(listed))
    assert table.index.tolist() == ["subject_consistency", "temporal_flickering_unfiltered", "aesthetic_quality"]
    assert table["mean"].tolist() == pytest.approx([0.8, 0.9, 0.6])
    assert table["videos"].tolist() == [2, 6, 2]  # the bay stands twice in the list, and its video counts twice
    assert table["prompts"].tolist() == [1, 1, 2] and table["listed"].tolist() == [1, 1, 3]


def test_temporal_flickering_means_the_first_five_static_videos(listed):
    cups = dict(temporal_flickering=[0.5] * 4 + [0.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    table = dimension_means(scored(**cups, static=[np.nan] * 4 + [0.0, 1, 1, 1, 1, 1]), read_entries(listed))
    assert table.index.tolist() == ["temporal_flickering"] and table.iloc[0].tolist() == pytest.approx([0.7, 5, 1, 1])
    table = dimension_means(scored(**cups, static=[np.nan] * 4 + [1.0] * 6), read_entries(listed))
    assert table.iloc[0].tolist() == pytest.approx([0.6, 5, 1, 1])
    assert dimension_means(scored(**cups, static=0.0), read_entries(listed)).empty


@pytest.mark.parametrize(
    ("frames", "moving", "jump", "static"), [(16, 2, 3.0, 1), (16, 3, 0, 0), (16, 0, 3.1, 0), (9, 1, 1.5, 1)]
)
def test_a_video_is_static_as_vbench_filters(frames, moving, jump, static):
    """At 64 pixels the threshold is 0.75; 16 frames may have two moving pairs and 2·2·0.75 = 3 between first and last."""
    video = torch.linspace(0, 1, frames).view(-1, 1, 1, 1).repeat(1, 3, 64, 64)

    def lengths(first, second):
        a, b = (round(float(frame[0, 0, 0]) * (frames - 1)) for frame in (first, second))
        length = jump if {a, b} == {0, frames - 1} else 0.8 * (min(a, b) < moving)
        field = np.zeros((64, 64, 2))
        field.reshape(-1, 2)[:81, 0] = length  # int(0.02 · 4096) = 81
        return field

    flow = SimpleNamespace(vbench=True, padded=lengths)
    assert is_static(video, flow) == bool(static)


def test_the_filter_looks_at_videos_that_serve_flickering_alone(listed, monkeypatch):
    class Still:
        name, vbench = "raft", True

        def padded(self, first, second):
            return np.zeros((64, 64, 2))

        __call__ = padded

    monkeypatch.setattr("eval.scorers.RaftFlow", lambda raft, device: Still())
    entries = read_entries(listed)
    video, filtered = Video(torch.rand(9, 3, 64, 64), 8.0), stillness(listed, entries, "cpu")
    assert filtered(video, entries[0][0]) == {"static": 1} and np.isnan(filtered(video, entries[1][0])["static"])
    monkeypatch.setattr(Still, "vbench", False)
    assert list(stillness(listed, entries, "cpu")(video, entries[0][0])) == ["static_raft"]


def test_other_lists_are_not_vbenchs(tmp_path, listed):
    assert [serves[0] for _, serves in read_entries(listed)][:2] == ["temporal_flickering", "subject_consistency"]
    for rows in (["a cat"], [{"prompt": "a cat"}], [{"prompt_en": "a cat", "dimension": ["camera_motion"]}]):
        (tmp_path / "other.json").write_text(json.dumps(rows))
        assert read_entries(tmp_path / "other.json") is None
    assert read_entries(tmp_path / "other.jsonl") is None


def test_given_means_are_read_in_both_forms_and_others_refused(tmp_path):
    path = tmp_path / "means.json"
    path.write_text(json.dumps({"scene": 0.5, "overall consistency": [0.25, [{"video_path": "a", "video_results": 0.25}]]}))
    assert read_means(path) == {"scene": 0.5, "overall_consistency": 0.25}
    for content, word in (
        ('{"scenery": 1}', "'scenery' is no dimension"),
        ('{"scene": "1"}', "the mean of scene is '1', not a number"),
        ("{", "means.json cannot be read"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=word):
            read_means(path)


def drawn(shapes) -> dict[str, torch.Tensor]:
    """Weights from a generator that never changes, so that a peer's number for them can be written down."""
    generators = ((key, shape, np.random.RandomState(i)) for i, (key, shape) in enumerate(sorted(shapes.items())))
    return {key: torch.from_numpy(generator.normal(0.1, 0.5, shape)).float() for key, shape, generator in generators}


def picture(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([0.5 + 0.5 * torch.sin(0.05 * x * (c + 1) + 0.11 * y) for c in range(3)])[None].float()


@pytest.fixture
def musiq_file(tmp_path, monkeypatch):
    path = tmp_path / "musiq.pth"
    torch.save(drawn({key: value.shape for key, value in Musiq(**TINY).state_dict().items()}), path)
    monkeypatch.setattr(frame_quality, "MUSIQ_SIZES", TINY)
    monkeypatch.setitem(FILES, "musiq", VBenchFile(sha256(path), ""))
    return path


@pytest.mark.parametrize(("height", "width", "expected"), [(64, 64, -0.034234), (90, 200, -0.018432), (512, 289, 0.005925)])
def test_musiq_gives_pyiqas_number(musiq_file, height, width, expected):
    """pyiqa 0.1.16's MUSIQ with the same weights and pictures."""
    model = ImagingQuality(musiq_file).model
    with torch.no_grad():
        assert float(model(picture(height, width))) == pytest.approx(expected, abs=2e-5)


def test_musiq_has_the_published_keys():
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in Musiq().state_dict().items()}
    assert len(shapes) == 248 and sum(np.prod(shape) for shape in shapes.values()) == 27_125_825
    published = {
        "conv_root.weight": (64, 3, 7, 7),
        "block1.conv3.weight": (256, 64, 1, 1),
        "block1.gn_proj.weight": (256,),
        "embedding.weight": (384, 16384),
        "transformer_encoder.posembed_input.position_emb": (1, 100, 384),
        "transformer_encoder.scaleembed_input.scale_emb": (3, 384),
        "transformer_encoder.transformer.encoderblock_13.attention.query.bias": (384,),
        "transformer_encoder.transformer.encoderblock_0.mlp.fc1.weight": (1152, 384),
    }
    assert {key: shapes.get(key) for key in published} == published


def test_imaging_quality_is_the_mean_of_shrunk_frames(musiq_file):
    metric = ImagingQuality(musiq_file)
    video = torch.cat([picture(300, 600), picture(300, 600).flip(3), picture(300, 600).flip(1)])
    small = transforms.Resize((256, 512), antialias=False)(video)  # int(512/600 · 300) = 256
    with torch.no_grad():
        singles = [float(metric.model(frame[None])) / 100 for frame in small]
    assert np.ptp(singles) > 1e-4 and metric.score(video) == pytest.approx(np.mean(singles), abs=1e-6)


@pytest.fixture
def aesthetic(tmp_path, monkeypatch):
    """A folder as the hub's and LAION's, small and random."""
    torch.manual_seed(0)
    text = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 48, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": text}
    folder = tmp_path / "aesthetic"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    torch.save(torch.nn.Linear(48, 1).state_dict(), folder / HEAD)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", config)
    monkeypatch.setattr(frame_quality, "FEATURES", 48)
    monkeypatch.setattr(frame_quality, "CLIP_HUB_SHA256", sha256(folder / "open_clip_model.safetensors"))
    monkeypatch.setitem(FILES, "clip_l14", SMALL)
    monkeypatch.setitem(FILES, "aesthetic", dataclasses.replace(FILES["aesthetic"], sha256=sha256(folder / HEAD)))
    return folder


def test_aesthetic_quality_is_open_clips_features_through_the_head(aesthetic):
    """The peer: open_clip called directly behind torchvision's transforms, on levels 0 to 255 as VBench has them."""
    video = (torch.cat([picture(240, 424), picture(240, 424).flip(1)]) * 255).round() / 255
    chain = transforms.Compose(
        [
            transforms.Resize(224, transforms.InterpolationMode.BICUBIC, antialias=False),
            transforms.CenterCrop(224),
            transforms.Lambda(lambda x: x / 255),
            transforms.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ]
    )
    model = open_clip.create_model(f"local-dir:{aesthetic}").eval()
    head = torch.load(aesthetic / HEAD, weights_only=True)
    with torch.no_grad():
        features = model.encode_image(chain(video * 255), normalize=True)
    single = (features @ head["weight"].T + head["bias"])[:, 0] / 10
    metric = AestheticQuality(aesthetic)
    assert metric.column == "aesthetic_quality_timm"  # open_clip's file, not OpenAI's, which VBench reads
    assert metric.score(video) == pytest.approx(float(single.mean()), abs=1e-6)
    assert abs(float(single[0] - single[1])) > 1e-5


def test_aesthetic_quality_refuses_other_models(aesthetic, monkeypatch):
    monkeypatch.setattr(frame_quality, "CLIP_HUB_SHA256", "9ce2")
    with pytest.raises(InputError, match=r"the CLIP of .*aesthetic has SHA-256 .*; fetch openaipublic"):
        AestheticQuality(aesthetic)
    monkeypatch.setitem(FILES, "aesthetic", HEAD_FILE)
    with pytest.raises(InputError, match=r"sa_0_4_vit_l_14_linear\.pth has SHA-256 .*fetch it from github\.com/LAION-AI"):
        AestheticQuality(aesthetic)
    (aesthetic / HEAD).unlink()
    with pytest.raises(InputError, match=r"sa_0_4_vit_l_14_linear\.pth not found; fetch it from github\.com/LAION-AI"):
        AestheticQuality(aesthetic)


def test_the_command_prints_dimensions_and_scores(listed, musiq_file, tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a dog runs.-0", "a bay, oil painting-0"):
        write_webp(folder / f"{name}.webp", torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(len(name))))
    given = tmp_path / "means.json"
    given.write_text(json.dumps(scaled(dynamic_degree=1)))
    command = ["--videos", str(folder), "--prompts", str(listed), "--musiq", str(musiq_file), "--motion", "false"]
    cli.score([*command, "--vbench_means", str(given)])
    rows, printed = pd.read_csv(folder / "scores.csv"), capsys.readouterr().out
    measured = rows.set_index("prompt_id").imaging_quality[3]
    quality = (0.5 + measured) / 6.5
    assert f"imaging_quality                {measured:.4f}  2 videos of 2 of 2 prompts" in printed
    assert "dynamic_degree                 1.0000  as given" in printed
    assert f"VBench's quality score: {quality:.4f}" in printed and f"VBench's total score: {0.8 * quality:.4f}" in printed
    alone = report(rows, read_entries(listed), {})
    assert "no quality score: VBench's quality score needs 7 dimensions; no mean of subject_consistency" in alone
