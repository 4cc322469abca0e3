"""One generated scene: muted bodies with small, eye-catching heads over soft color noise.

Each of six invented creatures has a large muted *body* and a small high-contrast *head*. Two classes share each body color,
so only the pattern on the head tells the class: a classifier may look at the head alone, and its class activation map does.
That is the problem that weakly-supervised segmentation is about, in a form that can be measured (see `part_recall`).
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage

from wsss_lib.core.files import IGNORE

CLASSES = ("striper", "ringer", "checker", "crosser", "discus", "starling")  # named after the pattern on the head
WATER_CLASS = "discus"  # on blue water more often than not; the water is also seen without it
VARIED_CLASS = "starling"  # has two kinds with different bodies and heads
SUBCATEGORIES = ("round", "long")
BODY, HEAD = 1, 2

# Muted body colors, one for two neighboring classes; RGB in 0..255.
BODY_COLOURS = np.array([(126, 112, 78), (88, 118, 110), (122, 94, 118)], np.float32)
# Colors of the head's pattern, (bright, dark), by class and kind; RGB in 0..255.
HEAD_COLOURS = {
    ("striper", ""): ((252, 222, 60), (20, 18, 20)),
    ("ringer", ""): ((250, 246, 236), (190, 24, 30)),
    ("checker", ""): ((244, 244, 244), (20, 20, 24)),
    ("crosser", ""): ((120, 240, 120), (20, 50, 40)),
    ("discus", ""): ((255, 150, 40), (16, 28, 120)),
    ("starling", "round"): ((250, 236, 90), (110, 20, 120)),
    ("starling", "long"): ((30, 20, 60), (240, 190, 230)),
}


@dataclass(frozen=True)
class Creature:
    """One object of a scene as it can be seen.

    Attributes:
        name: class name.
        subcategory: "round" or "long" for the class that has two kinds, else "".
        has_head: false for the tenth of the creatures that are drawn without a head.
        box: xmin, ymin, xmax, ymax of its visible pixels, counted from 1, both ends included (VOC's way).
        head_box: the same of its head; None without one.
    """

    name: str
    subcategory: str
    has_head: bool
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    head_box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Scene:
    """An image and everything that is known about it.

    Attributes:
        image: uint8 (S, S, 3), RGB.
        class_mask: uint8 (S, S); 0 background, `i + 1` for class `i`, 255 on the borders of the objects.
        object_mask: uint8 (S, S); 0 background, `k + 1` for creature `k`, 255 like `class_mask`.
        part_mask: uint8 (S, S); 0 background, 1 body, 2 head, 255 like `class_mask`.
        saliency: uint8 (S, S), an imperfect salient-object map; foreground where it is above 50.
        creatures: the objects, back to front.
        on_water: whether the background is water.
    """

    image: np.ndarray
    class_mask: np.ndarray
    object_mask: np.ndarray
    part_mask: np.ndarray
    saliency: np.ndarray
    creatures: tuple[Creature, ...]
    on_water: bool


@dataclass(frozen=True)
class _Shape:
    """Where a creature lies: coverage of body and head in 0..1, and coordinates inside the head; all float32 (S, S)."""

    body: np.ndarray
    head: np.ndarray
    depth: np.ndarray  # distance from the body's outline in pixels, positive inside
    head_u: np.ndarray  # -1..1 across the head, along the body
    head_v: np.ndarray  # -1..1 across the head, across the body

    @property
    def coverage(self) -> np.ndarray:
        return np.maximum(self.body, self.head)


def draw_scene(seed: int, index: int, side: int = 96) -> Scene:
    """Draw one scene; the same (seed, index, side) always give the same scene.

    Args:
        seed: of the data set.
        index: number of the image in the data set.
        side: S, height and width in pixels.

    Returns:
        the image, its masks and its creatures.

    Explained in notebook 02, section "The generated data set".

    >>> scene = draw_scene(seed=0, index=0)
    >>> scene.image.shape, np.unique(scene.part_mask).tolist()
    ((96, 96, 3), [0, 1, 2, 255])
    """
    generator = np.random.default_rng([seed, index])
    creatures = [_new_creature(generator) for _ in range(generator.integers(1, 3))]
    if len(creatures) == 2 and creatures[0].name == creatures[1].name:  # one kind per image: its label has one true kind
        creatures[1] = Creature(creatures[0].name, creatures[0].subcategory, creatures[1].has_head)
    on_water = bool(generator.random() < (0.6 if any(c.name == WATER_CLASS for c in creatures) else 0.25))
    shapes = _place(generator, creatures, side)
    creatures = creatures[: len(shapes)]

    picture = _water(generator, side) if on_water else _color_noise(generator, side)
    object_mask = np.zeros((side, side), np.uint8)
    part_mask = np.zeros((side, side), np.uint8)
    saliency = np.zeros((side, side), np.float32)
    for number, (creature, shape) in enumerate(zip(creatures, shapes, strict=True), start=1):
        picture = _paint(generator, picture, creature, shape)
        object_mask[shape.coverage > 0.5] = number
        part_mask[shape.body > 0.5] = BODY
        part_mask[shape.head > 0.5] = HEAD
        strength = 0.0 if generator.random() < 0.12 else generator.uniform(0.6, 1.0)
        saliency = np.where(shape.coverage > 0.5, strength, saliency)
    picture += generator.normal(0, 2.5, picture.shape)  # sensor noise

    visible = [object_mask == number for number in range(1, len(creatures) + 1)]
    creatures = [
        replace(creature, box=_box(area) or creature.box, head_box=_box(area & (part_mask == HEAD)))
        for creature, area in zip(creatures, visible, strict=True)
    ]
    class_values = np.array([0] + [CLASSES.index(creature.name) + 1 for creature in creatures], np.uint8)
    class_mask = class_values[object_mask]
    border = ndimage.maximum_filter(object_mask, 3) != ndimage.minimum_filter(object_mask, 3)
    for mask in (class_mask, object_mask, part_mask):
        mask[border] = IGNORE
    return Scene(
        np.clip(picture, 0, 255).astype(np.uint8),
        class_mask,
        object_mask,
        part_mask,
        _imperfect(generator, saliency),
        tuple(creatures),
        on_water,
    )


def _box(area: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return VOC's box of a boolean map: xmin, ymin, xmax, ymax, counted from 1; None when it is empty."""
    if not area.any():
        return None
    rows, columns = np.flatnonzero(area.any(axis=1)) + 1, np.flatnonzero(area.any(axis=0)) + 1
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _new_creature(generator: np.random.Generator) -> Creature:
    name = CLASSES[generator.integers(len(CLASSES))]
    subcategory = SUBCATEGORIES[generator.integers(2)] if name == VARIED_CLASS else ""
    return Creature(name, subcategory, has_head=bool(generator.random() >= 0.1))


def _place(generator: np.random.Generator, creatures: list[Creature], side: int) -> list[_Shape]:
    """Find positions where every head is inside the image and nothing is hidden too much; the second may find none."""
    shapes: list[_Shape] = []
    for creature in creatures:
        for _ in range(50):
            shape = _random_shape(generator, creature, side)
            if shape is None:
                continue
            hidden = shape.coverage > 0.5
            if all(
                (hidden & (other.coverage > 0.5)).sum() < 0.35 * (other.coverage > 0.5).sum()
                and (hidden & (other.head > 0.5)).sum() <= 0.25 * (other.head > 0.5).sum()
                for other in shapes
            ):
                shapes.append(shape)
                break
    return shapes


def _random_shape(generator: np.random.Generator, creature: Creature, side: int) -> _Shape | None:
    """Return a wobbly ellipse with a disc at one end, or None when too much of it lies outside the image."""
    half_length = generator.uniform(0.22, 0.30) * side
    slimness = {"": (0.55, 0.75), "round": (0.75, 0.85), "long": (0.42, 0.52)}[creature.subcategory]
    half_width = half_length * generator.uniform(*slimness)
    angle = generator.uniform(0, 2 * np.pi)
    center = generator.uniform(0.22, 0.78, 2) * side
    head_radius = generator.uniform(0.09, 0.11) * side
    head_at = half_length
    wobble = generator.normal(0, 0.035, 4)
    phase = generator.uniform(0, 2 * np.pi, 4)

    direction = np.array([np.cos(angle), np.sin(angle)])
    head_center = center + head_at * direction
    tail = center - half_length * direction
    if min(head_center) < head_radius or max(head_center) > side - head_radius:
        return None
    if min(tail) < -0.1 * side or max(tail) > 1.1 * side:
        return None
    y, x = np.mgrid[:side, :side].astype(np.float32) + 0.5
    u = (x - center[0]) * direction[0] + (y - center[1]) * direction[1]
    v = (y - center[1]) * direction[0] - (x - center[0]) * direction[1]
    theta = np.arctan2(v / half_width, u / half_length)
    outline = 1 + sum(a * np.cos(k * theta + p) for k, a, p in zip((2, 3, 4, 5), wobble, phase, strict=True))
    depth = (outline - np.hypot(u / half_length, v / half_width)) * half_width
    head_u, head_v = (u - head_at) / head_radius, v / head_radius
    head = np.clip((1 - np.hypot(head_u, head_v)) * head_radius + 0.5, 0, 1) if creature.has_head else np.zeros_like(depth)
    return _Shape(np.clip(depth + 0.5, 0, 1), head, depth, head_u, head_v)


def _paint(generator: np.random.Generator, picture: np.ndarray, creature: Creature, shape: _Shape) -> np.ndarray:
    """Lay body and head of one creature over the image: float32 (S, S, 3)."""
    side = picture.shape[0]
    color = BODY_COLOURS[CLASSES.index(creature.name) // 2] + generator.normal(0, 5, 3)
    grain = ndimage.gaussian_filter(generator.normal(0, 1, (side, side)), 0.6) * 8
    rim = 1 - 0.35 * np.exp(-((shape.depth / 1.6) ** 2))
    body = (color + grain[..., None]) * rim[..., None]
    picture = picture + shape.body[..., None] * (body - picture)

    bright, dark = (np.array(c) + generator.normal(0, 14, 3) for c in HEAD_COLOURS[creature.name, creature.subcategory])
    pattern = head_pattern(creature.name, shape.head_u, shape.head_v)
    head = dark + pattern[..., None] * (bright - dark)
    return picture + shape.head[..., None] * (head - picture)


def head_pattern(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return 1 where the head of a class is bright and 0 where it is dark.

    Args:
        name: one of `CLASSES`.
        u, v: coordinates inside the head, -1..1 along and across the body, any one shape.

    Returns:
        float32 array of the same shape.

    Raises:
        ValueError: the name is not a class.

    >>> head_pattern("discus", np.array([0.0, 0.9]), np.zeros(2))
    array([1., 0.], dtype=float32)
    """
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    if name == "striper":
        bright = np.sin(3 * np.pi * v) > 0
    elif name == "ringer":
        bright = np.cos(5 * np.pi * radius / 1.1) > 0
    elif name == "checker":
        bright = np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v) > 0
    elif name == "crosser":
        bright = (np.abs(u) < 0.25) | (np.abs(v) < 0.25)
    elif name == "discus":
        bright = radius < 0.6
    elif name == "starling":  # five points: the outline falls linearly from tip (0.95) to notch (0.4)
        to_tip = np.abs((angle * 5 / (2 * np.pi) + 0.5) % 1 - 0.5) * 2
        bright = radius < 0.95 - 0.55 * to_tip
    else:
        raise ValueError(f"unknown class {name!r}: choose one of {', '.join(CLASSES)}")
    return bright.astype(np.float32)


def _color_noise(generator: np.random.Generator, side: int) -> np.ndarray:
    """Return smooth random colors: float32 (S, S, 3), 0..255."""
    base = generator.uniform(70, 150, 3)
    coarse = _stretched(generator.normal(0, 1, (4, 4, 3)), side)
    fine = _stretched(generator.normal(0, 1, (10, 10, 3)), side)
    return (base + 30 * coarse + 12 * fine).astype(np.float32)


def _water(generator: np.random.Generator, side: int) -> np.ndarray:
    """Return blue water with waves: float32 (S, S, 3), 0..255."""
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    sway = 0.3 * np.sin(2 * np.pi * (x * generator.uniform(0.8, 1.6) + generator.random()))
    waves = np.sin(2 * np.pi * (y * generator.uniform(5, 8) + sway + generator.random()))
    blue = np.array([58, 96, 158]) + generator.normal(0, 6, 3)
    light = 14 * waves + 10 * _stretched(generator.normal(0, 1, (4, 4, 1)), side)[..., 0]
    return (blue + light[..., None]).astype(np.float32)


def _stretched(grid: np.ndarray, side: int) -> np.ndarray:
    """Upsample a small grid (k, k, c) smoothly to (side, side, c)."""
    planes = [
        Image.fromarray(grid[..., c].astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        for c in range(grid.shape[2])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def _imperfect(generator: np.random.Generator, saliency: np.ndarray) -> np.ndarray:
    """Blur a true foreground map and add uneven light and, at times, a false blob: uint8 (S, S)."""
    side = saliency.shape[0]
    blurred = ndimage.gaussian_filter(saliency, 0.025 * side)
    blurred += 0.06 * _stretched(generator.normal(0, 1, (6, 6, 1)), side)[..., 0]
    if generator.random() < 0.15:
        y, x = np.mgrid[:side, :side]
        center = generator.uniform(0, side, 2)
        squared = (x - center[0]) ** 2 + (y - center[1]) ** 2
        blurred += generator.uniform(0.2, 0.6) * np.exp(-squared / (2 * (generator.uniform(0.05, 0.1) * side) ** 2))
    return (np.clip(blurred, 0, 1) * 255).astype(np.uint8)
