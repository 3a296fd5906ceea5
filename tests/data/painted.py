"""Synthetic scenes: boxes of one colour and one depth each in front of a wall."""

import numpy as np

from jaxdepth.data.sources import Frame


def scene(seed: int, size=(96, 128), boxes=14) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) uint8 and depth (H, W) float32, 1 to 6 metres, of one scene."""
    rng = np.random.default_rng(seed)
    height, width = size
    rgb = np.full((height, width, 3), rng.integers(60, 200, 3), np.float64)
    # Uneven steps from row to row, so that they don't look like 8-bit codes.
    depth = np.full(size, 6.0) - np.linspace(0, 1.6, height)[:, None] ** 1.5
    for near in np.linspace(5, 1, boxes):
        top, left = rng.integers(0, height - 12), rng.integers(0, width - 12)
        box = np.s_[
            top : top + rng.integers(10, height // 2),
            left : left + rng.integers(10, width // 2),
        ]
        rgb[box] = rng.integers(20, 240, 3)
        depth[box] = near * rng.uniform(0.9, 1.1)
    rgb += rng.normal(0, 3, rgb.shape)
    return rgb.clip(0, 255).astype(np.uint8), depth.astype(np.float32)


def frames(count: int, *, first=0, kind="filled", **more) -> list[Frame]:
    """Frames of `count` scenes."""
    scenes = []
    for seed in range(first, first + count):
        rgb, depth = scene(seed, **more)
        filled = kind == "filled"
        scenes.append(Frame(rgb, filled=depth) if filled else Frame(rgb, raw=depth))
    return scenes
