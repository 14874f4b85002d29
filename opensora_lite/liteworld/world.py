"""LiteWorld: procedurally rendered videos with exact captions, the training data of the small models.

A scene has a background (place), a time of day or the cyberpunk style, and at most one subject of one color, which
moves left or right. Captions are exactly true, and `liteworld.describe` measures a clip's content from its pixels.

    scene = sample_layout(Scene("ocean", "sunset", "car", color="red"), np.random.default_rng(0))
    caption(scene)                    # "a red car driving right on the ocean at sunset"
    render(scene, num_frames=16)      # uint8 [16, 64, 64, 3]

Open-Sora 1.2 also reads how the camera and the subject move. A *shot* is a scene that has both:

    shot = sample_shot(np.random.default_rng(0), num_frames=17)
    caption(shot) + score_suffix(shot)    # "… at sunset motion score: 5.0. camera motion: pan left."

Units. Lengths are relative to the frame height: y runs from 0 (top) to 1 (bottom), x from 0 (left) to aspect = W/H, so
shapes keep their proportions at every aspect ratio. Horizontal positions of a Layout are relative to the width (0 … 1).
Time t counts frames at 24 fps: frame k of a clip is drawn at t = 24 k / fps. Colors are RGB in 0 … 1.

Camera. Directions are the camera's, as in the released captions: in a pan to the left the content of the picture moves
right. Zooms are about the centre of the frame. A subject moves in the picture as its motion score says, whatever the
camera does, as the released score is the optical flow of the picture.

Rendering. A shape is a signed distance function: negative inside, 0 on the edge, positive outside. Anti-aliasing blends
the colors where |distance| < soft / 2, with soft = 1.3 pixels.

The shipped models were trained on exactly these pixels; tests/golden/world holds samples of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Literal, NamedTuple, get_args

import numpy as np
from pydantic import Field

from opensora_lite.errors import OpenSoraError
from opensora_lite.prompts import with_scores
from opensora_lite.validation import AsTuple, Count, check, validated

# ----------------------------------------------------------------------------------------------------------------------
# Vocabulary
# ----------------------------------------------------------------------------------------------------------------------

Color = Literal["red", "blue", "green", "yellow", "white", "purple"]
Place = Literal["ocean", "city", "desert", "meadow"]
Time = Literal["sunrise", "noon", "sunset", "night", "cyberpunk"]
Subject = Literal["car", "boat", "balloon", "bird"]
Direction = Literal["left", "right"]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]  # frames per second
CameraMotion = Literal["static", "pan left", "pan right", "zoom in", "zoom out"]
MotionScore = Literal[3, 5, 7]
PLACES: tuple[Place, ...] = get_args(Place)
TIMES: tuple[Time, ...] = get_args(Time)
SUBJECTS: tuple[Subject, ...] = get_args(Subject)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
CAMERA_MOTIONS: tuple[CameraMotion, ...] = get_args(CameraMotion)
MOTION_SCORES: tuple[MotionScore, ...] = get_args(MotionScore)
AESTHETIC_SCORE = 6.5  # of every shot
SCORE_PER_SPEED = 200  # a motion score is the subject's speed in widths per 200 frames at 24 fps
COLORS: dict[Color, tuple[float, float, float]] = {
    "red": (0.88, 0.10, 0.10),
    "blue": (0.10, 0.28, 0.95),
    "green": (0.08, 0.68, 0.22),
    "yellow": (0.98, 0.86, 0.08),
    "white": (0.97, 0.97, 0.97),
    "purple": (0.58, 0.14, 0.75),
}

HELD_OUT = 10_000_000  # evaluations use seeds from here on, training uses smaller ones

ADJECTIVES = ("breathtaking", "beautiful")
VERBS = {"car": "driving", "boat": "sailing", "balloon": "floating", "bird": "flying"}
PREPOSITIONS = {"car": "on", "boat": "on", "balloon": "over", "bird": "over"}

SKY = {  # time -> color at the horizon, color at the top of the frame
    "sunrise": ((1.00, 0.80, 0.62), (0.55, 0.68, 0.92)),
    "noon": ((0.78, 0.90, 1.00), (0.25, 0.52, 0.96)),
    "sunset": ((1.00, 0.48, 0.20), (0.42, 0.18, 0.50)),
    "night": ((0.12, 0.14, 0.32), (0.02, 0.02, 0.10)),
    "cyberpunk": ((0.95, 0.10, 0.60), (0.12, 0.02, 0.30)),
}
LIGHT = {  # time -> light: ground, walls and subjects are multiplied by it
    "sunrise": (1.0, 0.88, 0.80),
    "noon": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.68, 0.52),
    "night": (0.40, 0.42, 0.62),
    "cyberpunk": (0.55, 0.35, 0.80),
}
GROUND = {
    "ocean": (0.10, 0.38, 0.66),
    "city": (0.30, 0.30, 0.34),
    "desert": (0.88, 0.72, 0.42),
    "meadow": (0.26, 0.64, 0.22),
}
WALLS = (0.36, 0.38, 0.46)
WINDOWS = {"night": (0.55, 0.48, 0.18), "cyberpunk": (0.05, 0.75, 0.85)}  # added to the wall where windows are lit
DARK_WINDOWS = (0.06, 0.07, 0.09)
NEON = (0.10, 0.95, 0.95)  # the line along a cyberpunk street
SUN = {  # time -> radius of the sun or moon, color
    "sunrise": (0.10, (1.0, 0.92, 0.55)),
    "noon": (0.07, (1.0, 1.0, 0.82)),
    "sunset": (0.10, (1.0, 0.86, 0.42)),
    "night": (0.06, (0.93, 0.93, 0.84)),
    "cyberpunk": (0.13, (1.0, 0.45, 0.75)),
}


# ----------------------------------------------------------------------------------------------------------------------
# Scenes
# ----------------------------------------------------------------------------------------------------------------------


class Building(NamedTuple):
    """A building of the city."""

    x: float  # centre, relative to the width
    half: float  # half of its width, heights
    tall: float  # height above the horizon, heights


@validated()
class Layout:
    """The geometry of a scene: positions, sizes, speed and phases."""

    horizon: float  # y of the line between sky and ground
    sun_x: float  # of the sun or moon, relative to the width
    start: float  # distance of the subject from the side that it enters at t = 0, relative to the width
    speed: float  # of the subject, widths per time unit
    size: float  # of the subject: about half of its length, heights
    phase: float  # of waves, dunes, hills and the subject's vertical oscillation, radians
    phase2: float  # of the ocean's shorter waves, radians
    lift: float  # added to the subject's y, heights
    buildings: Annotated[tuple[Building, ...], AsTuple]  # of the city, from back to front
    # of shots; the defaults are those of the other scenes
    camera_speed: float = 0.0  # of a pan in widths, of a zoom in log(scale), per time unit
    zoom: float = 1.0  # scale of the picture at t = 0
    sun_speed: float = 0.014  # of a rising or setting sun, heights per time unit
    sun_height: float = 0.20  # of a setting sun above the horizon at t = 0, heights


@validated()
class Scene:
    """A background at a time of day with at most one moving subject.

    A new Scene has no layout; `sample_layout(scene, rng)` returns the scene with one, and
    `dataclasses.replace(scene, color="blue")` is a variation with the same layout. An unknown word raises
    OpenSoraError, which lists the known ones.
    """

    place: Place
    time: Time
    subject: Subject | None = None
    color: Color = "red"
    direction: Direction = "right"
    layout: Layout | None = None
    camera: CameraMotion = "static"
    motion_score: MotionScore | None = None  # of a shot's subject


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random scene with a random layout; 12 % have no subject."""
    subject = None if rng.random() < 0.12 else SUBJECTS[rng.integers(len(SUBJECTS))]
    scene = Scene(
        place=PLACES[rng.integers(len(PLACES))],
        time=TIMES[rng.integers(len(TIMES))],
        subject=subject,
        color=tuple(COLORS)[rng.integers(len(COLORS))],
        direction=DIRECTIONS[rng.integers(len(DIRECTIONS))],
    )
    return sample_layout(scene, rng)


def sample_layout(scene: Scene, rng: np.random.Generator) -> Scene:
    """A copy of the scene with a random layout."""
    layout = Layout(
        horizon=rng.uniform(0.52, 0.60),
        sun_x=rng.uniform(0.2, 0.8),
        start=rng.uniform(0.12, 0.35),
        speed=rng.uniform(0.026, 0.040),
        size=rng.uniform(0.115, 0.15),
        phase=rng.uniform(0, 2 * np.pi),
        phase2=rng.uniform(0, 2 * np.pi),
        lift=rng.uniform(-0.04, 0.04),
        buildings=tuple(
            Building(rng.uniform(0, 1), rng.uniform(0.06, 0.10), rng.uniform(0.14, 0.34)) for _ in range(8)
        ),
    )
    return replace(scene, layout=layout)


def sample_shot(rng: np.random.Generator, num_frames: int = 17, fps: float = 24) -> Scene:
    """A random scene with a moving camera (40 % static) and a motion score, composed for a clip of this length.

    The subject stays in the picture until the clip ends, so that only short clips have high motion scores.
    """
    scene = sample_scene(rng)
    static = rng.random() < 0.4
    camera = "static" if static else CAMERA_MOTIONS[rng.integers(1, len(CAMERA_MOTIONS))]
    if scene.subject is None:
        return sample_shot_layout(replace(scene, camera=camera), rng, num_frames, fps)
    possible = possible_scores(num_frames, fps)
    score = possible[rng.integers(len(possible))]
    return sample_shot_layout(replace(scene, camera=camera, motion_score=score), rng, num_frames, fps)


LONGEST_WAY = 0.85  # of a subject within a shot, widths


def shot_duration(num_frames: int, fps: float) -> float:
    """Time units between the first and the last frame; at least 16, so that an image is the start of a clip."""
    return max(16.0, (num_frames - 1) * 24 / fps)


def possible_scores(num_frames: int, fps: float) -> list[MotionScore]:
    """The motion scores of shots of this length: a faster subject would leave the picture."""
    duration = shot_duration(num_frames, fps)
    possible = [score for score in MOTION_SCORES if score / SCORE_PER_SPEED * duration <= LONGEST_WAY]
    return possible or [MOTION_SCORES[0]]


def sample_shot_layout(scene: Scene, rng: np.random.Generator, num_frames: int = 17, fps: float = 24) -> Scene:
    """A copy of the scene with a random layout for its camera motion and motion score.

    Over the whole clip the camera pans by about a quarter of a width or zooms by a factor of about 1.3, and a sun
    climbs or sinks by about a third of a height.
    """
    scene = sample_layout(scene, rng)
    duration = shot_duration(num_frames, fps)
    speed = (scene.motion_score or 5) / SCORE_PER_SPEED * rng.uniform(0.94, 1.06)
    latest = max(0.94 - speed * duration, 0.08)
    start = rng.uniform(min(0.12, latest), min(0.30, latest))

    # the camera: how far it goes, what it sees of the world, and where the sun stays in the picture
    way, zoom, seen, sun = 0.0, 1.0, (0.0, 1.0), (0.15, 0.85)
    if scene.camera.startswith("pan"):
        way = rng.uniform(0.20, 0.30)  # widths
        if scene.subject and not scene.camera.endswith(scene.direction):
            way = min(way, 0.8 * speed * duration)  # else the subject would drift backwards over the ground
        if scene.camera == "pan right":
            seen, sun = (0.0, 1.0 + way), (0.15 + way, 0.85)
        else:
            seen, sun = (-way, 1.0), (0.15, 0.85 - way)
    elif scene.camera.startswith("zoom"):
        way = rng.uniform(0.22, 0.34)  # log(scale)
        smallest = np.exp(rng.uniform(-0.10, 0.0))
        zoom = smallest * np.exp(way) if scene.camera == "zoom out" else smallest
        seen, sun = (0.5 - 0.5 / smallest, 0.5 + 0.5 / smallest), (0.28, 0.72)

    # the sun: in a city it climbs higher and the buildings are lower, to be seen above them
    climb = rng.uniform(0.36, 0.42) if scene.place == "city" else rng.uniform(0.26, 0.34)
    tall = (0.10, 0.20) if scene.time in ("sunrise", "sunset") else (0.14, 0.34)
    layout = replace(
        layout_of(scene),
        start=start,
        speed=speed,
        sun_x=rng.uniform(*sun),
        buildings=tuple(
            Building(rng.uniform(*seen), rng.uniform(0.06, 0.10), rng.uniform(*tall))
            for _ in range(round(8 * (seen[1] - seen[0])))
        ),
        camera_speed=way / duration,
        zoom=zoom,
        sun_speed=climb / duration,
        sun_height=climb - 0.02,
    )
    return replace(scene, layout=layout)


# ----------------------------------------------------------------------------------------------------------------------
# Captions
# ----------------------------------------------------------------------------------------------------------------------


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """The full caption; with `rng` a random partial one, as a user might type it. Both are true of the clip.

    >>> caption(Scene("ocean", "sunset", "car", color="red", direction="right"))
    'a red car driving right on the ocean at sunset'
    """
    return caption_place(scene, rng) if scene.subject is None else caption_subject(scene, scene.subject, rng)


def vocabulary() -> list[str]:
    """Every word of the captions, sorted: what a model that was trained on them knows."""
    captions = [f"a {adjective} scene over" for adjective in ADJECTIVES]
    for place, time in product(PLACES, TIMES):
        captions.append(caption(Scene(place, time)))
        kinds = product(SUBJECTS, COLORS, DIRECTIONS)
        captions += [caption(Scene(place, time, subject, color, way)) for subject, color, way in kinds]
    return sorted({word for text in captions for word in text.split()})


def shot_vocabulary() -> list[str]:
    """Every word of shots' captions and scores, sorted; 6.5 is the words 6 and 5."""
    scores = [
        with_scores("", AESTHETIC_SCORE, score, camera) for score, camera in product(MOTION_SCORES, CAMERA_MOTIONS)
    ]
    return sorted({*vocabulary(), *(word for text in scores for word in re.findall(r"\w+", text))})


def caption_place(scene: Scene, rng: np.random.Generator | None) -> str:
    """Such as "the ocean at noon" or "a cyberpunk-style city"; with `rng` also "a breathtaking sunrise scene"."""
    adjective = ""
    if rng is not None and rng.random() < 0.4:
        adjective = ADJECTIVES[rng.integers(2)]
        if scene.time in ("sunrise", "sunset"):
            return f"a {adjective} {scene.time} " + ("scene", f"over the {scene.place}")[rng.integers(2)]
    if scene.time == "cyberpunk":
        return f"a cyberpunk-style {scene.place}"
    return f"a {adjective} {scene.place} at {scene.time}" if adjective else f"the {scene.place} at {scene.time}"


def caption_subject(scene: Scene, subject: str, rng: np.random.Generator | None) -> str:
    """Such as "a red car driving right on the ocean at sunset"; with `rng` parts are dropped at random."""

    def keep(probability):
        return rng is None or rng.random() < probability

    cyberpunk = scene.time == "cyberpunk"
    style = "cyberpunk-style " if cyberpunk else ""
    color = f"{scene.color} " if keep(0.85) else ""
    direction = f" {scene.direction}" if keep(0.8) else ""
    where = f" {PREPOSITIONS[subject]} the {scene.place}" if keep(0.9) else ""
    when = f" at {scene.time}" if not cyberpunk and keep(0.85) else ""
    verb = f" {VERBS[subject]}" if direction or where else ""
    return f"a {style}{color}{subject}{verb}{direction}{where}{when}"


def score_suffix(scene: Scene, aes: bool = False, flow: bool = True, camera: bool = True) -> str:
    """What Open-Sora 1.2 appends to a shot's caption: " motion score: 5.0. camera motion: pan left."."""
    score = f" aesthetic score: {AESTHETIC_SCORE:.1f}." if aes else ""
    score += f" motion score: {scene.motion_score:.1f}." if flow and scene.motion_score else ""
    return score + (f" camera motion: {scene.camera}." if camera else "")


# ----------------------------------------------------------------------------------------------------------------------
# Frames
# ----------------------------------------------------------------------------------------------------------------------


def render(scene: Scene, num_frames: int = 16, height: int = 64, width: int = 64, fps: float = 24) -> np.ndarray:
    """Render a clip: uint8 RGB [T, H, W, 3].

    Raises OpenSoraError for a scene without a layout and for sizes or rates that are not positive.
    """
    layout_of(scene)  # raises OpenSoraError where there is none
    sizes = dict(num_frames=num_frames, height=height, width=width)
    num_frames, height, width = (check(Count, value, name) for name, value in sizes.items())
    fps = check(Rate, fps, "fps")
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for k in range(num_frames):
        frames[k] = draw_frame(scene, k * 24.0 / fps, height, width)
    return frames


def layout_of(scene: Scene) -> Layout:
    """The layout of a scene. Raises OpenSoraError for a scene without one."""
    if scene.layout is None:
        raise OpenSoraError("this scene has no layout; sample_layout(scene, np.random.default_rng(0)) adds one")
    return scene.layout


def draw_frame(scene: Scene, t: float, height: int, width: int) -> np.ndarray:
    """The scene at time t: uint8 [H, W, 3]."""
    canvas = Canvas.blank(height, width).seen_by(camera_at(scene, t))
    paint_sky(canvas, scene)
    paint_sun(canvas, scene, t)
    PAINT_GROUND[scene.place](canvas, scene, t)
    if scene.subject is not None:
        paint_subject(canvas, scene, t)
    return (np.clip(canvas.pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


class Camera(NamedTuple):
    """The camera at one time: a pan by `pan` widths to the right, and a zoom about the centre of the frame."""

    pan: float = 0.0
    zoom: float = 1.0

    def to_world(self, x, y, aspect: float):
        """World coordinates of (x, y) in the picture."""
        centre = aspect / 2
        return centre + (x - centre) / self.zoom + self.pan * aspect, 0.5 + (y - 0.5) / self.zoom

    def to_picture(self, x, y, aspect: float):
        """Coordinates in the picture of the world's (x, y)."""
        centre = aspect / 2
        return centre + (x - self.pan * aspect - centre) * self.zoom, 0.5 + (y - 0.5) * self.zoom


def camera_at(scene: Scene, t: float) -> Camera:
    """The camera of a scene at time t."""
    layout = layout_of(scene)
    way = layout.camera_speed * t
    pan = {"pan left": -way, "pan right": way}.get(scene.camera, 0.0)
    return Camera(pan, layout.zoom * np.exp({"zoom in": way, "zoom out": -way}.get(scene.camera, 0.0)))


@dataclass
class Canvas:
    """A frame or a crop of one, with the coordinates of its pixel centres."""

    x: np.ndarray  # [1, W]
    y: np.ndarray  # [H, 1]
    pixels: np.ndarray  # [H, W, 3], RGB in 0 … 1
    soft: float  # width of an anti-aliased edge, heights
    aspect: float  # W/H of the whole frame
    unit: float = 1.0  # heights per unit of x and y

    @classmethod
    def blank(cls, height: int, width: int) -> Canvas:
        """An uninitialized frame of height × width pixels."""
        x = (np.arange(width) + 0.5)[None, :] / height
        y = (np.arange(height) + 0.5)[:, None] / height
        return cls(x, y, np.empty((height, width, 3)), soft=1.3 / height, aspect=width / height)

    def seen_by(self, camera: Camera) -> Canvas:
        """This canvas with the coordinates of the world that the camera shows in it."""
        if camera == Camera():
            return self
        x, y = camera.to_world(self.x, self.y, self.aspect)
        return replace(self, x=x, y=y, soft=self.soft / camera.zoom)

    def paint(self, distance, color):
        """Paint `color` ([3] or broadcastable to [H, W, 3]) where the signed distance [H, W] is negative."""
        alpha = np.clip(0.5 - distance * self.unit / self.soft, 0, 1)[..., None]
        self.pixels[:] = self.pixels * (1 - alpha) + np.asarray(color) * alpha

    def crop(self, left=-np.inf, right=np.inf, top=-np.inf, bottom=np.inf) -> Canvas:
        """A view of the pixels within these bounds, one soft edge larger: painting a shape there is faster."""
        columns = slice(*np.searchsorted(self.x[0], (left - self.soft, right + self.soft)))
        rows = slice(*np.searchsorted(self.y[:, 0], (top - self.soft, bottom + self.soft)))
        return replace(self, x=self.x[:, columns], y=self.y[rows], pixels=self.pixels[rows, columns])

    def around(self, x: float, y: float, size: float, heading: int) -> Canvas:
        """A crop around (x, y) in the subject's coordinates: one unit is `size`, and x points in its heading."""
        reach = 2 * size + 2 * self.soft  # the farthest part is 1.77 away; slanted edges are wider than straight ones
        part = self.crop(x - reach, x + reach, y - reach, y + reach)
        return replace(part, x=(part.x - x) / size * heading, y=(part.y - y) / size, unit=size)


# --- distances --------------------------------------------------------------------------------------------------------


def disc(x, y, radius):
    """Signed distance of (x, y) to a disc around the origin."""
    return np.hypot(x, y) - radius


def box(x, y, half_width, half_height):
    """Signed distance of (x, y) to a box around the origin, underestimated outside its corners."""
    return np.maximum(abs(x) - half_width, abs(y) - half_height)


# --- sky and sun ------------------------------------------------------------------------------------------------------


def paint_sky(canvas: Canvas, scene: Scene):
    """The sky on the whole canvas; sun and ground are painted over it."""
    canvas.pixels[:] = sky_color(scene.time, canvas.y, layout_of(scene).horizon)


def sky_color(time: str, y: np.ndarray, horizon: float) -> np.ndarray:
    """RGB [..., 3] of the sky at y [...]: a linear gradient from the top to the horizon, constant below."""
    low, high = np.array(SKY[time])
    return high + (low - high) * np.clip(y / horizon, 0, 1)[..., None]


def paint_sun(canvas: Canvas, scene: Scene, t: float):
    """The sun rises or sets at the layout's speed; otherwise it stands still (at night a moon)."""
    layout = layout_of(scene)
    y = {
        "sunrise": layout.horizon + 0.02 - layout.sun_speed * t,
        "noon": 0.14,
        "sunset": layout.horizon - layout.sun_height + layout.sun_speed * t,
        "night": 0.16,
        "cyberpunk": 0.26,
    }[scene.time]
    radius, color = SUN[scene.time]
    x = layout.sun_x * canvas.aspect
    part = canvas.crop(x - radius, x + radius, y - radius, y + radius)
    part.paint(disc(part.x - x, part.y - y, radius), color)


# --- ground -----------------------------------------------------------------------------------------------------------


def paint_ocean(canvas: Canvas, scene: Scene, t: float):
    """Two waves along the horizon, and bands of ripples that grow stronger towards the viewer."""
    layout = layout_of(scene)
    sea = canvas.crop(top=layout.horizon - 0.015)
    x, y, depth = sea.x, sea.y, sea.y - layout.horizon
    crest = 0.010 * np.sin(14 * x + layout.phase + 0.5 * t) + 0.005 * np.sin(31 * x - 0.8 * t + layout.phase2)
    ripple = 0.14 * np.sin(46 * y + 2.5 * np.sin(6 * x + 0.4 * t + layout.phase)) * np.clip(5 * depth, 0, 1)
    sea.paint(-(depth + crest), ground_color(scene.place, scene.time) * (1 + ripple[..., None]))


def paint_desert(canvas: Canvas, scene: Scene, t: float):
    """Dunes."""
    paint_waves_of_land(canvas, scene, height=0.05, density=5, shade=0.3)


def paint_meadow(canvas: Canvas, scene: Scene, t: float):
    """Hills."""
    paint_waves_of_land(canvas, scene, height=0.03, density=4, shade=0.5)


def paint_waves_of_land(canvas: Canvas, scene: Scene, height: float, density: float, shade: float):
    """A sinusoidal horizon: amplitude `height`, `density` radians per height; `shade` darkens the foreground."""
    layout = layout_of(scene)
    land = canvas.crop(top=layout.horizon - height)
    depth = land.y - layout.horizon
    waves = height * np.sin(density * land.x + layout.phase)
    land.paint(-(depth + waves), ground_color(scene.place, scene.time) * (1 - shade * depth[..., None]))


def paint_city(canvas: Canvas, scene: Scene, t: float):
    """Buildings with rows of windows behind a street; in cyberpunk a neon line runs along it."""
    horizon = layout_of(scene).horizon
    walls, windows = wall_colors(scene.time)
    for building in layout_of(scene).buildings:
        x = building.x * canvas.aspect
        part = canvas.crop(x - building.half, x + building.half, horizon - building.tall, horizon)
        outside = np.maximum(horizon - building.tall - part.y, part.y - horizon)
        row_is_lit = np.floor(20 * (horizon - part.y)) % 2  # rows are 1/20 apart
        part.paint(
            np.maximum(abs(part.x - x) - building.half, outside), np.where(row_is_lit[..., None], windows, walls)
        )

    street = canvas.crop(top=horizon)
    street.paint(-(street.y - horizon), ground_color(scene.place, scene.time))
    if scene.time == "cyberpunk":
        street.paint(abs(street.y - horizon - 0.05) - 0.006, NEON)


def ground_color(place: str, time: str) -> np.ndarray:
    """RGB [3] of the lit ground."""
    return np.array(GROUND[place]) * np.array(LIGHT[time])


def wall_colors(time: str) -> tuple[np.ndarray, np.ndarray]:
    """RGB [3] of the walls and of the windows of the city's buildings."""
    walls = np.array(WALLS) * np.array(LIGHT[time])
    return walls, walls + np.array(WINDOWS.get(time, DARK_WINDOWS)) * 0.7


PAINT_GROUND = {"ocean": paint_ocean, "city": paint_city, "desert": paint_desert, "meadow": paint_meadow}


# --- subject ----------------------------------------------------------------------------------------------------------


def subject_position(scene: Scene, t: float, aspect: float) -> tuple[float, float]:
    """x (0 … aspect) and y (0 … 1) of the subject's centre in the picture at time t."""
    layout = layout_of(scene)
    if scene.direction == "right":
        x = layout.start + layout.speed * t
    else:
        x = 1 - layout.start - layout.speed * t
    if scene.subject in ("car", "boat"):
        swell = 0.012 * np.sin(0.8 * t + layout.phase) if scene.place == "ocean" else 0.0
        y = layout.horizon + 0.15 + layout.lift + swell
    else:
        y = 0.28 + layout.lift + 0.025 * np.sin(0.45 * t + layout.phase)
    return x * aspect, camera_at(scene, t).to_picture(0.0, y, aspect)[1]


def body_color(color: Color, time: str) -> np.ndarray:
    """RGB [3] of a subject, affected by about half of the light: its color stays recognizable at night."""
    return np.array(COLORS[color]) * (0.55 * np.array(LIGHT[time]) + 0.45)


def paint_subject(canvas: Canvas, scene: Scene, t: float):
    """The subject at its position at time t."""
    x, y = camera_at(scene, t).to_world(*subject_position(scene, t, canvas.aspect), canvas.aspect)
    part = canvas.around(x, y, layout_of(scene).size, heading=1 if scene.direction == "right" else -1)
    light = np.array(LIGHT[scene.time])
    body = body_color(scene.color, scene.time)
    if scene.subject == "car":
        paint_car(part, body)
    elif scene.subject == "boat":
        paint_boat(part, body, light)
    elif scene.subject == "balloon":
        paint_balloon(part, body)
    else:
        paint_bird(part, body, flap=np.sin(1.3 * t + layout_of(scene).phase))


# Below, u points forward and v down, in units of the subject's size.


def paint_car(canvas: Canvas, body: np.ndarray):
    """body: RGB [3] of body and cabin."""
    u, v = canvas.x, canvas.y
    canvas.paint(box(u, v, 1.05, 0.34), body)
    canvas.paint(box(u + 0.15, v + 0.58, 0.60, 0.28), body * 0.8)  # cabin
    canvas.paint(box(u - 0.15, v + 0.55, 0.22, 0.18), (0.75, 0.90, 1.0))  # window, in the front half
    canvas.paint(disc(u + 0.58, v - 0.36, 0.28), (0.06, 0.06, 0.07))  # wheels
    canvas.paint(disc(u - 0.58, v - 0.36, 0.28), (0.06, 0.06, 0.07))
    canvas.paint(disc(u - 0.98, v, 0.12), (1.0, 0.95, 0.6))  # headlight


def paint_boat(canvas: Canvas, body: np.ndarray, light: np.ndarray):
    """body: RGB [3] of the hull. light: [3], multiplied with the sail."""
    u, v = canvas.x, canvas.y
    hull = np.maximum(np.maximum(-v, v - 0.48), abs(u) - 1.05 + 0.7 * v)
    mast = np.maximum(abs(u) - 0.06, np.maximum(v, -v - 1.6))
    sail = np.maximum(0.10 - u, np.maximum(v + 0.15, u - 0.10 - 0.62 * (v + 1.55)))
    canvas.paint(hull, body)
    canvas.paint(mast, (0.35, 0.22, 0.12))
    canvas.paint(sail, np.array((0.97, 0.96, 0.90)) * (0.6 * light + 0.4))


def paint_balloon(canvas: Canvas, body: np.ndarray):
    """body: RGB [3] of the envelope."""
    u, v = canvas.x, canvas.y
    canvas.paint(disc(u, 0.88 * v, 0.98), body)
    canvas.paint(box(u, v - 1.25, 0.05, 0.28), (0.30, 0.26, 0.22))  # ropes
    canvas.paint(box(u, v - 1.58, 0.22, 0.19), (0.50, 0.33, 0.16))  # basket


def paint_bird(canvas: Canvas, body: np.ndarray, flap: float):
    """body: RGB [3] of body and wings. flap: -1 (wings down) … 1 (wings up)."""
    u, v = canvas.x, canvas.y
    spread = u + 0.1  # along the wings, from the shoulder
    wings = np.maximum(abs(v + 0.75 * flap * np.clip(abs(spread), 0, 1.4)) - 0.17, abs(spread) - 1.3)
    canvas.paint(disc(u / 0.95, v / 0.34, 1), body)
    canvas.paint(wings, body * 0.8)
    canvas.paint(disc(u - 0.85, v + 0.16, 0.30), body)  # head
    canvas.paint(box(u - 1.22, v + 0.12, 0.18, 0.07), (1.0, 0.65, 0.1))  # beak
