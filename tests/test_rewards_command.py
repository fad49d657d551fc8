"""``python -m otca rewards``: what it says of every reward, and what ``--fetch`` brings."""

from __future__ import annotations

import hashlib
import re
import socket

import pytest
from rich.filesize import decimal

from otca.__main__ import main
from otca.plan import _reward_bytes
from otca.rewards.base import REGISTRY, find_reward
from otca.rewards.published import PublishedReward

EMBEDDED = [name for name in REGISTRY if not issubclass(find_reward(name), PublishedReward)]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever looks up a host or connects fails the test; the hub's cache is empty."""

    def refused(*arguments, **_):
        raise AssertionError(f"the network was asked for {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


def listed(capsys, *argv):
    """Name → its paragraph."""
    assert main(["rewards", *argv]) == 0
    return {text.partition(":")[0]: text for text in capsys.readouterr().out.strip().split("\n\n")}


def test_every_reward_is_listed_with_what_it_measures_takes_and_needs(capsys):
    said = listed(capsys)
    assert list(said) == list(REGISTRY) and len(EMBEDDED) == 6
    for name, text in said.items():
        first, facts, source, *files = text.split("\n    ")
        assert re.fullmatch(rf"{name}: \w.{{15,}}", first)
        assert re.fullmatch(r"(images|videos|images and videos); range: -?\d+ to \d+; memory: .+; licence: .{3,}", facts)
        assert re.fullmatch("source: .{15,}", source)
        if name in EMBEDDED:
            assert "files: none, as it comes with this repository (revision " in files[0]
        elif name == "ocr":
            assert re.fullmatch(r"files: in the package \(revision rapidocr 3\.10\.\d+\)", files[0])
        else:
            card = find_reward(name).card
            lines = [f"{f.name} ({decimal(f.bytes, precision=2)}) of {f.repo}@{f.revision}: not here" for f in card.files]
            assert files == [*lines, f"fetch with: python -m otca rewards --fetch {name}"]
    assert _reward_bytes(EMBEDDED) == (0, [])  # no network, as is said
    memory = "images and videos; range: -1 to 1; memory: 3.9 GB, and 1.97 GB more while loading; licence: Apache-2.0"
    pinned = "HPS_v2.1_compressed.pt (1.97 GB) of xswu/HPSv2@697403c78157020a1ae59d23f111aa58ced35b0a: not here"
    assert memory in said["hpsv2"] and pinned in said["hpsv2"]
    assert "images; range: 0 to 1; memory: none, as it has no network; licence: Apache-2.0" in said["alignment"]
    assert "memory: 4.6 GB on a GPU, 9.1 GB on a CPU, and 5.03 GB more while loading" in said["videoalign_mq"]


def test_files_that_are_here_are_listed_by_their_paths_and_checked(capsys, tmp_path, monkeypatch):
    """Of three files one is as published, one has no hash on record and one is missing; then one is somebody's own."""
    card, folder = find_reward("aesthetic_v2").card, tmp_path / "aesthetic_v2"
    folder.mkdir()
    (folder / card.files[0].name).write_text("{}")
    (folder / card.files[2].name).write_bytes(b"head")
    monkeypatch.setattr("otca.rewards.published.sha256", lambda path: card.files[2].sha256)
    config, weights, head, fetch = listed(capsys, "--reward_files", str(tmp_path))["aesthetic_v2"].split("\n    ")[3:]
    assert config.endswith(f": {folder}/open_clip_config.json, no hash on record") and weights.endswith(": not here")
    assert head.endswith(f": {folder}/sac+logos+ava1-l14-linearMSE.pth, as published") and fetch.startswith("fetch with")
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    (folder / card.files[1].name).write_bytes(b"somebody's own")
    lines = listed(capsys, "--reward_files", str(tmp_path))["aesthetic_v2"].split("\n    ")[3:]
    own = hashlib.sha256(b"somebody's own").hexdigest()[:16]
    assert len(lines) == 3  # nothing is left to fetch
    assert lines[1].endswith(f": {folder}/open_clip_model.safetensors, not the published file (SHA-256 {own}…)")


def test_fetch_brings_the_files_of_the_pinned_revision_and_checks_them(capsys, tmp_path, monkeypatch):
    card, asked = find_reward("clip_b32").card, []

    def hf_hub_download(repo, name, revision):
        asked.append((repo, name, revision))
        (tmp_path / name).write_bytes(b"fetched")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    assert main(["rewards", "--fetch", "clip_b32"]) == 2
    assert asked == [(file.repo, file.name, "a6f597a30f7b82c51704746581f9a4e41421e878") for file in card.files]
    own = hashlib.sha256(b"fetched").hexdigest()[:16]
    assert capsys.readouterr().err.splitlines()[-1] == (
        "otca rewards: error: reward 'clip_b32': open_clip_model.safetensors of timm/vit_base_patch32_clip_224.openai is damaged "
        f"or was replaced: {tmp_path}/open_clip_model.safetensors has SHA-256 {own}…, "
        f"published: {card.files[1].sha256[:16]}…; delete it and fetch again"
    )
    monkeypatch.setattr("otca.rewards.published.sha256", lambda path: card.files[1].sha256)
    (tmp_path / "elsewhere").mkdir()
    tmp_path = tmp_path / "elsewhere"  # a path that has not been hashed yet
    assert main(["rewards", "--fetch", "clip_b32"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"open_clip_config.json: {tmp_path}/open_clip_config.json (no hash on record)",
        f"open_clip_model.safetensors: {tmp_path}/open_clip_model.safetensors (as published)",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("alignment", "reward 'alignment' has no files to fetch; `python -m otca rewards` names those that have"),
        ("http://127.0.0.1:1/hpsv2", "reward 'http://127.0.0.1:1/hpsv2' has no files to fetch"),
        ("hpsv3", "unknown reward 'hpsv3'; did you mean 'hpsv2'?"),
    ],
)
def test_what_cannot_be_fetched_is_said(capsys, name, said):
    assert main(["rewards", "--fetch", name]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
