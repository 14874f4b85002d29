"""What the benchmark counts and keeps: FLOPs beside those that PyTorch counts, medians, tables, result files."""

import json
import subprocess
import sys
from pathlib import Path

import alternate
import numpy as np
import pytest
from alternate import Row, Table
from peers import serve
from work import SHIPPED, TINY12, WORK, Work, random_start, stdit_flops

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

COUNTED = {
    "step": Work("step", "tiny", frames=3, height=48, width=80, tokens=7),
    "decode": Work("decode", "tiny", frames=2, height=48, width=80),
    "caption": Work("caption", "tiny", tokens=9),
    "video": Work("video", "tiny", frames=2, steps=2),
    "step12": Work("step", "tiny-1.2", **TINY12 | {"height": 48, "width": 80, "tokens": 7}),
    "decode12": Work("decode", "tiny-1.2", **TINY12),
    "video12": Work("video", "tiny-1.2", **TINY12, steps=2),
}


@pytest.mark.parametrize("name", COUNTED)
def test_flops_are_those_that_pytorch_counts(peer, name, tmp_path):
    work = COUNTED[name]
    if not work.has_models:
        pytest.skip("the package has no tiny-1.2 yet")
    peer("ready", work.given() or None, name=name, kind=work.kind, models=work.models(tmp_path), told=work.told())
    inputs = {key: value for key, value in work.inputs(0, tmp_path).items() if key != "seed"}
    counted = peer("flops", inputs, name=name)["flops"]
    print(f"\n{name}: {counted:,} FLOPs counted, {work.flops(tmp_path):,} by the formula")
    assert counted == work.flops(tmp_path)


def test_flops_of_the_released_model():
    """Notebook 05 prints these two, and counts those of the small model in Paddle."""
    from opensora_lite.stdit2 import SIZES

    assert stdit_flops(SIZES["tiny"], 16, 64, 64, 24) == pytest.approx(1.2e9, rel=0.05)
    assert stdit_flops(SIZES["XL/2"], 16, 256, 256, 200) == pytest.approx(5761.4e9, rel=1e-5)


def test_random_weights_are_the_same_again_and_say_something():
    import paddle

    from opensora_lite.stdit2 import STDiT2, STDiT2Config

    config = STDiT2Config(24, 1, 2, caption_channels=12, model_max_length=4, input_sq_size=64)
    one, two = (random_start(STDiT2(config), np.random.default_rng(0)).eval() for _ in range(2))
    numbers = {name: paddle.to_tensor([1.0]) for name in ("num_frames", "height", "width", "ar", "fps")}
    x, y, mask = paddle.ones([1, 4, 2, 4, 4]), paddle.ones([1, 1, 4, 12]), paddle.ones([1, 4], "int64")
    with paddle.no_grad():
        outs = [model(x, paddle.to_tensor([7.0]), y, mask, **numbers).numpy() for model in (one, two)]
    np.testing.assert_array_equal(*outs)
    assert 0.1 < outs[0].std() < 10


def test_every_piece_of_work_finds_its_models(tmp_path):
    for work in WORK.values():
        if work.has_models and {work.stdit, work.vae, work.t5} <= set(SHIPPED):
            assert all((Path(path) / "config.json").exists() for path in work.models(tmp_path).values())


# ------------------------------------------------------------------------------------------------- times, tables, files


def test_ways_take_turns(monkeypatch):
    monkeypatch.setattr(alternate, "PAUSE", 0)
    order = []
    ways = {name: lambda turn, name=name: order.append((name, turn)) or float(turn) for name in "ab"}
    assert alternate.alternate(ways, turns=3) == {"a": [1, 2, 3], "b": [1, 2, 3]}
    assert order == [("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3), ("b", 3)]


@pytest.mark.parametrize("seconds, calls", [(0.125, 3), (0.5, 1)])
def test_short_work_is_done_several_times_in_a_row(monkeypatch, seconds, calls):
    times = []
    monkeypatch.setattr(serve, "clock", lambda: sum(times))
    assert serve.timed(lambda: times.append(seconds) or len(times)) == (calls, seconds)


def made_table(times: float) -> Table:
    rows = {
        "ours fp32": Row([1.0 * times, 2.0 * times, 3.0 * times], 4.0, 5_000_000, 0.0),
        "peer fp32": Row([4.0], 5.0, None, 1e-6),
        "peer bf16": Row(unable="not here"),
    }
    return Table("some work", rows, 10**9, {"fp32": 1e9})


def test_a_table_says_ratios_and_shares(capsys):
    table = made_table(1)
    assert table.ratio("ours fp32", "peer fp32") == 2 and table.share("ours fp32") == 0.5
    assert table.share("peer bf16") is None
    table.print({"peer fp32": "peer"})
    printed = capsys.readouterr().out
    assert "some work, 1.0 GFLOP; peak fp32 1 GFLOP/s" in printed and "× peer" in printed
    assert "peer bf16: not here" in printed


def test_results_are_compared(tmp_path):
    for name, times in (("before", 2), ("after", 1)):
        about = {"cpu": "one", "date": name}
        alternate.write(tmp_path / f"{name}.json", about, {"work": made_table(times)}, growth={})
    about, tables = alternate.read(tmp_path / "after.json")
    assert about == {"cpu": "one", "date": "after"} and tables == {"work": made_table(1)}
    files = [str(tmp_path / f"{name}.json") for name in ("before", "after")]
    done = subprocess.run([sys.executable, BENCHMARKS / "alternate.py", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "date: before -> after" in done.stdout and "cpu: one" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.endswith("ours fp32")).split()
    assert row[:6] == ["4000", "2000", "2.00", "0.25", "0.50", "2.00"]


def test_a_machine_is_described():
    about = alternate.machine()
    assert json.dumps(about) and about["cpu"] and "numpy" in about["versions"]
