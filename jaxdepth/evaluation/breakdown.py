"""Error breakdown by distance and by depth edges.

A depth edge lies between two neighbouring pixels whose ground truths differ by a factor
of more than 1.25: the occluding contours of Bochkovskii et al., "Depth Pro", 2024, at
the largest of their thresholds. A pixel is near the edge if it is within 1/60 of the
frame's height of one of the two, in rows and in columns: 8 pixels of 480. (The DBE of
Koch et al., "iBims-1", 2018, also needs edges of the prediction and annotated edges of
the ground truth; this breakdown measures errors in metres of the pixels around edges.)
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

# Metres: above the first, up to and including the second.
DISTANCES = ((0, 2), (2, 4), (4, 6), (6, 10))
EDGE_RATIO = 1.25
EDGE_PART = 60  # of the frame's height
NEAR, AWAY = "near edges", "away from edges"
PARTS = (*(f"{low}-{high} m" for low, high in DISTANCES), NEAR, AWAY)


def masks(target: Float[Array, "b h w"]) -> dict[str, Bool[Array, "b h w"]]:
    """Masks of the pixels of each of `PARTS`; undefined where ground truth is missing.

    Args:
      target: ground truth of whole frames in metres, 0 or not finite if missing.
    """
    bins = [(target > low) & (target <= high) for low, high in DISTANCES]
    near = near_edges(target, radius=max(1, round(target.shape[1] / EDGE_PART)))
    return dict(zip(PARTS, [*bins, near, ~near], strict=True))


def near_edges(target: Float[Array, "b h w"], *, radius: int) -> Bool[Array, "b h w"]:
    """Mask of the pixels within `radius` rows and columns of a depth edge.

    Args:
      target: ground truth in metres; a missing pixel makes no edge.
      radius: pixels; 0 marks the two pixels on both sides of an edge.
    """
    measured = jnp.isfinite(target) & (target > 0)
    marked = jnp.zeros(target.shape, bool)
    for axis in (1, 2):
        size = target.shape[axis]
        first = lax.slice_in_dim(target, 0, size - 1, axis=axis)
        second = lax.slice_in_dim(target, 1, size, axis=axis)
        both = lax.slice_in_dim(measured, 0, size - 1, axis=axis)
        both &= lax.slice_in_dim(measured, 1, size, axis=axis)
        near, far = jnp.minimum(first, second), jnp.maximum(first, second)
        jump = both & (far > EDGE_RATIO * near)
        for before in (0, 1):
            widths = [(0, 0)] * 3
            widths[axis] = (before, 1 - before)
            marked |= jnp.pad(jump, widths)
    for axis in (1, 2):
        window = [1, 1, 1]
        window[axis] = 2 * radius + 1
        marked = lax.reduce_window(
            marked, False, lax.bitwise_or, window, (1, 1, 1), "SAME"
        )
    return marked
