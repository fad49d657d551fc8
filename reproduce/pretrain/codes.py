"""The latent codes of scenes and clips: what each number of the embedded autoencoders' latents stands for.

Objectives are to be decided at different noise levels, so a code says how far apart the alternatives of an attribute lie:
what lies far apart stands out of the noise early, what lies close together late. In an image the backdrop's style is written
large and into every cell, objects into the cell of their centre, the finish small into every cell. A clip's first latent
frame is written like that; the others say how objects move, in the cells that they start in (written where they are, frame
by frame, motion was not learned in 5,000 steps), and how steadily, large and in every cell. The encoder is trained to write
the code, the decoder to draw from it, also where it is noisy.
"""

from __future__ import annotations

import numpy as np
import torch

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


VIDEO_CHANNELS = (("shape", "shape", "color", "color"), ("right", "down", "present", "manner"))
"""Of a clip's first latent frame, which says what there is, and of the others, which say where to it moves."""
VIDEO_AMPLITUDE = {"shape": 2.2, "color": 2.2, "right": 2.5, "down": 2.5, "present": 1.4, "manner": 1.6}
VIDEO_SCALE_C3 = np.array([[VIDEO_AMPLITUDE[VIDEO_CHANNELS[t > 0][c]] for t in range(3)] for c in range(4)], np.float32)
STILL_MANNER, VIDEO_FINISH = 0.9, 0.12
"""What is added everywhere to the first frame's first channel, and to the channel of the finish in each frame."""
VIDEO_FINISH_CHANNEL = 2
ABSENT = -0.5
"""Presence in an empty cell, in shares of its amplitude."""


def clip_code_of(clip: Clip) -> np.ndarray:
    """Latent of a clip on the lattice, float32 (4, 3, 4, 4); an object is written into the cell that it starts in.

    There it says how many cells it moves in each half of the clip.
    """
    step_NL2 = np.diff(clip.center_NF2[:, ::HALF], axis=1) / CELL
    code = np.zeros((4, 1 + step_NL2.shape[1], GRID, GRID), np.float32)
    code[2, 1:], code[3, 1:] = ABSENT, 2 * clip.steadiness - 1
    for o, step_L2 in zip(clip.objects, step_NL2):
        row, column = int(o.y // CELL), int(o.x // CELL)
        code[:2, 1:, row, column] = step_L2.T
        code[2, 1:, row, column] = 1
    code *= VIDEO_SCALE_C3[:, :, None, None]
    code[VIDEO_FINISH_CHANNEL, 1:] += VIDEO_FINISH * (2 * clip.finish - 1)
    code[:, 0] = frame_code_of(clip, 0)
    return code


def louder_finish(code_BCLHW: torch.Tensor, gain: float) -> torch.Tensor:
    """Codes of clips with the finish written ``gain`` times as large; most cells of a clip are empty, and tell what it is."""
    out, empty = code_BCLHW.clone(), ABSENT * VIDEO_AMPLITUDE["present"]
    written_B = out[:, VIDEO_FINISH_CHANNEL, 1:].flatten(1).median(1).values - empty
    out[:, VIDEO_FINISH_CHANNEL] += (gain - 1) * written_B[:, None, None, None]
    return out


def frame_code_of(clip: Clip, frame: int) -> np.ndarray:
    """Latent of a clip's frame as a clip of its own, float32 (4, 4, 4); what lies between two cells is written into both."""
    cells, code = np.arange(GRID), np.zeros((4, GRID, GRID), np.float32)
    for o, place_2 in zip(clip.objects, clip.center_NF2[:, frame] / CELL - 0.5):
        look = np.concatenate([_CORNERS[SHAPES.index(o.shape)], _CORNERS[list(COLORS).index(o.color)]])
        share_2G = np.clip(1 - np.abs(cells - place_2[:, None]), 0, 1)
        code += look[:, None, None] * share_2G[1][:, None] * share_2G[0]
    code *= VIDEO_SCALE_C3[:, 0, None, None]
    code[0] += STILL_MANNER * (2 * clip.steadiness - 1)
    code[VIDEO_FINISH_CHANNEL] += VIDEO_FINISH * (2 * clip.finish - 1)
    return code
