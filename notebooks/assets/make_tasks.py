"""Draw tasks.webp, the animation of README.md: the five tasks with the small model, side by side.

    python notebooks/assets/make_tasks.py [OUT.webp]

A column shows what is given (a prompt alone, pictures or a clip), the 16 frames that the model makes of it, and the
timeline of its mask strategy. Every column starts at frame 0.
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from opensora_lite import MaskStrategy, OpenSora, Video
from opensora_lite.masks import Frame
from opensora_lite.video import read_reference

ASSETS = Path(__file__).parent
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
INK, FAINT, PAPER, CARD = "#e6edf3", "#8b949e", "#0d1117", "#161b22"
GIVEN, EDITED, GENERATED = "#f0b429", "#c678dd", "#3d444d"
SIZE, GAP, TOP = 320, 24, 96  # of a frame in the picture; between columns; from the top to what is given
MILLISECONDS, PAUSE = 110, 1200  # of a frame; of the last one


class Task(NamedTuple):
    title: str
    prompt: str
    seed: int
    references: tuple[str, ...] = ()
    strategy: MaskStrategy | None = None


TASKS = (
    Task("text to video", "a red car driving right on the ocean at sunset", 3),
    Task("image to video", "a breathtaking sunrise scene", 0, ("wave.png",), MaskStrategy.image()),
    Task(
        "connect two images",
        "a beautiful sunset over the city",
        1,
        ("sunset1.png", "sunset2.png"),
        MaskStrategy.connect(),
    ),
    Task("extend a clip", "a red car driving right on the ocean at noon", 2, ("car.mp4",), MaskStrategy.extend(6)),
    Task(
        "edit a clip", "a cyberpunk-style red car driving right on the ocean", 1, ("car.mp4",), MaskStrategy.edit(0.4)
    ),
)


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"), size)


def picture(frame: np.ndarray, size: int) -> Image.Image:
    return Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC)


def draw_given(
    sheet: Image.Image, left: int, references: list[np.ndarray], frames: Sequence[Frame], index: int
) -> None:
    """The references in a box of SIZE × SIZE/2: pictures side by side, of a clip the frame that is in use."""
    draw = ImageDraw.Draw(sheet)
    draw.rounded_rectangle((left, TOP, left + SIZE, TOP + SIZE // 2), 12, fill=CARD)
    small = SIZE // 2 - 24
    if not references:
        draw.text((left + SIZE // 2, TOP + SIZE // 4), "the prompt alone", FAINT, font(22), anchor="mm")
    elif len(references[0]) > 1:
        used = [frame.frame for frame in frames if frame.frame is not None]
        sheet.paste(picture(references[0][used[min(index, len(used) - 1)]], small), (left + 20, TOP + 12))
        text = f"a clip,\nframes\n{used[0]}–{used[-1]}"
        draw.multiline_text((left + small + 44, TOP + SIZE // 4), text, FAINT, font(20), anchor="lm", spacing=8)
    else:
        start = left + (SIZE - len(references) * (small + 12) + 12) // 2
        for i, (frame,) in enumerate(references):
            sheet.paste(picture(frame, small), (start + i * (small + 12), TOP + 12))


def draw_result(sheet: Image.Image, left: int, task: Task, video: Video, frames: Sequence[Frame], index: int) -> None:
    """Frame `index`, outlined if it is given, above the timeline of the strategy and the prompt."""
    draw, top = ImageDraw.Draw(sheet), TOP + SIZE // 2 + 44
    draw.text((left + SIZE // 2, top - 22), "↓", FAINT, font(30), anchor="mm")
    sheet.paste(picture(video.frames[index], SIZE), (left, top))
    colors = [{0: GIVEN, 1: GENERATED}.get(frame.edit_ratio, EDITED) for frame in frames]
    if colors[index] != GENERATED:
        draw.rectangle((left, top, left + SIZE - 1, top + SIZE - 1), outline=colors[index], width=6)
    y, width = top + SIZE + 14, SIZE / len(frames)
    for i, color in enumerate(colors):
        x = left + i * width
        draw.rounded_rectangle((x + 1, y, x + width - 2, y + 20), 4, fill=color)
        if i == index:
            draw.polygon([(x + width / 2, y + 24), (x + 2, y + 38), (x + width - 3, y + 38)], fill=INK)
    for i, line in enumerate(textwrap.wrap(f"“{task.prompt}”", 27)):
        draw.text((left, y + 54 + 26 * i), line, INK, font(20))


def draw_legend(sheet: Image.Image, left: int, y: int) -> None:
    draw = ImageDraw.Draw(sheet)
    for color, text in ((GENERATED, "generated"), (GIVEN, "given, kept as it is"), (EDITED, "given, edited")):
        draw.rounded_rectangle((left, y, left + 20, y + 20), 4, fill=color)
        draw.text((left + 32, y + 10), text, FAINT, font(20), anchor="lm")
        left += 90 + int(draw.textlength(text, font(20)))


def make() -> list[Image.Image]:
    """The 16 pictures of the animation."""
    pipe = OpenSora.from_pretrained("tiny")
    columns = []
    for task in TASKS:
        paths = [ASSETS / name for name in task.references] or None
        video = pipe(task.prompt, references=paths, mask_strategy=task.strategy, seed=task.seed)
        references = [read_reference(path, video.height, video.width) for path in paths or ()]
        strategy = task.strategy or MaskStrategy()
        columns.append((task, references, video, strategy.timeline(len(video), [len(r) for r in references])))
    width = len(columns) * (SIZE + GAP) + GAP
    height = TOP + SIZE // 2 + 44 + SIZE + 14 + 54 + 2 * 26 + 70
    sheets = []
    for index in range(len(columns[0][2])):
        sheet = Image.new("RGB", (width, height), PAPER)
        draw = ImageDraw.Draw(sheet)
        for i, (task, references, video, frames) in enumerate(columns):
            left = GAP + i * (SIZE + GAP)
            draw.text((left + SIZE // 2, 50), task.title, INK, font(28, bold=True), anchor="mm")
            draw_given(sheet, left, references, frames, index)
            draw_result(sheet, left, task, video, frames, index)
        draw_legend(sheet, GAP, height - 46)
        draw.text((width - GAP, height - 36), f"frame {index:2d}", FAINT, font(20), anchor="rm")
        sheets.append(sheet)
    return sheets


def main(out: Path) -> None:
    first, *others = make()
    durations = [MILLISECONDS] * len(others) + [PAUSE]
    first.save(out, save_all=True, append_images=others, duration=durations, loop=0, quality=88, method=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ASSETS / "tasks.webp")
