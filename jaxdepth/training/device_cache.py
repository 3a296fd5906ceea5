"""Device cache: all training frames on the accelerators, gathered inside the step.

A table is `rgb` (rows, h*w*3) uint8 and `depth_codes` (rows, h*w) uint16, metres = code
/ `Store.depth_unit`. Frames are flat, because accelerators pad short last axes. Device
k of D holds rows k*each to (k+1)*each, each = ceil(rows / D); the last part is padded
by repeating the last row.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxdepth.data.store.reader import Store

CHUNK = 64  # frames gathered from the store at a time
Table = dict[str, jax.Array]


def reader(
    store: Store, rows: np.ndarray, *, depth: str, devices: int
) -> Callable[[int], dict[str, np.ndarray]]:
    """A function from device index to its part of the table, for `place_table`."""
    each = -(-len(rows) // devices)

    def part(device: int) -> dict[str, np.ndarray]:
        indices = np.minimum(device * each + np.arange(each), len(rows) - 1)
        selected = rows[indices]
        height, width = store.size
        rgb = np.empty((each, height * width * 3), np.uint8)
        depth_codes = np.empty((each, height * width), np.uint16)
        for k in range(0, each, CHUNK):
            colours, codes = store.gather(selected[k : k + CHUNK], depth=depth)
            rgb[k : k + CHUNK] = colours.reshape(len(colours), -1)
            depth_codes[k : k + CHUNK] = codes.reshape(len(codes), -1)
        return {"rgb": rgb, "depth_codes": depth_codes}

    return part


def gather(
    table: Table,
    rows: Int[jax.Array, "b"],
    *,
    frame: tuple[int, int],
    axis_name: str | None,
) -> dict[str, jax.Array]:
    """The frames of this device's part of the batch, from whichever device holds them.

    Each device looks up the rows of the global batch that it holds, and uses zeros for
    the others; a reduce-scatter of the sum gives each device its own part.

    Args:
      table: this device's part.
      rows: indices into the whole table.
      frame: (height, width) of the frames.
      axis_name: the axis that devices share, None on one.

    Returns: `rgb` (b,h,w,3) uint8 and `depth_codes` (b,h,w) uint16.
    """
    shapes = {"rgb": (*frame, 3), "depth_codes": frame}
    return {
        name: _take(part, rows, axis_name).reshape(-1, *shapes[name])
        for name, part in table.items()
    }


def _take(part: jax.Array, rows: jax.Array, axis_name: str | None) -> jax.Array:
    if axis_name is None:
        return part[rows]
    each = part.shape[0]
    wanted = jax.lax.all_gather(rows, axis_name, tiled=True)
    wanted = wanted - jax.lax.axis_index(axis_name) * each
    on_device = (wanted >= 0) & (wanted < each)
    frames = part[jnp.clip(wanted, 0, each - 1)]
    frames = jnp.where(on_device[:, None], frames, jnp.zeros((), part.dtype))
    return jax.lax.psum_scatter(frames, axis_name, tiled=True)
