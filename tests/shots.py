"""How much of LiteWorld's shots `describe` measures rightly."""

import numpy as np

from opensora_lite.liteworld.describe import camera_motion, motion_score, steady_frames, sun_motion
from opensora_lite.liteworld.world import MOTION_SCORES, render, sample_shot

SIZES = ((64, 64), (48, 80), (80, 48))


def shot_verdicts(count: int, seed: int) -> dict[str, list[bool]]:
    """What is right of `count` random shots of 17, 34 and 51 frames; `steady` has an entry for every frame."""
    right: dict[str, list] = {name: [] for name in ("camera", "score", "sun rises", "sun sinks", "steady")}
    generator = np.random.default_rng(seed)
    for k in range(count):
        num_frames = (17, 17, 17, 34, 51)[k % 5]
        height, width = SIZES[k % 3] if num_frames == 17 else SIZES[0]
        fps = (24, 12)[k % 2] if num_frames == 17 else 24
        shot = sample_shot(generator, num_frames, fps)
        frames = render(shot, num_frames, height, width, fps)
        right["camera"].append(camera_motion(frames) == shot.camera)
        if shot.subject:
            found = motion_score(frames, fps) or 0.0
            right["score"].append(min(MOTION_SCORES, key=lambda score: abs(score - found)) == shot.motion_score)
            right["steady"] += list(steady_frames(frames, shot.color))
        if shot.time in ("sunrise", "sunset"):
            rising = sun_motion(frames)
            right["sun rises" if shot.time == "sunrise" else "sun sinks"].append(
                rising is not None and (rising > 0) == (shot.time == "sunrise")
            )
    return right
