"""All training frames on the accelerators: laid out there, gathered inside the step.

A table is `rgb` (rows, h*w*3) uint8 and `depth_mm` (rows, h*w) uint16. Frames lie flat,
since accelerators pad short last axes. Device k of D holds rows k*each to (k+1)*each,
each = ceil(rows / D); what is too much at the end repeats the last row.
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
    """Device number -> its part of the table of `rows`, for `Placement.place_table`."""
    each = -(-len(rows) // devices)

    def part(device: int) -> dict[str, np.ndarray]:
        places = np.minimum(device * each + np.arange(each), len(rows) - 1)
        mine = rows[places]
        height, width = store.size
        rgb = np.empty((each, height * width * 3), np.uint8)
        depth_mm = np.empty((each, height * width), np.uint16)
        for k in range(0, each, CHUNK):
            colours, truth = store.gather(mine[k : k + CHUNK], depth=depth)
            rgb[k : k + CHUNK] = colours.reshape(len(colours), -1)
            depth_mm[k : k + CHUNK] = truth.reshape(len(truth), -1)
        return {"rgb": rgb, "depth_mm": depth_mm}

    return part


def gather(
    table: Table,
    rows: Int[jax.Array, "b"],
    *,
    frame: tuple[int, int],
    axis_name: str | None,
) -> dict[str, jax.Array]:
    """The frames that this device's part of the batch wants, wherever they lie.

    Each device looks up those rows of the global batch that it holds; the sum over
    devices, in which every frame is there once, is dealt out in order.

    Args:
      table: this device's part.
      rows: places in the whole table.
      frame: (height, width) of the frames.
      axis_name: the axis that devices share, None on one.

    Returns: `rgb` (b,h,w,3) uint8 and `depth_mm` (b,h,w) uint16.
    """
    shapes = {"rgb": (*frame, 3), "depth_mm": frame}
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
    here = (wanted >= 0) & (wanted < each)
    found = part[jnp.clip(wanted, 0, each - 1)]
    found = jnp.where(here[:, None], found, jnp.zeros((), part.dtype))
    return jax.lax.psum_scatter(found, axis_name, tiled=True)
