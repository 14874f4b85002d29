"""Draw pipeline_light.svg and pipeline_dark.svg, the diagram of README.md.

python notebooks/assets/make_pipeline.py
"""

from pathlib import Path

ASSETS = Path(__file__).parent
THEMES = {  # ink, faint, line, box, accent, accent's box
    "light": ("#1f2328", "#59636e", "#818b98", "#f6f8fa", "#0969da", "#ddf4ff"),
    "dark": ("#f0f6fc", "#9198a1", "#656c76", "#151b23", "#4493f8", "#121d2f"),
}
WIDTH, HEIGHT = 1030, 392
FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


class Drawing:
    def __init__(self, theme: str):
        self.ink, self.faint, self.line, self.fill, self.accent, self.accent_fill = THEMES[theme]
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, size: int = 15, color: str = "", mono: bool = False, **style: str):
        style = {"text-anchor": "middle", "fill": color or self.ink, "font-size": str(size), **style}
        style["font-family"] = MONO if mono else FONT
        attributes = " ".join(f'{name}="{value}"' for name, value in style.items())
        self.parts.append(f'<text x="{x}" y="{y}" {attributes}>{text}</text>')

    def box(self, x: float, y: float, w: float, title: str, below: str, main: bool = False, source: bool = False):
        """A box of height 56; below: the module or an example. source: an input, drawn without a border."""
        fill, line = (self.accent_fill, self.accent) if main else (self.fill, self.line)
        stroke = "none" if source else line
        self.parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="56" rx="8" fill="{fill}" stroke="{stroke}"/>')
        self.text(x + w / 2, y + 25, title, 16, **{"font-weight": "600"})
        self.text(x + w / 2, y + 44, below, 12, self.faint, mono=True)

    def arrow(self, *points: tuple[float, float], label: str = "", at: tuple[float, float] = (0, 0)):
        path = " L ".join(f"{x} {y}" for x, y in points)
        self.parts.append(
            f'<path d="M {path}" fill="none" stroke="{self.line}" stroke-width="1.6" marker-end="url(#tip)"/>'
        )
        if label:
            self.text(*at, label, 12, self.faint, mono=True)

    def svg(self) -> str:
        tip = (
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M 0 0 L 10 5 L 0 10 z" fill="{self.line}"/></marker></defs>'
        )
        size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>From caption to frames</title>'
        return "\n".join([head, tip, *self.parts, "</svg>", ""])


def draw(theme: str) -> str:
    d = Drawing(theme)
    # three rows of inputs, each with what turns it into tensors
    d.box(10, 20, 150, "caption", "“a red car …”", source=True)
    d.box(230, 20, 150, "T5 encoder", "text.py")
    d.arrow((160, 48), (228, 48), label="tokens", at=(194, 40))
    d.box(10, 150, 150, "noise", "seed", source=True)
    d.box(10, 240, 150, "references", "images, clips", source=True)
    d.box(230, 240, 150, "VAE encoder", "vae.py")
    d.arrow((160, 268), (228, 268))
    d.box(10, 318, 150, "mask strategy", "0;0,1,0,-1,1", source=True)
    d.box(230, 318, 150, "frame mask", "masks.py")
    d.arrow((160, 346), (228, 346))
    # the loop
    d.parts.append(
        f'<rect x="440" y="108" width="250" height="142" rx="12" fill="none" stroke="{d.accent}" '
        'stroke-dasharray="6 5" stroke-width="1.4"/>'
    )
    d.text(565, 132, "sampler: repeat for every step", 13, d.accent)
    d.box(460, 150, 210, "STDiT2", "stdit2.py", main=True)
    d.text(565, 232, "x_t → ε → x_t−1", 13, d.faint, mono=True)
    d.arrow((160, 178), (458, 178), label="x_T [C, T, H, W]", at=(300, 169))
    d.arrow((380, 48), (565, 48), (565, 106), label="y [L, D]", at=(620, 80))
    d.arrow((380, 268), (520, 268), (520, 252), label="x_0 of given frames", at=(464, 289))
    d.arrow((380, 346), (610, 346), (610, 252), label="0 given … 1 generated [T]", at=(495, 337))
    # the result
    d.box(757, 150, 130, "VAE decoder", "vae.py")
    d.arrow((690, 178), (755, 178), label="x_0", at=(722, 169))
    d.arrow((887, 178), (933, 178))
    for i in range(4):
        x, y = 936 + 7 * i, 143 + 7 * i
        d.parts.append(f'<rect x="{x}" y="{y}" width="50" height="50" rx="4" fill="{d.fill}" stroke="{d.line}"/>')
    d.text(968, 234, "frames", 16, **{"font-weight": "600"})
    d.text(968, 252, "[T, 8H, 8W, 3]", 12, d.faint, mono=True)
    return d.svg()


if __name__ == "__main__":
    for theme in THEMES:
        (ASSETS / f"pipeline_{theme}.svg").write_text(draw(theme), encoding="utf-8")
