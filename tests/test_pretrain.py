"""The pre-training loop and its data: resumes bit for bit, averages, draws from its step alone."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from otca.tasks import architecture, rendering, scenes, verifier, video_scenes
from otca.tasks.scenes import CELL
from reproduce.pretrain.codes import SCALE_C, VIDEO_SCALE_C3, clip_code_of, code_of
from reproduce.pretrain.flow import Bank, stored_latents, tokenize
from reproduce.pretrain.image_flow import STRAY, noisy_scene
from reproduce.pretrain.loop import train
from reproduce.pretrain.stages import Modality
from reproduce.pretrain.video_flow import INTACT, noisy_clip
from reproduce.pretrain_embedded import run_all


def fit(folder, steps, stop=None, ema_decay=0.9):
    """Fit a line to noisy points; ``stop`` raises after so many steps, as an interruption would."""
    torch.manual_seed(0)
    line = torch.nn.Linear(1, 1)

    def loss_at(step, rng, generator):
        if step == stop:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng.normal(size=(8, 1)).astype(np.float32))
        return (line(x) - 3 * x - 1 + 0.1 * torch.randn(8, 1, generator=generator)).square().mean()

    train("line", {"line": line}, loss_at, steps, 0.2, folder, ema_decay=ema_decay, save_every=10, decay_from=50)
    return line


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path):
    """Stopped at step 37 (state of step 30 on disk) and started again: equal bit for bit, averaged weights included."""
    whole = fit(tmp_path / "whole", 100)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", 100, stop=37)
    resumed = fit(tmp_path / "parts", 100)
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)
    assert whole.weight.item() == pytest.approx(3, abs=0.2) and whole.bias.item() == pytest.approx(1, abs=0.2)


def test_a_finished_run_is_not_repeated(tmp_path):
    first = fit(tmp_path, 20)
    again = fit(tmp_path, 20, stop=0)  # would be interrupted at once
    assert torch.equal(first.weight, again.weight)


def test_latents_are_kept_for_a_resumed_run(tmp_path):
    made = []

    def make(index, batch=64):
        made.append(index)
        return torch.full((batch, 2), float(index)), [index] * batch

    latent, spec = stored_latents(tmp_path / "bank.safetensors", 128, make)
    assert made == [0, 1] and latent.shape == (128, 2) and spec.tolist() == [0] * 64 + [1] * 64
    again, _ = stored_latents(tmp_path / "bank.safetensors", 128, make)
    assert made == [0, 1] and torch.equal(latent, again)


def small_bank():
    wordings = [torch.tensor([[5, 1], [6, 1]]), torch.tensor([[7, 1]])]
    return Bank(torch.full((4, 3), 2.0).half(), torch.tensor([0, 0, 1, 1]), wordings, torch.tensor([1, 0]))


def test_a_batch_is_captioned_from_its_own_spec():
    bank = small_bank()
    clean, noise, sigma, ids = bank.draw(np.random.default_rng(0), torch.Generator().manual_seed(0), 64)
    assert torch.equal(clean, torch.full((64, 3), 2.0)) and noise.std() == pytest.approx(1, abs=0.15)
    assert set(ids[:, 0].tolist()) == {5, 6, 7} and sigma.min() > 0 and sigma.max() < 1 and sigma.median() > 0.6
    dropped = bank.draw(np.random.default_rng(0), torch.Generator().manual_seed(0), 64, dropout=1.0)[3]
    assert (dropped == torch.tensor([1, 0])).all()


def test_captions_are_true_as_often_as_stated():
    """Of 600 noisy drawings of each share, as many fulfil their caption; warm ones hold a stray object more often."""
    rng, specs = np.random.default_rng(0), scenes.all_specs("position")
    for intact in (1.0, 0.5):
        made = [noisy_scene(specs[i % len(specs)], rng, intact) for i in range(600)]
        alone = [scene for scene in made if len(scene.objects) == 2]
        read = verifier.read(np.stack([rendering.render(scene) for scene in alone]))
        kept = np.mean([verifier.satisfied(r, specs[made.index(scene) % len(specs)]) for r, scene in zip(read, alone)])
        assert kept == pytest.approx(intact, abs=0.08)
    stray = [len(scene.objects) > 2 for scene in made]
    assert np.mean([s for s, scene in zip(stray, made) if scene.style > 0.5]) > 0.1
    assert np.mean([s for s, scene in zip(stray, made) if scene.style < -0.5]) < 0.1


@pytest.mark.parametrize("skill", ["direction", "two_objects", "relation"])
def test_captions_of_two_objects_lie_less(skill):
    rng, specs = np.random.default_rng(0), video_scenes.all_specs(skill)
    kept = [noisy_clip(spec, rng).spec == spec for spec in (specs[i % len(specs)] for i in range(1000))]
    share = INTACT[len(specs[0]["objects"])] * (1 - STRAY / 2)  # steady clips stray, too
    assert np.mean(kept) == pytest.approx(share, abs=0.05)


def test_codes_of_scenes_are_told_apart_and_read_back():
    """Two scenes that differ in one object's shape differ in its cell's shape channels alone."""
    scene = scenes.draw_scene(scenes.all_specs("colors")[0], np.random.default_rng(1), lattice=True)
    other = replace(scene, objects=(replace(scene.objects[0], shape="cross"),))
    changed = np.argwhere(np.abs(code_of(scene) - code_of(other)) > 0)
    assert len(SCALE_C) == 8 and set(changed[:, 0]) <= {2, 3} and len({tuple(c[1:]) for c in changed}) == 1


def test_codes_of_clips_say_in_the_first_cell_where_to_an_object_moves():
    """Looks in the first latent frame, cells a half of the clip in the others; manner and finish are everywhere."""
    spec = {"shape": "cross", "color": "red", "course": ["right", "right"], "speed": "slow"}
    clip = video_scenes.draw_clip({"skill": "speed", "objects": [spec], "relation": None}, np.random.default_rng(1), lattice=True)
    plain = replace(clip, steadiness=0.5, finish=0.5)
    code = clip_code_of(plain) / VIDEO_SCALE_C3[:, :, None, None]
    cell = int(clip.objects[0].y // CELL), int(clip.objects[0].x // CELL)
    at_cell = code[:, :, *cell]
    assert np.abs(at_cell[:, 0]).tolist() == [1, 1, 1, 1] and at_cell[:3, 1:].T.tolist() == [[0.5, 0, 1], [0.5, 0, 1]]
    code[:, :, *cell] = 0
    assert set(np.unique(code[2, 1:])) == {0, -0.5} and not code[:, 0].any() and not code[:2, 1:].any()
    for name, channel_3 in (("steadiness", (0, 3, 3)), ("finish", (2, 2, 2))):
        changed = clip_code_of(replace(plain, **{name: 1.0})) - clip_code_of(plain)
        for t, channel in enumerate(channel_3):
            everywhere = changed[channel, t]
            assert np.ptp(everywhere) < 1e-6 and everywhere.mean() > 0.1 and not np.delete(changed[:, t], channel, 0).any()


@pytest.mark.parametrize(
    ("grammar", "length"),
    [(scenes, architecture.MAX_SEQUENCE_LENGTH), (video_scenes, architecture.VIDEO_SEQUENCE_LENGTH)],
    ids=["image", "video"],
)
def test_every_caption_fits_the_text_length_without_unknown_words(grammar, length):
    tokenizer = architecture.build_tokenizer(grammar.vocabulary(), length)
    texts = [text for skill in grammar.SKILLS for spec in grammar.all_specs(skill)[::7] for text in grammar.captions(spec)]
    ids = tokenize(tokenizer, texts, length)
    assert not (ids == tokenizer.unk_token_id).any()
    assert ((ids == tokenizer.eos_token_id).sum(1) == 1).all()  # nothing was cut off


STAGE = """
import sys, time
from pathlib import Path
name = sys.argv[1]
if name == "broken":
    sys.exit(3)
time.sleep(0.5)
with open({log!r}, "a") as file:
    file.write(name + "\\n")
"""


def stages(log, branches) -> Modality:
    """A modality of the tests: what its stages did is in a log."""
    done = {name: lambda folder, name=name: log.open("a").write(name + "\n") for name in ("vae", "publish")}
    return Modality(done, branches)


def test_branches_run_in_order_side_by_side(tmp_path):
    """vae first, publish last; within a branch in order; two branches of two stages take the time of one."""
    log = tmp_path / "log"
    command = [sys.executable, "-c", STAGE.format(log=str(log))]
    assert run_all(stages(log, (("flow", "distill"), ("judge", "clip"))), command, tmp_path) == 0
    done = log.read_text().split()
    assert done[0] == "vae" and done[-1] == "publish" and set(done[1:-1]) == {"flow", "distill", "judge", "clip"}
    assert done.index("flow") < done.index("distill") and done.index("judge") < done.index("clip")
    assert done.index("judge") < done.index("distill")  # side by side


def test_a_failing_stage_stops_the_others_and_publishes_nothing(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", STAGE.format(log=str(log))]
    assert run_all(stages(log, (("broken",), ("judge", "clip"))), command, tmp_path) == 3
    assert "publish" not in log.read_text() and "clip" not in log.read_text()
