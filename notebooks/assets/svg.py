"""Diagrams of boxes, arrows and labels as SVG, for the README and the lessons.

    d = Drawing(500, 100, "the text encoder")
    caption = d.box(10, 20, 130, "caption", source=True)
    t5 = d.box(250, 20, 130, "T5", "text.py", lit=True)
    d.arrow(caption.right, t5.left, label="ids [B, L]")
    d.svg()

A picture in a page cannot know the page's theme, only that of the system. So `svg()` follows the system, and draws on a
card of its own: dark letters never stand on a dark page. `svg("light")` and `svg("dark")` have no card, for a <picture>
that chooses by itself (README.md). Colours are never the only difference: what is lit also has a thicker border.
"""

import re
from html import escape
from typing import NamedTuple

# Those of GitHub's pages. name -> light, dark
COLORS = {
    "page": ("#ffffff", "#0d1117"),
    "edge": ("#d1d9e0", "#3d444d"),
    "ink": ("#1f2328", "#f0f6fc"),
    "faint": ("#59636e", "#9198a1"),
    "line": ("#818b98", "#656c76"),
    "fill": ("#f6f8fa", "#151b23"),
    "accent": ("#0969da", "#4493f8"),
    "accent-fill": ("#ddf4ff", "#0c2d5c"),
}
FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

Point = tuple[float, float]


class Box(NamedTuple):
    """Where a box is; the middles of its sides are where arrows begin and end."""

    x: float
    y: float
    w: float
    h: float

    @property
    def left(self) -> Point:
        return self.x, self.y + self.h / 2

    @property
    def right(self) -> Point:
        return self.x + self.w, self.y + self.h / 2

    @property
    def top(self) -> Point:
        return self.x + self.w / 2, self.y

    @property
    def bottom(self) -> Point:
        return self.x + self.w / 2, self.y + self.h


class Drawing:
    """A diagram of `width` × `height`, drawn in the order of calls. title: what it shows, for screen readers."""

    def __init__(self, width: int, height: int, title: str):
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, size: int, color: str = "ink", mono: bool = False):
        """A line of text, centred at x on the baseline y. x_{t}: with the t below the line."""
        written = re.sub(
            r"_\{(.+?)\}(.?)",
            rf'<tspan dy="3" font-size="{0.75 * size:g}">\1</tspan><tspan dy="-3">\2</tspan>',
            escape(text, quote=False),
        )
        bold = ' font-weight="600"' if size >= 16 else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" class="{color}-text{" mono" if mono else ""}" font-size="{size}" '
            f'text-anchor="middle"{bold}>{written}</text>'
        )

    def box(
        self, x: float, y: float, w: float, title: str, below: str = "", lit: bool = False, source: bool = False
    ) -> Box:
        """A box of height 56. below: a second line, a module or an example. source: an input, without a border."""
        shape = "lit" if lit else "source" if source else "box"
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="56" rx="8" class="{shape}"/>')
        self.text(x + w / 2, y + (25 if below else 33), title, 16)
        if below:
            self.text(x + w / 2, y + 44, below, 12, "faint", mono=True)
        return Box(x, y, w, 56)

    def frame(self, x: float, y: float, w: float, h: float, title: str, lit: bool = False) -> Box:
        """A dashed frame around parts that belong together, with its title at the top."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="12" class="{"lit" if lit else "frame"}"/>'
        )
        self.text(x + w / 2, y + 24, title, 13, "ink" if lit else "faint")
        return Box(x, y, w, h)

    def plain(self, x: float, y: float, w: float, h: float, lit: bool = False) -> Box:
        """A rectangle of any size without a text: a tensor drawn to scale."""
        shape = "lit" if lit else "box"
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="2" class="{shape}"/>')
        return Box(x, y, w, h)

    def arrow(self, *points: Point, label: str = "", at: Point | None = None):
        """An arrow through the points. label: above its first piece, or where `at` says."""
        path = " L ".join(f"{x:g} {y:g}" for x, y in points)
        self.parts.append(f'<path d="M {path}" class="arrow" marker-end="url(#tip)"/>')
        if label:
            (x, y), (x_2, y_2) = points[:2]
            self.text(*(at or ((x + x_2) / 2, (y + y_2) / 2 - 9)), label, 12, "faint", mono=True)

    def frames(self, x: float, y: float, lit: bool = False):
        """Four frames of a film, one behind the other, 71 × 71 in all."""
        for i in range(4):
            shape = "lit" if lit else "box"
            self.parts.append(
                f'<rect x="{x + 7 * i:g}" y="{y + 7 * i:g}" width="50" height="50" rx="4" class="{shape}"/>'
            )

    def svg(self, theme: str = "") -> str:
        """theme: "light" or "dark"; "" follows the system and draws the card."""
        themes = [{name: pair[i] for name, pair in COLORS.items()} for i in range(2)]
        style = _rules(themes[theme == "dark"])
        card = ""
        if not theme:
            style += f"\n@media (prefers-color-scheme: dark) {{\n{_rules(themes[1])}\n}}"
            size = f'width="{self.width - 1}" height="{self.height - 1}"'
            card = f'<rect x="0.5" y="0.5" {size} rx="10" class="card"/>\n'
        tip = (
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto-start-reverse"><path d="M 0 0 L 10 5 L 0 10 z" class="tip"/></marker></defs>'
        )
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{escape(self.title)}</title>'
        return "\n".join([head, f"<style>\n{style}\n</style>", tip, card + "\n".join(self.parts), "</svg>", ""])


def _rules(c: dict[str, str]) -> str:
    """The style sheet of one theme."""
    return "\n".join(
        [
            f"text {{ font-family: {FONT} }} .mono {{ font-family: {MONO} }}",
            *(f".{name}-text {{ fill: {c[name]} }}" for name in ("ink", "faint")),
            f".card {{ fill: {c['page']}; stroke: {c['edge']} }}",
            f".box {{ fill: {c['fill']}; stroke: {c['line']} }}",
            f".source {{ fill: {c['fill']} }}",
            f".lit {{ fill: {c['accent-fill']}; stroke: {c['accent']}; stroke-width: 2.5 }}",
            f".frame {{ fill: none; stroke: {c['line']}; stroke-dasharray: 6 5; stroke-width: 1.4 }}",
            f".arrow {{ fill: none; stroke: {c['line']}; stroke-width: 1.6 }} .tip {{ fill: {c['line']} }}",
        ]
    )
