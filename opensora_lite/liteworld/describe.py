"""What a LiteWorld clip shows, measured from its pixels alone: how a generated video is judged.

    describe(render(scene))   # Description(place="ocean", time="sunset", subject="car", color="red", direction="right")

Analysis by synthesis: what `world` draws is compared with what is seen, in five steps.

1. `judge_time`: whose sky is it? The colours of the upper rows against SKY.
2. `judge_place`: whose ground, under that time's light? The colours of the lowest rows against GROUND.
3. `explain_backdrop`: of all that may be behind the subject (sky, sun, buildings, ground), what is like each pixel?
4. `find_subject`: which subject of which colour explains most of what is left? Candidates are drawn by `world` itself.
5. `judge_direction`: where does it move? Its position over time, not where it heads.

Each attribute is judged on its own: nothing is known of the prompt, and a red boat in the sky counts as a boat.

As in `world`, lengths are in heights of the frame and colours are RGB in 0 … 1. A "gain" is the sum over pixels of how
much smaller a squared colour error becomes, in heights²: 0.01 is a hundredth of a square frame changed from black to
a pure red.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from opensora_lite.errors import OpenSoraError
from opensora_lite.liteworld import world
from opensora_lite.liteworld.world import COLORS, GROUND, LIGHT, SUN, TIMES

__all__ = ["Description", "describe", "subject_track", "sun_motion"]

SMALLEST = 32  # pixels; in smaller frames no subject can be told
WORKING_HEIGHT = 64  # larger frames are shrunk to about this before they are looked at
HORIZONS = np.linspace(0.50, 0.62, 13)
ROUGHNESS = {"ocean": 0.015, "city": 0.0, "desert": 0.05, "meadow": 0.03}  # how far the ground leaves the horizon
SHADES = {"ocean": (0.86, 1.14), "city": (1.0, 1.0), "desert": (0.85, 1.02), "meadow": (0.75, 1.02)}
SIZES = (0.115, 0.132, 0.15)  # of subjects
FLAPS = (-0.8, 0.0, 0.8)  # of a bird's wings
LEAST_GAIN = 0.00005  # of a subject, mean over the frames that show most; without one there is less than 0.00001
STILL = 0.02  # heights: a subject that moves less in the whole clip stands still
PALENESS = 0.15  # what it costs to see a subject as pale
SHAPE_FRAMES = 6  # frames that the shape is judged by


@dataclass(frozen=True)
class Description:
    """What a clip shows, in LiteWorld's words; `color` and `direction` are None where there is no subject."""

    place: str
    time: str
    subject: str | None = None
    color: str | None = None
    direction: str | None = None  # None too for a single frame


class Backdrop(NamedTuple):
    """Everything but the subject."""

    time: str
    place: str
    horizon: float  # heights from the top
    sky: np.ndarray  # [H, 1, 3], the colour of each row


class Sighting(NamedTuple):
    """The subject that explains most."""

    subject: str
    color: str
    heading: int  # -1 left, 1 right: where it points
    x: np.ndarray  # [T], heights from the left
    y: np.ndarray  # [T], heights from the top
    gain: np.ndarray  # [T], heights²; about 0 where it is not seen


def describe(video) -> Description:
    """Place, time, subject, colour and direction of a clip.

    video: uint8 RGB [T, H, W, 3], or a Video. Raises OpenSoraError for anything else.
    """
    pixels = to_pixels(video)
    backdrop = look_at_backdrop(pixels)
    sighting = find_subject(pixels, backdrop)
    if sighting is None:
        return Description(backdrop.place, backdrop.time)
    return Description(backdrop.place, backdrop.time, sighting.subject, sighting.color, judge_direction(sighting))


def subject_track(video) -> np.ndarray | None:
    """x of the subject's centre in each frame: float [T], heights from the left, NaN where it is not seen.

    None for a clip without a subject. Takes what `describe` takes.
    """
    pixels = to_pixels(video)
    sighting = find_subject(pixels, look_at_backdrop(pixels))
    return None if sighting is None else np.where(seen(sighting), sighting.x, np.nan)


def sun_motion(video) -> float | None:
    """How fast the sun or moon rises: heights per frame, negative when it sinks.

    None where its disc is seen in fewer than three frames. Takes what `describe` takes.
    """
    pixels = to_pixels(video)
    backdrop = look_at_backdrop(pixels)
    _, y, visible = find_sun(pixels, backdrop)
    return -slope(y, visible) if (visible > 0).sum() > 2 else None


# ----------------------------------------------------------------------------------------------------------------------
# Pixels
# ----------------------------------------------------------------------------------------------------------------------


def to_pixels(video) -> np.ndarray:
    """float32 [T, h, w, 3] in 0 … 1, large frames shrunk to about WORKING_HEIGHT rows.

    Raises OpenSoraError for what is no clip, and for frames that are too small.
    """
    frames = getattr(video, "frames", video)
    if not isinstance(frames, np.ndarray):
        raise OpenSoraError(f"a clip to describe must be a Video or an array; this is a {type(video).__name__}")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise OpenSoraError(f"a clip to describe must be uint8 [T, H, W, 3]; this is {frames.dtype} {[*frames.shape]}")
    if min(frames.shape[1:3]) < SMALLEST:
        raise OpenSoraError(
            f"frames of {frames.shape[1]}×{frames.shape[2]} are too small to describe; {SMALLEST}×{SMALLEST} would do"
        )
    pixels = frames.astype(np.float32) / 255
    factor = max(1, min(frames.shape[1:3]) // WORKING_HEIGHT)
    count, height, width = frames.shape[0], frames.shape[1] // factor, frames.shape[2] // factor
    blocks = pixels[:, : height * factor, : width * factor].reshape(count, height, factor, width, factor, 3)
    return blocks.mean((2, 4))


def rows_of(pixels) -> np.ndarray:
    """y of the rows' centres: [H]."""
    height = pixels.shape[1]
    return (np.arange(height) + 0.5) / height


def squared(difference) -> np.ndarray:
    """Squared length of the colours in the last axis: [..., 3] -> [...]."""
    return np.einsum("...c,...c->...", difference, difference)


def nearest_mixture(pixels, one, other) -> np.ndarray:
    """The mixture of two colours that is nearest to each pixel [..., 3]."""
    one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
    way = other - one
    share = np.einsum("...c,...c->...", pixels - one, way) / np.maximum(squared(way), 1e-6)
    return one + np.clip(share, 0, 1)[..., None] * way


def coarse(pixels) -> np.ndarray:
    """The same picture at 30 to 59 rows, which is enough for shapes; an odd row or column at the end is dropped."""
    if pixels.shape[1] < 60:
        return pixels
    pixels = pixels[:, : pixels.shape[1] // 2 * 2, : pixels.shape[2] // 2 * 2]
    return (pixels[:, ::2, ::2] + pixels[:, ::2, 1::2] + pixels[:, 1::2, ::2] + pixels[:, 1::2, 1::2]) / 4


# ----------------------------------------------------------------------------------------------------------------------
# Backdrop
# ----------------------------------------------------------------------------------------------------------------------


def look_at_backdrop(pixels) -> Backdrop:
    """Time, place and horizon, each judged in the light of the one before; pixels float32 [T, H, W, 3]."""
    time = judge_time(pixels)
    place = judge_place(pixels, time)
    horizon = find_horizon(pixels, time, place)
    return Backdrop(time, place, horizon, sky=sky_colors(time, rows_of(pixels), horizon)[:, None])


def sky_colors(time: str, y, horizon: float) -> np.ndarray:
    """[H, 3]"""
    return world.sky_color(time, y, horizon).astype(np.float32)


def row_colors(pixels) -> np.ndarray:
    """The median colour of each row over all frames and columns: [H, 3]."""
    return np.median(pixels, axis=(0, 2))


def judge_time(pixels) -> str:
    """The time whose sky is nearest; what is far from it, such as buildings, counts the same for all."""
    y = rows_of(pixels)
    upper = pixels[:, y < 0.45, ::2]
    errors = {}
    for time in TIMES:
        sky = sky_colors(time, y[y < 0.45], 0.56)[:, None]
        errors[time] = np.minimum(squared(upper - sky), 0.05).mean()
    return min(errors, key=errors.__getitem__)


def from_ground(pixels, place: str, time: str) -> np.ndarray:
    """Squared distance from the ground's colour, whatever its shade: [..., 3] -> [...]."""
    darkest, brightest = SHADES[place]
    color = world.ground_color(place, time)
    return squared(pixels - nearest_mixture(pixels, darkest * color, brightest * color))


def judge_place(pixels, time: str) -> str:
    """The place whose ground is nearest, by the rows below every subject."""
    colors = row_colors(pixels[:, rows_of(pixels) > 0.85])
    errors = {place: np.median(from_ground(colors, place, time)) for place in GROUND}
    return min(errors, key=errors.__getitem__)


def find_horizon(pixels, time: str, place: str) -> float:
    """Where rows of sky (or of the city's walls) become rows of ground."""
    y = rows_of(pixels)
    colors = row_colors(pixels)
    ground = from_ground(colors, place, time)
    if place == "city":
        walls = squared(colors - nearest_mixture(colors, *world.wall_colors(time)))
    errors = []
    for horizon in HORIZONS:
        above = squared(colors - sky_colors(time, y, horizon))
        if place == "city":
            above = np.minimum(above, walls)
        errors.append(np.minimum(np.where(y < horizon, above, ground), 0.1).sum())
    return float(HORIZONS[np.argmin(errors)])


def explain_backdrop(pixels, backdrop: Backdrop) -> np.ndarray:
    """[T, H, W, 3]: of all that the backdrop may show at each pixel, what is nearest to it."""
    time, place, horizon, sky = backdrop
    y = rows_of(pixels)
    rough = ROUGHNESS[place] + 1.5 / len(y)  # an edge is blurred
    nearest = np.empty_like(pixels)
    residual = np.full(pixels.shape[:3], np.inf, np.float32)

    def allow(rows, one, other, columns=slice(None), frames=slice(None)):
        where = frames, rows, columns
        color = nearest_mixture(pixels[where], one, other)
        error = squared(pixels[where] - color)
        better = error < residual[where]
        residual[where][better] = error[better]
        nearest[where][better] = color[better]

    def between(top, bottom):
        return slice(*np.searchsorted(y, (top, bottom)))

    ground = world.ground_color(place, time)
    darkest, brightest = SHADES[place]
    above, edge = between(0, horizon + rough), between(horizon - rough, horizon + rough)
    allow(above, sky[above], sky[above])
    allow(between(horizon - rough, 1), darkest * ground, brightest * ground)
    allow(edge, sky[edge], ground)
    if place == "city":
        wall, window = world.wall_colors(time)
        built = between(horizon - 0.37 - rough, horizon + rough)
        allow(built, wall, window)
        allow(built, sky[built], wall)
        allow(built, sky[built], window)
        if time == "cyberpunk":
            neon = between(horizon + 0.02, horizon + 0.08)
            allow(neon, ground, world.NEON)

    radius, color = SUN[time]
    sun_x, sun_y, visible = find_sun(pixels, backdrop)
    height = len(y)
    reach = radius + 2.5 / height
    columns = slice(max(0, round((sun_x - reach) * height)), round((sun_x + reach) * height))
    for k in np.flatnonzero(visible):
        rows = between(sun_y[k] - reach, min(sun_y[k] + reach, horizon + rough))
        allow(rows, sky[rows], color, columns, slice(k, k + 1))
    return nearest


def find_sun(pixels, backdrop: Backdrop) -> tuple[float, np.ndarray, np.ndarray]:
    """x, and for each frame y [T] and the seen share of the disc [T] (0 where it is too little to tell); in heights.

    The disc is matched with the map of what is the sun's colour (1), the sky's (-1) and something else (0).
    """
    radius, _ = SUN[backdrop.time]
    height, width = pixels.shape[1:3]
    upper = rows_of(pixels) < backdrop.horizon + 0.05
    likeness = sun_likeness(pixels[:, upper], backdrop.sky[upper], backdrop)

    # It stands at one x for the whole clip, which tells it from a subject.
    reach = 1.4 * radius
    centres = (np.arange(width) + 0.5) / height
    profile = np.maximum(likeness, 0).sum((0, 1))
    across = abs(centres[:, None] - centres)
    x = centres[np.argmax(np.where(across < radius, 1.0, np.where(across < reach, -1.0, 0.0)) @ profile)]

    strip = likeness[:, :, abs(centres - x) < reach]
    beside = abs(centres[abs(centres - x) < reach] - x)
    y = np.arange(0.05, backdrop.horizon + 0.12, 0.5 / height)
    distance = np.hypot(rows_of(pixels)[upper, None] - y[:, None, None], beside) - radius  # [Y, H, w]
    disc = np.clip(0.5 - distance * height / 1.3, 0, 1)
    ring = (distance < 0.4 * radius) * (1 - disc)
    scores = np.tensordot(strip, disc - ring, ((1, 2), (1, 2)))  # [T, Y]
    best = np.argmax(scores, axis=1)
    inside = np.maximum(strip, 0) * disc[best]
    visible = inside.sum((1, 2)) / (np.pi * (radius * height) ** 2)
    return float(x), y[best], np.where(visible > 0.06, visible, 0)


def sun_likeness(pixels, sky, backdrop: Backdrop) -> np.ndarray:
    """[T, H, W]: 1 for the sun's colour, -1 for the sky's and 0 for what is no mixture of them."""
    way = np.array(SUN[backdrop.time][1], np.float32) - sky  # [H, 1, 3]
    above = pixels - sky
    share = np.einsum("thwc,hoc->thw", above, way) / squared(way)
    off = squared(above - np.clip(share, 0, 1)[..., None] * way)
    is_ground = from_ground(pixels, backdrop.place, backdrop.time) < off
    return np.where(is_ground, 0, np.clip(2 * share - 1, -1, 1) * np.exp(-off / (2 * 0.1**2)))


# ----------------------------------------------------------------------------------------------------------------------
# Subject
# ----------------------------------------------------------------------------------------------------------------------


def find_subject(pixels, backdrop: Backdrop) -> Sighting | None:
    """The subject whose drawing explains most of what the backdrop does not."""
    behind = coarse(explain_backdrop(pixels, backdrop))
    rest = untinted(coarse(pixels) - behind, backdrop.horizon)
    bodies = body_colors(backdrop.time)
    templates = draw_templates(backdrop.time, rest.shape[1])
    evidence = np.stack([explained_by(body, rest, behind) for body in bodies])  # [C, T, H, W]
    places, amounts = densest(evidence.max(0))

    telling = np.argsort(-amounts)[:SHAPE_FRAMES]
    group, color, gain = recognize(rest[telling], behind[telling], places[telling], templates, bodies)
    if gain < LEAST_GAIN:
        return None
    # Where it is, in all frames: near the most of its colour, or of any colour, such as that of a boat's sail.
    kind = templates.of_group(group)
    anywhere = [places, densest(evidence[color])[0]]
    x, y, gain = locate(rest, behind, anywhere, kind, bodies[color : color + 1])
    return Sighting(kind.subjects[0], tuple(COLORS)[color], kind.headings[0], x, y, gain)


def recognize(rest, behind, places, templates: Templates, bodies) -> tuple[int, int, float]:
    """What it is: the group of drawings and the colour that explain most in all frames together; the mean gain."""
    height = rest.shape[1]
    nearby = shifts(height, step=1 if height < 42 else 2)
    gains = np.maximum(match(rest, behind, places, nearby, templates, bodies)[0], 0)  # [T, K, C]
    means = np.maximum.reduceat(gains, templates.firsts, axis=1).mean(0)  # [G, C]
    group, color = np.unravel_index(np.argmax(means), means.shape)
    return int(group), int(color), float(means[group, color])


def locate(rest, behind, anywhere: list, kind: Templates, body) -> np.ndarray:
    """x, y and gain in each frame, [3, T], of one thing in one colour: the best near any of the lists of places."""
    sights = []
    for places in anywhere:
        gains, y, x = match(rest, behind, places, shifts(rest.shape[1]), kind, body)
        sights.append(np.stack([x, y, np.maximum(gains, 0)])[..., 0])  # [3, T, K]
    found = np.concatenate(sights, axis=-1)
    return found[:, np.arange(len(rest)), np.argmax(found[2], axis=-1)]


def body_colors(time: str) -> np.ndarray:
    """[C, 3]"""
    return np.stack([world.body_color(color, time) for color in COLORS]).astype(np.float32)


def explained_by(body, rest, behind) -> np.ndarray:
    """The gain of painting each pixel with one colour: [T, H, W]."""
    way = body - behind
    return best_gain(np.einsum("...c,...c->...", rest, way), squared(way))


def densest(evidence) -> tuple[np.ndarray, np.ndarray]:
    """The box, about as large as a subject, that has most of the evidence in each frame.

    Returns row and column of its centre, [T, 2], and how much there is, [T].
    """
    height = evidence.shape[1]
    sums = box_sums(evidence, round(0.10 * height), round(0.13 * height))
    flat = sums.reshape(len(sums), -1)
    return np.stack(np.unravel_index(np.argmax(flat, axis=1), sums.shape[1:]), axis=1), flat.max(1)


def box_sums(values, half_height: int, half_width: int) -> np.ndarray:
    """Sums over the box around each pixel: [T, H, W]."""
    for axis, half in ((1, half_height), (2, half_width)):
        pad = [(0, 0)] * 3
        pad[axis] = (half + 1, half)
        total = np.cumsum(np.pad(values, pad), axis=axis)
        count = values.shape[axis]
        window = 2 * half + 1
        values = np.take(total, range(window, window + count), axis) - np.take(total, range(count), axis)
    return values


def best_gain(overlap, energy) -> np.ndarray:
    """How much a drawing explains at its best opacity, of overlap r·d and energy |d|², arrays of one shape.

    r is what the backdrop leaves unexplained and d what the drawing would add to it. Opacity a explains
    |r|² - |r - a d|² = 2 a r·d - a² |d|². It is free because a video model's subjects can be pale, but paleness costs
    PALENESS (1 - a)² |d|², lest a faint blue be taken for purple, or a tint of the whole sky for a balloon.
    """
    opacity = (overlap / np.maximum(energy, 1e-6) + PALENESS) / (1 + PALENESS)
    opacity = np.clip(opacity, 0, 1)
    return opacity * (2 * overlap - opacity * energy) - PALENESS * (1 - opacity) ** 2 * energy


def untinted(rest, horizon: float) -> np.ndarray:
    """[T, H, W, 3] without what all pixels of a frame's sky, or ground, share: a model's colours are a bit off."""
    y = rows_of(rest)
    for rows in (y < horizon - 0.05, y > horizon + 0.05):
        rest[:, rows] -= np.clip(np.median(rest[:, rows], axis=(1, 2), keepdims=True), -0.06, 0.06)
    return rest


# --- drawings ---------------------------------------------------------------------------------------------------------


class Templates(NamedTuple):
    """K drawings of subjects on patches of P = (2 reach + 1)² pixels, their body's colour left open."""

    subjects: tuple[str, ...]  # [K]
    headings: tuple[int, ...]  # [K], -1 left, 1 right
    firsts: tuple[int, ...]  # [G]: where a new group begins; a group is one thing in its postures
    cover: np.ndarray  # [K, P], 0 … 1
    fixed: np.ndarray  # [K, 3, P], times cover: wheels, sails and all that the body's colour does not touch
    tint: np.ndarray  # [K, P], times the body's colour
    reach: int

    def of_group(self, group: int) -> Templates:
        """The drawings of one of the G groups."""
        of = slice(*(*self.firsts, len(self.subjects))[group : group + 2])
        cover, fixed, tint = self.cover[of], self.fixed[of], self.tint[of]
        return Templates(self.subjects[of], self.headings[of], (0,), cover, fixed, tint, self.reach)


@lru_cache(maxsize=16)
def draw_templates(time: str, height: int) -> Templates:
    """Drawings of every subject in every size, heading and posture, for frames of this height."""
    reach = int(np.ceil(1.8 * max(SIZES) * height)) + 1
    things = [(subject, size, heading) for subject in world.SUBJECTS for size in SIZES for heading in (1, -1)]
    drawings = [
        [draw(painter, size, heading, reach, height) for painter in painters(subject, time)]
        for subject, size, heading in things
    ]
    counts = [len(postures) for postures in drawings]
    cover, fixed, tint = zip(*(drawing for postures in drawings for drawing in postures), strict=True)
    subjects, _, headings = zip(
        *(thing for thing, count in zip(things, counts, strict=True) for _ in range(count)), strict=True
    )
    firsts = tuple(np.cumsum([0, *counts[:-1]]).tolist())
    return Templates(subjects, headings, firsts, np.stack(cover), np.stack(fixed), np.stack(tint), reach)


def painters(subject: str, time: str) -> list:
    """Functions of a canvas and a body colour, one for each posture."""
    if subject == "boat":
        return [lambda canvas, body: world.paint_boat(canvas, body, np.array(LIGHT[time]))]
    if subject == "bird":
        return [lambda canvas, body, flap=flap: world.paint_bird(canvas, body, flap) for flap in FLAPS]
    return [{"car": world.paint_car, "balloon": world.paint_balloon}[subject]]


def draw(paint, size: float, heading: int, reach: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """cover [P], fixed [3, P] and tint [P] of one drawing; see Templates."""
    offsets = np.arange(-reach, reach + 1) / height / size

    def painted(ground: float, body: float):
        pixels = np.full((len(offsets), len(offsets), 3), ground, np.float32)
        paint(
            world.Canvas(heading * offsets[None], offsets[:, None], pixels, 1.3 / height, 1.0, unit=size),
            body * np.ones(3),
        )
        return np.moveaxis(pixels, -1, 0).reshape(3, -1)

    black = painted(0, 0)
    return 1 - (painted(1, 0) - black)[0], black, (painted(0, 1) - black)[0]


def match(rest, behind, places, nearby, templates: Templates, bodies):
    """The gain of each drawing in each of C body colours, near the given places.

    Returns gain (heights²), y and x (heights), each [T, K, C], at the best of a few positions around the place.

    A drawing of coverage m and colours C adds d = m (C - B) to the backdrop B. Its overlap with the rest r is
    Σ r·mC - r·B m, linear in r and r·B; its energy is Σ |mC|² - 2 mC·mB + m² |B|², linear in 1, B and |B|².
    """
    height = rest.shape[1]
    places = places[:, None] + nearby  # [T, S, 2]
    ones = np.ones_like(rest[..., :1])
    product = np.einsum("...c,...c->...", rest, behind)[..., None]
    features = np.concatenate([rest, product, ones, behind, squared(behind)[..., None]], axis=-1)
    around = patches(features, places, templates.reach)  # [T, S, 9, P]

    cover = np.broadcast_to(
        templates.cover[:, None, None], (*templates.cover.shape[:1], len(bodies), 1, templates.cover.shape[1])
    )
    color = templates.fixed[:, None] + bodies[:, :, None] * templates.tint[:, None, None]  # [K, C, 3, P]: mC
    overlap = np.concatenate([color, -cover], axis=2)
    energy = np.concatenate([(color**2).sum(2, keepdims=True), -2 * cover * color, cover**2], axis=2)

    def product_of(features, weights):  # [T, S, K, C]
        return np.tensordot(
            features.reshape(*features.shape[:2], -1), weights.reshape(*weights.shape[:2], -1), (-1, -1)
        )

    gains = best_gain(product_of(around[:, :, :4], overlap), product_of(around[:, :, 4:], energy))
    best = np.argmax(gains, axis=1)[:, None]  # [T, 1, K, C]
    gain = np.take_along_axis(gains, best, axis=1)[:, 0] / height**2
    y, x = ((np.take_along_axis(places[:, :, axis, None, None], best, axis=1)[:, 0] + 0.5) / height for axis in (0, 1))
    return gain, y, x


def shifts(height: int, step: int = 1) -> np.ndarray:
    """[S, 2] rows and columns to try around a place: the middle of a subject is not that of its evidence."""
    down, across = (round(reach * height) // step * step for reach in (0.09, 0.07))
    grid = np.meshgrid(np.arange(-down, down + 1, step), np.arange(-across, across + 1, step), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 2)


def patches(features, places, reach: int) -> np.ndarray:
    """What is around each place: [T, H, W, F] and [T, S, 2] -> [T, S, F, P], 0 outside the frame."""
    margin = reach + round(0.1 * features.shape[1]) + 1
    padded = np.pad(features, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    size = 2 * reach + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))  # [T, ., ., F, size, size]
    tops, lefts = np.moveaxis(places, -1, 0) + margin - reach
    around = windows[np.arange(len(features))[:, None], tops, lefts]
    return around.reshape(*around.shape[:3], -1)


# ----------------------------------------------------------------------------------------------------------------------
# Motion
# ----------------------------------------------------------------------------------------------------------------------


def seen(sighting: Sighting) -> np.ndarray:
    """bool [T]: the frames where enough of the subject is seen to say where it is."""
    return sighting.gain > 0.3 * sighting.gain.max()


def judge_direction(sighting: Sighting) -> str | None:
    """From the movement. A subject that stands still, or is seen once, goes where it heads. None for a single frame."""
    if len(sighting.x) < 2:
        return None
    visible = seen(sighting)
    moved = slope(sighting.x, sighting.gain * visible) * (len(visible) - 1) if visible.sum() > 1 else 0.0
    sign = moved if abs(moved) > STILL else sighting.heading
    return "right" if sign > 0 else "left"


def slope(values, weights) -> float:
    """Of the weighted least-squares line through values [T], per frame."""
    k = np.arange(len(values))
    k = k - np.average(k, weights=weights)
    return float((weights * k * values).sum() / (weights * k * k).sum())
