"""Measures the content of a LiteWorld clip from its pixels: the judge of generated videos.

    describe(render(scene))   # Description(place="ocean", time="sunset", subject="car", color="red", direction="right")

Analysis by synthesis: the pixels are compared with what `world` renders, in five steps.

1. `judge_time`: the time whose sky colors (SKY) are nearest to the upper rows.
2. `judge_place`: the background whose ground color, under that time's light, is nearest to the lowest rows.
3. `explain_backdrop`: for each pixel the nearest color of what may be behind the subject (sky, sun, buildings, ground).
4. `find_subject`: the rendered subject and color that explain most of the remaining difference.
5. `judge_direction`: the sign of the subject's motion, not its heading.

Each attribute is measured independently of the prompt: a red boat in the sky is a boat.

As in `world`, lengths are relative to the frame height and colors are RGB in 0 … 1. A gain is the decrease of the
squared color error, summed over pixels, in heights²: 0.01 is 1 % of a square frame changed from black to pure red.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from opensora_lite.errors import OpenSoraError, shown
from opensora_lite.liteworld import world
from opensora_lite.liteworld.world import COLORS, GROUND, LIGHT, SCORE_PER_SPEED, SUN, TIMES

SMALLEST = 32  # pixels; subjects of smaller frames can't be recognized
WORKING_HEIGHT = 64  # larger frames are downsampled to about this
HORIZONS = np.linspace(0.50, 0.62, 13)
ROUGHNESS = {
    "ocean": 0.015,
    "city": 0.0,
    "desert": 0.05,
    "meadow": 0.03,
}  # of the ground's edge, heights
SHADES = {"ocean": (0.86, 1.14), "city": (1.0, 1.0), "desert": (0.85, 1.02), "meadow": (0.75, 1.02)}
SIZES = (0.115, 0.132, 0.15)  # of subjects
FLAPS = (-0.8, 0.0, 0.8)  # of a bird's wings
LEAST_GAIN = 0.00005  # of a subject, mean over SHAPE_FRAMES; clips without a subject stay below 0.00001
STILL = 0.02  # heights: less motion than this in the whole clip counts as none
PALENESS = 0.15  # penalty on a subject's transparency
LEAST_PAN = 0.10  # widths in the whole clip; those of shots are 0.19 to 0.30
LEAST_ZOOM = 0.12  # log(scale) in the whole clip; those of shots are 0.22 to 0.34
LARGEST_SCALE = 1.4  # of a shot that zooms
LEAST_PRESENCE = 0.35  # of a subject, relative to what it would explain if it were fully there
LARGEST_PIECE = 0.45  # evidence of a second subject, relative to the first
NEARBY = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), -1).reshape(-1, 2)
FARTHEST_PAN = 0.4  # of the camera in a clip, widths
SHAPE_FRAMES = 6  # number of frames used to recognize the subject


@dataclass(frozen=True)
class Description:
    """The content of a clip in LiteWorld's words; color and direction are None without a subject."""

    place: str
    time: str
    subject: str | None = None
    color: str | None = None
    direction: str | None = None  # also None for a single frame


class Backdrop(NamedTuple):
    """Everything behind the subject."""

    time: str
    place: str
    horizon: float  # heights from the top
    sky: np.ndarray  # [H, 1, 3], the color of each row


class Sighting(NamedTuple):
    """The recognized subject and its track."""

    subject: str
    color: str
    heading: int  # -1 left, 1 right
    x: np.ndarray  # [T], heights from the left
    y: np.ndarray  # [T], heights from the top
    gain: np.ndarray  # [T], heights²; about 0 where it is not visible


def describe(video) -> Description:
    """Background, time, subject, color and direction of a clip.

    video: a Video or uint8 RGB [T, H, W, 3] with sides of at least 32 pixels. Raises OpenSoraError for anything else.
    """
    pixels = to_pixels(video)
    backdrop = find_backdrop(pixels)
    sighting = find_subject(pixels, backdrop)
    if sighting is None:
        return Description(backdrop.place, backdrop.time)
    return Description(backdrop.place, backdrop.time, sighting.subject, sighting.color, judge_direction(sighting))


def subject_track(video) -> np.ndarray | None:
    """x of the subject's centre: float [T], heights from the left, NaN where it is not visible; None without a subject.

    video: as in `describe`.
    """
    pixels = to_pixels(video)
    sighting = find_subject(pixels, find_backdrop(pixels))
    return None if sighting is None else np.where(is_visible(sighting), sighting.x, np.nan)


def sun_motion(video) -> float | None:
    """Vertical speed of the sun or moon in heights per frame, positive when it rises.

    None where it is visible in fewer than three frames. video: as in `describe`.
    """
    pixels = to_pixels(video)
    _, y, visible = find_sun(pixels, find_backdrop(pixels))
    return -slope(y, visible) if (visible > 0).sum() > 2 else None


def camera_motion(video) -> str:
    """What the camera does, one of CAMERA_MOTIONS: in a pan to the left the content of the picture moves right.

    video: as in `describe`. A zoom shows in the gradient of the sky, a pan in the motion of the sun or moon.
    """
    pixels = to_pixels(video)
    if len(pixels) < 2:
        return "static"
    backdrop = find_backdrop(pixels)
    zoom = zoom_of(pixels, backdrop)
    if abs(zoom) > LEAST_ZOOM:
        return "zoom in" if zoom > 0 else "zoom out"
    x, _, visible = find_sun(pixels, backdrop)
    aspect = pixels.shape[2] / pixels.shape[1]
    pan = (x[0] - x[-1]) / aspect if (visible > 0).sum() > 2 else 0.0
    if abs(pan) > LEAST_PAN:
        return "pan right" if pan > 0 else "pan left"
    return "static"


def motion_score(video, fps: float = 24) -> float | None:
    """The subject's speed in the picture in widths per 200 frames at 24 fps; None without a subject that moves.

    video: as in `describe`. LiteWorld's shots have the scores 3, 5 and 7.
    """
    pixels = to_pixels(video)
    sighting = find_subject(pixels, find_backdrop(pixels))
    if sighting is None or is_visible(sighting).sum() < 2:
        return None
    widths = slope(sighting.x, sighting.gain * is_visible(sighting)) * pixels.shape[1] / pixels.shape[2]
    return SCORE_PER_SPEED * abs(widths) * fps / 24


def steady_frames(video, color: str | None = None) -> np.ndarray | None:
    """bool [T]: the frames in which the subject is there, has its color, and is one piece; None without a subject.

    video: as in `describe`. color: the right one; None: that of most frames. The others are called flicker.
    """
    pixels = to_pixels(video)
    backdrop = find_backdrop(pixels)
    sighting = find_subject(pixels, backdrop)
    if sighting is None:
        return None
    behind = coarse(explain_backdrop(pixels, backdrop))
    rest = untinted(coarse(pixels) - behind, backdrop.horizon)
    bodies = body_colors(backdrop.time)
    height = rest.shape[1]

    # what a subject in each color would explain around its place, and how much of that is there
    templates = draw_templates(backdrop.time, height)
    groups = [k for k, first in enumerate(templates.firsts) if templates.subjects[first] == sighting.subject]
    centres = np.stack([sighting.y, sighting.x], 1) * height - 0.5
    near = np.rint(centres).astype(int).clip(0, np.array(rest.shape[1:3]) - 1)
    positions = near[:, None] + NEARBY
    compared = [compare(rest, behind, positions, templates.of_group(k), bodies) for k in groups]
    overlap, energy = (np.concatenate(part, axis=2) for part in zip(*compared, strict=True))  # [T, S, K, C]
    gains = best_gain(overlap, energy)
    right = tuple(COLORS).index(color or sighting.color)
    there = (gains / np.maximum(energy, 1e-6))[..., right].max((1, 2)) > LEAST_PRESENCE  # [T]
    gains = gains.max((1, 2))
    colored = gains[:, right] > 0.8 * gains.max(1)

    # pieces elsewhere: the densest box of its color away from it
    evidence = explained_by(bodies[right], rest, behind)
    rows, columns = np.mgrid[: rest.shape[1], : rest.shape[2]]
    away = np.maximum(abs(rows - near[:, 0, None, None]), abs(columns - near[:, 1, None, None])) > 0.30 * height
    pieces, whole = densest(evidence * away)[1], densest(evidence)[1]
    return there & colored & (pieces < LARGEST_PIECE * whole)


# ----------------------------------------------------------------------------------------------------------------------
# Pixels
# ----------------------------------------------------------------------------------------------------------------------


def to_pixels(video) -> np.ndarray:
    """float32 [T, h, w, 3] in 0 … 1 of a Video or an array; large frames are downsampled to WORKING_HEIGHT."""
    frames = getattr(video, "frames", video)
    shape: tuple[int, ...] = getattr(frames, "shape", ())
    if getattr(frames, "dtype", None) != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[0]:
        raise OpenSoraError(f"describe needs a Video or uint8 RGB [T, H, W, 3], not {shown(video)}")
    if min(shape[1:3]) < SMALLEST:
        raise OpenSoraError(f"describe needs uint8 frames of at least {SMALLEST}×{SMALLEST}, not {shape[1]}×{shape[2]}")
    pixels = frames.astype(np.float32) / 255
    factor = max(1, min(shape[1:3]) // WORKING_HEIGHT)
    height, width = shape[1] // factor, shape[2] // factor
    blocks = pixels[:, : height * factor, : width * factor].reshape(-1, height, factor, width, factor, 3)
    return blocks.mean((2, 4))


def rows_of(pixels) -> np.ndarray:
    """y of the row centres: [H]."""
    height = pixels.shape[1]
    return (np.arange(height) + 0.5) / height


def squared(difference) -> np.ndarray:
    """Squared norm over the last axis: [..., 3] -> [...]."""
    return np.einsum("...c,...c->...", difference, difference)


def nearest_mixture(pixels, one, other) -> np.ndarray:
    """The mixture of two colors that is nearest to each pixel [..., 3]."""
    one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
    line = other - one
    share = np.einsum("...c,...c->...", pixels - one, line) / np.maximum(squared(line), 1e-6)
    return one + np.clip(share, 0, 1)[..., None] * line


def coarse(pixels) -> np.ndarray:
    """The frames at 30 to 59 rows, enough for shapes; a last odd row or column is dropped."""
    if pixels.shape[1] < 60:
        return pixels
    pixels = pixels[:, : pixels.shape[1] // 2 * 2, : pixels.shape[2] // 2 * 2]
    return (pixels[:, ::2, ::2] + pixels[:, ::2, 1::2] + pixels[:, 1::2, ::2] + pixels[:, 1::2, 1::2]) / 4


# ----------------------------------------------------------------------------------------------------------------------
# Backdrop
# ----------------------------------------------------------------------------------------------------------------------


def find_backdrop(pixels) -> Backdrop:
    """Time, background and horizon of pixels float32 [T, H, W, 3], each given the previous one."""
    time = judge_time(pixels)
    place = judge_place(pixels, time)
    horizon = find_horizon(pixels, time, place)
    return Backdrop(time, place, horizon, sky=sky_colors(time, rows_of(pixels), horizon)[:, None])


def sky_colors(time: str, y, horizon: float) -> np.ndarray:
    """RGB of the sky at y [H]: float32 [H, 3]."""
    return world.sky_color(time, y, horizon).astype(np.float32)


def row_colors(pixels) -> np.ndarray:
    """The median color of each row over frames and columns: [H, 3]."""
    return np.median(pixels, axis=(0, 2))


def judge_time(pixels) -> str:
    """The time whose sky is nearest; the error is capped, so buildings count the same for every time."""
    y = rows_of(pixels)
    upper = pixels[:, y < 0.45, ::2]
    errors = {}
    for time in TIMES:
        sky = sky_colors(time, y[y < 0.45], 0.56)[:, None]
        errors[time] = np.minimum(squared(upper - sky), 0.05).mean()
    return min(errors, key=errors.__getitem__)


def from_ground(pixels, place: str, time: str) -> np.ndarray:
    """Squared distance from the nearest shade of the ground's color: [..., 3] -> [...]."""
    darkest, brightest = SHADES[place]
    color = world.ground_color(place, time)
    return squared(pixels - nearest_mixture(pixels, darkest * color, brightest * color))


def judge_place(pixels, time: str) -> str:
    """The background whose ground is nearest, measured in the rows below every subject."""
    colors = row_colors(pixels[:, rows_of(pixels) > 0.85])
    errors = {place: np.median(from_ground(colors, place, time)) for place in GROUND}
    return min(errors, key=errors.__getitem__)


def find_horizon(pixels, time: str, place: str) -> float:
    """y of the line between rows of sky (or city walls) and rows of ground."""
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
    """[T, H, W, 3]: the nearest color to each pixel that the backdrop allows there."""
    time, place, horizon, sky = backdrop
    y = rows_of(pixels)
    rough = ROUGHNESS[place] + 1.5 / len(y)  # edges are blurred
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
    zooms = len(pixels) > 1 and abs(zoom_of(pixels, backdrop)) > LEAST_ZOOM
    reach = (LARGEST_SCALE if zooms else 1) * radius + 2.5 / height
    for k in np.flatnonzero(visible):
        columns = slice(max(0, round((sun_x[k] - reach) * height)), max(0, round((sun_x[k] + reach) * height)))
        rows = between(sun_y[k] - reach, min(sun_y[k] + reach, horizon + rough))
        allow(rows, sky[rows], color, columns, slice(k, k + 1))
    return nearest


def find_sun(pixels, backdrop: Backdrop) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and the visible share of the disc, 0 below 6 %, in every frame: [T] each; in heights.

    Matches a disc with `sun_likeness`. Its x changes uniformly, with the camera.
    """
    radius, _ = SUN[backdrop.time]
    height = pixels.shape[1]
    upper = rows_of(pixels) < backdrop.horizon + 0.05
    likeness = sun_likeness(pixels[:, upper], backdrop.sky[upper], backdrop)

    reach = 1.4 * radius
    column = sun_columns(np.maximum(likeness, 0).sum(1), radius * height, reach * height)
    margin = int(reach * height) + 1
    aside = np.arange(-margin, margin + 1)
    aside = aside[abs(aside) / height < reach]  # columns beside the sun's
    padded = np.pad(likeness, ((0, 0), (0, 0), (margin, margin)))
    strip = np.take_along_axis(padded, (column[:, None] + aside + margin)[:, None], axis=2)
    beside = abs(aside) / height
    y = np.arange(0.0, backdrop.horizon + 0.12, 0.5 / height)
    distance = np.hypot(rows_of(pixels)[upper, None] - y[:, None, None], beside) - radius  # [Y, H, w]
    disc = np.clip(0.5 - distance * height / 1.3, 0, 1)
    ring = (distance < 0.4 * radius) * (1 - disc)
    scores = np.tensordot(strip, disc - ring, ((1, 2), (1, 2)))  # [T, Y]
    best = np.argmax(scores, axis=1)
    inside = np.maximum(strip, 0) * disc[best]
    visible = inside.sum((1, 2)) / (np.pi * (radius * height) ** 2)
    return (column + 0.5) / height, y[best], np.where(visible > 0.06, visible, 0)


def sun_columns(profile, radius: float, reach: float) -> np.ndarray:
    """The sun's column in every frame [T], of the likeness to a sun by column [T, W]; radius and reach in pixels.

    The uniform motion, mostly none, that sees most of a sun within `radius` and least between `radius` and `reach`.
    """
    T, width = profile.shape
    columns = np.arange(width)
    across = abs(columns[:, None] - columns)
    scores = profile @ np.where(across < radius, 1.0, np.where(across < reach, -1.0, 0.0))  # [T, W]
    standing = int(np.argmax(scores.sum(0)))
    phase = np.linspace(-0.5, 0.5, T) if T > 1 else np.zeros(1)
    ways = np.round(np.linspace(-FARTHEST_PAN, FARTHEST_PAN, 33) * width)  # in the whole clip
    paths = np.rint(columns[:, None] + ways[:, None, None] * phase).astype(int)  # [ways, W, T]
    inside = (paths >= 0) & (paths < width)
    found = np.where(inside, scores[np.arange(T), paths.clip(0, width - 1)], 0).sum(2)
    way, start = np.unravel_index(np.argmax(found), found.shape)
    if found[way, start] < 1.05 * scores.sum(0)[standing]:
        return np.full(T, standing)
    return paths[way, start].clip(0, width - 1)


def zoom_of(pixels, backdrop: Backdrop) -> float:
    """log(scale at the end / scale at the beginning).

    Where the sky is seen, the share of its horizon's color is linear in the world's y, and a zoom by z about the centre
    of the picture makes it c + b (y − 0.5) / z. The zoom is uniform; the one that explains the shares best is taken.
    """
    high, low = (np.array(color, np.float32) for color in reversed(world.SKY[backdrop.time]))
    line = low - high
    share = (pixels - high) @ line / squared(line)  # [T, H, W]
    is_sky = squared(pixels - high - share[..., None] * line) < 0.03**2
    y = rows_of(pixels)
    rows = (y > 0.06) & (y < backdrop.horizon - 0.05)
    is_sky, share, y = is_sky[:, rows], share[:, rows], y[rows]
    enough = is_sky.mean(2) > 0.2  # [T, rows]
    shares = np.nanmedian(np.where(is_sky | ~enough[..., None], share, np.nan), axis=2)
    phase = np.linspace(-0.5, 0.5, len(pixels))[:, None]
    ways = np.linspace(-0.45, 0.45, 61)
    errors = []
    for way in ways:
        line_of = np.exp(-way * phase) * (y - 0.5)
        weights = enough.astype(float)
        for _ in range(4):  # least squares with weights that spare outliers
            total = max(weights.sum(), 1e-6)
            x, u = (weights * line_of).sum() / total, (weights * shares).sum() / total
            b = (weights * (line_of - x) * (shares - u)).sum() / max((weights * (line_of - x) ** 2).sum(), 1e-9)
            error = abs(shares - u - b * (line_of - x))
            weights = enough / np.maximum(error, 0.01)
        errors.append((np.minimum(error, 0.1) * enough).sum())
    return float(ways[np.argmin(errors)])


def sun_likeness(pixels, sky, backdrop: Backdrop) -> np.ndarray:
    """[T, H, W]: 1 for the sun's color, -1 for the sky's and 0 for colors that are no mixture of the two."""
    line = np.array(SUN[backdrop.time][1], np.float32) - sky  # [H, 1, 3]
    difference = pixels - sky
    share = np.einsum("thwc,hoc->thw", difference, line) / squared(line)
    off = squared(difference - np.clip(share, 0, 1)[..., None] * line)
    is_ground = from_ground(pixels, backdrop.place, backdrop.time) < off
    return np.where(is_ground, 0, np.clip(2 * share - 1, -1, 1) * np.exp(-off / (2 * 0.1**2)))


# ----------------------------------------------------------------------------------------------------------------------
# Subject
# ----------------------------------------------------------------------------------------------------------------------


def find_subject(pixels, backdrop: Backdrop) -> Sighting | None:
    """The subject whose rendering explains most of what the backdrop does not; None without one."""
    behind = coarse(explain_backdrop(pixels, backdrop))
    rest = untinted(coarse(pixels) - behind, backdrop.horizon)
    bodies = body_colors(backdrop.time)
    templates = draw_templates(backdrop.time, rest.shape[1])
    evidence = np.stack([explained_by(body, rest, behind) for body in bodies])  # [C, T, H, W]
    centres, amounts = densest(evidence.max(0))

    best = np.argsort(-amounts)[:SHAPE_FRAMES]
    group, color, gain = recognize(rest[best], behind[best], centres[best], templates, bodies)
    if gain < LEAST_GAIN:
        return None
    # its position in all frames: near most of its own color, or of any color, such as that of a boat's sail
    kind = templates.of_group(group)
    candidates = [centres, densest(evidence[color])[0]]
    x, y, gain = locate(rest, behind, candidates, kind, bodies[color : color + 1])
    return Sighting(kind.subjects[0], tuple(COLORS)[color], kind.headings[0], x, y, gain)


def recognize(rest, behind, centres, templates: Templates, bodies) -> tuple[int, int, float]:
    """The group of templates and the color with the largest gain over all frames together, and its mean gain."""
    height = rest.shape[1]
    nearby = shifts(height, step=1 if height < 42 else 2)
    gains = np.maximum(match(rest, behind, centres, nearby, templates, bodies)[0], 0)  # [T, K, C]
    means = np.maximum.reduceat(gains, templates.firsts, axis=1).mean(0)  # [G, C]
    group, color = np.unravel_index(np.argmax(means), means.shape)
    return int(group), int(color), float(means[group, color])


def locate(rest, behind, candidates: list, kind: Templates, body) -> np.ndarray:
    """x, y and gain in each frame, [3, T], of one subject in one color: the best near any of the candidates."""
    matches = []
    for centres in candidates:
        gains, y, x = match(rest, behind, centres, shifts(rest.shape[1]), kind, body)
        matches.append(np.stack([x, y, np.maximum(gains, 0)])[..., 0])  # [3, T, K]
    found = np.concatenate(matches, axis=-1)
    return found[:, np.arange(len(rest)), np.argmax(found[2], axis=-1)]


def body_colors(time: str) -> np.ndarray:
    """RGB of the C subject colors in this time's light: [C, 3]."""
    return np.stack([world.body_color(color, time) for color in COLORS]).astype(np.float32)


def explained_by(body, rest, behind) -> np.ndarray:
    """The gain of painting each pixel with one color: [T, H, W]."""
    added = body - behind
    return best_gain(np.einsum("...c,...c->...", rest, added), squared(added))


def densest(evidence) -> tuple[np.ndarray, np.ndarray]:
    """The box of a subject's size with most evidence: row and column of its centre [T, 2], and its sum [T]."""
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
    """The gain of a template at its best opacity a, from overlap r·d and energy |d|², arrays of one shape.

    r is the residual of the backdrop and d what the template adds: |r|² - |r - a d|² = 2 a r·d - a² |d|². Subjects of a
    video model can be pale, so a is free, but a penalty of PALENESS (1 - a)² |d|² keeps a faint blue from passing as
    purple and a tint of the whole sky as a balloon.
    """
    opacity = (overlap / np.maximum(energy, 1e-6) + PALENESS) / (1 + PALENESS)
    opacity = np.clip(opacity, 0, 1)
    return opacity * (2 * overlap - opacity * energy) - PALENESS * (1 - opacity) ** 2 * energy


def untinted(rest, horizon: float) -> np.ndarray:
    """[T, H, W, 3] without the median difference of each frame's sky and ground: a model's colors are slightly off."""
    y = rows_of(rest)
    for rows in (y < horizon - 0.05, y > horizon + 0.05):
        rest[:, rows] -= np.clip(np.median(rest[:, rows], axis=(1, 2), keepdims=True), -0.06, 0.06)
    return rest


# --- templates --------------------------------------------------------------------------------------------------------


class Templates(NamedTuple):
    """K renderings of subjects on patches of P = (2 reach + 1)² pixels, for any body color."""

    subjects: tuple[str, ...]  # [K]
    headings: tuple[int, ...]  # [K], -1 left, 1 right
    firsts: tuple[int, ...]  # [G]: first template of each group; a group is one subject, size and heading
    cover: np.ndarray  # [K, P], 0 … 1
    fixed: np.ndarray  # [K, 3, P], cover times the colors of wheels, sails and other parts
    tint: np.ndarray  # [K, P], to be multiplied by the body color
    reach: int

    def of_group(self, group: int) -> Templates:
        """The templates of one of the G groups."""
        of = slice(*(*self.firsts, len(self.subjects))[group : group + 2])
        cover, fixed, tint = self.cover[of], self.fixed[of], self.tint[of]
        return Templates(self.subjects[of], self.headings[of], (0,), cover, fixed, tint, self.reach)


@lru_cache(maxsize=16)
def draw_templates(time: str, height: int) -> Templates:
    """Templates of every subject in every size, heading and posture, for frames of this height."""
    reach = int(np.ceil(1.8 * max(SIZES) * height)) + 1
    kinds: list[tuple[str, int]] = []
    drawings: list[tuple[np.ndarray, ...]] = []
    firsts: list[int] = []
    for subject, size, heading in product(world.SUBJECTS, SIZES, (1, -1)):
        firsts.append(len(drawings))
        for paint in painters(subject, time):
            kinds.append((subject, heading))
            drawings.append(draw(paint, size, heading, reach, height))
    subjects, headings = zip(*kinds, strict=True)
    cover, fixed, tint = (np.stack(part) for part in zip(*drawings, strict=True))
    return Templates(subjects, headings, tuple(firsts), cover, fixed, tint, reach)


def painters(subject: str, time: str) -> list:
    """Functions of a canvas and a body color, one per posture."""
    if subject == "boat":
        return [lambda canvas, body: world.paint_boat(canvas, body, np.array(LIGHT[time]))]
    if subject == "bird":
        return [lambda canvas, body, flap=flap: world.paint_bird(canvas, body, flap) for flap in FLAPS]
    return [{"car": world.paint_car, "balloon": world.paint_balloon}[subject]]


def draw(paint, size: float, heading: int, reach: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """cover [P], fixed [3, P] and tint [P] of one template."""
    offsets = np.arange(-reach, reach + 1) / height / size

    def painted(ground: float, body: float):
        pixels = np.full((len(offsets), len(offsets), 3), ground, np.float32)
        canvas = world.Canvas(heading * offsets[None], offsets[:, None], pixels, 1.3 / height, 1.0, unit=size)
        paint(canvas, body * np.ones(3))
        return np.moveaxis(pixels, -1, 0).reshape(3, -1)

    black = painted(0, 0)
    return 1 - (painted(1, 0) - black)[0], black, (painted(0, 1) - black)[0]


def match(rest, behind, centres, nearby, templates: Templates, bodies):
    """Gain (heights²), y and x (heights) of each template in each of C body colors: [T, K, C] each.

    The position is the best of `nearby` offsets [S, 2] around the centres [T, 2].
    """
    height = rest.shape[1]
    positions = centres[:, None] + nearby  # [T, S, 2]
    gains = best_gain(*compare(rest, behind, positions, templates, bodies))
    best = np.argmax(gains, axis=1)[:, None]  # [T, 1, K, C]
    gain = np.take_along_axis(gains, best, axis=1)[:, 0] / height**2
    found = (np.take_along_axis(positions[:, :, axis, None, None], best, axis=1)[:, 0] for axis in (0, 1))
    y, x = ((position + 0.5) / height for position in found)
    return gain, y, x


def compare(rest, behind, positions, templates: Templates, bodies):
    """Overlap r·d and energy |d|² of each template in each of C body colors at positions [T, S, 2]: [T, S, K, C] each.

    A template of coverage m and colors C adds d = m (C - B) to the backdrop B. Its overlap with the residual r is
    Σ r·mC - r·B m, linear in r and r·B; its energy is Σ |mC|² - 2 mC·mB + m² |B|², linear in 1, B and |B|².
    """
    ones = np.ones_like(rest[..., :1])
    r_dot_b = np.einsum("...c,...c->...", rest, behind)[..., None]
    features = np.concatenate([rest, r_dot_b, ones, behind, squared(behind)[..., None]], axis=-1)
    around = patches(features, positions, templates.reach)  # [T, S, 9, P]

    K, P = templates.cover.shape
    cover = np.broadcast_to(templates.cover[:, None, None], (K, len(bodies), 1, P))
    color = templates.fixed[:, None] + bodies[:, :, None] * templates.tint[:, None, None]  # [K, C, 3, P]: mC
    overlap = np.concatenate([color, -cover], axis=2)
    energy = np.concatenate([(color**2).sum(2, keepdims=True), -2 * cover * color, cover**2], axis=2)

    def product_of(features, weights):  # [T, S, K, C]
        return np.tensordot(
            features.reshape(*features.shape[:2], -1), weights.reshape(*weights.shape[:2], -1), (-1, -1)
        )

    return product_of(around[:, :, :4], overlap), product_of(around[:, :, 4:], energy)


def shifts(height: int, step: int = 1) -> np.ndarray:
    """[S, 2] offsets in rows and columns: a subject's centre differs from that of its evidence."""
    down, across = (round(reach * height) // step * step for reach in (0.09, 0.07))
    grid = np.meshgrid(np.arange(-down, down + 1, step), np.arange(-across, across + 1, step), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 2)


def patches(features, positions, reach: int) -> np.ndarray:
    """The patches around positions [T, S, 2] of features [T, H, W, F], 0 outside the frame: [T, S, F, P]."""
    margin = reach + round(0.1 * features.shape[1]) + 1
    padded = np.pad(features, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    size = 2 * reach + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))  # [T, ., ., F, size, size]
    tops, lefts = np.moveaxis(positions, -1, 0) + margin - reach
    around = windows[np.arange(len(features))[:, None], tops, lefts]
    return around.reshape(*around.shape[:3], -1)


# ----------------------------------------------------------------------------------------------------------------------
# Motion
# ----------------------------------------------------------------------------------------------------------------------


def is_visible(sighting: Sighting) -> np.ndarray:
    """bool [T]: the frames that show enough of the subject to locate it."""
    return sighting.gain > 0.3 * sighting.gain.max()


def judge_direction(sighting: Sighting) -> str | None:
    """From the motion; the heading, if it stands still or is visible in one frame only. None for a single frame."""
    if len(sighting.x) < 2:
        return None
    visible = is_visible(sighting)
    moved = slope(sighting.x, sighting.gain * visible) * (len(visible) - 1) if visible.sum() > 1 else 0.0
    sign = moved if abs(moved) > STILL else sighting.heading
    return "right" if sign > 0 else "left"


def slope(values, weights) -> float:
    """The slope per frame of the weighted least-squares line through values [T]."""
    k = np.arange(len(values))
    k = k - np.average(k, weights=weights)
    return float((weights * k * values).sum() / (weights * k * k).sum())
