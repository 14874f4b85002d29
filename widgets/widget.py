"""The base class of the widgets and the helpers that they share.

A widget is an anywidget class with a JavaScript module of the same name. There is no build step: the browser gets
`dom.js`, the shared helpers, followed by the widget's files, and fetches nothing. Without a kernel, as on a static
page, a still picture is shown.
"""

import base64
import html
import io
from pathlib import Path
from typing import Annotated, Any

import anywidget
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageFont
from pydantic import Field

from opensora_lite.validation import Whole


def module(*names: str) -> str:
    """The JavaScript of a widget: the shared helpers and the files `names`."""
    return source("dom.js", *names)


def source(*names: str) -> str:
    """Files of this folder, one after the other."""
    return "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in names)


STYLE = source("base.css", "plots.css", "style.css")


class Widget(anywidget.AnyWidget):
    """Base class: a subclass sets `_esm = module("….js")` and defines `__repr__` (one line) and `still()`.

    Both depend on the widget's state only, so that nbval can compare them.
    """

    _css = STYLE

    def still(self) -> tuple[np.ndarray, str]:
        """The still picture, uint8 [height, width, 3], and its alternative text."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs):
        data, metadata = super()._repr_mimebundle_(**kwargs)
        picture, text = self.still()
        alt = html.escape(text, quote=True)
        data["text/plain"] = repr(self)
        data["text/html"] = (
            f'<figure style="margin: 0"><img alt="{alt}" src="{image_url(picture)}" style="max-width: 100%">'
            f"<figcaption>{alt}</figcaption></figure>"
        )
        return data, metadata


def index_below(count: int) -> Any:
    """The type of an index 0 … count - 1, for `validation.check`."""
    return Annotated[Whole, Field(ge=0, le=count - 1)]


def plural(count: int, noun: str) -> str:
    """For example "1 frame", "16 frames"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def still_fonts() -> tuple[ImageFont.FreeTypeFont, ImageFont.FreeTypeFont]:
    """The regular and bold fonts of still pictures: those of matplotlib, the same on every machine."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    regular, bold = (ImageFont.truetype(str(folder / f"DejaVuSans{style}.ttf"), 12) for style in ("", "-Bold"))
    return regular, bold


def drawn(figure: Figure, colors: int) -> np.ndarray:
    """A figure as pixels uint8 [height, width, 3], reduced to `colors` colours, which halves the size of its PNG."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return np.asarray(picture.quantize(colors, dither=Image.Dither.NONE).convert("RGB"))


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    """The PNG or JPEG file of a picture uint8 [height, width, 3]."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return file.getvalue()


def image_url(picture: np.ndarray, kind: str = "PNG") -> str:
    """The data: URL of a picture uint8 [height, width, 3]."""
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded(picture, kind)).decode()}"
