"""How time grows with frames, area and steps, and a picture of it."""

import statistics
from dataclasses import replace
from pathlib import Path

from alternate import alternate
from sides import OURS, PEERS, Side, reason
from work import Work

STEP = Work("step", "a guided step, tiny", frames=4)
VIDEO = Work("video", "a whole video, tiny", frames=4)
AXES = {
    "frames": ("frames of 64×64, one guided step", {n: replace(STEP, frames=n) for n in (4, 8, 16, 32, 64)}),
    "area": (
        "pixels on each side, 4 frames, one guided step",
        {n: replace(STEP, height=n, width=n) for n in (64, 128, 256, 512)},
    ),
    "steps": ("steps, a whole video of 4×64×64", {n: replace(VIDEO, steps=n) for n in (5, 10, 20, 40)}),
}
LEFT_OUT = [name for name in PEERS if "compiled" in name]  # which compile for minutes, for every size anew


def measure(axis: str, folder: Path) -> dict[str, dict[int, list[float]]]:
    """Seconds of all turns by way and place on the axis."""
    sides, found = {}, {}
    for name in [*OURS, *(peer for peer in PEERS if peer not in LEFT_OUT)]:
        side = None
        try:
            side = Side(name, folder)
            for n, work in AXES[axis][1].items():
                side.ready(str(n), work)
        except RuntimeError as error:
            print(f"{name}: {reason(error)}")
            if side:
                side.close()
            continue
        sides[name], found[name] = side, {}
    for n, work in AXES[axis][1].items():
        for side in sides.values():
            side.turn(str(n), work, 0)
        ways = {name: lambda turn, s=side, n=n, w=work: s.turn(str(n), w, turn) for name, side in sides.items()}
        for name, seconds in alternate(ways).items():
            found[name][n] = seconds
    for side in sides.values():
        side.close()
    return found


def plot(growth: dict[str, dict[str, dict[int, list[float]]]], path: Path):
    """A panel for each axis, both axes logarithmic: a straight line through the first place would be proportional."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, panels = pyplot.subplots(1, len(growth), figsize=(5 * len(growth), 4.2), squeeze=False)
    names = list(dict.fromkeys(name for found in growth.values() for name in found))
    for panel, (axis, found) in zip(panels[0], growth.items(), strict=True):
        for name, places in found.items():
            medians = [statistics.median(seconds) for seconds in places.values()]
            style = "-o" if name in OURS else "--s"
            panel.plot(list(places), medians, style, color=f"C{names.index(name)}", label=name, markersize=4)
        first = next(iter(found.values()))
        power = 2 if axis == "area" else 1
        start, base = next(iter(first)), statistics.median(first[next(iter(first))])
        line = [base * (n / start) ** power for n in first]
        panel.plot(list(first), line, ":", color="grey", linewidth=1, label="proportional")
        panel.set(xscale="log", yscale="log", xlabel=AXES[axis][0], ylabel="seconds")
        panel.set_xticks(list(first), [str(n) for n in first])
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
