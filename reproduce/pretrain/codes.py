"""The latent code of a scene: what each number of the embedded autoencoder's latent stands for.

Objectives are to be decided at different noise levels, so the code says how far apart the alternatives of an attribute lie:
what lies far apart stands out of the noise early, what lies close together late. The backdrop's style is written large and
into every cell, objects into the cell of their centre, the finish small into every cell. The encoder is trained to write
this code, the decoder to draw from it, also where it is noisy.
"""

from __future__ import annotations

import numpy as np

from otca.tasks.scenes import CELL, COLORS, SHAPES, SIZE, Scene

CHANNELS = ("style", "present", "shape", "shape", "color", "color", "size", "finish")
AMPLITUDE = {"style": 2.5, "present": 1.9, "shape": 2.2, "color": 2.2, "size": 0.9, "finish": 0.14}
SCALE_C = np.array([AMPLITUDE[name] for name in CHANNELS], np.float32)
"""Amplitude of each channel; errors and noise of the autoencoder's training are in shares of it."""

_CORNERS = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)], np.float32)


def code_of(scene: Scene, radii: tuple[float, float] = (6.0, 7.4)) -> np.ndarray:
    """Latent of a scene on the lattice, float32 (8, 4, 4); ``radii`` are the two sizes of its objects."""
    grid = SIZE // CELL
    code = np.zeros((len(CHANNELS), grid, grid), np.float32)
    code[0], code[7], code[1] = scene.style, 2 * scene.finish - 1, -0.5
    middle = (radii[0] + radii[1]) / 2
    for o in scene.objects:
        row, column = int(o.y // CELL), int(o.x // CELL)
        code[1, row, column] = 1
        code[2:4, row, column] = _CORNERS[SHAPES.index(o.shape)]
        code[4:6, row, column] = _CORNERS[list(COLORS).index(o.color)]
        code[6, row, column] = (o.radius - middle) / (radii[1] - middle)
    return code * SCALE_C[:, None, None]
