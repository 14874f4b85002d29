"""The package beside PyTorch, one piece of work after the other: `make bench` prints the tables. Nothing is asserted.

Every way of doing a piece of work has a process of its own; the processes take turns. All get the same weights and the
same inputs, other ones in every turn. Environment variables: OPENSORA_BENCH names the pieces (such as
"a,b,vae,growth"; default: all but vae-sd), OPENSORA_BENCH_OUT where the results go (default: build/bench),
OPENSORA_BENCH_TURNS how many turns there are (at least, and by default, 5), OMP_NUM_THREADS how many threads compute;
with one thread, processor time is measured, which the load of a busy machine hardly changes.
"""

import os
from pathlib import Path

import pytest
from alternate import Row, Table, alternate, machine, write
from common import psnr, relative_error
from growth import AXES, measure, plot
from sides import OURS, PEERS, SIZE, Side, reason
from work import WORK

OUT = Path(os.environ.get("OPENSORA_BENCH_OUT", Path(__file__).resolve().parent.parent.parent / "build" / "bench"))
CHOSEN = [name for name in os.environ.get("OPENSORA_BENCH", "").split(",") if name]
STEPS = [name for name, work in WORK.items() if work.kind == "step"]
LEFT_OUT = ["vae-sd"]  # where nothing is chosen: minutes
NO_ENGINE = ["caption"]  # kinds of work that always run in dynamic mode
PEAKS = ["PyTorch, eager fp32", "Paddle, dynamic fp32"]  # whose processes multiply large matrices


def left_out(name: str) -> bool:
    return name not in CHOSEN if CHOSEN else name in LEFT_OUT


@pytest.fixture(scope="module")
def results():
    """Tables by name, how time grows, and what they were measured on; written when all are there."""
    tables, growth, about = {}, {}, machine()
    yield tables, growth, about
    if tables or growth:
        path = OUT / f"{about['date'].replace(':', '')}.json"
        write(path, about, tables, growth=growth)
        print(f"\n\n{path}")


@pytest.fixture(scope="module")
def products():
    """Processes that multiply matrices between the turns: what the machine gives while others are at work too."""
    sides = {}
    for name in PEAKS:
        try:
            sides[name] = Side(name, OUT)
        except RuntimeError:  # no PyTorch here
            continue
        for precision in ("fp32", "bf16"):
            sides[name].product(precision)
    yield sides
    for side in sides.values():
        side.close()


@pytest.mark.parametrize("name", WORK)
def test_work(name, results, products):
    if left_out(name):
        pytest.skip("not chosen")
    if not WORK[name].has_models:
        pytest.skip("the package has no tiny-1.2 yet")
    work, rows, sides, expected = WORK[name], {}, {}, None
    for way in [*OURS, *PEERS]:
        if work.kind in NO_ENGINE and OURS.get(way, {}).get("engine"):
            continue
        rows[way] = Row()
        try:
            side = Side(way, OUT)
        except RuntimeError as error:
            rows[way].unable = reason(error)
            continue
        try:
            loading = side.ready(name, work)
            first, out = side.out(name, work, 0)
        except RuntimeError as error:  # what a library cannot do is a row of the table too
            rows[way].unable = reason(error)
            side.close()
            continue
        sides[way], rows[way].first = side, loading + first
        results[2]["versions"] |= side.about["versions"]
        results[2]["threads"] = side.about["threads"]
        if way == next(iter(OURS)):
            expected = out
        elif expected is not None:
            rows[way].error = relative_error(out, expected)
            rows[way].psnr = psnr(out, expected) if work.kind == "video" else None

    ways = {way: lambda turn, side=side: side.turn(name, work, turn) for way, side in sides.items()}
    for side, process in products.items():
        for precision in ("fp32", "bf16"):
            ways[f"{side} {precision}"] = lambda turn, p=process, precision=precision: p.product(precision)
    seconds = alternate(ways)
    peaks = {}
    for way, found in seconds.items():
        if way in rows:
            rows[way].seconds = found
        else:
            precision = way.rpartition(" ")[2]
            rate = 2 * SIZE**3 / sorted(found)[len(found) // 2]
            peaks[precision] = max(peaks.get(precision, 0), rate)
    for way, side in sides.items():
        rows[way].memory = side.memory()
        side.close()
    results[0][name] = Table(work.title, rows, work.flops(OUT), peaks)
    results[0][name].print({peer: peer.removeprefix("PyTorch, ") for peer in PEERS})
    print("\n".join(judged(name, results[0][name])))


def judged(name: str, found: Table) -> list[str]:
    """What the goals say of a table, one line each."""

    def fastest(precision):
        speeds = {n: r.median for n, r in found.rows.items() if n in PEERS and n.endswith(precision) and r.median}
        return min(speeds, key=speeds.get, default=None)

    goals = []  # what, reached, at least
    for precision in ("fp32", "bf16") if name in STEPS else ():
        peer, ours = fastest(precision), f"Paddle, engine {precision}"
        goals.append((f"engine {precision}, times as fast as {peer}", peer and found.ratio(ours, peer), 1.2))
        if name.startswith("c"):
            goals.append((f"engine {precision}, share of the peak", found.share(ours), 0.7))
    if name in STEPS:
        goals.append(
            ("dynamic mode, speed of eager fp32", found.ratio("Paddle, dynamic fp32", "PyTorch, eager fp32"), 0.5)
        )
    if found.rows.get("Paddle, engine fp32", Row()).error is not None:
        goals.append(("engine fp32, exactness (1 / error)", 1 / found.rows["Paddle, engine fp32"].error, 1e4))
    if WORK[name].kind == "video":
        goals.append(("engine bf16, dB", found.rows["Paddle, engine bf16"].psnr, 35))
    return [
        f"{'met   ' if reached >= least else 'missed'}  {what}: {reached:.3g}, at least {least:g}"
        for what, reached, least in goals
        if reached is not None
    ]


def test_growth(results):
    if left_out("growth"):
        pytest.skip("not chosen")
    for axis in AXES:
        results[1][axis] = measure(axis, OUT)
    plot(results[1], OUT / "growth.png")
    print(f"\n{OUT / 'growth.png'}")
