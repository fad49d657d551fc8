"""The latent codes of scenes and clips: what each number of the embedded autoencoders' latents stands for.

Objectives are to be decided at different noise levels, so a code says how far apart the alternatives of an attribute lie:
what lies far apart stands out of the noise early, what lies close together late. In an image the backdrop's style is written
large and into every cell, objects into the cell of their centre, the finish small into every cell; in a clip the manner is
written large, and objects into the cells that they are in, latent frame by latent frame. The encoder is trained to write
the code, the decoder to draw from it, also where it is noisy.
"""

from __future__ import annotations

import numpy as np

from otca.tasks.scenes import CELL, COLORS, SHAPES, SIZE, Scene
from otca.tasks.video_scenes import HALF, Clip

GRID = SIZE // CELL
"""Side of the latent grid."""
CHANNELS = ("style", "present", "shape", "shape", "color", "color", "size", "finish")
AMPLITUDE = {"style": 2.5, "present": 1.9, "shape": 2.2, "color": 2.2, "size": 0.9, "finish": 0.14}
SCALE_C = np.array([AMPLITUDE[name] for name in CHANNELS], np.float32)
"""Amplitude of each channel; errors and noise of the autoencoder's training are in shares of it."""

_CORNERS = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)], np.float32)


def code_of(scene: Scene, radii: tuple[float, float] = (6.0, 7.4)) -> np.ndarray:
    """Latent of a scene on the lattice, float32 (8, 4, 4); ``radii`` are the two sizes of its objects."""
    code = np.zeros((len(CHANNELS), GRID, GRID), np.float32)
    code[0], code[7], code[1] = scene.style, 2 * scene.finish - 1, -0.5
    middle = (radii[0] + radii[1]) / 2
    for o in scene.objects:
        row, column = int(o.y // CELL), int(o.x // CELL)
        code[1, row, column] = 1
        code[2:4, row, column] = _CORNERS[SHAPES.index(o.shape)]
        code[4:6, row, column] = _CORNERS[list(COLORS).index(o.color)]
        code[6, row, column] = (o.radius - middle) / (radii[1] - middle)
    return code * SCALE_C[:, None, None]


VIDEO_CHANNELS = 4
PRESENT, LOOK, MANNER, VIDEO_FINISH = 1.2, 1.5, 0.9, 0.12
"""Amplitudes of an object in each channel, whatever it is, of its four channels (two of its shape, two of its colour), and of
what is added to a channel everywhere. Without the first, what tells that something is there would not be linear in the code."""
VIDEO_SCALE_C = np.full(VIDEO_CHANNELS, LOOK, np.float32)


def clip_code_of(clip: Clip) -> np.ndarray:
    """Latent of a clip on the lattice, float32 (4, 3, 4, 4); an object halfway between two cells is written into both."""
    place_NL2 = clip.center_NF2[:, ::HALF] / CELL - 0.5  # in cells
    code = np.zeros((VIDEO_CHANNELS, place_NL2.shape[1], GRID, GRID), np.float32)
    cells = np.arange(GRID)
    for o, place_L2 in zip(clip.objects, place_NL2):
        look = PRESENT + LOOK * np.concatenate([_CORNERS[SHAPES.index(o.shape)], _CORNERS[list(COLORS).index(o.color)]])
        share_2LG = np.sqrt(np.clip(1 - np.abs(cells - place_L2.T[:, :, None]), 0, 1))
        code += look[:, None, None, None] * share_2LG[1][:, :, None] * share_2LG[0][:, None]
    code[0] += MANNER * (2 * clip.steadiness - 1)
    code[3] += VIDEO_FINISH * (2 * clip.finish - 1)
    return code.astype(np.float32)
