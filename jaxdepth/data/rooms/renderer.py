"""Synthetic training data: furnished rooms with depth, rendered in JAX.

`render` is a pure function of (seed, index). `scene` defines the contents of a room.
This module casts a ray through the centre and the corners of every pixel (quincunx
antialiasing), intersects it with each primitive, shades it, and simulates a photo and
the depth of a structured-light sensor.
"""

import concurrent.futures
import functools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int, UInt8, UInt32

from jaxdepth.data.rooms import scene as scene_lib
from jaxdepth.data.rooms.scene import COLUMNS, Scene
from jaxdepth.runtime.errors import UserError

# Part of a store's key: increase it with every change of the rendered frames.
RENDERER_VERSION = 3

# NYU Depth V2's colour camera at 480x640: fx, fy, cx, cy in pixels.
NYU_INTRINSICS = (518.86, 519.47, 325.58, 253.74)
MAX_DEPTH, MIN_DEPTH = 10.0, 0.6  # Range of the sensor, metres.

# Kinect v1: baseline in metres; disparity is baseline x focal length (580 pixels) /
# depth, in steps of 1/8 pixel (Khoshelham & Elberink 2012, section 2), with a standard
# deviation of depth near 1.4e-3 z^2.
_BASELINE = 0.075
_DISPARITY_STEP = 0.125 / (_BASELINE * 580.0)
_DISPARITY_SIGMA = 1.4e-3

_FAR = 1e6
_ROW_BITS = 63  # The table has 62 rows at most.
_GAMMA = 1.0 / 2.2
Vec = tuple[jax.Array, jax.Array, jax.Array]
Span = tuple[jax.Array, jax.Array]


class _Hit(NamedTuple):
    """Ray hits: depth along the optical axis, and the row of the surface table."""

    depth: jax.Array
    row: jax.Array


class _Surface(NamedTuple):
    """Properties of the surface at each hit."""

    point: Vec
    normal: Vec
    u: jax.Array  # Metres along the surface.
    v: jax.Array
    height: jax.Array  # Metres above the object's lower edge.
    table: jax.Array  # (rays, columns)


def intrinsics(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy of the rendering camera, in pixels.

    NYU's colour camera, scaled from 480x640: fx' = fx * sx and
    cx' = (cx + 0.5) * sx - 0.5 with sx = width / 640, likewise in y.

    Args:
      size: (height, width) in pixels.

    Returns: intrinsics for 0-based pixel centres.
    """
    fx, fy, cx, cy = NYU_INTRINSICS
    sy, sx = size[0] / 480, size[1] / 640
    return fx * sx, fy * sy, (cx + 0.5) * sx - 0.5, (cy + 0.5) * sy - 0.5


def render(
    seed: int,
    indices: Sequence[int] | Int[np.ndarray, "b"] | Int[Array, "b"],
    size: tuple[int, int],
) -> tuple[UInt8[np.ndarray, "b h w 3"], Float32[np.ndarray, "b h w"]]:
    """Render frames of a seed with a simulated camera and depth sensor.

    A frame depends only on (seed, index) and size. On one machine it is bit-identical
    in every batch, because the same compiled program renders each frame.

    Args:
      seed: any integer.
      indices: (b,) frame numbers.
      size: (height, width) in pixels, at least 8x8.

    Returns: rgb (b, h, w, 3) uint8; depth (b, h, w) float32, metres along the optical
      axis at pixel centres, with sensor noise, 0 = missing.

    Raises: UserError for a size below 8x8.
    """
    _check_size(size)
    seed = int(seed)

    def render_one(index: int) -> tuple[jax.Array, jax.Array]:
        return render_scene(scene_lib.describe(seed, index), size)

    order = [int(index) for index in np.asarray(indices)]
    # Threads, because one frame is too small to use several cores.
    threads = max(1, min(len(order), os.cpu_count() or 1, 16))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        frames = jax.device_get(list(pool.map(render_one, order)))
    rgb = np.array([frame[0] for frame in frames], np.uint8)
    depth = np.array([frame[1] for frame in frames], np.float32)
    return rgb.reshape(-1, *size, 3), depth.reshape(-1, *size)


def generate(
    seed: int, count: int, size: tuple[int, int], *, start: int = 0, batch: int = 32
) -> Iterator[tuple[UInt8[np.ndarray, "b h w 3"], Float32[np.ndarray, "b h w"]]]:
    """Render frames start, start + 1, ..., start + count - 1 of a seed in batches.

    Args:
      seed, size: as in `render`.
      count: total number of frames; the last batch may be smaller than `batch`.
      start: index of the first frame.
      batch: frames per batch, at least 1; does not affect the frames.

    Yields: (rgb, depth) as `render` returns them.

    Raises: UserError for a negative count, an empty batch or a size below 8x8.
    """
    if count < 0 or batch < 1:
        raise UserError(f"rooms: cannot render {count} frames in batches of {batch}")
    _check_size(size)
    for first in range(0, count, batch):
        done = min(first + batch, count)
        yield render(seed, range(start + first, start + done), size)


def render_scene(
    scene: Scene, size: tuple[int, int], *, sensor: bool = True
) -> tuple[UInt8[Array, "h w 3"], Float[Array, "h w"]]:
    """Render one scene.

    Args:
      scene: from `scene.describe`.
      size: (height, width) in pixels.
      sensor: False disables noise and missing pixels of image and depth; depth is then
        exact and unlimited.

    Returns: rgb (h, w, 3) uint8; depth (h, w) float32 metres, 0 = missing.
    """
    return _draw(scene, size, sensor)


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < 8:
        raise UserError(
            f"rooms: size {size[0]}x{size[1]} is too small; use 8x8 or more"
        )


# --- rays ----------------------------------------------------------------------


def _column(table: jax.Array, name: str) -> jax.Array:
    """A property of every row: (rows,) or (rows, 2 or 3)."""
    columns = table[..., COLUMNS[name]]
    return columns[..., 0] if columns.shape[-1] == 1 else columns


def _rays(scene: Scene, size: tuple[int, int]) -> Vec:
    """Ray directions of pixel centres, then of pixel corners.

    Their length along the optical axis is 1, so that the ray parameter is depth.
    """
    height, width = size
    fx, fy, cx, cy = intrinsics(size)
    centres = np.mgrid[0:height, 0:width].reshape(2, -1)
    corners = np.mgrid[0 : height + 1, 0 : width + 1].reshape(2, -1) - 0.5
    row, column = np.concatenate([centres, corners], axis=1)
    # Computed at run time, so that the compiled program holds no large constants.
    u = jnp.asarray((column - cx) / fx, jnp.float32)
    v = jnp.asarray((row - cy) / fy, jnp.float32)
    r = scene.rotation
    x, y, z = (r[i, 0] * u + r[i, 1] * v + r[i, 2] for i in range(3))
    return x, y, z


def _safe(x: jax.Array) -> jax.Array:
    """x as a divisor: values near 0 become 1e-7."""
    return jnp.where(jnp.abs(x) < 1e-7, 1e-7, x)


def _turn(c: jax.Array, s: jax.Array, v: Vec) -> Vec:
    """Rotate into the frame of an object turned about z by cosine c and sine s."""
    return c * v[0] + s * v[1], c * v[1] - s * v[0], v[2]


def _dot(a: Iterable[jax.Array], b: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, map(operator.mul, a, b))


# Intersections of rays with primitives around the origin: the ray parameters at which
# each ray enters and leaves; near > far if it misses.


def _intersect_box(
    start: Vec, along: Vec, half: jax.Array, axes: Sequence[int] = (0, 1, 2)
) -> Span:
    """The slab method, for a box that is bounded in `axes`."""
    near, far = jnp.float32(-_FAR), jnp.float32(_FAR)
    for i in axes:
        inverse = 1.0 / _safe(along[i])
        middle, reach = -start[i] * inverse, half[i] * jnp.abs(inverse)
        near, far = jnp.maximum(near, middle - reach), jnp.minimum(far, middle + reach)
    return near, far


def _roots(a: jax.Array, b: jax.Array, c: jax.Array) -> Span:
    """The solutions of a t^2 + 2 b t + c = 0 in order; near > far if there are none."""
    inside = b * b - a * c
    root = jnp.sqrt(jnp.maximum(inside, 0.0))
    a = jnp.maximum(a, 1e-9)
    hit = inside > 0
    return jnp.where(hit, (-b - root) / a, _FAR), jnp.where(hit, (-b + root) / a, -_FAR)


def _intersect_ellipsoid(
    start: Vec, along: Vec, half: jax.Array, axes: Sequence[int] = (0, 1, 2)
) -> Span:
    q, w = [start[i] / half[i] for i in axes], [along[i] / half[i] for i in axes]
    return _roots(_dot(w, w), _dot(q, w), _dot(q, q) - 1.0)


def _intersect_cylinder(start: Vec, along: Vec, half: jax.Array) -> Span:
    near, far = _intersect_ellipsoid(start, along, half, axes=(0, 1))
    bottom, top = _intersect_box(start, along, half, axes=(2,))
    return jnp.maximum(near, bottom), jnp.minimum(far, top)


def _geometry(table: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _column(table, "centre"), _column(table, "half"), _column(table, "yaw")


def _trace(scene: Scene, rays: Vec) -> _Hit:
    """The first surface along each ray.

    Depth and row are packed in one integer, so that one minimum finds both: the bits of
    positive floats are ordered like the floats, and the row replaces the last six bits,
    a relative error of depth below 8e-6.
    """
    table, position = jnp.asarray(scene.surfaces), jnp.asarray(scene.position)
    faces = table.shape[0] - 6
    nearest = _packed(*_room(table[faces], position, rays, faces))
    first = 0
    for count, intersect in (
        (scene_lib.BOXES, _intersect_box),
        (scene_lib.ELLIPSOIDS, _intersect_ellipsoid),
        (scene_lib.CYLINDERS, _intersect_cylinder),
    ):
        keys = jax.vmap(_key_of(intersect, position, rays))(
            *_geometry(table[first : first + count]),
            first + jnp.arange(count, dtype=jnp.int32),
        )
        nearest = jnp.minimum(nearest, jnp.min(keys, axis=0))
        first += count
    depth = lax.bitcast_convert_type(nearest & ~_ROW_BITS, jnp.float32)
    return _Hit(depth, nearest & _ROW_BITS)


def _packed(depth: jax.Array, row: jax.Array) -> jax.Array:
    return (lax.bitcast_convert_type(depth, jnp.int32) & ~_ROW_BITS) | row


def _key_of(intersect: Callable[[Vec, Vec, jax.Array], Span], position, rays: Vec):
    """A function that intersects all rays with one primitive; returns packed hits."""

    def key(centre, half, yaw, row):
        away = position - centre
        start = _turn(yaw[0], yaw[1], (away[0], away[1], away[2]))
        near, far = intersect(start, _turn(yaw[0], yaw[1], rays), half)
        hit = (near < far) & (near > 0.02)
        return _packed(jnp.where(hit, near, _FAR), row)

    return key


def _room(
    face: jax.Array, position: jax.Array, rays: Vec, first: int
) -> tuple[jax.Array, jax.Array]:
    """Depth and row of the room's face that each ray hits."""
    size = 2.0 * _column(face, "half")
    x, y, z = (
        jnp.where(r > 0, size[i] - position[i], -position[i]) / _safe(r)
        for i, r in enumerate(rays)
    )
    row = jnp.where(rays[2] > 0, scene_lib.CEILING, scene_lib.FLOOR)
    depth = jnp.minimum(z, jnp.minimum(x, y))
    front, right, back, left = (scene_lib.WALLS + k for k in range(4))
    row = jnp.where(x <= depth, jnp.where(rays[0] > 0, right, left), row)
    on_y = (y <= depth) & (x > depth)
    row = jnp.where(on_y, jnp.where(rays[1] > 0, back, front), row)
    return depth, (first + row).astype(jnp.int32)


def _surface(scene: Scene, rays: Vec, hit: _Hit) -> _Surface:
    """Point, outward normal and surface coordinates of each hit."""
    table = jnp.take(jnp.asarray(scene.surfaces), hit.row, axis=0, mode="clip")
    x, y, z = (scene.position[i] + hit.depth * rays[i] for i in range(3))
    centre, half = _column(table, "centre"), _column(table, "half")
    c, s = table[:, COLUMNS["yaw"].start], table[:, COLUMNS["yaw"].start + 1]
    away = (x - centre[:, 0], y - centre[:, 1], z - centre[:, 2])
    local = _turn(c, s, away)
    q = [local[i] / half[:, i] for i in range(3)]
    shape = _column(table, "shape")
    # The face of a box, or of the room, that is hit: the axis with the largest |q|.
    a = [jnp.abs(qi) for qi in q]
    on_z = (a[2] >= a[0]) & (a[2] >= a[1])
    on_x = (a[0] >= a[1]) & ~on_z
    inward = jnp.where(shape == scene_lib.ROOM, -1.0, 1.0)
    axes = (on_x, ~on_x & ~on_z, on_z)
    flat = [jnp.where(axes[i], inward * jnp.sign(q[i]), 0.0) for i in range(3)]
    # The normal of an ellipsoid is its gradient; that of a cylinder's side has no z.
    side = _dot(q[:2], q[:2]) > 0.985
    round_z = jnp.where(
        shape == scene_lib.ELLIPSOID, q[2], jnp.where(side, 0.0, jnp.sign(q[2]) * 1e3)
    )
    curved = (q[0] / half[:, 0], q[1] / half[:, 1], round_z / half[:, 2])
    boxy = (shape == scene_lib.BOX) | (shape == scene_lib.ROOM)
    nx, ny, nz = n = [jnp.where(boxy, flat[i], curved[i]) for i in range(3)]
    scale = lax.rsqrt(_dot(n, n) + 1e-12)
    normal = _turn(c, -s, (nx * scale, ny * scale, nz * scale))
    u = jnp.where(on_x, local[1], local[0])
    v = jnp.where(on_z, local[1], local[2])
    return _Surface((x, y, z), normal, u, v, local[2] + half[:, 2], table)


# --- noise ---------------------------------------------------------------------


def _hash(salt: jax.Array, *words: jax.Array) -> UInt32[Array, "..."]:
    """32 well-mixed bits of integers (the finaliser of MurmurHash3)."""
    h = jnp.asarray(salt, jnp.uint32)
    for word in words:
        h = (h ^ word.astype(jnp.uint32)) * np.uint32(0x9E3779B1)
        h = h ^ (h >> 15)
    h = h * np.uint32(0x85EBCA6B)
    h = h ^ (h >> 13)
    h = h * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _unit(bits: jax.Array) -> jax.Array:
    """The upper 24 bits as a number in [0, 1)."""
    # Through int32, whose conversion every backend vectorises.
    return (bits >> 8).astype(jnp.int32).astype(jnp.float32) * np.float32(2**-24)


def _uniform(salt: jax.Array, *words: jax.Array) -> jax.Array:
    return _unit(_hash(salt, *words))


def _gaussian(salt: jax.Array, *words: jax.Array) -> jax.Array:
    """Approximately normal: the sum of four 16-bit uniforms, scaled to variance 1."""
    total = jnp.float32(-2.0)
    for bits in (_hash(salt, *words), _hash(salt ^ np.uint32(0x68E31DA4), *words)):
        for half in (bits >> 16, bits & np.uint32(0xFFFF)):
            uniform = half.astype(jnp.int32).astype(jnp.float32) * np.float32(2**-16)
            total = total + uniform
    return total * np.float32(3**0.5)


def _cell(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cell number of x, and the position in the cell, 0 to 1."""
    floor = jnp.floor(x)
    return floor.astype(jnp.int32), x - floor


def _value_noise(salt: jax.Array, u: jax.Array, v: jax.Array) -> jax.Array:
    """Smoothly interpolated random values at integers; 0 to 1, mean 0.5."""
    i, s = _cell(u)
    j, t = _cell(v)
    s, t = s * s * (3.0 - 2.0 * s), t * t * (3.0 - 2.0 * t)
    low = _uniform(salt, i, j) * (1.0 - s) + _uniform(salt, i + 1, j) * s
    high = _uniform(salt, i, j + 1) * (1.0 - s) + _uniform(salt, i + 1, j + 1) * s
    return low * (1.0 - t) + high * t


# --- appearance ----------------------------------------------------------------


def _albedo(salt: jax.Array, surface: _Surface, footprint: jax.Array) -> Vec:
    """The reflectance of each surface point.

    Args:
      footprint: size of a pixel on the surface, metres; finer texture is averaged.
    """
    table = surface.table
    kind, cell = _column(table, "texture"), _column(table, "cell")
    offset, first = _column(table, "offset"), _column(table, "first")
    salt = salt + _surface_salt(offset)
    u, v = surface.u + offset[:, 0], surface.v + offset[:, 1]
    planks = kind == scene_lib.PLANKS
    books = kind == scene_lib.BOOKS
    rows = v / cell[:, 1]
    j, t = _cell(rows)
    # The planks of each row have a random offset.
    shift = jnp.where(planks, _uniform(salt, j), 0.0)
    i, s = _cell(u / cell[:, 0] + shift)
    bits = _hash(salt, i, j)
    tone = _unit(bits)
    visible = jnp.clip(1.5 - footprint / jnp.min(cell, axis=1), 0.0, 1.0)
    # Grain is stretched along planks, other noise is isotropic.
    stretch = jnp.where(planks, 0.12, 1.0)
    size = jnp.where(kind == scene_lib.MOTTLED, cell[:, 0], 0.35)
    size = jnp.where(planks, 0.04, size)
    coarse = _value_noise(salt, stretch * u / size, v / size)
    fine_salt = salt + np.uint32(77)
    speckle = _value_noise(fine_salt, 2.7 * stretch * u / size, 2.7 * v / size)
    shown = jnp.clip(1.5 - footprint / size, 0.0, 1.0)
    speckled = jnp.clip(1.5 - 2.7 * footprint / size, 0.0, 1.0)
    noise = 0.5 + 0.65 * (coarse - 0.5) * shown + 0.35 * (speckle - 0.5) * speckled
    mix = _mixture(kind, i, j, tone, noise, visible)
    joint = _joints(kind, s, t, cell, footprint)
    shade = (1.0 - 0.55 * joint) * (1.0 + 0.12 * (noise - 0.5))
    in_band = surface.height < _column(table, "band")
    mix = jnp.where(in_band, 1.0, mix)
    shade = jnp.where(in_band, 1.0, shade)
    second = _column(table, "second")
    # Spines of books: random colours, darker towards the shelf above.
    lit = (1.2 - t) * (0.35 + 0.65 * visible)
    colours = []
    for k in range(3):
        spine = _unit(bits * np.uint32(2 * k + 1)) * 0.5 * visible + 0.18
        plain = first[:, k] + (second[:, k] - first[:, k]) * mix
        colours.append(jnp.where(books, spine * lit, plain) * shade)
    return colours[0], colours[1], colours[2]


def _surface_salt(offset: jax.Array) -> jax.Array:
    """A random number per surface, from the random offset of its texture."""
    return (offset[:, 0] * 1e4).astype(jnp.int32).astype(jnp.uint32)


def _mixture(kind, i, j, tone, noise, visible) -> jax.Array:
    """The share of the second colour, 0 to 1."""
    checks = ((i + j) & 1).astype(jnp.float32)
    stripes = (i & 1).astype(jnp.float32)
    mix = 0.6 * (noise - 0.5) + 0.15
    mix = jnp.where(kind == scene_lib.PLANKS, 0.6 * tone + 1.6 * noise - 0.6, mix)
    mix = jnp.where(kind == scene_lib.TILES, 0.5 * tone, mix)
    pattern = jnp.where(kind == scene_lib.CHECKS, checks, stripes)
    pattern = 0.5 + (pattern - 0.5) * visible
    patterned = (kind == scene_lib.CHECKS) | (kind == scene_lib.STRIPES)
    mix = jnp.where(patterned, pattern, mix)
    mix = jnp.where(kind == scene_lib.MOTTLED, 3.0 * noise - 1.0, mix)
    return jnp.clip(mix, 0.0, 1.0)


def _joints(kind, s, t, cell, footprint) -> jax.Array:
    """The coverage of a pixel by dark lines between planks, tiles and doors."""
    tiles = kind == scene_lib.TILES
    width = jnp.where(tiles, 0.010, 0.005)
    wide = jnp.maximum(width, footprint)
    cover = jnp.zeros_like(s)
    for position, length in ((s, cell[:, 0]), (t, cell[:, 1])):
        distance = (0.5 - jnp.abs(position - 0.5)) * length
        line = jnp.clip((wide - distance) / wide, 0.0, 1.0) * width / wide
        cover = jnp.maximum(cover, line)
    return jnp.where(tiles | (kind == scene_lib.PLANKS), cover * 1.4, 0.0)


def _inscribed(table: jax.Array) -> jax.Array:
    """Half sizes of a box inside each primitive, which approximates its shadow."""
    shape, half = _column(table, "shape")[:, None], _column(table, "half")
    flat = jnp.asarray([0.7, 0.7, 0.98], jnp.float32)[None]
    round_ = jnp.where(shape == scene_lib.ELLIPSOID, 0.57, flat)
    return half * jnp.where(shape == scene_lib.BOX, 1.0, round_)


def _least(x: jax.Array) -> jax.Array:
    """The minimum over the first axis of numbers >= 0.

    Compares the bits as integers, which have the same order: without handling of NaN,
    the loop is vectorised and ten times as fast on CPU.
    """
    bits = jnp.min(lax.bitcast_convert_type(x, jnp.int32), axis=0)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _occlusion(scene: Scene, surface: _Surface) -> tuple[jax.Array, jax.Array]:
    """The shares of ambient light and of the first lamp's light at each point.

    Ambient: the distance to the nearest surface from a point 0.22 m above the surface,
    divided by 0.22 m. Shadow: the length of the path to the lamp inside a box, divided
    by the thickness of the box, which softens the edges.
    """
    breadth = 0.22
    table = jnp.asarray(scene.surfaces)
    count = table.shape[0] - 6
    lamp = jnp.asarray(scene.lights)[0]
    point, normal = surface.point, surface.normal
    start = [point[i] + 0.004 * normal[i] for i in range(3)]
    above = [point[i] + breadth * normal[i] for i in range(3)]
    to_lamp = (lamp[0] - start[0], lamp[1] - start[1], lamp[2] - start[2])

    def gap_to(centre, _, yaw, half):
        local = _turn(yaw[0], yaw[1], tuple(above[i] - centre[i] for i in range(3)))
        outside = [jnp.maximum(jnp.abs(local[i]) - half[i], 0.0) for i in range(3)]
        return _dot(outside, outside)

    def light_past(centre, _, yaw, half):
        local = _turn(yaw[0], yaw[1], tuple(start[i] - centre[i] for i in range(3)))
        near, far = _intersect_box(local, _turn(yaw[0], yaw[1], to_lamp), half)
        inside = jnp.minimum(far, 1.0) - jnp.maximum(near, 0.0)
        # 2.5 m is a typical distance to the lamp; it converts the share to metres.
        return 1.0 - jnp.clip(inside / (jnp.min(half) / 2.5 + 1e-3), 0.0, 1.0)

    blocks = (*_geometry(table[:count]), _inscribed(table[:count]))
    gap = jnp.sqrt(jnp.minimum(_least(jax.vmap(gap_to)(*blocks)), breadth**2))
    lit = _least(jax.vmap(light_past)(*blocks))
    size = 2.0 * _column(table[count], "half")
    for i in range(3):  # The faces of the room.
        to_face = jnp.minimum(above[i], size[i] - above[i])
        gap = jnp.minimum(gap, jnp.maximum(to_face, 0.0))
    return 0.35 + 0.65 * gap / breadth, lit


def _shade(scene: Scene, surface: _Surface, albedo: Vec, view: Vec) -> Vec:
    """The light from each surface to the camera.

    Sums diffuse light of the lamps with inverse square falloff, highlights of the first
    lamp, and ambient light.
    """
    ambient, lit = _occlusion(scene, surface)
    n, lights = surface.normal, jnp.asarray(scene.lights)
    share = scene.photo[7]
    # Ambient light from above is stronger than from below.
    sky = share * ambient * (0.8 + 0.2 * n[2])
    total = [sky, sky, sky]
    highlight = jnp.zeros_like(sky)
    gloss = _column(surface.table, "gloss")
    for lamp in range(scene_lib.LIGHTS):
        row = lights[lamp]
        axis = row[6:]
        to_lamp = [row[i] - surface.point[i] for i in range(3)]
        squared = _dot(to_lamp, to_lamp) + 0.05
        inverse = lax.rsqrt(squared)
        beam = -_dot(to_lamp, axis) * inverse
        beam = jnp.where(_dot(axis, axis) < 0.5, 1.0, jnp.maximum(beam, 0.0))
        power = jnp.maximum(_dot(to_lamp, n) * inverse, 0.0) * beam / squared
        if lamp == 0:
            power = power * lit
            half = [to_lamp[i] * inverse - view[i] for i in range(3)]
            specular = _dot(half, n) ** 2 / (_dot(half, half) + 1e-6)
            colour = jnp.mean(row[3:6])
            highlight = gloss * lit * specular**16 * colour * beam / squared
        for k in range(3):
            total[k] = total[k] + power * row[3 + k]
    glow = 3.0 * _column(surface.table, "glow") * share
    red, green, blue = (albedo[k] * (total[k] + glow) + highlight for k in range(3))
    return red, green, blue


def _photograph(
    scene: Scene, light: Float[Array, "3 h w"], size: tuple[int, int], sensor: bool
) -> UInt8[Array, "h w 3"]:
    """Apply vignetting, exposure, contrast, colour, noise and gamma 2.2."""
    height, width = size
    photo = jnp.asarray(scene.photo)
    v, u = np.mgrid[0:height, 0:width].astype(np.float32)
    radius = ((v / height - 0.5) ** 2 + (u / width - 0.5) ** 2) * 2.0
    light = light * (1.0 - photo[4] * radius)[None]
    grey = jnp.mean(light, axis=0)
    # Automatic exposure by the mean logarithm, which is robust to lamps in view.
    mean = jnp.exp(jnp.mean(jnp.log(grey + 1e-3)))
    light = (light / mean) * photo[1:4, None, None]
    grey = jnp.mean(light, axis=0, keepdims=True)
    light = jnp.maximum(grey + photo[9] * (light - grey), 0.0)
    # Contrast is a power of the grey level relative to the mean; it keeps the hue.
    light = photo[0] * light * (grey + 1e-3) ** (photo[8] - 1.0)
    if sensor:
        index = jnp.asarray(np.arange(3 * height * width).reshape(3, height, width))
        noise = _gaussian(jnp.asarray(scene.salt), index.astype(jnp.int32))
        sigma = jnp.sqrt(photo[5] ** 2 + photo[6] ** 2 * light)
        light = light + sigma * noise
    # Compress highlights smoothly, so that windows and lamps have no hard edges.
    light = jnp.where(light > 0.7, 1.0 - 0.3 * jnp.exp((0.7 - light) / 0.3), light)
    levels = jnp.clip(light, 0.0, 1.0) ** _GAMMA * 255.0 + 0.5
    return jnp.moveaxis(levels.astype(jnp.uint8), 0, -1)


# --- depth sensor --------------------------------------------------------------


def _measure(
    scene: Scene,
    depth: Float[Array, "h w"],
    loss: Float[Array, "h w"],
    size: tuple[int, int],
) -> Float[Array, "h w"]:
    """Simulate a structured-light sensor; see `_BASELINE`.

    Args:
      depth: exact depth, metres.
      loss: probability that a pixel has no reading, 0 to 1.

    Returns: quantised and noisy depth, metres, 0 = missing.
    """
    height, width = size
    salt = jnp.asarray(scene.salt, jnp.uint32) ^ np.uint32(0xB5297A4D)
    row, column = np.mgrid[0:height, 0:width].astype(np.int32)
    row, column = jnp.asarray(row), jnp.asarray(column)
    # The projector is right of the camera: a point is in its shadow if a point further
    # right in the image is further left in the projector's view.
    focal = intrinsics(size)[0]
    shifted = column - focal * _BASELINE / depth
    nearest = lax.cummin(shifted, axis=1, reverse=True)
    hidden = shifted > nearest + 0.35
    patches = _value_noise(salt, 14.0 * row / height, 18.0 * column / width)
    chance = 0.75 * patches + 0.25 * _uniform(salt, row, column)
    noise = _gaussian(salt, row, column)
    steps = (1.0 / depth + _DISPARITY_SIGMA * noise) / _DISPARITY_STEP
    measured = 1.0 / (jnp.maximum(jnp.round(steps), 1.0) * _DISPARITY_STEP)
    lost = hidden | (chance < loss) | (measured > MAX_DEPTH) | (measured < MIN_DEPTH)
    return jnp.where(lost, 0.0, measured)


def _pattern_loss(surface: _Surface, view: Vec, depth: jax.Array) -> jax.Array:
    """The share of the pattern that is lost, by material, angle and distance."""
    facing = jnp.abs(_dot(view, surface.normal))
    grazing = 0.8 * jnp.clip(1.0 - facing / 0.16, 0.0, 1.0)
    distant = 0.5 * jnp.clip((depth - 6.0) / 4.0, 0.0, 1.0)
    return _column(surface.table, "ir_loss") + grazing + distant + 0.1


# --- one frame -----------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("size", "sensor"))
def _draw(
    scene: Scene, size: tuple[int, int], sensor: bool
) -> tuple[jax.Array, jax.Array]:
    height, width = size
    pixels = height * width
    # Without barriers the compiler fuses stages and recomputes earlier ones for each
    # use, at twice the cost on CPU.
    rays = lax.optimization_barrier(_rays(scene, size))
    hit = lax.optimization_barrier(_trace(scene, rays))
    surface = lax.optimization_barrier(_surface(scene, rays, hit))
    length = jnp.sqrt(_dot(rays, rays))
    view: Vec = (rays[0] / length, rays[1] / length, rays[2] / length)
    facing = jnp.maximum(jnp.abs(_dot(view, surface.normal)), 0.05)
    footprint = hit.depth / intrinsics(size)[0] / jnp.sqrt(facing)
    albedo = _albedo(jnp.asarray(scene.salt, jnp.uint32), surface, footprint)
    albedo, view = lax.optimization_barrier((albedo, view))
    light = lax.optimization_barrier(jnp.stack(_shade(scene, surface, albedo, view)))
    centres = light[:, :pixels].reshape(3, height, width)
    corners = light[:, pixels:].reshape(3, height + 1, width + 1)
    # Quincunx: half the centre, an eighth of each corner. Light is clipped first, so
    # that one sample of a lamp does not dominate its pixel.
    centres, corners = jnp.minimum(centres, 6.0), jnp.minimum(corners, 6.0)
    below, above = corners[:, 1:], corners[:, :-1]
    around = below[..., 1:] + below[..., :-1] + above[..., 1:] + above[..., :-1]
    rgb = _photograph(scene, 0.5 * centres + 0.125 * around, size, sensor)
    depth = hit.depth[:pixels].reshape(size)
    if sensor:
        loss = _pattern_loss(surface, view, hit.depth)[:pixels].reshape(size)
        depth = _measure(scene, depth, loss, size)
    return rgb, depth
