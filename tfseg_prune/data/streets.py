"""Synthetic street scenes: a data set that needs no download, drawn with Pillow and NumPy.

A scene is a pinhole camera above a straight road. A point `side` metres right of the camera, `up`
metres above the ground and `depth` metres ahead is seen at

    x = vanishing_x + focal * side / depth,    y = horizon + focal * (camera_height - up) / depth

in pixels. Objects are painted from far to near, colour and class id in step, at twice the
resolution; the colours are averaged down, the ids sampled. A small network learns the large
classes within a minute, while poles and signs stay one to three pixels wide and stay hard.
"""

import dataclasses
import functools
import numbers

import numpy as np
from PIL import Image, ImageDraw

from tfseg_prune.data.dataset import SPLITS, ClassInfo, Dataset, DatasetError, check_split

CLASSES = (
    ClassInfo("sky", (128, 176, 220)),
    ClassInfo("building", (128, 64, 48)),
    ClassInfo("road", (128, 64, 128)),
    ClassInfo("pavement", (60, 40, 222)),
    ClassInfo("tree", (96, 144, 32)),
    ClassInfo("car", (64, 0, 128)),
    ClassInfo("pole", (224, 208, 128)),
    ClassInfo("sign", (240, 96, 112)),
)
IGNORE_INDEX = 255
SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, POLE, SIGN = range(8)

_COUNTS = {"train": 400, "val": 60, "test": 100}
_CACHE_BYTES = 256 * 2**20
_OVERSAMPLING = 2
_NEAR = 1.5
_FAR = 90.0

# Strength of the fine and the coarse texture by class; the last row is the ignored bonnet.
_FINE = np.array([0.006, 0.035, 0.055, 0.045, 0.13, 0.02, 0.02, 0.02, 0.01], np.float32)
_COARSE = np.array([0.04, 0.05, 0.06, 0.06, 0.30, 0.03, 0.02, 0.02, 0.01], np.float32)

_WALLS = [
    (150, 84, 66), (176, 150, 120), (196, 186, 168), (128, 122, 118), (168, 112, 84),
    (206, 196, 150), (120, 92, 80), (150, 156, 164), (182, 128, 116), (98, 94, 98),
]  # fmt: skip
_PAINTS = [
    (170, 28, 32), (34, 62, 130), (224, 224, 226), (36, 38, 42), (150, 154, 160),
    (40, 92, 70), (196, 160, 48), (110, 32, 44), (96, 122, 150),
]  # fmt: skip
_SIGNS = [(204, 30, 36), (26, 76, 168), (240, 196, 30), (236, 236, 232), (20, 120, 66)]


def load_split(
    split: str,
    *,
    data_dir=None,
    size: tuple[int, int] = (240, 320),
    count: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Opens one split of the synthetic streets.

    Args:
        split: "train", "val" or "test".
        data_dir: Must be None: nothing is read.
        size: `(height, width)` of the scenes, each at least 32. Defaults to `(240, 320)`.
        count: How many scenes. Defaults to None: 400 for train, 60 for val, 100 for test.
        seed: Every seed gives other streets. Defaults to 0.

    Returns:
        The `Dataset`: 8 classes, ignored id 255.

    Raises:
        DatasetError: If an argument is out of range.
    """
    check_split(split)
    if data_dir is not None:
        raise DatasetError(
            "Data set 'streets' is drawn, not read. Expected: data_dir=None. "
            f"Received: '{data_dir}'. For your own images use the data set 'folder'."
        )
    count = _COUNTS[split] if count is None else count
    _check("count", count, 1)
    _check("seed", seed, 0)
    if len(tuple(size)) != 2:
        raise DatasetError(f"Invalid size. Expected: (height, width). Received: {size}.")
    height, width = size
    _check("size", height, 32)
    _check("size", width, 32)

    def read(key):
        return draw(seed, split, int(key), (height, width))

    # Scenes are kept as far as they fit: drawing costs more than all the rest of the pipeline.
    kept = _CACHE_BYTES // (height * width * 4)
    cached = functools.lru_cache(maxsize=kept)(read) if count <= kept else read
    keys = tuple(f"{index:06d}" for index in range(count))
    return Dataset("streets", split, CLASSES, IGNORE_INDEX, keys, cached)


def draw(
    seed: int, split: str, index: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one scene, always the same for the same arguments.

    Args:
        seed: Seed of the data set.
        split: "train", "val" or "test".
        index: Index of the scene in the split.
        size: `(height, width)` in pixels.

    Returns:
        The image, uint8 `[height, width, 3]`, and its label, uint8 `[height, width]`. Both are
        read-only, as they may be cached.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene = _Scene.draw(rng, size)
    _paint(scene, rng)
    image, label = _develop(scene, rng)
    image.flags.writeable = label.flags.writeable = False
    return image, label


@dataclasses.dataclass(frozen=True)
class _Scene:
    """A camera, its light, and the two canvases that are painted in step."""

    size: tuple[int, int]
    focal: float
    vanishing_x: float
    horizon: float
    camera_height: float
    road: tuple[float, float]  # the kerbs, metres right of the camera
    pavement: tuple[float, float]  # width left and right, metres
    sun: float  # -1: it stands on the left, 1: on the right
    haze: float  # share of haze at 90 m
    sky: tuple[float, float, float]  # colour at the horizon
    colors: Image.Image
    ids: Image.Image
    color_pen: ImageDraw.ImageDraw
    id_pen: ImageDraw.ImageDraw

    @classmethod
    def draw(cls, rng, size):
        height, width = (n * _OVERSAMPLING for n in size)
        lane = rng.uniform(2.9, 3.6)
        shift = rng.uniform(-0.6, 0.6) + lane / 2
        sky = [(206, 222, 240), (214, 214, 216), (236, 214, 190)][rng.integers(3)]
        colors = Image.new("RGB", (width, height))
        ids = Image.new("L", (width, height), SKY)
        return cls(
            size=size,
            # From the geometric mean of the sides, so that odd shapes keep a natural view.
            focal=rng.uniform(0.85, 1.05) * (height * width) ** 0.5,
            vanishing_x=width * rng.uniform(0.36, 0.64),
            horizon=height * rng.uniform(0.42, 0.54),
            camera_height=rng.uniform(1.3, 1.9),
            road=(-lane - shift + lane / 2, lane - shift + lane / 2),
            pavement=(rng.uniform(1.8, 3.6), rng.uniform(1.8, 3.6)),
            sun=rng.uniform(-1, 1),
            haze=rng.uniform(0.25, 0.75),
            sky=_shade(sky, rng.uniform(0.9, 1.05)),
            colors=colors,
            ids=ids,
            color_pen=ImageDraw.Draw(colors),
            id_pen=ImageDraw.Draw(ids),
        )

    def point(self, side, up, depth):
        scale = self.focal / depth
        return (
            self.vanishing_x + scale * side,
            self.horizon + scale * (self.camera_height - up),
        )

    def tint(self, color, depth, light=1.0):
        # Plain Python: this runs hundreds of times a scene, and NumPy is slow on three numbers.
        share = self.haze * min(depth / _FAR, 1.0)
        kept = light * (1 - share)
        mixed = (int(kept * c + share * s) for c, s in zip(color, self.sky))
        return tuple(255 if c > 255 else c for c in mixed)

    def polygon(self, corners, class_id, color):
        self.color_pen.polygon(corners, fill=color)
        if class_id is not None:
            self.id_pen.polygon(corners, fill=class_id)

    def disc(self, center, radius, class_id, color):
        (x, y), (rx, ry) = center, radius
        box = (x - rx, y - ry, x + rx, y + ry)
        self.color_pen.ellipse(box, fill=color)
        if class_id is not None:
            self.id_pen.ellipse(box, fill=class_id)

    def ground(self, left, right, near, far, class_id, color):
        corners = [
            self.point(left, 0, near), self.point(right, 0, near),
            self.point(right, 0, far), self.point(left, 0, far),
        ]  # fmt: skip
        self.polygon(corners, class_id, color)

    def upright(self, left, right, bottom, top, depth, class_id, color):
        """A rectangle that faces the camera."""
        x0, y0 = self.point(left, top, depth)
        x1, y1 = self.point(right, bottom, depth)
        if x1 - x0 < _OVERSAMPLING:
            # Never thinner than a pixel of the result, or poles would come and go.
            x0 = (x0 + x1 - _OVERSAMPLING) / 2
            x1 = x0 + _OVERSAMPLING
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], class_id, color)

    def wall(self, side, bottom, top, near, far, class_id, color):
        """A rectangle along the road."""
        corners = [
            self.point(side, bottom, near), self.point(side, top, near),
            self.point(side, top, far), self.point(side, bottom, far),
        ]  # fmt: skip
        self.polygon(corners, class_id, color)


def _paint(scene, rng):
    _sky(scene, rng)
    _ground(scene, rng)
    behind, before = [], _traffic(scene, rng)
    for direction in (-1, 1):
        kerb = scene.road[direction > 0]
        facade = kerb + direction * scene.pavement[direction > 0]
        behind += _row_of_houses(scene, rng, direction, facade)
        before += _street_furniture(scene, rng, direction, kerb)
    # No house hides what stands between the facades, however near it reaches; among themselves,
    # far things come first.
    for objects in (behind, before):
        for _, paint in sorted(objects, key=lambda item: -item[0]):
            paint()
    if rng.random() < 0.35:
        _bonnet(scene, rng)


def _sky(scene, rng):
    width, height = scene.colors.size
    blue = np.array([0.78, 0.92, 1.0 + rng.uniform(0, 0.12)])
    zenith = scene.sky * blue * rng.uniform(0.55, 0.95)
    mix = np.clip(np.arange(height) / scene.horizon, 0, 1)[:, None] ** 0.8
    column = np.clip(zenith * (1 - mix) + np.array(scene.sky) * mix, 0, 255).astype(np.uint8)
    scene.colors.paste(Image.fromarray(column[:, None]).resize((width, height)))


def _ground(scene, rng):
    asphalt = _shade((1.0, 1.0, 1.03), rng.uniform(78, 122))
    slabs = _shade((1.0, 0.98, 0.94), rng.uniform(120, 172))
    grass = _shade((84, 106, 52), rng.uniform(0.8, 1.2))
    left, right = scene.road
    # Bands of depth, so that the ground fades into the haze.
    edges = np.geomspace(_FAR * 8, 0.5, 14).tolist()
    for far, near in zip(edges, edges[1:]):
        scene.ground(-400, 400, near, far, PAVEMENT, scene.tint(slabs, far))
        scene.ground(left, right, near, far, ROAD, scene.tint(asphalt, far))
        for kerb, out in ((left, -0.22), (right, 0.22)):
            a, b = sorted((kerb, kerb + out))
            scene.ground(a, b, near, far, PAVEMENT, scene.tint(slabs, far, 1.14))
            a, b = sorted((kerb, kerb - out))
            scene.ground(a, b, near, far, ROAD, scene.tint(asphalt, far, 0.86))
    for depth in np.arange(2.0, 22.0, rng.uniform(0.8, 1.3)).tolist():
        for direction in (-1, 1):
            kerb = scene.road[direction > 0] + direction * 0.22
            a, b = sorted((kerb, kerb + direction * scene.pavement[direction > 0]))
            scene.ground(a, b, depth, depth + 0.05, None, scene.tint(slabs, depth, 0.86))
    middle, paint = (left + right) / 2, rng.uniform(180, 236)
    for start in np.arange(rng.uniform(0.5, 5), _FAR, 6.0).tolist():
        color = scene.tint((paint, paint, paint * 0.96), start)
        scene.ground(middle - 0.07, middle + 0.07, max(start, 1.0), start + 3, None, color)
    if rng.random() < 0.25:
        start = rng.uniform(7, 18)
        for stripe in np.arange(left + 0.4, right - 0.5, 1.0).tolist():
            color = scene.tint((paint, paint, paint), start)
            scene.ground(stripe, stripe + 0.5, start, start + 2.6, None, color)
    for _ in range(rng.integers(0, 4)):
        start, side = rng.uniform(3, 22), rng.uniform(left, right - 1)
        color = scene.tint(asphalt, start, rng.uniform(0.78, 0.9))
        scene.ground(side, side + 1, start, start + rng.uniform(0.8, 3), None, color)
    if rng.random() < 0.3:
        direction = 1 if rng.random() < 0.5 else -1
        a, b = sorted((scene.road[direction > 0] + direction * 0.5, direction * 400))
        verge = scene.pavement[direction > 0]
        a, b = (a + verge, b) if direction > 0 else (a, b - verge)
        scene.ground(a, b, 1.0, _FAR * 8, None, scene.tint(grass, 20))


def _row_of_houses(scene, rng, direction, facade):
    objects, depth = [], rng.uniform(-6, 4)
    while depth < _FAR:
        length = rng.uniform(7, 18)
        if rng.random() < 0.8:
            objects += _house(scene, rng, direction, facade, depth, depth + length)
        else:
            for _ in range(rng.integers(1, 4)):
                at = max(depth + rng.uniform(0, length), 3.0)
                objects.append(_tree(scene, rng, facade + direction * rng.uniform(1, 7), at))
        depth += length + (rng.uniform(1, 5) if rng.random() < 0.3 else 0)
    return objects


def _house(scene, rng, direction, facade, near, far):
    if far < 3.0:
        return []
    near = max(near, _NEAR)
    setback = direction * (rng.uniform(0, 1.2) if rng.random() < 0.4 else 0)
    side, top = facade + setback, rng.uniform(5.5, 17)
    color = _shade(_WALLS[rng.integers(len(_WALLS))], rng.uniform(0.82, 1.12))
    # A facade looks towards the road: the sun on the other side lights it.
    light = 0.88 - 0.2 * direction * scene.sun
    storeys = max(2, round(top / 3.1))
    columns = max(2, round((far - near) / rng.uniform(2.2, 3.4)))
    glass = _shade((70, 84, 100), rng.uniform(0.6, 1.5))
    shop = rng.random() < 0.4
    shop_color = _PAINTS[rng.integers(len(_PAINTS))]
    wide, tall = rng.uniform(0.25, 0.36), rng.uniform(0.22, 0.36)
    roof = rng.random() < 0.5
    lit = rng.random((storeys, columns)).tolist()

    def paint():
        # The gable that faces the camera, then the facade in slices that fade into the haze.
        gable = (side, side + 14) if direction > 0 else (side - 14, side)
        scene.upright(*gable, 0, top, near, BUILDING, scene.tint(color, near, light * 0.84))
        ends = np.linspace(far, near, 4 if far - near > 8 else 2).tolist()
        for b, a in zip(ends, ends[1:]):
            scene.wall(side, 0, top, a, b, BUILDING, scene.tint(color, (a + b) / 2, light))
        if roof:
            dark = scene.tint(color, near, light * 0.55)
            scene.wall(side, top, top + 0.35, near, far, BUILDING, dark)
        step, floor = (far - near) / columns, top / storeys
        for column in range(columns):
            middle = near + (column + 0.5) * step
            if middle > 45:
                break
            a, b = middle - wide * step, middle + wide * step
            for storey in range(1 if shop else 0, storeys):
                base = (storey + 0.5) * floor
                bright = 1.6 if lit[storey][column] > 0.82 else 0.7 + 0.5 * lit[storey][column]
                pane = scene.tint(glass, middle, bright)
                scene.wall(side, base - tall * floor, base + tall * floor, a, b, None, pane)
        if shop and near < 45:
            scene.wall(side, 0.5, floor * 0.72, near + 0.3, far - 0.3, None,
                       scene.tint(glass, near, 0.8))  # fmt: skip
            scene.wall(side, floor * 0.76, floor * 0.98, near, far, None,
                       scene.tint(shop_color, near, light))  # fmt: skip

    return [(near, paint)]


def _street_furniture(scene, rng, direction, kerb):
    objects = []
    depth, gap = rng.uniform(4, 14), rng.uniform(11, 20)
    at_kerb = kerb + direction * 0.5
    while depth < 70:
        objects.append(_lamp(scene, rng, direction, at_kerb, depth))
        depth += gap * rng.uniform(0.9, 1.1)
    for _ in range(rng.integers(1, 5)):
        objects.append(_sign(scene, rng, at_kerb, rng.triangular(3.5, 8, 36)))
    if rng.random() < 0.6:
        depth, gap = rng.uniform(5, 16), rng.uniform(6, 15)
        while depth < 60:
            if rng.random() < 0.8:
                objects.append(_tree(scene, rng, kerb + direction * rng.uniform(0.8, 1.3), depth))
            depth += gap * rng.uniform(0.8, 1.2)
    if rng.random() < 0.25:
        for depth in np.arange(rng.uniform(3, 6), 26, rng.uniform(1.5, 2.6)):
            objects.append(_bollard(scene, at_kerb, float(depth)))
    return objects


def _lamp(scene, rng, direction, side, depth):
    top, wide = rng.uniform(5, 8), rng.uniform(0.055, 0.085)
    color = (float(rng.choice([58, 96, 142])),) * 3
    arm = rng.uniform(0.8, 1.8) if rng.random() < 0.7 else 0.0

    def paint():
        tint = scene.tint(color, depth)
        scene.upright(side - wide, side + wide, 0, top, depth, POLE, tint)
        scene.upright(side - wide * 1.8, side + wide * 1.8, 0, 0.9, depth, POLE, tint)
        if arm:
            a, b = sorted((side, side - direction * arm))
            scene.upright(a, b, top - 0.12, top, depth, POLE, tint)

    return depth, paint


def _bollard(scene, side, depth):
    def paint():
        tint = scene.tint((70, 70, 74), depth)
        scene.upright(side - 0.06, side + 0.06, 0, 0.95, depth, POLE, tint)

    return depth, paint


def _sign(scene, rng, side, depth):
    top, half = rng.uniform(2.1, 3.1), rng.uniform(0.24, 0.42)
    shape = rng.integers(4)
    color = _SIGNS[rng.integers(len(_SIGNS))]
    inner = _SIGNS[3] if color != _SIGNS[3] else _SIGNS[0]
    light = rng.uniform(0.75, 1.1)
    traffic_light = rng.random() < 0.2

    def paint():
        grey = scene.tint((128, 130, 132), depth)
        scene.upright(side - 0.045, side + 0.045, 0, top + half, depth, POLE, grey)
        x, y = scene.point(side, top, depth)
        r = max(scene.focal * half / depth, 1.5 * _OVERSAMPLING)
        outer_tint, inner_tint = scene.tint(color, depth, light), scene.tint(inner, depth, light)
        if traffic_light:
            box = [(x - r / 2, y - r * 1.3), (x + r / 2, y - r * 1.3),
                   (x + r / 2, y + r * 1.3), (x - r / 2, y + r * 1.3)]  # fmt: skip
            scene.polygon(box, SIGN, scene.tint((30, 32, 34), depth))
            lamps = ((220, 40, 30), (120, 90, 20), (30, 70, 40))
            for i, lamp in enumerate(lamps):
                scene.disc((x, y + (i - 1) * r * 0.8), (r * 0.3, r * 0.3), None, lamp)
        elif shape == 0:
            scene.disc((x, y), (r, r), SIGN, outer_tint)
            scene.disc((x, y), (r * 0.66, r * 0.66), None, inner_tint)
        elif shape == 1:
            for k, tint, class_id in ((1.15, outer_tint, SIGN), (0.6, inner_tint, None)):
                w, foot = r * k, y + r * k * 0.8
                corners = [(x, y - w), (x + w, foot), (x - w, foot)]
                scene.polygon(corners, class_id, tint)
        else:
            tall = r if shape == 2 else r * 1.5
            for k, tint, class_id in ((1.0, outer_tint, SIGN), (0.55, inner_tint, None)):
                w, h = r * k, tall * k * (1 if k == 1 else 0.5)
                corners = [(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)]
                scene.polygon(corners, class_id, tint)

    return depth, paint


def _tree(scene, rng, side, depth):
    trunk, top = rng.uniform(1.6, 2.6), rng.uniform(4.5, 9)
    green = (rng.uniform(44, 96), rng.uniform(80, 120), rng.uniform(28, 52))
    green = _shade(green, rng.uniform(0.7, 1.15))
    wide = rng.uniform(1.1, 2.1)
    # Place (two values), size and shade of each clump; the lower, darker ones come first.
    leaves = rng.uniform((-0.72, -0.72, 0.3, 0.72), (0.72, 0.72, 0.62, 1.22), (16, 4))
    leaves = leaves[np.argsort(-leaves[:, 1])].tolist()

    def paint():
        brown = scene.tint((84, 68, 54), depth)
        scene.upright(side - 0.14, side + 0.14, 0, trunk + 1, depth, TREE, brown)
        x, y = scene.point(side, (trunk + top) / 2, depth)
        scale = scene.focal / depth
        rx, ry = scale * wide, scale * (top - trunk) / 2
        for u, v, size, shade in leaves:
            light = shade * (1 - 0.16 * v + 0.12 * u * scene.sun)
            center, radius = (x + u * rx, y + v * ry), (size * rx, size * ry * 0.8)
            scene.disc(center, radius, TREE, scene.tint(green, depth, light))

    return depth, paint


def _traffic(scene, rng):
    left, right = scene.road
    middle = (left + right) / 2
    objects = []
    for lane, start in ((left + 1.0, 5), (right - 1.0, 5)):
        if rng.random() < 0.65:  # a row of parked cars
            depth = start + rng.uniform(0, 14)
            while depth < 55:
                if rng.random() < 0.6:
                    objects.append(_car(scene, rng, lane, depth))
                depth += rng.uniform(5.2, 7.5)
    for lane in (middle - 0.9, middle + 1.0):
        if rng.random() < 0.5:
            objects.append(_car(scene, rng, lane, rng.triangular(6, 14, 50)))
    return objects


def _car(scene, rng, side, depth):
    wide, tall, length = rng.uniform(0.8, 0.95), rng.uniform(1.35, 1.75), rng.uniform(3.4, 4.6)
    color = _shade(_PAINTS[rng.integers(len(_PAINTS))], rng.uniform(0.8, 1.15))
    waist = tall * 0.55
    oncoming = rng.random() < 0.5

    def paint():
        near, far = depth, depth + length
        left, right = side - wide, side + wide
        body = functools.partial(scene.tint, color, depth)
        dark = scene.tint((24, 25, 28), depth)
        glass = scene.tint((58, 68, 80), depth)
        shadow = scene.tint((34, 34, 36), depth)
        scene.ground(left - 0.1, right + 0.1, near - 0.15, far, None, shadow)
        seen = right if right < 0 else left if left > 0 else None
        if seen is not None:
            scene.wall(seen, 0.3, waist, near, far, CAR, body(0.72))
            cabin = [
                scene.point(seen, waist, near + 0.1 * length),
                scene.point(seen, tall, near + 0.2 * length),
                scene.point(seen, tall, near + 0.6 * length),
                scene.point(seen, waist, near + 0.78 * length),
            ]
            scene.polygon(cabin, CAR, glass)
            scale = scene.focal / depth
            for share in (0.2, 0.8):
                at = near + share * length
                x, y = scene.point(seen, 0.32, at)
                flat = max(abs(seen) / at, 0.15)
                radius = (scale * 0.32 * flat, scene.focal * 0.32 / at)
                scene.disc((x, y), radius, CAR, dark)
        for a in (left + 0.05, right - 0.3):
            scene.upright(a, a + 0.25, 0, 0.5, near, CAR, dark)
        scene.upright(left, right, 0.25, waist, near, CAR, body())
        roof = [
            scene.point(left + 0.06, waist, near), scene.point(left + 0.2, tall, near + 0.5),
            scene.point(right - 0.2, tall, near + 0.5), scene.point(right - 0.06, waist, near),
        ]  # fmt: skip
        scene.polygon(roof, CAR, body(0.9))
        pane = [
            scene.point(left + 0.2, waist + 0.06, near),
            scene.point(left + 0.3, tall - 0.1, near + 0.45),
            scene.point(right - 0.3, tall - 0.1, near + 0.45),
            scene.point(right - 0.2, waist + 0.06, near),
        ]
        scene.polygon(pane, None, glass)
        lamp = scene.tint((250, 244, 214) if oncoming else (190, 24, 22), depth)
        for a in (left + 0.05, right - 0.3):
            scene.upright(a, a + 0.25, waist - 0.22, waist - 0.06, near, None, lamp)
        scene.upright(side - 0.26, side + 0.26, 0.42, 0.54, near, None,
                      scene.tint((224, 222, 200), depth))  # fmt: skip

    return depth, paint


def _bonnet(scene, rng):
    width, height = scene.colors.size
    top = height * rng.uniform(0.9, 0.96)
    color = _shade(_PAINTS[rng.integers(len(_PAINTS))], 0.7)
    box_height = (height - top) * 2.2
    scene.disc(
        (width / 2, top + box_height),
        (width * rng.uniform(0.55, 0.75), box_height),
        IGNORE_INDEX,
        scene.tint(color, 0.0),
    )


def _develop(scene, rng):
    """Averages the canvases down, then adds texture, light, shadows and sensor noise."""
    height, width = scene.size
    label = np.asarray(scene.ids)[::_OVERSAMPLING, ::_OVERSAMPLING].copy()
    image = np.asarray(scene.colors.reduce(_OVERSAMPLING)).astype(np.float32)

    def cloud(cells, aspect=1.0):
        coarse = rng.standard_normal((max(int(cells * aspect), 2), cells), np.float32)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(picture)

    fine = rng.standard_normal((height, width), np.float32)
    rows = np.minimum(label, len(CLASSES))
    texture = 1 + _FINE[rows] * fine + _COARSE[rows] * 0.5 * cloud(max(width // 5, 4), 0.8)
    texture += 0.04 * cloud(6)
    image *= texture[..., None]

    clouds = np.clip(cloud(5, 1.6) * 0.6 + cloud(16, 1.6) * 0.3 - 0.15, 0, 1) * rng.uniform(0, 0.8)
    clouds = (clouds * (label == SKY))[..., None]
    image += clouds * (np.float32(244) - image)

    x = np.linspace(-1, 1, width, dtype=np.float32)
    if rng.random() < 0.5:
        # The houses on the sun's side throw a shadow along the ground.
        ys = np.arange(height, dtype=np.float32)[:, None]
        below = np.maximum(ys - scene.horizon / _OVERSAMPLING, 1e-3)
        xs = np.arange(width, dtype=np.float32) - scene.vanishing_x / _OVERSAMPLING
        ground_side = xs * scene.camera_height / below
        left, right = scene.road
        edge = left + (right - left) * rng.uniform(0.1, 0.9) + 0.8 * cloud(12)[:, :1]
        dark = (ground_side < edge) if scene.sun < 0 else (ground_side > edge)
        dark &= (label == ROAD) | (label == PAVEMENT)
        image *= np.where(dark, np.float32(rng.uniform(0.55, 0.8)), np.float32(1))[..., None]

    gain = rng.uniform(0.72, 1.24) * (1 + 0.1 * scene.sun * x)[:, None]
    warmth = 1 + np.array([1, 0, -1], np.float32) * np.float32(rng.uniform(-0.07, 0.09))
    image *= gain * warmth
    image += rng.standard_normal((height, width), np.float32)[..., None] * rng.uniform(1.0, 5.0)
    return np.clip(image, 0, 255).astype(np.uint8), label


def _shade(color, light):
    return tuple(float(c * light) for c in color)


def _check(name, value, least):
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise DatasetError(
            f"Invalid {name} of data set 'streets'. Expected: an integer of at least {least}. "
            f"Received: {value!r}."
        )
