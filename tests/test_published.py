"""Files of published rewards: pinned, of the size of their networks, checked when fetched, and named when they are others."""

from __future__ import annotations

import hashlib
import logging
import re
import sys

import open_clip
import pytest
import torch

from otca.errors import InputError
from otca.rewards import published
from otca.rewards.base import REGISTRY, build_reward, find_reward
from otca.rewards.clip import AestheticV2, ClipScore, ClipScoreB32, ClipScoreDfn5b, HPSv2
from otca.rewards.published import Card, HubFile, PublishedReward, digest, fetch, five_layers, other_files

CARDS = [found.card for found in map(find_reward, REGISTRY) if issubclass(found, PublishedReward)]
CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CONFIG_SHA256 = hashlib.sha256(b"{}").hexdigest()
CARD = Card(
    "mine",
    "taste",
    "both",
    (0.0, 1.0),
    "test",
    "MIT",
    1.0,
    (HubFile("a/b", "w.pt", 7, "d0", SHA256), HubFile("a/b", "c", 1, "d0")),
)


class Mine(PublishedReward):
    """A scorer of two files, of which one has a hash on record."""

    card = CARD

    def __init__(self, files, device):
        self.content = {name: path.read_bytes() for name, path in files.items()}

    def score(self, media_BFCHW, prompts):
        return torch.ones(len(prompts))


def folder(root, weights=CONTENT):
    (root / "mine").mkdir(parents=True)
    (root / "mine" / "w.pt").write_bytes(weights)
    (root / "mine" / "c").write_bytes(b"{}")
    return root


def test_every_file_of_the_registry_is_pinned_to_a_commit():
    files = {file for card in CARDS for file in card.files}
    assert len(CARDS) == 12 and len(files) == 19
    assert all(re.fullmatch("[0-9a-f]{40}", file.revision) for file in files)
    weights = [file for file in files if file.name.endswith((".pt", ".pth", ".bin", ".safetensors"))]
    without = [file.name for file in weights if not re.fullmatch("[0-9a-f]{64}", file.sha256)]
    assert len(weights) == 8 and without == ["checkpoint-11352/model.pth"]


@pytest.mark.parametrize(
    ("kind", "tower", "width"),
    [
        (HPSv2, HPSv2.architecture, 2),  # float16
        (ClipScore, open_clip.get_model_config("ViT-L-14-quickgelu"), 4),
        (ClipScoreB32, open_clip.get_model_config("ViT-B-32-quickgelu"), 4),
        (ClipScoreDfn5b, open_clip.get_model_config("ViT-H-14-378-quickgelu"), 4),
    ],
)
def test_the_published_towers_fill_their_files(kind, tower, width):
    """A file holds the tensors at so many bytes a value, and some 100 (safetensors) to 400 (torch) bytes about each."""
    with torch.device("meta"):
        own = open_clip.CLIP(**tower).state_dict()
    file = kind.card.files[-1]
    about = (file.bytes - width * sum(value.numel() for value in own.values())) / len(own)
    low, high = (60, 200) if file.name.endswith(".safetensors") else (200, 700)
    assert low < about < high


def test_the_published_head_fills_its_file():
    own = five_layers(768).state_dict()
    assert 0 < AestheticV2.card.files[-1].bytes - 4 * sum(value.numel() for value in own.values()) < 10_000


def test_the_published_file_and_the_hubs_cache_are_taken_without_a_word(tmp_path, caplog, monkeypatch):
    here = folder(tmp_path) / "mine"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name, revision: str(here / name))
    reward = build_reward(f"{__name__}:Mine", timeout=0)
    assert reward.content == {"w.pt": CONTENT, "c": b"{}"}
    assert reward.revision == f"a/b@d0, w.pt as published, c of SHA-256 {CONFIG_SHA256[:16]} (no hash on record)"
    assert not caplog.records


def test_another_file_is_taken_with_a_warning_and_a_revision_that_say_so(tmp_path, caplog):
    root, own = folder(tmp_path, b"fine-tuned"), hashlib.sha256(b"fine-tuned").hexdigest()
    with caplog.at_level(logging.WARNING):
        reward = build_reward(f"{__name__}:Mine", files=root, timeout=0)
    assert reward.content["w.pt"] == b"fine-tuned"
    told = f"but w.pt of SHA-256 {own[:16]}, c of SHA-256 {CONFIG_SHA256[:16]} (no hash on record)"
    assert reward.revision == f"a/b@d0, {told}"
    assert [record.getMessage() for record in caplog.records if "no hash" not in record.getMessage()] == [
        f"reward 'mine': {root}/mine/w.pt is not the published file (SHA-256 {own[:16]}…, published: {SHA256[:16]}…); "
        "scores are those of this file"
    ]


def test_a_file_is_read_once_for_its_hash_until_it_changes(tmp_path, monkeypatch):
    path, read = tmp_path / "w.pt", []
    monkeypatch.setattr(published, "sha256", lambda path: read.append(path) or str(len(read)))
    path.write_bytes(b"one")
    assert (digest(path), digest(path)) == ("1", "1")
    path.write_bytes(b"three")
    assert digest(path) == "2" and read == [path, path]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's download, to a cache in the layout of the hub: links to blobs. What is there is not fetched again."""
    asked = []

    def hf_hub_download(repo, name, revision):
        asked.append((repo, name, revision))
        blob, link = tmp_path / "blobs" / name, tmp_path / "snapshots" / revision / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            blob.write_bytes(CONTENT)
            link.unlink(missing_ok=True)
            link.symlink_to(blob)
        return str(link)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    return asked


def test_fetching_asks_for_the_pinned_revision(hub, tmp_path):
    assert fetch(CARD) == {name: tmp_path / "snapshots" / "d0" / name for name in ("w.pt", "c")}
    assert hub == [("a/b", "w.pt", "d0"), ("a/b", "c", "d0")]


def test_a_download_that_is_not_what_was_published_is_refused_by_the_file_to_delete(hub, tmp_path):
    fetch(CARD)
    (tmp_path / "blobs" / "w.pt").write_bytes(b"torn")
    found = hashlib.sha256(b"torn").hexdigest()
    with pytest.raises(InputError) as refusal:
        fetch(CARD)
    assert str(refusal.value) == (
        f"reward 'mine': w.pt of a/b is damaged or was replaced: {tmp_path}/blobs/w.pt has SHA-256 {found[:16]}…, "
        f"published: {SHA256[:16]}…; delete it and fetch again"
    )
    (tmp_path / "blobs" / "w.pt").unlink()
    assert not other_files(CARD, fetch(CARD))


def test_a_download_that_fails_is_named(monkeypatch):
    def no_network(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_network)
    with pytest.raises(InputError, match=r"^reward 'mine': w.pt of a/b cannot be fetched \(no route to the hub\)$"):
        fetch(CARD)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("from math import nothing", r"mine:A cannot be imported \(cannot import name 'nothing' from 'math'"),
        ("class A(", r"mine:A cannot be imported \('\(' was never closed"),
        ("class A:\n    name = 'a'", "the class has no score; a reward needs both"),
        ("class A: ...", "the class has no name and no score; a reward needs both"),
    ],
)
def test_a_module_that_holds_no_reward_is_refused_in_one_line(tmp_path, monkeypatch, source, said):
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(InputError, match=f"^reward 'mine:A': {said}") as refusal:
        build_reward("mine:A")
    assert "\n" not in str(refusal.value)
    sys.modules.pop("mine", None)
