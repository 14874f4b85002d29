"""The figures of the course, in one look: what repeats in the notebooks' cells is a named function here.

Every function draws, and shows the figure with its caption; the caption is the output's plain text as well, which is
what a reader without pictures gets and what nbval compares. Latents are float32 [C, T, H, W], frames uint8
[T, height, width, 3], as everywhere in the package.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure

RESULT = "application/vnd.opensora-lite.result+json"

# Okabe and Ito's colours, which the colour-blind can tell apart; the same meaning in every figure of the course.
GIVEN, EDITED, GENERATED = "#0072B2", "#E69F00", "#BBBBBB"
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
    """Shows what a notebook found, for a reader, a test or a sweep: JSON under a MIME type of the project's own.

    values: numbers, texts, lists and dicts of them; numpy's numbers become Python's. A notebook records once.
    """
    plain = {name: _plain(value) for name, value in values.items()}
    display({RESULT: plain, "text/plain": "\n".join(f"{name}: {value}" for name, value in plain.items())}, raw=True)


def _plain(value):
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


def show(figure: Figure, caption: str) -> None:
    """Show a figure with its caption below it; the caption says what the axes and the colours mean."""
    width = int(figure.get_figwidth() * 15)  # letters that fit side by side
    figure.text(0.01, -0.02, textwrap.fill(caption, width), va="top", fontsize=9, color="#444444")
    file = io.BytesIO()
    # without the version of matplotlib in the file
    figure.savefig(file, format="png", bbox_inches="tight", facecolor="white", metadata={"Software": None})
    display({"image/png": file.getvalue(), "text/plain": f"Figure: {caption}"}, raw=True)


def new_figure(rows: int = 1, columns: int = 1, width: float = 8.0, height: float = 2.5, **options):
    """A figure in the course's style and its axes, as matplotlib.pyplot.subplots gives them (but no window of its own).

    width, height: inches, of the whole figure. options: of Figure.subplots (sharex, squeeze, width_ratios …).
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)


# ---------------------------------------------------------------------------------------------------------------------
#   Pictures and films
# ---------------------------------------------------------------------------------------------------------------------


def pictures(rows: Mapping[str, Sequence], caption: str, titles: Sequence[str] = (), size: float = 1.0, **options):
    """Rows of pictures: name -> pictures, uint8 [height, width, 3] or numbers [height, width]. None leaves a gap.

    titles: above the columns. size: inches of a picture's side. options: of imshow (cmap, vmin, vmax), for numbers.
    """
    columns = max(len(row) for row in rows.values())
    wide = max((p.shape[1] / p.shape[0] for row in rows.values() for p in row if p is not None), default=1)
    label = max(map(len, rows)) * 0.08 + 0.1
    figure, axes = new_figure(
        len(rows), columns, columns * size * wide + label, len(rows) * size + (0.3 if titles else 0.1), squeeze=False
    )
    options = {"cmap": "gray", **options}
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for axis, picture in zip(line, row, strict=False):
            if picture is not None:
                axis.imshow(picture, **options)
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=8)
    show(figure, caption)


def films(videos: Mapping[str, np.ndarray], caption: str, most: int = 8, size: float = 1.0):
    """Videos below each other, name -> frames [T, height, width, 3] or a Video: evenly chosen frames with numbers."""
    rows = {name: getattr(video, "frames", video) for name, video in videos.items()}
    length = max(map(len, rows.values()))
    chosen = np.unique(np.linspace(0, length - 1, min(most, length)).round().astype(int))
    pictures(
        {name: [frames[i] if i < len(frames) else None for i in chosen] for name, frames in rows.items()},
        caption,
        [f"frame {i}" for i in chosen],
        size,
    )


def channels(latents: Mapping[str, np.ndarray], caption: str, size: float = 1.0):
    """The channels of latents as pictures: name -> [C, H, W]; one grey scale for all, middle grey is 0."""
    most = max(float(np.abs(latent).max()) for latent in latents.values())
    count = max(len(latent) for latent in latents.values())
    titles = [f"channel {c}" for c in range(count)]
    pictures({name: list(latent) for name, latent in latents.items()}, caption, titles, size, vmin=-most, vmax=most)


# ---------------------------------------------------------------------------------------------------------------------
#   Masks and curves
# ---------------------------------------------------------------------------------------------------------------------


def masks(rows: Mapping[str, Sequence[float]], caption: str):
    """Timelines below each other, name -> edit ratio of every frame: 0 given, 1 generated, between edited."""
    length = max(len(ratios) for ratios in rows.values())
    figure, axis = new_figure(width=max(5.0, 0.42 * length + 1.5), height=0.42 * len(rows) + 0.7)
    for y, ratios in enumerate(rows.values()):
        for x, ratio in enumerate(ratios):
            color = GIVEN if ratio == 0 else GENERATED if ratio == 1 else EDITED
            axis.add_patch(matplotlib.patches.Rectangle((x - 0.45, y - 0.4), 0.9, 0.8, color=color))
            if 0 < ratio < 1:
                axis.text(x, y, f"{ratio:g}", ha="center", va="center", fontsize=7)
    axis.set(xlim=(-0.6, length - 0.4), ylim=(len(rows) - 0.4, -0.6), xlabel="frame")
    axis.set_xticks(range(0, length, 1 if length <= 20 else 4))
    axis.set_yticks(range(len(rows)), list(rows))
    names = {"given": GIVEN, "edited": EDITED, "generated": GENERATED}
    patches = [matplotlib.patches.Patch(color=color, label=name) for name, color in names.items()]
    figure.legend(handles=patches, loc="outside upper center", ncols=3, frameon=False)
    show(figure, caption)


def curves(lines: Mapping[str, tuple], caption: str, xlabel: str, ylabel: str, marker: str = "", **settings):
    """Lines in one frame: name -> (x, y). settings: of the axes (xscale="log", ylim=(0, 1) …)."""
    figure, axis = new_figure(width=6.5, height=3.0)
    for name, (x, y) in lines.items():
        axis.plot(x, y, marker=marker, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel, **settings)
    if len(lines) > 1:
        axis.legend(frameon=False)
    show(figure, caption)
