"""Random scenes of rooms: furniture, surfaces, lights and the camera.

A scene is a small table of numbers, created with NumPy and rendered by `renderer`.
Units are metres; x and y span the floor, z points up, the floor is z = 0.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

# Number of primitives per frame: of each shape, those with the largest share of the
# view.
BOXES, ELLIPSOIDS, CYLINDERS = 40, 8, 8
FLOOR, CEILING, WALLS = 0, 1, 2  # Offsets of the room's six faces after the primitives.
BOX, ELLIPSOID, CYLINDER, ROOM = 0, 1, 2, 3

# Textures, in surface coordinates.
PLAIN, PLANKS, TILES, CHECKS, STRIPES, MOTTLED, BOOKS = range(7)

# NYU's colour camera at 480x640: half the height and width of the view at 1 m.
_VIEW_UP, _VIEW_SIDE = 240 / 519.47, 320 / 518.86

RGB = tuple[float, float, float]
T = TypeVar("T")


class Scene(NamedTuple):
    """One frame's room, ready to render. All arrays are float32 except `salt`.

    surfaces: (BOXES + ELLIPSOIDS + CYLINDERS + 6, 24); the columns are those of
      `COLUMNS`; the last six rows are the room's faces: floor, ceiling, and the
      walls y = 0, x = width, y = depth, x = 0. Unused rows are far below the floor.
    position: (3,) of the camera, metres.
    rotation: (3, 3); its columns are the image's right, down and the optical axis
      in the room's coordinates.
    lights: (LIGHTS, 9): position, colour times strength, direction (zero: all
      directions). The first one casts shadows.
    photo: (10,): mean brightness, gains of red, green and blue, vignetting, read noise,
      shot noise, share of ambient light, contrast, saturation.
    salt: () uint32, the seed of per-pixel noise.
    """

    surfaces: np.ndarray
    position: np.ndarray
    rotation: np.ndarray
    lights: np.ndarray
    photo: np.ndarray
    salt: np.ndarray


# The columns of each property in `Scene.surfaces`. half and yaw (cosine, sine): of the
# oriented box around the primitive. cell: size of the texture, metres. band: height
# below which the colour is `second` (skirting boards, plinths).
COLUMNS: dict[str, slice] = {
    "centre": slice(0, 3),
    "half": slice(3, 6),
    "yaw": slice(6, 8),
    "shape": slice(8, 9),
    "first": slice(9, 12),
    "second": slice(12, 15),
    "texture": slice(15, 16),
    "cell": slice(16, 18),
    "gloss": slice(18, 19),
    "ir_loss": slice(19, 20),
    "glow": slice(20, 21),
    "band": slice(21, 22),
    "offset": slice(22, 24),
}
LIGHTS = 3


class Dice:
    """The random number generator of one frame; all draws use uniforms in [0, 1)."""

    def __init__(self, seed: int, index: int):
        words = [seed % 2**64, index % 2**64]
        self._next = np.random.Generator(np.random.PCG64(words)).random

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._next()

    def chance(self, share: float) -> bool:
        return self._next() < share

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self._next() * len(options))]

    def count(self, low: int, high: int) -> int:
        """An integer from low to high, inclusive."""
        return low + int(self._next() * (high - low + 1))

    def normal(self, mean: float, sigma: float) -> float:
        """Approximately normal, within 4.2 sigma: a sum of six uniforms."""
        total = sum(self._next() for _ in range(6)) - 3.0
        return mean + sigma * total * math.sqrt(2.0)

    def tint(self, colour: RGB, spread: float = 0.15) -> RGB:
        """The colour with random brightness and channel gains."""
        gain = self.between(1 - 2 * spread, 1 + spread)
        r, g, b = (
            min(0.92, max(0.015, c * gain * self.between(1 - spread, 1 + spread)))
            for c in colour
        )
        return r, g, b


class Material(NamedTuple):
    """Appearance of a surface. Colours are linear reflectances, 0 to 1.

    Attributes: as in `COLUMNS`.
    """

    first: RGB
    second: RGB
    texture: int = PLAIN
    cell: tuple[float, float] = (0.5, 0.5)
    gloss: float = 0.0
    ir_loss: float = 0.0
    glow: float = 0.0
    band: float = 0.0


class Part(NamedTuple):
    """A box, ellipsoid or vertical cylinder: centre, half sizes, yaw in radians."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    material: Material
    shape: int = BOX
    yaw: float = 0.0


class Piece(NamedTuple):
    """A piece of furniture in local coordinates: its back is at y = -depth/2."""

    width: float
    depth: float
    parts: list[Part]


def solid(x, y, z, width, depth, height, material, shape=BOX, yaw=0.0) -> Part:
    """Create a part from its full sizes and the centre of its underside."""
    return Part(
        (x, y, z + height / 2),
        (max(width / 2, 2e-3), max(depth / 2, 2e-3), max(height / 2, 2e-3)),
        material,
        shape,
        yaw,
    )


# --- materials -----------------------------------------------------------------

_WOODS: list[RGB] = [
    (0.42, 0.24, 0.11), (0.55, 0.36, 0.18), (0.28, 0.13, 0.06),
    (0.14, 0.08, 0.05), (0.62, 0.47, 0.30), (0.35, 0.11, 0.05),
]  # fmt: skip
_PAINTS: list[RGB] = [
    (0.78, 0.76, 0.71), (0.72, 0.65, 0.50), (0.82, 0.82, 0.82),
    (0.70, 0.52, 0.25), (0.55, 0.62, 0.66), (0.60, 0.66, 0.52),
    (0.62, 0.40, 0.33), (0.42, 0.47, 0.58), (0.75, 0.70, 0.62),
    (0.80, 0.74, 0.58),
]  # fmt: skip
_STONES: list[RGB] = [
    (0.42, 0.40, 0.37), (0.33, 0.31, 0.29), (0.46, 0.37, 0.28),
    (0.38, 0.25, 0.20),
]  # fmt: skip
_FABRICS: list[RGB] = [
    (0.10, 0.11, 0.16), (0.30, 0.22, 0.16), (0.55, 0.50, 0.42),
    (0.40, 0.10, 0.09), (0.12, 0.20, 0.34), (0.65, 0.63, 0.60),
    (0.15, 0.24, 0.15), (0.45, 0.32, 0.42), (0.07, 0.07, 0.07),
]  # fmt: skip
_BRIGHT: list[RGB] = [
    (0.75, 0.10, 0.08), (0.10, 0.25, 0.65), (0.85, 0.65, 0.10),
    (0.12, 0.45, 0.18), (0.80, 0.80, 0.80), (0.05, 0.05, 0.05),
    (0.60, 0.30, 0.55), (0.10, 0.50, 0.55), (0.55, 0.35, 0.20),
]  # fmt: skip


def _darker(colour: RGB, gain: float) -> RGB:
    return colour[0] * gain, colour[1] * gain, colour[2] * gain


def wood(dice: Dice) -> Material:
    first = dice.tint(dice.pick(_WOODS))
    return Material(
        first,
        _darker(first, 0.72),
        PLANKS,
        (dice.between(0.7, 1.6), dice.between(0.1, 0.6)),
        gloss=dice.between(0.0, 0.25),
        ir_loss=0.22 if sum(first) < 0.4 else 0.05,
    )


def fabric(dice: Dice) -> Material:
    first = dice.tint(dice.pick(_FABRICS), 0.2)
    second = dice.tint(dice.pick(_FABRICS), 0.2)
    texture = dice.pick([MOTTLED, MOTTLED, PLAIN, PLAIN, STRIPES, CHECKS])
    cell = dice.between(0.06, 0.25)
    if texture in (PLAIN, MOTTLED):
        second = _darker(first, 0.65)
    loss = 0.3 if sum(first) < 0.35 else 0.03
    return Material(first, second, texture, (cell, cell), ir_loss=loss)


def lacquer(dice: Dice, colours: Sequence[RGB] = _PAINTS) -> Material:
    first = dice.tint(dice.pick(colours))
    loss = 0.25 if sum(first) < 0.35 else 0.04
    gloss = dice.between(0.05, 0.4)
    return Material(first, _darker(first, 0.8), gloss=gloss, ir_loss=loss)


def metal(dice: Dice) -> Material:
    level = dice.between(0.04, 0.5)
    grey = (level, level, level)
    return Material(grey, grey, gloss=0.6, ir_loss=dice.between(0.1, 0.4))


def screen() -> Material:
    dark = (0.018, 0.018, 0.02)
    return Material(dark, dark, gloss=0.5, ir_loss=0.55)


def fronted(material: Material, width: float, height: float) -> Material:
    """The material with joints between doors or drawers of the given size."""
    second = _darker(material.first, 0.85)
    return material._replace(
        texture=TILES, cell=(width, height), second=second, band=0.07
    )


# --- furniture -----------------------------------------------------------------


def clutter(dice: Dice, x, y, z, width, depth, count) -> list[Part]:
    """Random small objects on a surface of the given size around (x, y)."""
    parts = []
    for _ in range(count + dice.count(0, 2)):
        shift_x, shift_y = dice.between(-0.42, 0.42), dice.between(-0.35, 0.35)
        at = (x + shift_x * width, y + shift_y * depth, z)
        paint = lacquer(dice, _BRIGHT)
        match dice.count(0, 5):
            case 0:  # mug or bottle
                size, tall = dice.between(0.06, 0.1), dice.between(0.09, 0.3)
                parts.append(solid(*at, size, size, tall, paint, CYLINDER))
            case 1:  # bowl, fruit, ball
                size = dice.between(0.09, 0.24)
                parts.append(solid(*at, size, size, size * 0.8, paint, ELLIPSOID))
            case 2:  # laptop
                yaw = dice.between(-0.4, 0.4)
                parts.append(solid(*at, 0.34, 0.24, 0.02, metal(dice), yaw=yaw))
                back = (at[0] + 0.12 * math.sin(yaw), at[1] - 0.12 * math.cos(yaw), z)
                parts.append(solid(*back, 0.34, 0.015, 0.23, screen(), yaw=yaw))
            case _:  # books, boxes, paper
                size, deep = dice.between(0.1, 0.32), dice.between(0.1, 0.26)
                tall, yaw = dice.between(0.01, 0.2), dice.between(-0.8, 0.8)
                parts.append(solid(*at, size, deep, tall, paint, yaw=yaw))
    return parts


def _legs(width, depth, height, thick, material) -> list[Part]:
    x, y = width / 2 - thick / 2, depth / 2 - thick / 2
    return [
        solid(sx * x, sy * y, 0.0, thick, thick, height, material)
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]


def bed(dice: Dice) -> Piece:
    width, depth = dice.between(0.9, 1.9), dice.between(1.95, 2.15)
    frame, sheet, cover = wood(dice), lacquer(dice), fabric(dice)
    top = dice.between(0.42, 0.6)
    parts = [
        solid(0, 0, 0.0, width, depth, top - 0.2, frame),
        solid(0, 0.02, top - 0.2, width - 0.06, depth - 0.08, 0.2, sheet),
        solid(0, 0.28, top - 0.3, width + 0.03, depth * 0.7, 0.33, cover),
        solid(0, -depth / 2, 0.0, width, 0.06, dice.between(0.8, 1.2), frame),
    ]
    pillow = lacquer(dice) if dice.chance(0.6) else fabric(dice)
    for x in (-width / 4, width / 4) if width > 1.3 else (0.0,):
        y = -depth / 2 + 0.3
        parts.append(solid(x, y, top - 0.03, 0.58, 0.4, 0.2, pillow, ELLIPSOID))
    if dice.chance(0.4):
        parts += clutter(dice, 0, 0.4, top + 0.03, width * 0.7, 0.8, dice.count(1, 2))
    return Piece(width, depth, parts)


def sofa(dice: Dice, width: float | None = None) -> Piece:
    width = dice.between(1.4, 2.4) if width is None else width
    depth, arm = dice.between(0.8, 1.0), dice.between(0.12, 0.25)
    cover = fabric(dice)
    seat, back = dice.between(0.38, 0.46), dice.between(0.72, 0.92)
    side = (width - arm) / 2
    parts = [
        solid(0, 0.03, 0.06, width, depth - 0.05, seat - 0.06, cover),
        solid(0, -depth / 2 + 0.13, 0.06, width, 0.26, back - 0.06, cover),
        *(solid(x, 0, 0.0, arm, depth, seat + 0.18, cover) for x in (-side, side)),
    ]
    for _ in range(dice.count(0, 2)):
        x = dice.between(-0.35, 0.35) * width
        parts.append(
            solid(x, -depth / 2 + 0.36, seat, 0.42, 0.2, 0.38, fabric(dice), ELLIPSOID)
        )
    return Piece(width, depth, parts)


def armchair(dice: Dice) -> Piece:
    return sofa(dice, dice.between(0.75, 0.95))


def table(dice: Dice) -> Piece:
    width, depth = dice.between(0.9, 2.0), dice.between(0.7, 1.0)
    height, top, leg = dice.between(0.7, 0.78), wood(dice), dice.between(0.04, 0.08)
    if dice.chance(0.25):
        width = depth = dice.between(0.8, 1.3)
        parts = [
            solid(0, 0, 0.0, 0.12, 0.12, height - 0.03, top, CYLINDER),
            solid(0, 0, height - 0.03, width, width, 0.03, top, CYLINDER),
        ]
    else:
        parts = [solid(0, 0, height - 0.04, width, depth, 0.04, top)]
        parts += _legs(width - 0.1, depth - 0.1, height - 0.04, leg, top)
    parts += clutter(dice, 0, 0, height, width * 0.8, depth * 0.8, dice.count(0, 5))
    return Piece(width, depth, parts)


def coffee_table(dice: Dice) -> Piece:
    width, depth = dice.between(0.7, 1.3), dice.between(0.5, 0.7)
    height, top = dice.between(0.38, 0.5), wood(dice)
    parts = [solid(0, 0, height - 0.05, width, depth, 0.05, top)]
    if dice.chance(0.3):
        parts.append(solid(0, 0, 0.0, width - 0.1, depth - 0.1, height - 0.05, top))
    else:
        parts += _legs(width, depth, height - 0.05, 0.06, top)
    parts += clutter(dice, 0, 0, height, width, depth, dice.count(0, 3))
    return Piece(width, depth, parts)


def chair(dice: Dice) -> Piece:
    size, seat = dice.between(0.4, 0.48), dice.between(0.43, 0.48)
    top = dice.between(0.8, 1.0)
    frame = wood(dice) if dice.chance(0.6) else lacquer(dice, _BRIGHT)
    cover = frame if dice.chance(0.5) else fabric(dice)
    back = -size / 2 + 0.02
    parts = [
        solid(0, 0, seat - 0.05, size, size, 0.05, cover),
        solid(0, back, seat + 0.12, size, 0.03, top - seat - 0.12, cover),
    ]
    parts += _legs(size, size, seat - 0.04, 0.035, frame)
    for x in (-size / 2 + 0.02, size / 2 - 0.02):
        parts.append(solid(x, back, seat, 0.035, 0.035, 0.14, frame))
    return Piece(size, size, parts)


def office_chair(dice: Dice) -> Piece:
    cover, steel = fabric(dice), metal(dice)
    parts = [
        solid(0, 0, 0.0, 0.55, 0.55, 0.06, steel, CYLINDER),
        solid(0, 0, 0.05, 0.06, 0.06, 0.38, steel, CYLINDER),
        solid(0, 0, 0.42, 0.5, 0.48, 0.09, cover),
        solid(0, -0.22, 0.55, 0.46, 0.07, dice.between(0.4, 0.6), cover),
    ]
    return Piece(0.55, 0.55, parts)


def cupboard(dice: Dice) -> Piece:
    """A wardrobe, cupboard or chest of drawers."""
    body = wood(dice) if dice.chance(0.6) else lacquer(dice)
    if dice.chance(0.5):
        width, height = dice.between(0.8, 2.0), dice.between(1.7, 2.2)
        front = fronted(body, width / dice.count(2, 3), height + 0.1)
        on_top = dice.count(0, 1)
    else:
        width, height = dice.between(0.6, 1.5), dice.between(0.7, 1.2)
        front = fronted(body, width / dice.count(1, 3), height / dice.count(3, 5))
        on_top = dice.count(1, 4)
    depth = dice.between(0.4, 0.62)
    parts = [
        solid(0, 0, 0.0, width, depth, height, front),
        solid(0, 0.01, height, width + 0.03, depth + 0.02, 0.025, body),
    ]
    if on_top == 4:
        parts += _lamp(dice, 0.3 * width, 0.0, height + 0.025)
    parts += clutter(dice, 0, 0, height + 0.025, width * 0.9, depth * 0.7, on_top)
    return Piece(width, depth, parts)


def bookshelf(dice: Dice) -> Piece:
    width, depth = dice.between(0.7, 1.6), dice.between(0.26, 0.36)
    height, body, levels = dice.between(1.0, 2.1), wood(dice), dice.count(3, 5)
    step = height / levels
    cell = (dice.between(0.03, 0.08), step)
    books = Material((0.3, 0.3, 0.3), (0.05, 0.05, 0.05), BOOKS, cell, ir_loss=0.12)
    parts = [solid(0, -0.05, 0.0, width - 0.02, depth - 0.1, height - 0.02, books)]
    for x in (-width / 2, width / 2):
        parts.append(solid(x, 0, 0.0, 0.03, depth, height, body))
    for level in range(levels + 1):
        parts.append(solid(0, 0, level * step - 0.01, width, depth, 0.03, body))
    return Piece(width, depth, parts)


def desk(dice: Dice) -> Piece:
    width, depth, height = dice.between(1.1, 1.8), dice.between(0.6, 0.8), 0.73
    top = wood(dice) if dice.chance(0.6) else lacquer(dice)
    parts = [solid(0, 0, height - 0.03, width, depth, 0.03, top)]
    for x in (-width / 2 + 0.03, width / 2 - 0.03):
        parts.append(solid(x, 0, 0.0, 0.05, depth - 0.05, height - 0.03, top))
    if dice.chance(0.5):
        drawers = fronted(top, 0.5, 0.18)
        parts.append(solid(width / 2 - 0.27, 0, 0.06, 0.42, depth - 0.1, 0.6, drawers))
    for _ in range(dice.count(0, 2)):
        x, y = dice.between(-0.3, 0.3) * width, -depth / 2 + 0.18
        size = dice.between(0.42, 0.62)
        parts.append(solid(x, y, height, 0.22, 0.16, 0.12, metal(dice)))
        parts.append(solid(x, y, height + 0.1, size, 0.04, size * 0.62, screen()))
    if dice.chance(0.4):
        parts += _lamp(dice, -0.4 * width, -depth / 4, height)
    parts += clutter(dice, 0, 0.1, height, width, depth, dice.count(1, 5))
    return Piece(width, depth, parts)


def television(dice: Dice) -> Piece:
    width, depth, height = dice.between(1.1, 1.9), 0.45, dice.between(0.4, 0.65)
    body = wood(dice) if dice.chance(0.7) else lacquer(dice)
    size = dice.between(0.8, 1.3)
    parts = [
        solid(0, 0, 0.0, width, depth, height, fronted(body, width / 3, height / 2)),
        solid(0, -0.05, height, size * 0.4, 0.2, 0.05, screen()),
        solid(0, -0.05, height + 0.04, size, 0.06, size * 0.58, screen()),
    ]
    parts += clutter(dice, 0, 0.12, height, width, 0.2, dice.count(0, 2))
    return Piece(width, depth, parts)


def _lamp(dice: Dice, x, y, z) -> list[Part]:
    """A table lamp at (x, y, z)."""
    glow = dice.between(0.6, 1.6) if dice.chance(0.6) else 0.0
    shade = Material((0.85, 0.75, 0.55), (0.8, 0.7, 0.5), glow=glow)
    shape = dice.pick([ELLIPSOID, CYLINDER])
    return [
        solid(x, y, z, 0.14, 0.14, 0.02, metal(dice), CYLINDER),
        solid(x, y, z, 0.03, 0.03, 0.25, metal(dice), CYLINDER),
        solid(x, y, z + 0.22, 0.3, 0.3, 0.24, shade, shape),
    ]


def nightstand(dice: Dice) -> Piece:
    width, height = dice.between(0.4, 0.6), dice.between(0.45, 0.65)
    body = fronted(wood(dice), 1.0, height / 2)
    parts = [solid(0, 0, 0.0, width, 0.42, height, body)]
    if dice.chance(0.7):
        parts += _lamp(dice, 0, -0.05, height)
    parts += clutter(dice, 0, 0.1, height, width, 0.3, dice.count(0, 2))
    return Piece(width, 0.42, parts)


def floor_lamp(dice: Dice) -> Piece:
    height, steel = dice.between(1.4, 1.8), metal(dice)
    glow = dice.between(0.8, 1.8) if dice.chance(0.6) else 0.0
    shade = Material((0.85, 0.78, 0.6), (0.8, 0.7, 0.5), glow=glow)
    parts = [
        solid(0, 0, 0.0, 0.3, 0.3, 0.03, steel, CYLINDER),
        solid(0, 0, 0.0, 0.035, 0.035, height, steel, CYLINDER),
        solid(0, 0, height - 0.2, 0.4, 0.4, 0.3, shade, CYLINDER),
    ]
    return Piece(0.4, 0.4, parts)


def plant(dice: Dice) -> Piece:
    size, leaf = dice.between(0.25, 0.4), dice.tint((0.10, 0.28, 0.07), 0.25)
    green = Material(leaf, _darker(leaf, 0.3), MOTTLED, (0.08, 0.08), ir_loss=0.1)
    pot = lacquer(dice, _BRIGHT)
    tall = dice.between(0.5, 0.9)
    parts = [
        solid(0, 0, 0.0, size, size, size, pot, CYLINDER),
        solid(0, 0, size - 0.05, size * 1.6, size * 1.5, tall, green, ELLIPSOID),
        solid(0.1, 0, size + tall * 0.3, size, size * 1.2, tall, green, ELLIPSOID),
    ]
    return Piece(size * 1.6, size * 1.6, parts)


def counter(dice: Dice) -> Piece:
    """A row of kitchen cupboards, below and above the worktop."""
    width, depth = dice.between(1.8, 3.2), 0.62
    body = wood(dice) if dice.chance(0.6) else lacquer(dice)
    door = dice.between(0.4, 0.6)
    stone = fabric(dice)._replace(texture=MOTTLED, cell=(0.08, 0.08), gloss=0.3)
    parts = [
        solid(0, 0, 0.0, width, depth - 0.02, 0.87, fronted(body, door, 0.75)),
        solid(0, 0.01, 0.87, width, depth + 0.02, 0.04, stone),
    ]
    if dice.chance(0.7):
        upper = fronted(body, door, 0.8)._replace(band=0.0)
        gap = dice.between(0.0, 0.8)
        x = dice.pick([-1, 1]) * gap / 2
        parts.append(solid(x, -depth / 2 + 0.17, 1.42, width - gap, 0.34, 0.8, upper))
    if dice.chance(0.5):  # cooker: dark glass front and top
        x = dice.between(-0.3, 0.3) * width
        parts.append(solid(x, 0.03, 0.1, 0.58, depth, 0.74, metal(dice)))
        parts.append(solid(x, 0.0, 0.9, 0.56, 0.5, 0.02, screen()))
    parts += clutter(dice, 0, 0.0, 0.91, width, depth * 0.8, dice.count(2, 7))
    return Piece(width, depth, parts)


def fridge(dice: Dice) -> Piece:
    paint = lacquer(dice, [(0.8, 0.8, 0.8), (0.8, 0.8, 0.8), (0.45, 0.45, 0.46)])
    height = dice.between(1.5, 1.9)
    front = fronted(paint._replace(gloss=0.4), 1.0, height * 0.36)
    return Piece(0.65, 0.65, [solid(0, 0, 0.0, 0.65, 0.65, height, front)])


def bathtub(dice: Dice) -> Piece:
    white = Material((0.82, 0.82, 0.8), (0.7, 0.7, 0.7), gloss=0.5, ir_loss=0.15)
    width, depth, height = dice.between(1.5, 1.8), 0.75, 0.56
    parts = [solid(0, 0, 0.0, width, depth, 0.2, white)]
    for y in (-depth / 2 + 0.05, depth / 2 - 0.05):
        parts.append(solid(0, y, 0.0, width, 0.1, height, white))
    for x in (-width / 2 + 0.06, width / 2 - 0.06):
        parts.append(solid(x, 0, 0.0, 0.12, depth, height, white))
    return Piece(width, depth, parts)


def toilet(dice: Dice) -> Piece:
    white = Material((0.84, 0.84, 0.82), (0.7, 0.7, 0.7), gloss=0.5, ir_loss=0.1)
    parts = [
        solid(0, -0.25, 0.38, 0.38, 0.18, dice.between(0.35, 0.42), white),
        solid(0, 0.0, 0.0, 0.24, 0.5, 0.38, white),
        solid(0, 0.08, 0.3, 0.38, 0.52, 0.13, white, ELLIPSOID),
    ]
    return Piece(0.4, 0.68, parts)


def washstand(dice: Dice) -> Piece:
    width = dice.between(0.6, 1.5)
    body = wood(dice) if dice.chance(0.5) else lacquer(dice)
    white = Material((0.84, 0.84, 0.82), (0.7, 0.7, 0.7), gloss=0.5)
    silver, grey = (0.5, 0.53, 0.55), (0.65, 0.68, 0.7)
    mirror = Material(silver, grey, MOTTLED, gloss=0.3, ir_loss=0.6)
    parts = [
        solid(0, 0, 0.0, width, 0.5, 0.8, fronted(body, width / 2, 0.7)),
        solid(0, 0, 0.8, width + 0.04, 0.54, 0.05, white),
        solid(0, -0.25, 1.1, width * 0.9, 0.03, 0.8, mirror),
        solid(0, 0.05, 0.83, 0.42, 0.34, 0.1, white, ELLIPSOID),
    ]
    parts += clutter(dice, 0, 0, 0.85, width, 0.4, dice.count(1, 4))
    return Piece(width, 0.5, parts)


def cartons(dice: Dice) -> Piece:
    """Boxes on the floor, some stacked."""
    parts = []
    for x in (-0.25, 0.25):
        z = 0.0
        for _ in range(dice.count(1, 2)):
            tall = dice.between(0.2, 0.45)
            brown = lacquer(dice, [(0.5, 0.36, 0.2), *_BRIGHT])
            y = dice.between(-0.1, 0.1)
            width, depth = dice.between(0.25, 0.45), dice.between(0.25, 0.45)
            yaw = dice.between(-0.3, 0.3)
            parts.append(solid(x, y, z, width, depth, tall, brown, yaw=yaw))
            z += tall
    return Piece(0.9, 0.6, parts)


# --- rooms ---------------------------------------------------------------------

Maker = Callable[[Dice], Piece]


class _Kind(NamedTuple):
    """A kind of room.

    Attributes:
      walls, inside: furniture at the walls and elsewhere, in the order of placement,
        with the probability of each piece.
      low, high: range of width and depth, metres.
    """

    walls: list[tuple[Maker, float]]
    inside: list[tuple[Maker, float]]
    low: float
    high: float


_KINDS: dict[str, _Kind] = {
    "bedroom": _Kind(
        [(bed, 1.0), (nightstand, 0.9), (cupboard, 0.9), (nightstand, 0.5), (desk, 0.5),
         (cupboard, 0.5), (bookshelf, 0.4), (armchair, 0.3), (floor_lamp, 0.3)],
        [(chair, 0.5), (cartons, 0.3)], 2.7, 7.0),
    "living room": _Kind(
        [(sofa, 1.0), (television, 0.8), (bookshelf, 0.7), (cupboard, 0.6),
         (armchair, 0.6), (floor_lamp, 0.6), (plant, 0.6), (sofa, 0.4)],
        [(coffee_table, 0.9), (armchair, 0.5), (chair, 0.3)], 3.2, 11.0),
    "kitchen": _Kind(  # or dining room
        [(counter, 1.0), (fridge, 0.8), (counter, 0.6), (cupboard, 0.5), (plant, 0.2)],
        [(table, 0.8), (chair, 0.9), (chair, 0.8), (chair, 0.7), (chair, 0.4)],
        2.4, 9.0),
    "office": _Kind(  # or study
        [(desk, 1.0), (bookshelf, 0.8), (desk, 0.6), (cupboard, 0.8), (bookshelf, 0.4),
         (plant, 0.3), (cartons, 0.3)],
        [(office_chair, 0.9), (office_chair, 0.6), (table, 0.4), (chair, 0.5)],
        2.6, 9.5),
    "bathroom": _Kind(
        [(washstand, 1.0), (bathtub, 0.8), (toilet, 0.9), (cupboard, 0.3)],
        [], 1.9, 3.6),
    "hall": _Kind(  # class room, dining hall, shop
        [(cupboard, 0.9), (bookshelf, 0.9), (bookshelf, 0.7), (cupboard, 0.6),
         (television, 0.3), (cartons, 0.5)],
        [(table, 1.0), (table, 0.9), (table, 0.8), (chair, 0.9), (chair, 0.9),
         (chair, 0.8), (chair, 0.6), (cartons, 0.4)], 4.5, 13.0),
}  # fmt: skip
_KIND_OF_DRAW = (
    *3 * ["bedroom"], *3 * ["living room"], *2 * ["kitchen"], *2 * ["office"],
    "bathroom", "hall",
)  # fmt: skip


class Room:
    """A room that is being furnished."""

    def __init__(self, dice: Dice):
        self.dice = dice
        self.parts: list[Part] = []
        self.occupied: list[tuple[float, float, float, float]] = []
        self.lights: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.kind = dice.pick(_KIND_OF_DRAW)
        low, high = _KINDS[self.kind].low, _KINDS[self.kind].high
        # The square of a uniform number, so that small rooms are more frequent.
        self.width, self.depth = (
            low + (high - low) * dice.between(0, 1) ** 2 for _ in range(2)
        )
        self.height = dice.between(2.3, 2.9)

    def wall(self, side: int, along: float, away: float) -> tuple[float, float, float]:
        """x, y and yaw at distance `away` from a wall, facing into the room."""
        return (
            (along, away, 0.0),
            (self.width - away, along, math.pi / 2),
            (self.width - along, self.depth - away, math.pi),
            (away, self.depth - along, -math.pi / 2),
        )[side]

    def length(self, side: int) -> float:
        return self.width if side % 2 == 0 else self.depth

    def random_point(self, low: float, high: float) -> tuple[float, float]:
        """x and y at shares of width and depth between `low` and `high`."""
        x, y = self.dice.between(low, high), self.dice.between(low, high)
        return x * self.width, y * self.depth

    def put(self, parts: list[Part], x: float, y: float, yaw: float) -> None:
        """Add parts, transformed from local coordinates to the room."""
        c, s = math.cos(yaw), math.sin(yaw)
        for part in parts:
            px, py, pz = part.centre
            centre = (x + c * px - s * py, y + s * px + c * py, pz)
            self.parts.append(part._replace(centre=centre, yaw=part.yaw + yaw))

    def place(self, piece: Piece, x: float, y: float, yaw: float) -> bool:
        """Add a piece if its floor area is free; returns whether it was added."""
        c, s = abs(math.cos(yaw)), abs(math.sin(yaw))
        half_x = (c * piece.width + s * piece.depth) / 2 + 0.02
        half_y = (s * piece.width + c * piece.depth) / 2 + 0.02
        area = (x - half_x, y - half_y, x + half_x, y + half_y)
        right, top = self.width + 0.03, self.depth + 0.03
        inside = min(area[:2]) > -0.03 and area[2] < right and area[3] < top
        if not inside or any(_overlap(area, other) for other in self.occupied):
            return False
        self.occupied.append(area)
        self.put(piece.parts, x, y, yaw)
        return True

    def furnish(self) -> None:
        """Place the furniture of this kind of room; omits pieces without space."""
        kind, dice = _KINDS[self.kind], self.dice
        for make, share in kind.walls:
            if dice.chance(share):
                piece = make(dice)
                for _ in range(8):
                    side = dice.count(0, 3)
                    free = self.length(side) - piece.width
                    if free < 0.1:
                        continue
                    along = piece.width / 2 + 0.04 + (free - 0.08) * dice.between(0, 1)
                    away = piece.depth / 2 + dice.between(0.03, 0.07)
                    if self.place(piece, *self.wall(side, along, away)):
                        break
        for make, share in kind.inside:
            if dice.chance(share):
                piece, turn = make(dice), dice.pick([0.0, 0.0, 0.3, 1.0])
                for _ in range(8):
                    x, y = self.random_point(0.15, 0.85)
                    yaw = dice.count(0, 3) * math.pi / 2 + turn * dice.between(-1, 1)
                    if self.place(piece, x, y, yaw):
                        break


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _add_wall_parts(room: Room) -> None:
    """Add doors, windows and pictures to the walls."""
    dice = room.dice
    for side in range(4):
        length = room.length(side)
        start = 0.25
        while start < length - 0.5:
            width = min(dice.between(0.4, 1.6), length - start - 0.1)
            middle = room.wall(side, start + width / 2, 0.0)
            draw = dice.between(0, 1)
            if draw < 0.22 and width > 0.6:
                room.put(_window(room, side, start + width / 2, width), *middle)
            elif draw < 0.36 and width > 0.7:
                room.put(_door(dice), *middle)
            elif draw < 0.66:
                room.put(_picture(dice, min(width, 1.0)), *middle)
            start += width + dice.between(0.2, 1.2)


def _window(room: Room, side: int, along: float, width: float) -> list[Part]:
    dice = room.dice
    low = dice.between(0.7, 1.0)
    tall = min(dice.between(1.0, 1.5), room.height - low - 0.15)
    day = dice.between(0.4, 3.0) if dice.chance(0.7) else 0.0
    sky = dice.tint((0.75, 0.82, 0.9)) if day else (0.03, 0.03, 0.04)
    pane = Material(sky, _darker(sky, 0.6), MOTTLED, (0.6, 0.4), 0.3, 0.85, day)
    frame = lacquer(dice, [(0.8, 0.8, 0.78), *_WOODS])
    parts = [
        solid(0, 0, low - 0.06, width + 0.12, 0.05, tall + 0.12, frame),
        solid(0, 0.0, low, width, 0.06, tall, pane),
        solid(0, 0.0, low, 0.05, 0.08, tall, frame),
        solid(0, 0.04, low - 0.06, width + 0.2, 0.16, 0.03, frame),
    ]
    if dice.chance(0.5):
        cloth = fabric(dice)._replace(texture=STRIPES, cell=(0.07, 0.07))
        for x in (-width / 2 - 0.1, width / 2 + 0.1):
            parts.append(solid(x, 0.06, 0.15, 0.32, 0.08, low + tall, cloth))
    if day:
        x, y, yaw = room.wall(side, along, 0.15)
        position = np.array([x, y, low + tall * 0.6])
        colour = day * width * tall * 2.5 * np.array([0.9, 1.0, 1.12])
        facing = np.array([-math.sin(yaw), math.cos(yaw), 0.0])
        room.lights.append((position, colour, facing))
    return parts


def _door(dice: Dice) -> list[Part]:
    leaf = wood(dice) if dice.chance(0.4) else lacquer(dice)
    frame = lacquer(dice, [(0.8, 0.8, 0.78), *_WOODS])
    first, second = _darker(leaf.first, 0.85), _darker(leaf.first, 0.75)
    panel = leaf._replace(first=first, second=second)
    return [
        solid(0, 0, 0.0, 0.98, 0.04, 2.08, frame),
        solid(0, 0, 0.0, 0.84, 0.06, 2.01, leaf),
        solid(0, 0, 0.25, 0.55, 0.065, 0.65, panel),
        solid(0, 0, 1.1, 0.55, 0.065, 0.75, panel),
        solid(0.34, 0.05, 1.0, 0.1, 0.06, 0.03, metal(dice)),
    ]


def _picture(dice: Dice, width: float) -> list[Part]:
    height = width * dice.between(0.6, 1.3)
    low = dice.between(1.3, 1.6) - height / 3
    frame = wood(dice) if dice.chance(0.5) else lacquer(dice, _BRIGHT)
    art = Material(
        dice.tint(dice.pick(_BRIGHT)),
        dice.tint(dice.pick(_PAINTS)),
        dice.pick([MOTTLED, MOTTLED, MOTTLED, CHECKS, PLAIN, BOOKS]),
        (width * 0.3, height * 0.3),
        gloss=dice.between(0.0, 0.5),
        ir_loss=dice.between(0.0, 0.4),
    )
    return [
        solid(0, 0, low, width, 0.05, height, frame),
        solid(0, 0, low + 0.04, width - 0.08, 0.056, height - 0.08, art),
    ]


def _add_things_on_the_floor(room: Room) -> None:
    """Add small objects to the floor, at random places."""
    dice = room.dice
    for _ in range(dice.count(1, 4)):
        x, y = room.random_point(0.1, 0.9)
        extent = dice.between(0.4, 1.2)
        room.parts += clutter(dice, x, y, 0.0, extent, extent, dice.count(1, 4))


def _add_rug(room: Room) -> None:
    dice = room.dice
    width, depth = dice.between(1.0, 2.4), dice.between(0.8, 1.8)
    texture = dice.pick([CHECKS, STRIPES, MOTTLED, MOTTLED])
    cell = dice.between(0.15, 0.5)
    first, second = (dice.tint(dice.pick(_FABRICS)) for _ in range(2))
    cloth = Material(first, second, texture, (cell, cell))
    x, y = room.random_point(0.3, 0.7)
    rug = [solid(0, 0, 0.0, width, depth, 0.012, cloth)]
    room.put(rug, x, y, dice.between(-0.2, 0.2))


def _add_lamps(room: Room) -> None:
    """Add ceiling lamps; at least one if the room has no other light."""
    dice = room.dice
    lamps = dice.count(1, 2) if dice.chance(0.75) or not room.lights else 0
    warm = np.array([1.1, dice.between(0.85, 1.0), dice.between(0.55, 0.95)])
    for _ in range(lamps):
        x, y = room.random_point(0.3, 0.7)
        size, drop = dice.between(0.3, 0.5), dice.between(0.06, 0.4)
        glass = Material((0.9, 0.88, 0.8), (0.9, 0.85, 0.75), glow=dice.between(1, 3))
        lamp = solid(0, 0, room.height - drop, size, size, 0.14, glass, ELLIPSOID)
        room.put([lamp], x, y, 0.0)
        strength = dice.between(2.0, 6.0)
        position = np.array([x, y, room.height - drop - 0.06])
        room.lights.append((position, strength * warm, np.zeros(3)))
    room.lights.sort(key=lambda light: -float(light[1].sum()))


def _add_pillar(room: Room) -> None:
    """Add a chimney, column or piece of wall of the room's height."""
    dice = room.dice
    paint = lacquer(dice)._replace(gloss=0.0, second=(0.8, 0.8, 0.78), band=0.09)
    width, depth = dice.between(0.3, 1.6), dice.between(0.2, 0.7)
    body = Piece(width, depth, [solid(0, 0, 0.0, width, depth, room.height, paint)])
    side = dice.count(0, 3)
    along = dice.between(0.1, 0.9) * room.length(side)
    room.place(body, *room.wall(side, along, depth / 2 - 0.01))


def _faces(room: Room) -> list[Material]:
    """Random materials of the floor, the ceiling and the four walls."""
    dice = room.dice
    if dice.chance(0.45):
        floor = wood(dice)
        floor = floor._replace(cell=(dice.between(0.8, 1.6), dice.between(0.08, 0.2)))
    elif dice.chance(0.4):
        first = dice.tint(dice.pick([*_STONES, *_WOODS]))
        size, texture = dice.between(0.2, 0.5), dice.pick([TILES, TILES, CHECKS])
        second = _darker(first, 0.75 if texture == TILES else 0.35)
        floor = Material(first, second, texture, (size, size), gloss=0.2, ir_loss=0.06)
    else:
        first = _darker(dice.tint(dice.pick(_FABRICS[1:])), 0.75)
        floor = Material(first, _darker(first, 0.7), MOTTLED, (0.05, 0.05))
    white = dice.tint((0.82, 0.81, 0.78), 0.05)
    ceiling = Material(white, _darker(white, 0.95))
    return [floor, ceiling, *_walls(room)]


def _walls(room: Room) -> list[Material]:
    dice = room.dice
    paint, other = (dice.tint(dice.pick(_PAINTS), 0.07) for _ in range(2))
    trim = dice.pick([(0.8, 0.8, 0.78), dice.tint(dice.pick(_WOODS))])
    tiled = room.kind == "bathroom" or (room.kind == "kitchen" and dice.chance(0.3))
    papered = dice.chance(0.15)
    band = dice.pick([0.0, 0.07, 0.09, 0.11, 0.14])
    walls = []
    for side in range(4):
        first = other if side == 0 and dice.chance(0.4) else paint
        wall = Material(first, trim, band=band, ir_loss=0.02)
        if tiled:
            size = dice.between(0.12, 0.3)
            wall = Material(first, _darker(first, 0.8), TILES, (size, size), 0.3, 0.08)
        elif papered:
            size = dice.between(0.08, 0.3)
            wall = Material(first, _darker(first, 0.8), STRIPES, (size, size))
        walls.append(wall)
    return walls


# --- camera --------------------------------------------------------------------


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rotation with columns image right, image down, optical axis; pitch > 0 is up."""
    cp, sp = math.cos(pitch), math.sin(pitch)
    ahead = np.array([math.cos(yaw) * cp, math.sin(yaw) * cp, sp])
    right = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    down = np.cross(ahead, right)
    c, s = math.cos(roll), math.sin(roll)
    return np.stack([c * right + s * down, -s * right + c * down, ahead], axis=1)


def _local(vectors: np.ndarray, c: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rotate (3, ...) vectors into objects turned about z by cosine c and sine s."""
    x, y, z = vectors
    return c * x + s * y, c * y - s * x, z


def _cast_rays(
    parts: np.ndarray, size: np.ndarray, position: np.ndarray, rotation: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cast 9x12 rays at the bounding boxes; returns depth and surface of each ray.

    Args:
      parts: (n, 8) centre, half sizes, cosine and sine of yaw.
    """
    v = np.linspace(-0.96, 0.96, 9)[:, None] * _VIEW_UP
    u = np.linspace(-0.96, 0.96, 12) * _VIEW_SIDE
    rays = np.stack(np.broadcast_arrays(u, v, 1.0), -1).reshape(-1, 3) @ rotation.T
    rays = np.where(np.abs(rays) < 1e-6, 1e-6, rays)
    walls = np.where(rays > 0, (size - position) / rays, -position / rays)
    depth, face = walls.min(1), walls.argmin(1)
    surface = -1 - 2 * face - (rays[np.arange(len(rays)), face] > 0)
    c, s = parts[:, 6], parts[:, 7]
    start = _local((position - parts[:, :3]).T, c, s)
    along = _local(rays.T[:, :, None], c, s)
    near, far = -np.inf, np.inf
    # Axis by axis: NumPy is slow at reducing an axis of length 3.
    for q, w, half in zip(start, along, parts[:, 3:6].T, strict=True):
        inverse = 1.0 / np.where(np.abs(w) < 1e-6, 1e-6, w)
        middle, reach = -q * inverse, half * np.abs(inverse)
        near = np.maximum(near, middle - reach)
        far = np.minimum(far, middle + reach)
    # Inside a box the depth is 0.
    near = np.where((near < far) & (far > 0), np.maximum(near, 0.0), np.inf)
    first = near.argmin(1)
    nearest = near[np.arange(len(rays)), first]
    closer = nearest < depth
    return np.where(closer, nearest, depth), np.where(closer, first, surface)


def _aim(
    room: Room, parts: np.ndarray, candidates: int = 24
) -> tuple[np.ndarray, np.ndarray]:
    """Choose position and rotation of the camera among random candidates.

    The median depth of the chosen view, and the ratio of the depths in its upper and
    lower third, are closest to random draws from their distributions in photos of
    rooms; views with a `_penalty` are avoided.
    """
    dice, size = room.dice, np.array([room.width, room.depth, room.height])
    # NYU's labeled frames: medians around 2.7 m, standard deviation 0.31 in the log.
    target = math.log(2.6) + dice.normal(0.0, 0.45)
    # The logarithm of the ratio of upper to lower third: mean 0.45, standard deviation
    # 0.32. The target is higher, because many rooms have no such view.
    target_slope = dice.normal(0.52, 0.32)
    best, lowest_cost = None, math.inf
    for attempt in range(candidates):
        x = dice.between(0.25, room.width - 0.25)
        y = dice.between(0.25, room.depth - 0.25)
        z = min(max(dice.normal(1.4, 0.1), 1.0), 1.75)
        target_x, target_y = room.random_point(0.15, 0.85)
        yaw = math.atan2(target_y - y, target_x - x) + dice.normal(0.0, 0.25)
        pitch = math.radians(min(max(dice.normal(-12.5, 5.0), -32.0), 6.0))
        roll = math.radians(dice.normal(0.0, 1.4))
        position, rotation = np.array([x, y, z]), _rotation(yaw, pitch, roll)
        depth, surface = _cast_rays(parts, size, position, rotation)
        third = len(depth) // 3  # rays are in the order of rows
        upper, all_rows, lower = (
            math.log(max(float(np.median(part)), 0.1))
            for part in (depth[:third], depth, depth[-third:])
        )
        cost = abs(all_rows - target) + 0.5 * abs(upper - lower - target_slope)
        cost += _penalty(depth, surface)
        if cost < lowest_cost:
            best, lowest_cost = (position, rotation), cost
        if lowest_cost < 0.12 and attempt >= 3:
            break
    assert best is not None
    return best


def _penalty(depth: np.ndarray, surface: np.ndarray) -> float:
    """Penalty of a view for close obstacles, a dominant surface, few surfaces."""
    _, counts = np.unique(surface, return_counts=True)
    penalty = 4.0 * max(0.0, float((depth < 0.75).mean()) - 0.02)
    penalty += 20.0 * (float(depth.min()) < 0.35)
    penalty += 20.0 * (float(np.median(depth)) < 1.05)
    penalty += 10.0 * max(0.0, counts.max() / counts.sum() - 0.55)
    return penalty + 0.3 * max(0, 7 - len(counts))


# --- the scene -----------------------------------------------------------------


def _row(part: Part, dice: Dice) -> list[float]:
    """The part's row of `Scene.surfaces`, in the order of `COLUMNS`."""
    first, second, texture, cell, *others = part.material
    box = [*part.centre, *part.half, math.cos(part.yaw), math.sin(part.yaw)]
    look = [part.shape, *first, *second, texture, *cell, *others]
    return [*box, *look, dice.between(0, 50), dice.between(0, 50)]


def _visible_first(
    rows: np.ndarray, position: np.ndarray, rotation: np.ndarray
) -> np.ndarray:
    """Sort rows by their possible share of the view; invisible ones are last."""
    x, y, z = ((rows[:, :3] - position) @ rotation).T
    radius = np.linalg.norm(rows[:, 3:6], axis=1)
    depth, slack = np.maximum(z, 0.3), 1.3 * radius
    inside = (np.abs(x) < _VIEW_SIDE * depth + slack) & (z > -radius)
    inside &= np.abs(y) < _VIEW_UP * depth + slack
    # The two largest half sizes, so that flat and thin parts count.
    extent = np.sort(rows[:, 3:6], axis=1)
    share = np.sqrt(extent[:, 1] * extent[:, 2]) / depth
    return rows[np.argsort(-share - 100.0 * inside, kind="stable")]


def _table(
    room: Room, rows: np.ndarray, position: np.ndarray, rotation: np.ndarray
) -> np.ndarray:
    """The table of surfaces: the most visible of each shape, then the faces."""
    blocks = []
    for shape, count in ((BOX, BOXES), (ELLIPSOID, ELLIPSOIDS), (CYLINDER, CYLINDERS)):
        chosen = _visible_first(rows[rows[:, 8] == shape], position, rotation)[:count]
        block = np.zeros((count, rows.shape[1]))
        # Unused rows are tiny and far below the floor.
        block[:, 2], block[:, 3:6], block[:, [6, 16, 17]] = -100.0, 0.01, 1.0
        block[: len(chosen)] = chosen
        block[:, 8] = shape
        blocks.append(block)
    half = (room.width / 2, room.depth / 2, room.height / 2)
    faces = [_row(Part(half, half, face, ROOM), room.dice) for face in _faces(room)]
    return np.concatenate([*blocks, np.array(faces)]).astype(np.float32)


def _photo(dice: Dice) -> np.ndarray:
    """Random camera settings; see `Scene.photo`.

    The ranges are those at which rendered frames match NYU's labeled frames in the
    mean, the spread and the saturation of their colours (docs/data.md).
    """
    warmth, tint = dice.normal(0.0, 0.12), dice.normal(0.0, 0.04)
    settings = [
        0.13 * math.exp(dice.normal(0.0, 0.5)),  # mean brightness
        *(math.exp(warmth + tint), 1.0, math.exp(tint - warmth)),  # gains
        dice.between(0.0, 0.25),  # vignetting
        dice.between(0.002, 0.006),  # read noise
        dice.between(0.004, 0.014),  # shot noise
        dice.between(0.25, 0.6),  # share of ambient light
        dice.between(1.2, 2.6),  # contrast
        dice.between(0.6, 2.0),  # saturation
    ]
    return np.array(settings, np.float32)


def describe(seed: int, index: int) -> Scene:
    """Create the scene of frame `index` of a seed.

    Depends only on (seed, index), any integers, which are taken modulo 2^64.
    """
    dice = Dice(seed, index)
    room = Room(dice)
    if dice.chance(0.3):
        _add_pillar(room)
    room.furnish()
    _add_wall_parts(room)
    if dice.chance(0.45):
        _add_rug(room)
    _add_things_on_the_floor(room)
    _add_lamps(room)
    rows = np.array([_row(part, dice) for part in room.parts])
    position, rotation = _aim(room, rows[:, :8])
    lights = np.zeros((LIGHTS, 9), np.float32)
    for row, light in zip(lights, room.lights, strict=False):
        row[:] = np.concatenate(light)
    return Scene(
        surfaces=_table(room, rows, position, rotation),
        position=position.astype(np.float32),
        rotation=rotation.astype(np.float32),
        lights=lights,
        photo=_photo(dice),
        salt=np.asarray(dice.between(0, 2**32 - 1), np.uint32),
    )
