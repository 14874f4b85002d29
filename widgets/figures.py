"""The plots of the course, in one style.

Every function draws a figure and displays it with its caption. The caption is also the plain text of the output: the
alternative for readers without pictures, and what nbval compares. Latents are float32 [C, T, H, W], frames uint8
[T, height, width, 3].
"""

import base64
import html
import io
import itertools
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from opensora_lite.io.files import RESULT
from opensora_lite.video import Video

# Okabe and Ito's palette, distinguishable by the colour-blind. A colour has the same meaning in every figure.
GIVEN, EDITED, GENERATED = "#0072B2", "#E69F00", "#BBBBBB"
MASK_COLORS = {"given": GIVEN, "edited": EDITED, "generated": GENERATED}
STATES = {"waits": GIVEN, "joins: gets noise": EDITED, "is denoised": GENERATED}  # of a frame at a step: 0, 1, 2
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

STYLE = {
    "axes.prop_cycle": matplotlib.cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.dpi": 100,
    "font.size": 9,
    "image.interpolation": "nearest",
}

# ---------------------------------------------------------------------------------------------------------------------
#   Showing and recording
# ---------------------------------------------------------------------------------------------------------------------


def record(**values) -> None:
    """Record the results of a notebook as JSON, under a MIME type of this project, for tests and sweeps.

    values: numbers, texts, and lists, arrays and dicts of them. Called at most once in a notebook. A reader of the
    notebook sees nothing.
    """
    results = {name: _as_json(value) for name, value in values.items()}
    display({RESULT: results, "text/plain": ""}, raw=True)  # an output of an unknown type alone is a warning in places


def _as_json(value):
    """A value with numpy's arrays and numbers replaced by lists and Python's numbers."""
    if isinstance(value, Mapping):
        return {str(name): _as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_as_json(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def show(figure: Figure, caption: str) -> None:
    """Display a figure with its caption below it."""
    width = int(figure.get_figwidth() * 15)  # characters in a line
    figure.text(0.01, -0.02, textwrap.fill(caption, width), va="top", fontsize=9, color="#444444")
    display({"image/png": _drawn(figure, 256), "text/plain": f"Figure: {caption}"}, raw=True)


def _drawn(figure: Figure, colors: int) -> bytes:
    """A figure as PNG. With a palette of `colors` colors it has a third of the size."""
    file, smaller = io.BytesIO(), io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight", facecolor="white")
    picture = reduced(Image.open(file).convert("RGB"), colors)
    palette, corner = picture.getpalette(), 3 * picture.getpixel((0, 0))
    palette[corner : corner + 3] = [255] * 3  # the page stays as white as it is
    picture.putpalette(palette)
    picture.save(smaller, "png", optimize=True)
    return smaller.getvalue()


def animation(frames: np.ndarray, caption: str, milliseconds: int = 80, hold: int = 1500, colors: int = 64):
    """Display pictures, uint8 [frames, height, width, 3], as an animation that repeats, with its caption below.

    milliseconds: of a picture; hold: of the last one. colors: of the palette, which all pictures share. Equal
    pictures give equal bytes.
    It is an animated PNG: image/png is what GitHub and every other viewer of notebooks shows, and a GIF is larger.
    """
    frames = _captioned(frames, caption)
    stack = reduced(Image.fromarray(np.concatenate(frames)), colors)
    palette, corner = stack.getpalette(), 3 * stack.getpixel((0, 0))
    palette[corner : corner + 3] = frames[0, 0, 0].tolist()  # a plot's background stays as white as the page
    pages = [Image.fromarray(page) for page in np.asarray(stack).reshape(frames.shape[:3])]
    for page in pages:
        page.putpalette(palette)
    times = [milliseconds] * (len(pages) - 1) + [hold]
    file = io.BytesIO()
    pages[0].save(file, "png", save_all=True, append_images=pages[1:], duration=times, loop=0, optimize=True)
    display({"image/png": file.getvalue(), "text/plain": f"Animation: {caption}"}, raw=True)


def reduced(picture: Image.Image, colors: int) -> Image.Image:
    """An RGB picture with a palette of its colours, rare ones included.

    Median cut, Pillow's default, cares for large areas: with 64 colours a yellow car before a sunset becomes grey.
    """
    pixels = np.asarray(picture).reshape(-1, 3)
    some = Image.fromarray(pixels[:: max(len(pixels) // 50_000, 1)][None])
    palette = some.quantize(colors, Image.Quantize.MAXCOVERAGE, kmeans=1)
    table = np.reshape(palette.getpalette(), (-1, 3))
    table[table.min(axis=1) > 248] = 255  # a page stays white
    palette.putpalette(table.ravel().tolist())
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font, which is the same on every machine."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size)


def _captioned(frames: np.ndarray, caption: str) -> np.ndarray:
    """The frames on a white page that is wide enough for text, with the caption under each of them."""
    font = _font(12)
    count, height, width, _ = frames.shape
    wide, lines = max(width, 480), [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= wide - 8:
            lines[-1] = longer
        else:
            lines.append(word)
    page = Image.new("RGB", (wide, height + 16 * len(lines) + 10), "white")
    ImageDraw.Draw(page).multiline_text((4, height + 5), "\n".join(lines), "#444444", font, spacing=3)
    pages = np.repeat(np.asarray(page)[None], count, axis=0)
    pages[:, :height, :width] = frames
    return pages


def slider(
    panels: Mapping[str, np.ndarray],
    labels: Sequence[str],
    caption: str,
    name: str = "step",
    start: int = 0,
    scale: int = 2,
    snr: Sequence[tuple[int, float]] | None = None,
    histogram: tuple[str, np.ndarray, np.ndarray, np.ndarray] | None = None,
    states: np.ndarray | None = None,
    numbers: Sequence[int] | None = None,
    quality: int = 80,
):
    """Display pictures that a reader moves through with a slider; no kernel is needed.

    panels: title -> pictures of all positions, uint8 [n, height, width, 3]. labels: of the n positions, for example
    "t = 400, SNR ≈ 0.31". name: what the slider moves. start: the first position shown. scale: of the pictures.
    snr: (timestep, signal-to-noise ratio) of the positions, for a plot. histogram: its title, the values of all
    positions [n, …], and the density that is expected, as x and y. states [n, T]: of the frames at each position, as in
    `frame_states`; numbers: of these frames [0, 1 …]. quality: of the pictures (WebP), 1 to 100.

    The output is HTML. The site and JupyterLab, in a trusted notebook, show the slider (slider.js). Where scripts don't
    run, on GitHub say, a static picture of at most eight positions stays. The labels are part of the plain text, which
    nbval compares; what is drawn is not compared, like the bytes of a picture.
    """
    from .widget import module, source

    count, sizes = len(labels), [pictures.shape[1:3] for pictures in panels.values()]
    assert all(len(pictures) == count for pictures in panels.values()), "each panel needs a picture for each label"
    # 1. one picture that holds those of all positions
    columns = math.ceil(math.sqrt(count))
    cell_height, cell_width = max(height for height, _ in sizes), sum(width for _, width in sizes)
    sheet = np.zeros((math.ceil(count / columns) * cell_height, columns * cell_width, 3), np.uint8)
    placed, x = [], 0
    for (title, pictures), (height, width) in zip(panels.items(), sizes, strict=True):
        for k, picture in enumerate(pictures):
            top, left = k // columns * cell_height, k % columns * cell_width + x
            sheet[top : top + height, left : left + width] = picture
        placed.append({"title": title, "x": x, "width": width, "height": height, "scale": scale})
        x += width
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "webp", quality=quality, method=6)
    # 2. what the script needs
    stored = {
        "name": name,
        "start": start,
        "labels": list(labels),
        "columns": columns,
        "cell": [cell_width, cell_height],
        "panels": placed,
        "sheet": f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}",
    }
    if snr is not None:
        stored["snr"] = [[int(t), round(math.log10(ratio), 3)] for t, ratio in snr]
    if histogram is not None:
        title, values, x, y = histogram
        counts = [np.histogram(v, 40, (x[0], x[-1]), density=True)[0].round(3).tolist() for v in values]
        ends = [float(x[0]), float(x[-1])]
        stored["histogram"] = {"title": title, "range": ends, "counts": counts, "density": np.round(y, 3).tolist()}
    if states is not None:
        stored["states"] = {
            "names": list(STATES),
            "frames": list(range(len(states[0])) if numbers is None else numbers),
            "rows": np.asarray(states).tolist(),
        }
    # 3. the static figure, and the script that replaces it
    still = base64.b64encode(_overview(panels, labels, states)).decode()
    style, script = source("base.css", "plots.css", "slider.css"), module("plots.js", "slider.js")
    data = json.dumps(stored, ensure_ascii=False).replace("</", "<\\/")
    text = html.escape(caption)
    page = (
        f'<figure class="osl osl-slider">\n<img alt="{text}" src="data:image/png;base64,{still}">\n'
        f'<figcaption>{text}</figcaption>\n<script type="application/json">{data}</script>\n'
        f"<style>\n{style}</style>\n<script>\n(() => {{\n{script}}})();\n</script>\n</figure>"
    )
    plain = "\n".join([f"Slider: {caption}", *labels])
    display({"text/html": page, "text/plain": plain}, raw=True)


def _overview(panels: Mapping[str, np.ndarray], labels: Sequence[str], states=None) -> bytes:
    """A PNG of some positions of a slider: at most eight, side by side, or four, one below the other, if wide."""
    shape = max(pictures.shape[2] / pictures.shape[1] for pictures in panels.values())  # width / height
    below = shape > 3
    shown = np.linspace(0, len(labels) - 1, min(len(labels), 8 if shape <= 1 else 4)).round().astype(int)
    titles = list(panels) if below else [labels[k].replace(", ", "\n", 1) for k in shown]
    high, strip = 7.0 / len(titles) / shape, 0.25
    rows = []  # (height, name, what stands in it: pictures, or None for the states, and their position)
    if below:
        for k in shown:
            rows.append((high, labels[k], [(pictures, k) for pictures in panels.values()]))
            if states is not None:
                rows.append((strip, "", [(None, k)] * len(panels)))
    else:
        rows += [(high, name, [(pictures, k) for k in shown]) for name, pictures in panels.items()]
        if states is not None:
            rows.append((strip, "frames", [(None, k) for k in shown]))
    heights, names, cells = zip(*rows, strict=True)
    height = sum(heights) + (0.1 if below else 0.35) + 0.35 * (states is not None)
    figure, axes = new_figure(len(rows), len(titles), 8.0, height, squeeze=False, height_ratios=heights)
    _label_panels(axes, names, titles, framed=False)
    colors = matplotlib.colors.ListedColormap(list(STATES.values()))
    for axis, (pictures, k) in zip(axes.flat, itertools.chain(*cells), strict=True):
        if pictures is None:
            axis.pcolormesh(states[k][None], cmap=colors, vmin=0, vmax=2, edgecolors="white", linewidth=0.5)
        else:
            axis.imshow(pictures[k], aspect="auto" if below else "equal")
    if states is not None:
        _color_legend(figure, STATES)
    return _drawn(figure, 64)


def new_figure(rows: int = 1, columns: int = 1, width: float = 8.0, height: float = 2.5, **options):
    """A figure in the course's style and its axes, like matplotlib.pyplot.subplots.

    width, height: of the figure, in inches. options: of Figure.subplots (sharex, squeeze, width_ratios …).
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)


def _box(axis, x: float, y: float, width: float, height: float, fill: str, text: object = "", alpha=None, **font):
    """A filled rectangle centred at (x, y), with a text in it."""
    corner = x - width / 2, y - height / 2
    axis.add_patch(matplotlib.patches.Rectangle(corner, width, height, color=fill, alpha=alpha))
    axis.text(x, y, str(text), ha="center", va="center", **font)


def _color_legend(figure: Figure, names: Mapping[str, str]) -> None:
    """A legend above the axes: name -> colour."""
    patches = [matplotlib.patches.Patch(color=color, label=name) for name, color in names.items()]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(names), frameon=False)


def _label_panels(axes, rows: Sequence[str], titles: Sequence[str], framed: bool = True) -> None:
    """Label axes [rows, columns] without ticks: names left of the rows, titles above the columns."""
    for line, name in zip(axes, rows, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis in line:
            axis.set(xticks=[], yticks=[])
            if not framed:
                axis.spines[:].set_visible(False)
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=8)


# ---------------------------------------------------------------------------------------------------------------------
#   Pictures and videos
# ---------------------------------------------------------------------------------------------------------------------


def pictures(rows: Mapping[str, Sequence], caption: str, titles: Sequence[str] = (), size: float = 1.0, **options):
    """Rows of pictures: name -> pictures, uint8 [height, width, 3] or values [height, width]; None leaves a gap.

    titles: of the columns. size: height of a picture in inches. options: of imshow (cmap, vmin, vmax), for values.
    """
    columns = max(len(row) for row in rows.values())
    wide = max((p.shape[1] / p.shape[0] for row in rows.values() for p in row if p is not None), default=1)
    label = max(map(len, rows)) * 0.08 + 0.1
    figure, axes = new_figure(
        len(rows), columns, columns * size * wide + label, len(rows) * size + (0.3 if titles else 0.1), squeeze=False
    )
    _label_panels(axes, list(rows), titles, framed=False)
    options = {"cmap": "gray", **options}
    for line, row in zip(axes, rows.values(), strict=True):
        for axis, picture in zip(line, row, strict=False):
            if picture is not None:
                axis.imshow(picture, **options)
    show(figure, caption)


def films(videos: Mapping[str, np.ndarray], caption: str, most: int = 8, size: float = 1.0):
    """At most `most` evenly spaced frames of videos: name -> a Video or frames uint8 [T, height, width, 3]."""
    rows = {name: getattr(video, "frames", video) for name, video in videos.items()}
    chosen = Video(max(rows.values(), key=len)).spread(most)
    pictures(
        {name: [frames[i] if i < len(frames) else None for i in chosen] for name, frames in rows.items()},
        caption,
        [f"frame {i}" for i in chosen],
        size,
    )


def channels(latents: Mapping[str, np.ndarray], caption: str, size: float = 1.0):
    """The channels of latents: name -> [C, H, W]; one grey scale for all, in which middle grey is 0."""
    most = max(float(np.abs(latent).max()) for latent in latents.values())
    count = max(len(latent) for latent in latents.values())
    titles = [f"channel {c}" for c in range(count)]
    pictures({name: list(latent) for name, latent in latents.items()}, caption, titles, size, vmin=-most, vmax=most)


def moving_pictures(
    panels: Mapping[str, np.ndarray], caption: str, titles: Sequence[str] = (), columns: int = 4, size=192, **options
):
    """Play pictures side by side: name -> uint8 [frames, height, width, 3] or values [frames, height, width].

    titles: of the frames, shown at the top left. columns: panels in a row. size: height of a panel in pixels. Values
    become greys; middle grey is 0. options: of `animation`.
    """
    boards, columns = [], min(columns, len(panels))
    for k in range(max(map(len, panels.values()))):
        cells = [_panel(name, frames, k, size) for name, frames in panels.items()]
        cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
        board = [np.concatenate(cells[i : i + columns], axis=1) for i in range(0, len(cells), columns)]
        if titles:
            board = [_written(np.full_like(board[0][:18], 255), titles[k]), *board]
        boards.append(np.concatenate(board))
    animation(np.stack(boards), caption, **options)


def _panel(name: str, frames: np.ndarray, k: int, size: int) -> np.ndarray:
    """Picture k of `frames`, the last one if there are fewer, enlarged, with its name above and a white border."""
    picture = frames[min(k, len(frames) - 1)]
    if picture.ndim == 2:
        grey = (127.5 + 127.5 * picture / np.abs(frames).max()).astype(np.uint8)
        picture = np.repeat(grey[..., None], 3, axis=-1)
    wide = size * picture.shape[1] // picture.shape[0]
    picture = np.asarray(Image.fromarray(picture).resize((wide, size), Image.Resampling.NEAREST))
    framed = np.pad(picture, ((18, 4), (4, 4), (0, 0)), constant_values=255)
    return _written(framed, name)


def _written(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture with a small text at its top."""
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((4, 2), text, fill=(60, 60, 60), font=_font(12))
    return np.asarray(image)


def video_grid(rows: Mapping[str, Sequence[Path]], titles: Sequence[str], caption: str, size: int = 128):
    """Videos that play side by side: name -> paths of mp4 files. titles: of the columns. size: in pixels."""
    import mediapy

    lines = ["<tr><td></td>" + "".join(f"<th>{html.escape(title)}</th>" for title in titles) + "</tr>"]
    for name, files in rows.items():
        videos = [mediapy.html_from_compressed_video(Path(file).read_bytes(), size, size) for file in files]
        lines.append(f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{video}</td>' for video in videos)}</tr>")
    table = f'<table style="image-rendering: pixelated">{"".join(lines)}</table><p>{html.escape(caption)}</p>'
    display({"text/html": table, "text/plain": f"Figure: {caption}"}, raw=True)


# ---------------------------------------------------------------------------------------------------------------------
#   Masks and curves
# ---------------------------------------------------------------------------------------------------------------------


def _mask_color(ratio: float) -> str:
    return MASK_COLORS["given" if ratio == 0 else "generated" if ratio == 1 else "edited"]


def masks(rows: Mapping[str, Sequence[float]], caption: str):
    """Frame masks: name -> edit ratio of every frame; 0 given, 1 generated, between 0 and 1 edited."""
    length = max(len(ratios) for ratios in rows.values())
    figure, axis = new_figure(width=max(5.0, 0.42 * length + 1.5), height=0.42 * len(rows) + 0.7)
    for y, ratios in enumerate(rows.values()):
        for x, ratio in enumerate(ratios):
            _box(axis, x, y, 0.9, 0.8, _mask_color(ratio), f"{ratio:g}" if 0 < ratio < 1 else "", fontsize=7)
    axis.set(xlim=(-0.6, length - 0.4), ylim=(len(rows) - 0.4, -0.6), xlabel="frame")
    axis.set_xticks(range(0, length, 1 if length <= 20 else 4))
    axis.set_yticks(range(len(rows)), list(rows))
    _color_legend(figure, MASK_COLORS)
    show(figure, caption)


def masked_films(rows: Mapping[str, tuple], caption: str, numbers: Sequence[int], size: float = 0.9):
    """Frames of videos in the colours of their masks: name -> (frames [T, height, width, 3], edit ratios [T]).

    numbers: of the frames that are shown.
    """
    label = max(len(line) for name in rows for line in name.split("\n")) * 0.08 + 0.1
    figure, axes = new_figure(
        len(rows), len(numbers), len(numbers) * size + label, len(rows) * size + 0.6, squeeze=False
    )
    _label_panels(axes, list(rows), [f"frame {i}" for i in numbers])
    for line, (frames, ratios) in zip(axes, rows.values(), strict=True):
        for axis, i in zip(line, numbers, strict=True):
            axis.imshow(frames[i])
            axis.spines[:].set(visible=True, color=_mask_color(ratios[i]), linewidth=4)
    _color_legend(figure, MASK_COLORS)
    show(figure, caption)


def curves(
    lines: Mapping[str, tuple], caption: str, xlabel: str, ylabel: str, marker="", dots: Sequence[str] = (), **settings
):
    """Curves in one plot: name -> (x, y). settings: of the axes (xscale="log", ylim=(0, 1) …).

    dots: names of curves that are drawn as dots without a line.
    """
    figure, axis = new_figure(width=6.5, height=3.0)
    for name, (x, y) in lines.items():
        style = {"marker": "o", "linestyle": ""} if name in dots else {"marker": marker}
        axis.plot(x, y, label=name, **style)
    axis.set(xlabel=xlabel, ylabel=ylabel, **settings)
    if len(lines) > 1:
        axis.legend(frameon=False)
    show(figure, caption)


# ---------------------------------------------------------------------------------------------------------------------
#   Steps and timesteps (03 and 04)
# ---------------------------------------------------------------------------------------------------------------------


def frame_states(states: np.ndarray, caption: str):
    """The state of each frame at each step, [steps, T]; 0: waits, 1: joins (gets noise), 2: is denoised."""
    steps, length = states.shape
    figure, axis = new_figure(width=max(5.0, 0.36 * length + 1.5), height=0.15 * steps + 1.0)
    colors = matplotlib.colors.ListedColormap(list(STATES.values()))
    axis.pcolormesh(states, cmap=colors, vmin=0, vmax=2, edgecolors="white", linewidth=1)
    axis.set_xticks(np.arange(length) + 0.5, range(length))
    shown = range(0, steps, max(steps // 10, 1))
    axis.set_yticks([i + 0.5 for i in shown], [steps - 1 - i for i in shown])
    axis.set(xlabel="frame", ylabel="step, counted down")
    axis.invert_yaxis()
    _color_legend(figure, STATES)
    show(figure, caption)


def moving_frames(
    pictures: np.ndarray, states: np.ndarray, numbers: Sequence[int], titles: Sequence[str], caption: str, **options
):
    """Animate frames side by side while they are denoised: pictures uint8 [steps, n, height, width, 3].

    states: [steps, n]; 0: waits, 1: joins (gets noise), 2: is denoised. numbers: of the n frames in their video.
    titles: of the steps. options: of `animation`.
    """
    names, colors = ("waits", "joins", "denoised"), (GIVEN, EDITED, "#777777")
    n = pictures.shape[1]
    figure, axes = new_figure(1, n, 0.96 * n, 1.55, squeeze=False)
    shown = [axis.imshow(picture) for axis, picture in zip(axes[0], pictures[0], strict=True)]
    canvas, pages = FigureCanvasAgg(figure), []
    for row, state, title in zip(pictures, states, titles, strict=True):
        for axis, image, picture, number, kind in zip(axes[0], shown, row, numbers, state, strict=True):
            image.set_data(picture)
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"frame {number}", fontsize=8)
            axis.set_xlabel(names[kind], fontsize=8, color=colors[kind], fontweight="bold")
            axis.spines[:].set(visible=True, color=colors[kind], linewidth=3)
        figure.suptitle(title, fontsize=9)
        canvas.draw()
        pages.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    animation(np.stack(pages), caption, **options)


def histograms(panels: Mapping[str, tuple], caption: str, xlabel: str):
    """Histograms side by side, each with its expected density: title -> (values, x, density at x)."""
    figure, axes = new_figure(1, len(panels), 1.8 * len(panels) + 0.5, 2.2, sharex=True, squeeze=False)
    for axis, (title, (values, x, density)) in zip(axes[0], panels.items(), strict=True):
        axis.hist(values, bins=60, range=(x[0], x[-1]), density=True, color=GENERATED)
        axis.plot(x, density)
        axis.set(title=title, xlabel=xlabel)
    axes[0, 0].set_ylabel("density")
    show(figure, caption)


def ticks(rows: Mapping[str, Sequence[float]], caption: str, xlabel: str, **settings):
    """Positions as ticks on parallel lines: name -> positions. settings: of the axes (xlim=(0, 999) …)."""
    figure, axis = new_figure(width=7.5, height=0.4 * len(rows) + 0.7)
    axis.eventplot(list(rows.values()), lineoffsets=range(len(rows)), linelengths=0.6, colors=GIVEN)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5), **settings)
    show(figure, caption)


def points(groups: Mapping[str, tuple], caption: str, xlabel: str, ylabel: str):
    """Groups of points in one plot: name -> (x, y). "given", "edited" and "generated" have their colours."""
    colors = MASK_COLORS | {"generated": "#777777"}  # GENERATED is too pale for a dot
    figure, axis = new_figure(width=6.5, height=2.6)
    for name, (x, y) in groups.items():
        axis.plot(x, y, "o", label=name, color=colors.get(name))
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend(frameon=False)
    show(figure, caption)


def intervals(rows: Mapping[str, tuple], caption: str, xlabel: str, **settings):
    """Values with their intervals, one row each: name -> (low, value, high). settings: of the axes (xlim=(0, 1) …)."""
    figure, axis = new_figure(width=7.0, height=0.32 * len(rows) + 0.8)
    for y, (low, value, high) in enumerate(rows.values()):
        axis.plot([low, high], [y, y], color=COLORS[0], linewidth=2)
        axis.plot(value, y, "o", color=COLORS[0])
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5), **settings)
    axis.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    show(figure, caption)


# ---------------------------------------------------------------------------------------------------------------------
#   Attention and loops (07, 08 and 09)
# ---------------------------------------------------------------------------------------------------------------------


def matrix(values: np.ndarray, caption: str, xlabel: str, ylabel: str, label: str, columns=(), rows=(), **options):
    """A heatmap of values [rows, columns], the first row at the top, with a colour bar named `label`.

    columns, rows: tick labels, "" for no tick; by default indices. options: of imshow (cmap …).
    """
    height, width = values.shape
    tall = (0.24 if height < 13 else 0.13) * height + 0.8
    figure, axis = new_figure(width=max(4.0, 0.36 * width + 2.0), height=max(1.6, tall))
    picture = axis.imshow(values, aspect="auto", **options)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    for axis_of, count, names in ((axis.xaxis, width, columns), (axis.yaxis, height, rows)):
        every = 1 if names else max(count // 8, 1)
        chosen = [i for i in range(0, count, every) if not names or names[i]]
        axis_of.set_ticks(chosen, [names[i] if names else i for i in chosen])
    if columns and max(map(len, columns)) > 5:  # side by side they would collide
        axis.tick_params(axis="x", labelrotation=90)
    figure.colorbar(picture, ax=axis, label=label)
    show(figure, caption)


def maps(rows: Mapping[str, Sequence[np.ndarray]], titles: Sequence[str], caption: str, size: float = 1.0, marked=None):
    """Rows of small heatmaps: name -> [h, w] each; the colour scale of a row is from 0 to its largest value.

    marked: (row, column) of the query token, which gets a cross.
    """
    columns, label = max(map(len, rows.values())), max(map(len, rows)) * 0.08 + 0.1
    figure, axes = new_figure(len(rows), columns, columns * size + label, len(rows) * size + 0.3, squeeze=False)
    _label_panels(axes, list(rows), titles)
    for line, row in zip(axes, rows.values(), strict=True):
        for axis, values in zip(line, row, strict=True):
            axis.imshow(values, cmap="viridis", vmin=0, vmax=max(float(np.max(v)) for v in row))
            if marked is not None:
                axis.plot(marked[1], marked[0], "x", color="white", markersize=7, markeredgewidth=2)
    show(figure, caption)


def attended_frames(
    frames: np.ndarray, weights: Mapping[str, np.ndarray], caption: str, most: int = 8, size: float = 1.0
):
    """The frames of a video, and below them the same frames with brightness proportional to attention.

    frames: uint8 [T, height, width, 3]. weights: name -> attention to each token [T, h, w]; each row has its own scale.
    """
    dimmed = {}
    for name, weight in weights.items():
        token = frames.shape[1] // weight.shape[1], frames.shape[2] // weight.shape[2]  # its size in pixels
        brightness = np.kron(weight / weight.max(), np.ones(token))
        dimmed[name] = (frames * (0.15 + 0.85 * brightness[..., None])).astype(np.uint8)
    films({"video": frames, **dimmed}, caption, most, size)


def bars(groups: Mapping[str, Mapping[str, float]], caption: str, ylabel: str, line: tuple[str, float] | None = None):
    """Grouped bars: group -> name -> height, with the same names in all groups. line: name and height of a line."""
    names = list(next(iter(groups.values())))
    figure, axis = new_figure(width=max(5.0, 0.55 * len(names) + 1.5), height=2.6)
    share = 0.8 / len(groups)
    for number, (group, heights) in enumerate(groups.items()):
        axis.bar(np.arange(len(names)) + (number + 0.5) * share - 0.4, list(heights.values()), share, label=group)
    if line:
        axis.axhline(line[1], color="black", linestyle=":", label=line[0])
    axis.set_xticks(range(len(names)), names)
    axis.set(ylabel=ylabel)
    if len(groups) > 1 or line:
        figure.legend(loc="outside upper right", ncols=len(groups) + bool(line), frameon=False)
    show(figure, caption)


def loop_timeline(loops: Mapping[str, Sequence[int]], condition_frames: int, caption: str):
    """The frames of each loop, one row each: name -> indices of its frames in the finished video."""
    figure, axis = new_figure(width=8.0, height=0.4 * len(loops) + 1.0)
    for y, frames in enumerate(loops.values()):
        for index, x in enumerate(frames):
            color, ink = (GIVEN, "white") if y and index < condition_frames else (GENERATED, "black")
            _box(axis, x, y, 0.9, 0.8, color, index, fontsize=6, color=ink)
    last = max(max(frames) for frames in loops.values())
    axis.set(xlim=(-0.6, last + 0.6), ylim=(len(loops) - 0.4, -0.6), xlabel="frame of the finished video")
    axis.set_yticks(range(len(loops)), list(loops))
    axis.set_xticks(range(0, last + 1, 4))
    _color_legend(figure, {"taken over": GIVEN, "made": GENERATED})
    show(figure, caption)


# ---------------------------------------------------------------------------------------------------------------------
#   Tokens and tables (01 and 02)
# ---------------------------------------------------------------------------------------------------------------------


def tokens(rows: Mapping[str, Sequence[str]], caption: str):
    """The tokens of texts as boxes, name -> tokens; special tokens ("</s>", "<pad>" …) are grey."""
    widths = {name: [0.35 + 0.16 * len(piece) for piece in pieces] for name, pieces in rows.items()}
    length = max(map(sum, widths.values()))
    figure, axis = new_figure(width=9.0, height=0.45 * len(rows) + 0.2)
    for y, (name, pieces) in enumerate(rows.items()):
        x = 0.0
        for piece, width in zip(pieces, widths[name], strict=True):
            color = GENERATED if piece.startswith("<") else COLORS[4]
            _box(axis, x + width / 2 - 0.04, y, width - 0.08, 0.72, color, piece, alpha=0.6, fontsize=8)
            x += width
    axis.set(xlim=(0, length), ylim=(len(rows) - 0.5, -0.5), xticks=[])
    axis.set_yticks(range(len(rows)), list(rows))
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    show(figure, caption)


def tables(panels: Mapping[str, np.ndarray], caption: str, names: Sequence = (), digits: int = 0, **options):
    """Square tables side by side, title -> [n, n]: values as text and as colour.

    names: of the rows, which are those of the columns. options: of imshow (cmap, vmin, vmax).
    """
    n = len(next(iter(panels.values())))
    side, label = 0.55 * n, 0.08 * max((len(str(name)) for name in names), default=0) + 0.3
    figure, axes = new_figure(1, len(panels), len(panels) * (side + label), side + 0.7, squeeze=False)
    options = {"cmap": "Blues", "alpha": 0.7, **options}
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
        axis.imshow(values, **options)
        for (i, j), value in np.ndenumerate(values):
            axis.text(j, i, f"{value:.{digits}f}".replace("-0.00", "0.00"), ha="center", va="center", fontsize=8)
        axis.set_title(title)
        axis.set_xticks(range(n), list(names) or range(n), rotation=0 if n <= 4 else 90)
        axis.set_yticks(range(n), list(names) or range(n))
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    show(figure, caption)


def table(rows: Mapping[str, Sequence], titles: Sequence[str], caption: str):
    """A table: name of a row -> its cells. titles: of the columns, that of the names included."""
    lines = ["".join(f"<th>{html.escape(title)}</th>" for title in titles)]
    for name, cells in rows.items():
        lines.append(f"<th>{html.escape(name)}</th>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells))
    text = "".join(f"<tr>{line}</tr>" for line in lines)
    page = f"<table>{text}</table><p>{html.escape(caption)}</p>"
    display({"text/html": page, "text/plain": f"Table: {caption}"}, raw=True)


def similarities(values: np.ndarray, groups: Mapping[str, Sequence[str]], caption: str):
    """A heatmap of cosine similarities [n, n]; its rows and columns are the words of `groups`, which are framed."""
    words = [word for group in groups.values() for word in group]
    figure, axis = new_figure(width=6.2, height=5.4)
    picture = axis.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set_xticks(range(len(words)), words, rotation=90, fontsize=8)
    axis.set_yticks(range(len(words)), words, fontsize=8)
    start = -0.5
    for group in groups.values():
        square = matplotlib.patches.Rectangle((start, start), len(group), len(group), fill=False, linewidth=1.5)
        axis.add_patch(square)
        start += len(group)
    figure.colorbar(picture, ax=axis, label="cosine similarity", shrink=0.8)
    show(figure, caption)


# ---------------------------------------------------------------------------------------------------------------------
#   Stacked bars (05 and 12)
# ---------------------------------------------------------------------------------------------------------------------


def stacked(
    rows: Mapping[str, Mapping[str, float]],
    caption: str,
    xlabel: str,
    lines: Mapping[str, float] = {},
    least: float = math.inf,
):
    """Horizontal stacked bars: name -> {part: length}.

    lines: name -> position of a vertical line. least: parts of at least this length are labelled with it.
    """
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    columns = min(len(parts), 5)
    figure, axis = new_figure(width=7.5, height=0.42 * len(rows) + 1.1 + 0.2 * math.ceil(len(parts) / columns))
    left = np.zeros(len(rows))
    for part in parts:
        widths = np.array([row.get(part, 0.0) for row in rows.values()])
        axis.barh(range(len(rows)), widths, left=left, height=0.7, label=part)
        for y in np.flatnonzero(widths >= least):
            axis.text(left[y] + widths[y] / 2, y, f"{widths[y]:.0f}", ha="center", va="center", color="white")
        left += widths
    for name, number in lines.items():
        axis.axvline(number, color="black", linestyle=":", linewidth=1)
        axis.text(number, -0.55, f" {name}", fontsize=7, va="bottom")
    axis.set(xlabel=xlabel, ylim=(len(rows) - 0.4, -0.6 - 0.6 * bool(lines)), xlim=(0, None))
    axis.set_yticks(range(len(rows)), list(rows))
    figure.legend(loc="outside upper center", ncols=columns, frameon=False)
    show(figure, caption)


def shares(rows: Mapping[str, Mapping[str, float]], caption: str, xlabel: str):
    """`stacked` in percent of each row's sum, labelled: name -> {part: amount}."""
    percent = {
        name: {part: 100 * amount / sum(amounts.values()) for part, amount in amounts.items()}
        for name, amounts in rows.items()
    }
    stacked(percent, caption, xlabel, least=4)


# ---------------------------------------------------------------------------------------------------------------------
#   The transformer and the samplers (05 and 06)
# ---------------------------------------------------------------------------------------------------------------------


def attention_pattern(rows: Mapping[str, Sequence[np.ndarray]], titles: Sequence[str], caption: str):
    """Which tokens a query attends to, name -> grids of tokens [h, w]; 0 not attended, 1 attended, 2 the query."""
    columns, label = max(map(len, rows.values())), max(map(len, rows)) * 0.08
    figure, axes = new_figure(len(rows), columns, columns * 1.1 + label, len(rows) * 1.1 + 0.5, squeeze=False)
    colors = {"query": COLORS[1], "attended": COLORS[4], "not attended": "#E6E6E6"}
    palette = matplotlib.colors.ListedColormap(list(colors.values())[::-1])
    _label_panels(axes, list(rows), titles, framed=False)
    for line, row in zip(axes, rows.values(), strict=True):
        for axis, grid in zip(line, row, strict=False):
            axis.pcolormesh(grid, cmap=palette, vmin=0, vmax=2, edgecolors="white", linewidth=1.5)
            axis.set_aspect("equal")
            axis.invert_yaxis()
    _color_legend(figure, colors)
    show(figure, caption)


def heatmaps(
    panels: Mapping[str, np.ndarray], caption: str, xlabel: str, ylabel: str, label: str, width=8.0, **options
):
    """Heatmaps side by side with one colour scale, title -> [rows, columns]. options: of imshow (cmap, vmin …)."""
    low = min(float(np.min(values)) for values in panels.values())
    high = max(float(np.max(values)) for values in panels.values())
    figure, axes = new_figure(1, len(panels), width, width / len(panels), squeeze=False)
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
        picture = axis.imshow(values, **{"vmin": low, "vmax": high, **options})
        axis.set(title=title, xlabel=xlabel)
    axes[0, 0].set_ylabel(ylabel)
    figure.colorbar(picture, ax=axes, label=label, shrink=0.8)
    show(figure, caption)


def rotations(panels: Mapping[str, Sequence[float]], caption: str):
    """Unit vectors, title -> angles in radians, in order from light to dark."""
    figure, axes = new_figure(1, len(panels), 1.7 * len(panels), 1.9, squeeze=False)
    for axis, (title, angles) in zip(axes[0], panels.items(), strict=True):
        axis.add_patch(matplotlib.patches.Circle((0, 0), 1, fill=False, color="#DDDDDD"))
        for i, angle in enumerate(angles):
            color = matplotlib.colormaps["viridis_r"](0.1 + 0.9 * i / max(len(angles) - 1, 1))
            axis.annotate("", (np.cos(angle), np.sin(angle)), (0, 0), arrowprops=dict(arrowstyle="->", color=color))
        axis.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), xticks=[], yticks=[], title=title, aspect="equal")
        axis.spines[:].set_visible(False)
    show(figure, caption)


def trajectories(
    panels: Mapping[str, np.ndarray], x: np.ndarray, density: np.ndarray, caption: str, ylabel: str, most=30
):
    """Values from noise to data, title -> [steps + 1, n]: `most` of the trajectories, and a histogram of all ends.

    x, density: the expected density of the ends.
    """
    n = len(panels)
    figure, axes = new_figure(1, 2 * n, 3.0 * n, 2.6, sharey=True, width_ratios=[3, 1] * n)
    for path, end, (title, values) in zip(axes[::2], axes[1::2], panels.items(), strict=True):
        path.plot(values[:, :most], linewidth=0.7, color=COLORS[0], alpha=0.6)
        path.set(title=title, xlabel="steps taken")
        end.hist(values[-1], bins=60, range=(x[0], x[-1]), density=True, color=GENERATED, orientation="horizontal")
        end.plot(density, x, color=COLORS[1])
        end.set(xlabel="density", xticks=[])
    axes[0].set(ylabel=ylabel, ylim=(x[0], x[-1]))
    show(figure, caption)


def arrows(groups: Sequence[np.ndarray], labels: Sequence[str], caption: str, xlabel: str, ylabel: str):
    """Sequences of points [n, 2] in the plane, with an arrow from each point to the next. labels: of the n points."""
    figure, axis = new_figure(width=5.0, height=4.0)
    for chain in groups:
        for number in range(len(chain) - 1):
            style = dict(arrowstyle="->", color=COLORS[number], linewidth=1.2, shrinkA=0, shrinkB=0)
            axis.annotate("", chain[number + 1], chain[number], arrowprops=style)
    points = np.stack(groups)
    for number, label in enumerate(labels):
        color = ("#777777", *COLORS)[number]
        axis.plot(*points[:, number].T, "o", color=color, markersize=4, label=label)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend(frameon=False)
    show(figure, caption)


def solver_step(x: np.ndarray, y: np.ndarray, at: Sequence[float], caption: str, xlabel: str, ylabel: str):
    """First- and second-order approximations of a curve (x, y) in the step from at[1] to at[2].

    The curve is known at at[0] and at[1].
    """
    before, now, after = at
    known = np.interp([before, now], x, y)
    line = known[1] + (np.array([now, after]) - now) * (known[1] - known[0]) / (now - before)
    figure, axis = new_figure(width=6.5, height=3.0)
    axis.axvspan(now, after, color="#F2F2F2")
    axis.plot(x, y, color="#777777", label="the model's output")
    axis.plot([before, now], known, "o", color="black", label="evaluated")
    axis.plot([now, after], [known[1]] * 2, color=COLORS[0], label="first order (DDIM): constant")
    axis.plot([before, now, after], [known[0], *line], color=COLORS[1], label="second order: the line through both")
    axis.plot((now + after) / 2, line.mean(), "o", color=COLORS[1], label="the value used: that at the midpoint")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend(frameon=False, fontsize=8)
    show(figure, caption)


def scatter(x: np.ndarray, y: np.ndarray, line: tuple[float, float], caption: str, xlabel: str, ylabel: str):
    """Points and a straight line. line: its slope and its intercept."""
    figure, axis = new_figure(width=5.0, height=3.0)
    axis.plot(x, y, ".", color=GENERATED, markersize=3)
    ends = np.array([x.min(), x.max()])
    axis.plot(ends, line[0] * ends + line[1], color=COLORS[1])
    axis.set(xlabel=xlabel, ylabel=ylabel)
    show(figure, caption)


# ---------------------------------------------------------------------------------------------------------------------
#   Points in the plane (01)
# ---------------------------------------------------------------------------------------------------------------------


def _cloud(axis, points: np.ndarray, values, limit: float, title: str):
    """Points [n, 2] on axes from -limit to limit, coloured by values [n] from 0 to 1; returns what moves."""
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal", title=title)
    color = {"color": "#777777"} if values is None else {"c": values, "cmap": "plasma", "vmin": 0, "vmax": 1}
    return axis.scatter(*points.T, s=5, linewidths=0, **color)


def _farthest(panels: Mapping[str, np.ndarray]) -> float:
    """A limit of the axes that leaves no point outside, nor half of its dot."""
    return 1.04 * max(float(np.abs(points).max()) for points in panels.values())


def clouds(
    panels: Mapping[str, np.ndarray],
    caption: str,
    values=None,
    arrows: Mapping[str, tuple] | None = None,
    limit: float | None = None,
    behind: np.ndarray | None = None,
):
    """Points in the plane: title -> [n, 2].

    values: [n] from 0 to 1, the colours of the points in every panel, or title -> [n]. arrows: title -> (starts, ends),
    [k, 2], drawn over the points of that panel, with a dot where they start. limit: of the axes, by default that of the
    farthest point. behind: points [m, 2] that every panel shows in grey.
    """
    limit = limit or _farthest(panels)
    figure, axes = new_figure(1, len(panels), 1.9 * len(panels), 2.2, squeeze=False)
    for axis, (title, points) in zip(axes[0], panels.items(), strict=True):
        if behind is not None:
            axis.scatter(*behind.T, s=3, linewidths=0, color="#d0d0d0")
        _cloud(axis, points, values[title] if isinstance(values, Mapping) else values, limit, title)
        for start, end in zip(*(arrows or {}).get(title, ((), ())), strict=True):
            arrow = {"arrowstyle": "->", "color": COLORS[2], "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
            axis.annotate("", end, start, arrowprops=arrow)
            axis.plot(*start, "o", color=COLORS[2], markersize=4)
    show(figure, caption)


def origins(columns: Mapping[str, tuple], data: np.ndarray, caption: str, limit: float = 2.4):
    """Where a noisy point may come from, in two rows: at its own time, and at the size of the data [n, 2].

    columns: title -> (x_t [2], weights [n] of the data points, the factors of the data and of the noise at that time).
    """
    figure, axes = new_figure(2, len(columns), 8.4, 0.4 + 14.8 / len(columns), squeeze=False)
    colors = matplotlib.colors.LinearSegmentedColormap.from_list("weights", ["#d4d4d4", "#E69F00", "#8C1D00"])
    for (upper, lower), (title, (x_t, weights, signal, spread)) in zip(axes.T, columns.items(), strict=True):
        order = weights.argsort()  # the heaviest on top
        options = {"s": 4, "linewidths": 0, "c": weights[order] / weights.max(), "cmap": colors, "vmin": 0, "vmax": 1}
        for axis, factor in (upper, signal), (lower, 1):
            drawn = axis.scatter(*(factor * data[order]).T, **options)
            axis.plot(*(factor * (weights @ data)), "x", color="black", markersize=7, markeredgewidth=2)
            axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
        upper.add_patch(matplotlib.patches.Circle(x_t, spread, fill=False, color=COLORS[2], linewidth=1))
        upper.plot(*x_t, "o", color=COLORS[2], markersize=5)
        upper.set_title(title, fontsize=9)
    axes[0, 0].set_ylabel("shrunk, as in $x_t$")
    axes[1, 0].set_ylabel("at full size")
    figure.colorbar(drawn, ax=axes, label="weight / largest weight", shrink=0.7, pad=0.01)
    show(figure, caption)


def moving_clouds(
    panels: Mapping[str, np.ndarray], caption: str, titles: Sequence[str], values=None, limit=None, **options
):
    """Animate points in the plane: name -> [frames, n, 2].

    titles: of the frames. values [n], from 0 to 1, colour the points. limit: of the axes, by default that of the
    farthest point. options: of `animation`.
    """
    limit = limit or _farthest(panels)
    side = 4.6 if len(panels) == 1 else 3.0
    figure, axes = new_figure(1, len(panels), side * len(panels), side + 0.3, squeeze=False)
    canvas, pictures = FigureCanvasAgg(figure), []
    moving = [
        _cloud(axis, path[0], values, limit, name) for axis, (name, path) in zip(axes[0], panels.items(), strict=True)
    ]
    figure.suptitle(titles[0], fontsize=10)
    canvas.draw()
    figure.set_layout_engine("none")  # the axes stay where they are
    for k, title in enumerate(titles):
        for points, path in zip(moving, panels.values(), strict=True):
            points.set_offsets(path[k])
        figure.suptitle(title, fontsize=10)
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    animation(np.stack(pictures), caption, **options)


# ---------------------------------------------------------------------------------------------------------------------
#   Videos that play side by side (04, 05 and 07)
# ---------------------------------------------------------------------------------------------------------------------


def moving_films(
    rows: Mapping[str, Sequence[np.ndarray]], caption: str, titles: Sequence[str] = (), scale: int = 2, **options
):
    """Animate videos side by side: name of a row -> its videos, uint8 [T, height, width, 3].

    titles: of the columns. scale: how many pixels wide a pixel is shown. A shorter video waits with its last frame.
    options: of `animation`.
    """
    videos = [[getattr(video, "frames", video) for video in row] for row in rows.values()]
    length = max(len(video) for row in videos for video in row)
    font = _font(11)
    left, top, gap = int(max(map(font.getlength, rows))) + 10, 18 * bool(titles), 4
    height, width = (side * scale + gap for side in videos[0][0].shape[1:3])
    page = Image.new("RGB", (left + width * max(map(len, videos)), top + height * len(videos)), "white")
    draw = ImageDraw.Draw(page)
    for y, name in enumerate(rows):
        draw.text((left - 6, top + y * height + height // 2), name, "#444444", font, anchor="rm")
    for x, title in enumerate(titles):
        draw.text((left + x * width + width // 2, top // 2), title, "#444444", font, anchor="mm")
    pages = np.repeat(np.asarray(page)[None], length, axis=0)
    for y, row in enumerate(videos):
        for x, video in enumerate(row):
            large = video[np.minimum(np.arange(length), len(video) - 1)].repeat(scale, axis=1).repeat(scale, axis=2)
            a, b = top + y * height, left + x * width
            pages[:, a : a + large.shape[1], b : b + large.shape[2]] = large
    animation(pages, caption, **options)
