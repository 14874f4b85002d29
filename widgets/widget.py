"""What all widgets share: one look, one small JavaScript vocabulary, and a still picture where no kernel is.

A widget is an anywidget class with a JavaScript module of its own beside it. There is no build step: what the front end
gets is `dom.js`, the vocabulary, followed by that module. Nothing is fetched from anywhere.
"""

import base64
import html
import io
from pathlib import Path

import anywidget
import matplotlib
import numpy as np
from PIL import Image, ImageFont

HERE = Path(__file__).parent
STYLE = (HERE / "style.css").read_text(encoding="utf-8")


def module(name: str) -> str:
    """The JavaScript of a widget: the vocabulary and widgets/`name`."""
    return "\n".join((HERE / file).read_text(encoding="utf-8") for file in ("dom.js", name))


class Widget(anywidget.AnyWidget):
    """The base of all widgets.

    A subclass sets `_esm = module("….js")`, and says in `__repr__` in one line what state it is in, and in `still()`
    what a page without a kernel shows. Both depend on the state alone, so that nbval can compare them.
    """

    _css = STYLE

    def still(self) -> tuple[np.ndarray, str]:
        """A picture of the widget, uint8 [height, width, 3], and its text for those who do not see it."""
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


def still_fonts() -> tuple[ImageFont.FreeTypeFont, ImageFont.FreeTypeFont]:
    """The font of still pictures, and its bold: matplotlib's own, and so the same on every machine."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    regular, bold = (ImageFont.truetype(str(folder / f"DejaVuSans{style}.ttf"), 12) for style in ("", "-Bold"))
    return regular, bold


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    """A picture uint8 [height, width, 3] as a PNG or JPEG."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return file.getvalue()


def image_url(picture: np.ndarray, kind: str = "PNG") -> str:
    """A picture uint8 [height, width, 3] as the address of an <img>."""
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded(picture, kind)).decode()}"
