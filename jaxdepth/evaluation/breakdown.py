"""Parts of a frame that errors are told apart by: how far, and near edges of depth.

A depth edge lies between two pixels side by side or one above the other whose truths
differ by a factor of more than 1.25: the occluding contours of Bochkovskii et al.,
"Depth Pro", 2024, at the largest of their thresholds. Near it is what is within 1/60
of the frame's height of one of the two, in rows and in columns: 8 pixels of 480. (The
DBE of Koch et al., "iBims-1", 2018, wants edges found in the prediction, too, and
annotated ones in the truth; here errors in metres are wanted, of the pixels around.)
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

DISTANCES = ((0, 2), (2, 4), (4, 6), (6, 10))  # metres of truth, above to up to
EDGE_RATIO = 1.25
EDGE_PART = 60  # of the frame's height
NEAR, AWAY = "near edges", "away from edges"
PARTS = (*(f"{low}-{high} m" for low, high in DISTANCES), NEAR, AWAY)


def masks(target: Float[Array, "b h w"]) -> dict[str, Bool[Array, "b h w"]]:
    """Which pixels belong to each of `PARTS`; those without truth as it happens.

    Args:
      target: truth of whole frames in metres, 0 or not finite where there is none.
    """
    bins = [(target > low) & (target <= high) for low, high in DISTANCES]
    near = near_edges(target, radius=max(1, round(target.shape[1] / EDGE_PART)))
    return dict(zip(PARTS, [*bins, near, ~near], strict=True))


def near_edges(target: Float[Array, "b h w"], *, radius: int) -> Bool[Array, "b h w"]:
    """Whether a depth edge is within `radius` rows and columns.

    Args:
      target: truth in metres; between truth and missing truth there is no edge.
      radius: pixels; 0 marks the two pixels that an edge lies between.
    """
    there = jnp.isfinite(target) & (target > 0)
    found = jnp.zeros(target.shape, bool)
    for axis in (1, 2):
        size = target.shape[axis]
        first = lax.slice_in_dim(target, 0, size - 1, axis=axis)
        second = lax.slice_in_dim(target, 1, size, axis=axis)
        both = lax.slice_in_dim(there, 0, size - 1, axis=axis)
        both &= lax.slice_in_dim(there, 1, size, axis=axis)
        near, far = jnp.minimum(first, second), jnp.maximum(first, second)
        jump = both & (far > EDGE_RATIO * near)
        for before in (0, 1):
            widths = [(0, 0)] * 3
            widths[axis] = (before, 1 - before)
            found |= jnp.pad(jump, widths)
    for axis in (1, 2):
        window = [1, 1, 1]
        window[axis] = 2 * radius + 1
        found = lax.reduce_window(
            found, False, lax.bitwise_or, window, (1, 1, 1), "SAME"
        )
    return found
