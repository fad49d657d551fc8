"""Pre-train the embedded autoencoders: the encoder writes the code of a drawing, the decoder draws from it.

A causal video autoencoder first learns single frames, at a ninth of the cost, and starts on clips as one that repeats them.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn

from otca.tasks import architecture, scenes, video_scenes
from otca.tasks.rendering import render
from otca.tasks.video_scenes import FRAMES, HALF
from reproduce.pretrain.codes import (
    SCALE_C,
    VIDEO_FINISH_CHANNEL,
    VIDEO_SCALE_C3,
    clip_code_of,
    code_of,
    frame_code_of,
    louder_finish,
)
from reproduce.pretrain.loop import train

NOISE, VIDEO_NOISE = 0.3, 0.2
"""Largest standard deviation of the noise on the codes that the decoder draws from, in shares of a channel's amplitude: it
learns to draw crisply what lies near a code."""
LOG_VARIANCE = -8.0
"""What the encoder is to say of its own uncertainty, whose mean alone is used."""
FINISH_NOISE = 0.07
"""Largest standard deviation of the noise on the channel of a clip's finish."""
LOUD = 8.0
"""How much larger the finish is written at first; half of the steps later it is as large as it is to be."""
EMPHASIS = 7.0
"""How much more than the backdrop the few pixels of objects count in a clip's error."""


def bank(grammar, draw, render, code, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Drawings of all specs on the generator's lattice, uint8 (N, …, 3, H, W), skills evenly, and their codes (N, C, …)."""
    rng = np.random.default_rng([seed, 5])
    specs = [grammar.all_specs(skill) for skill in grammar.SKILLS]
    drawn = []
    for _ in range(count):
        of_skill = specs[rng.integers(len(specs))]
        drawn.append(draw(of_skill[rng.integers(len(of_skill))], rng, lattice=True))
    media = np.stack([np.rint(255 * render(one)).astype(np.uint8) for one in drawn])
    return torch.from_numpy(media), torch.from_numpy(np.stack([code(one) for one in drawn]))


def pretrain_vae(folder: Path, steps: int, batch: int = 32, seed: int = 0, count: int = 12000):
    """Returns the trained AutoencoderKL; resumable (see `loop.train`)."""
    torch.manual_seed(seed)
    vae = architecture.build_vae()
    media, codes = bank(scenes, scenes.draw_scene, render, code_of, count, seed)
    scale_CHW = torch.from_numpy(SCALE_C)[:, None, None]

    def loss_at(step, rng, generator):
        pick = torch.from_numpy(rng.integers(0, count, batch))
        noisy = noised(codes[pick], scale_CHW, NOISE, generator)
        return coding_loss(vae, media[pick] / 127.5 - 1, codes[pick], noisy, scale_CHW)

    train("vae", {"vae": vae}, loss_at, steps, 3e-3, folder, seed=seed, ema_decay=0.998, decay_from=steps * 2 // 5)
    return vae


def pretrain_video_vae(folder: Path, steps: tuple[int, int, int], batch: int = 8, seed: int = 0, count: int = 16000):
    """Returns the trained AutoencoderKLWan; resumable. On stills, then on the moves of objects, then on clips; ``steps`` of each.

    On moves, the decoder's first layers alone are trained, to make of a clip's code the features that they make of a still of
    each latent frame. From pixels they are slow to learn to move an object out of the cell of its code: after 1,800 steps on
    clips a linear head on them left a fifth of what is where unexplained, after 750 steps on features .03. Of the clips, those of
    two objects come four times as often: where two pass side by side they are mixed for long. The finish has little noise on its
    channel and is written ``LOUD`` times as large at first; written small at once, it went unseen for 1,300 steps.
    """
    torch.manual_seed(seed)
    vae = architecture.build_video_vae()
    ignore_time(vae)
    unshaken = range(0, FRAMES, 2)  # frames that are shaken to the same side
    coded = lambda clip: np.concatenate([clip_code_of(clip), *(frame_code_of(clip, i)[:, None] for i in unshaken)], 1)  # noqa: E731
    media, codes = bank(video_scenes, video_scenes.draw_clip, video_scenes.render_clip, coded, count, seed)
    codes, stills = codes[:, :, : -len(unshaken)], codes[:, :, -len(unshaken) :]
    odds_N = 1 + 3.0 * ((codes[:, VIDEO_FINISH_CHANNEL, 1] > 0).sum((1, 2)) == 2).numpy()
    odds_N /= odds_N.sum()
    scale_CLHW = torch.from_numpy(VIDEO_SCALE_C3)[:, :, None, None]
    noise_CLHW = scale_CLHW.clone()  # amplitude of the noise
    backdrop = media[:16, 0].float().median(0).values[:, None]
    first = nn.Sequential(vae.post_quant_conv, vae.decoder.conv_in, vae.decoder.mid_block)

    def loss_of(media_BFCHW, codes, generator):
        pixels = media_BFCHW.float().transpose(1, 2)
        apart = ((pixels - backdrop).abs().amax(1, keepdim=True) > 45).float()
        weight = 1 + EMPHASIS * nn.functional.max_pool3d(apart, (1, 5, 5), 1, (0, 2, 2))
        length, coded = codes.shape[2], len(codes) // 4  # the encoder has the easier part
        noisy = noised(codes, noise_CLHW[:, :length], VIDEO_NOISE, generator)
        return coding_loss(vae, pixels / 127.5 - 1, codes, noisy, scale_CLHW[:, :length], weight, coded)

    def still_loss(step, rng, generator):
        pick, when = (torch.from_numpy(rng.integers(0, n, 8 * batch)) for n in (count, len(unshaken)))
        return loss_of(media[pick, 2 * when][:, None], stills[pick, :, when][:, :, None], generator)

    def move_loss(step, rng, generator):
        pick = torch.from_numpy(rng.integers(0, count, 8 * batch))
        with torch.no_grad():
            drawn = [taught(stills[pick, :, i : i + 1]) for i in (0, HALF // 2, HALF)]
        target = torch.cat(drawn, 2)
        made = first(noised(codes[pick], scale_CLHW, VIDEO_NOISE, generator))
        return (made - target).square().mean() / target.var()

    def clip_loss(step, rng, generator):
        pick = torch.from_numpy(rng.choice(count, batch, p=odds_N))
        return loss_of(media[pick], louder_finish(codes[pick], LOUD ** max(0.0, 1 - 2 * step / clip_steps)), generator)

    still_steps, move_steps, clip_steps = steps
    common = dict(folder=folder, seed=seed, save_every=100)
    decay = dict(ema_decay=0.998, decay_from=still_steps * 3 // 5)
    train("vae_stills", {"vae": vae}, still_loss, still_steps, learning_rate=3e-3, **decay, **common)
    taught = copy.deepcopy(first)
    decay = dict(ema_decay=0.99, decay_from=move_steps * 2 // 5)
    train("vae_moves", {"first": first}, move_loss, move_steps, learning_rate=3e-3, **decay, **common)
    decay = dict(ema_decay=0.995, decay_from=clip_steps * 2 // 5)
    noise_CLHW[VIDEO_FINISH_CHANNEL] = FINISH_NOISE / VIDEO_NOISE
    train("vae", {"vae": vae}, clip_loss, clip_steps, learning_rate=2e-3, **decay, **common)
    return vae


def coding_loss(vae, media, code, noisy_code, scale, weight=1.0, coded: int | None = None) -> torch.Tensor:
    """Error of what is drawn from noisy codes, and of the codes written for the first ``coded`` of the media (in [-1, 1])."""
    posterior = vae.encode(media[:coded]).latent_dist
    written = ((posterior.mean - code[:coded]) / scale).square().mean()
    sure = (posterior.logvar - LOG_VARIANCE).square().mean()
    error = vae.decode(noisy_code).sample - media
    return (weight * (error.square() + 0.2 * error.abs())).mean() + 0.05 * written + 1e-4 * sure


def noised(code: torch.Tensor, scale, most: float, generator) -> torch.Tensor:
    """Codes with noise of up to ``most``, another level for each, in shares of the amplitudes ``scale``."""
    level = most * torch.rand(len(code), *[1] * (code.ndim - 1), generator=generator)
    return code + level * scale * torch.randn(code.shape, generator=generator)


@torch.no_grad()
def ignore_time(vae) -> None:
    """Set every kernel so that a frame is coded without its neighbours: causal kernels keep only their last slice.

    The kernels that halve or double the number of frames copy a frame.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample

    for module in vae.modules():
        if isinstance(module, WanCausalConv3d) and module.kernel_size[0] == 3:
            module.weight[:, :, :2] = 0
        if isinstance(module, WanResample) and hasattr(module, "time_conv"):
            kernel = module.time_conv.weight
            kernel.zero_()
            kernel[:, :, 2, 0, 0] = torch.eye(kernel.shape[1]).repeat(kernel.shape[0] // kernel.shape[1], 1)
            module.time_conv.bias.zero_()


@torch.no_grad()
def reconstruct(vae, media: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) or media (B, F, 3, H, W), in [0, 1], through encoder mean and decoder, back in [0, 1]."""
    if media.ndim == 4:
        latent = vae.encode(media * 2 - 1).latent_dist.mode()
        return (vae.decode(latent).sample / 2 + 0.5).clamp(0, 1)
    if media.shape[1] == 1:
        return torch.cat([reconstruct(vae, part) for part in media[:, 0].split(64)])[:, None]
    out = []
    for part in media.transpose(1, 2).split(16):
        out.append(vae.decode(vae.encode(part * 2 - 1).latent_dist.mode()).sample / 2 + 0.5)
    return torch.cat(out).clamp(0, 1).transpose(1, 2).contiguous()
