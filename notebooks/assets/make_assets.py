"""Render the example references of the README and the course.

    python notebooks/assets/make_assets.py [FOLDER]

Every picture and clip is a LiteWorld scene (opensora_lite/liteworld/world.py), so nothing has to be downloaded.
"""

import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

from opensora_lite.liteworld.world import Scene, render, sample_layout

SIZE = 256  # pixels; the pipeline resizes and crops a reference to the video's size
NUM_FRAMES = 16
FPS = 24


def clip(scene: Scene, seed: int) -> np.ndarray:
    """The scene with the layout of that seed: uint8 [16, 256, 256, 3]."""
    return render(sample_layout(scene, np.random.default_rng(seed)), NUM_FRAMES, SIZE, SIZE, FPS)


def wave() -> np.ndarray:
    """The ocean at sunrise, just as the sun comes up."""
    return clip(Scene("ocean", "sunrise"), seed=3)[0]


def sunset1() -> np.ndarray:
    """A sunset over the city; the sun stands high between two buildings."""
    return clip(Scene("city", "sunset"), seed=0)[0]


def sunset2() -> np.ndarray:
    """The last frame of the clip that sunset1 begins: the sun touches the street."""
    return clip(Scene("city", "sunset"), seed=0)[-1]


def car() -> np.ndarray:
    """A red car driving right on the ocean at noon."""
    return clip(Scene("ocean", "noon", "car", color="red"), seed=6)


PICTURES = {"wave.png": wave, "sunset1.png": sunset1, "sunset2.png": sunset2}
CLIPS = {"car.mp4": car}


def write_clip(path: Path, frames: np.ndarray):
    """h264 at a quality (crf 12) at which a reference shows no blocks."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "12"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def main(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        Image.fromarray(draw()).save(folder / name, optimize=True)
    for name, draw in CLIPS.items():
        write_clip(folder / name, draw())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
