"""Any text is either accepted, with the result of a naive reading of the same text, or an OpenSoraError.

Never another exception, a hang, or a request that is accepted and not met. `make test-hard` runs 2,000 fixed cases,
`make fuzz` 100,000 random ones: OPENSORA_FUZZ=100000 python -m pytest tests/hard/test_fuzz.py -s
"""

import contextlib
import io
import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive_masks import Refused, naive_frames, naive_segments

from opensora_lite import pipeline, training
from opensora_lite.errors import MaskStrategyError, OpenSoraError, PromptError, SizeError
from opensora_lite.liteworld import evaluate
from opensora_lite.masks import MaskStrategy
from opensora_lite.prompts import clean_caption, prompts_per_loop, split_prompt
from opensora_lite.request import MAX_AREA, Settings, check_size
from opensora_lite.schedule import Schedule, space_timesteps
from opensora_lite.tools import cli, sweep
from opensora_lite.tools.parameters import check_parameters

pytestmark = pytest.mark.filterwarnings("ignore::opensora_lite.errors.Note")  # sizes are rounded

CASES = int(os.environ.get("OPENSORA_FUZZ", 2000))
SECONDS = 60  # of processor time, after which a case hangs; nearly all take milliseconds
SHARES = {}  # test -> its share of the cases
ran = Counter()  # test -> cases
results = Counter()  # test, and whether it was "taken" or "refused" -> cases


def fuzz(share: float, **arguments):
    """A test for `share` of the cases, each of which ends in time and is counted."""

    def decorate(test):
        name = test.__name__
        SHARES[name] = share

        def one_case(**values):
            ran[name] += 1
            with in_time():
                results[name, "refused" if test(**values) is None else "taken"] += 1

        one_case.__name__, one_case.__doc__ = name, test.__doc__
        checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
        bounds = dict(max_examples=round(share * CASES), deadline=None, database=None, suppress_health_check=checks)
        return settings(**bounds, derandomize=CASES == 2000)(given(**arguments)(one_case))

    return decorate


@contextlib.contextmanager
def in_time():
    """An AssertionError after SECONDS of processor time, or ten times as long without any."""

    def late(*_):
        raise AssertionError("this does not end")

    before = {number: signal.signal(number, late) for number in (signal.SIGVTALRM, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def both(library, kind, naive):
    """What the library gives; None where it raises `kind` and the naive reading refuses, too."""
    try:
        expected = naive()
    except Refused:
        with pytest.raises(kind) as caught:
            library()
        message = str(caught.value)
        assert len(message) > 10 and all(line.isprintable() or line == "" for line in printable_lines(message))
        return None
    found = library()
    assert same(found, expected), (found, expected)
    return found


def printable_lines(message: str) -> list[str]:
    """Its lines; half characters are shown as escapes by whatever prints them."""
    return message.encode(errors="backslashreplace").decode().splitlines()


def same(a, b) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else a == b


def texts(*pieces: str):
    """Any text, half characters included; and text made of what is looked for."""
    pieces = st.lists(st.sampled_from([*pieces, " ", "\n", "0", "-1", ";", ",", "a", "\ud800", "\u202e", "٣"]))
    return st.one_of(st.text(st.characters(exclude_categories=())), pieces.map("".join))


# ---------------------------------------------------------------------------------------------------- mask strategies


ODD_FIELD = st.sampled_from(
    ["", " ", "all", "0.4", "+1", "1_0", "٣", "1e-3", ".5", "0.99999999", "nan", "9" * 5000, "0_0", "-0", "1.", "7"]
)


@st.composite
def strategy_cases(draw):
    """(text, frames of a loop, frames of the references, loops); most of the texts fit the rest."""
    frames, loops = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(1, 6), min_size=draw(st.sampled_from([0, 1, 1])), max_size=3))
    segments = []
    for _ in range(draw(st.integers(1, 4))):
        loop = draw(st.integers(0, loops - 1))
        available = [*lengths, *[frames] * loop] or [1]
        reference = draw(st.integers(0, len(available) - 1))
        source, target = draw(st.integers(0, available[reference] - 1)), draw(st.integers(0, frames - 1))
        most = min(available[reference] - source, frames - target)
        length = draw(st.one_of(st.just("all"), st.integers(1, most), st.just(most + 1)))
        source -= available[reference] * draw(st.booleans())
        target -= frames * draw(st.booleans())
        ratio = draw(st.sampled_from(["0", "0", "0.4", "9e-1", ".001", "0.99999999"]))
        fields = [loop, reference, source, target, length, ratio]
        fields = [str(field) for field in fields[: draw(st.integers(1, 6))]]
        if draw(st.integers(0, 9)) == 0:
            fields[draw(st.integers(0, len(fields) - 1))] = draw(ODD_FIELD)
        segments.append(draw(st.sampled_from([",", ",", " , "])).join(fields))
    text = ";".join(segments) if draw(st.integers(0, 4)) else draw(texts("all", "0.4", "0,0", ";;"))
    return text, frames, lengths, loops


@fuzz(0.26, case=strategy_cases())
def test_mask_strategies(case):
    """Where every frame of all loops comes from, and its edit ratio."""
    text, frames, lengths, loops = case

    def library():
        strategy = MaskStrategy.parse(text)
        strategy.explain(frames, lengths, loops)
        assert MaskStrategy.parse(strategy.format()) == strategy
        made = strategy.resolve(frames, lengths, loops)
        return [[None if f.segment is None else (f.reference, f.frame, f.edit_ratio) for f in loop] for loop in made]

    return both(library, MaskStrategyError, lambda: naive_frames(naive_segments(text), frames, lengths, loops))


# -------------------------------------------------------------------------------------------------------------- prompts


def naive_split(prompt: str):
    """The text before the first bracket, and the JSON object from there on."""
    start = min((prompt.find(bracket) % (len(prompt) + 1) for bracket in "{["), default=0)
    if start == len(prompt):
        return prompt, {}

    def without_repeats(pairs):
        if len(dict(pairs)) < len(pairs):
            raise Refused
        return dict(pairs)

    try:
        info = json.loads(prompt[start:].strip(), object_pairs_hook=without_repeats)
    except (ValueError, RecursionError):
        raise Refused from None
    if not isinstance(info, dict) or not info.keys() <= {"reference_path", "mask_strategy"}:
        raise Refused
    for key, value in info.items():
        texts = value if key == "reference_path" and isinstance(value, list) and value else [value]
        if not all(isinstance(text, str) for text in texts):
            raise Refused
    return prompt[:start], info


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.sampled_from(["0", "a.png", "C:\\new"])),
    lambda values: st.one_of(st.lists(values, max_size=3), st.dictionaries(st.text(max_size=3), values, max_size=2)),
    max_leaves=4,
)
KEY = st.sampled_from(["reference_path", "mask_strategy"] * 3 + ["mask", ""])
PATH = st.one_of(st.text(max_size=5), st.sampled_from(["a.png", "a\x1fb", "a\nb", "a b"]))
PATHS = st.one_of(PATH, st.lists(PATH, max_size=3))
SUFFIX = st.one_of(
    st.dictionaries(KEY, st.one_of(PATHS, PATHS, JSON), max_size=2).map(json.dumps),
    st.dictionaries(KEY, PATHS, max_size=2).map(lambda info: json.dumps(info, ensure_ascii=False)),
    st.lists(st.tuples(KEY, st.one_of(PATHS, PATHS, JSON)), max_size=3).map(
        lambda pairs: "{" + ", ".join(f'"{key}": {json.dumps(value)}' for key, value in pairs) + "}"
    ),
    texts(
        "{", "}", "[", "]", '"', ":", "'", "\\", "\\u12", '"reference_path"', '"mask_strategy"', '"a.png"', "9" * 5000
    ),
)


@fuzz(
    0.15,
    text=st.one_of(st.just("a red car"), texts("a cat", "|0|")),
    suffix=SUFFIX,
    end=st.sampled_from(["", "", " ", "\n", "\u2028", "x", "{}"]),
)
def test_prompts_with_suffixes(text, suffix, end):
    prompt = text + suffix + end
    return both(lambda: split_prompt(prompt), PromptError, lambda: naive_split(prompt))


def naive_captions(prompt: str, loops: int) -> list[str]:
    """The caption of each loop, looked up anew for each: the last entry that has started."""
    if not prompt.lstrip().startswith("|"):
        return [naive_clean(prompt)] * loops
    parts = prompt.lstrip()[1:].split("|")
    try:
        starts = [int(part) for part in parts[::2]]
    except ValueError:
        raise Refused from None
    if len(parts) % 2:
        raise Refused
    entries = dict(zip(starts, map(naive_clean, parts[1::2]), strict=True))
    if starts != sorted(set(starts)) or starts[0] != 0 or starts[-1] >= loops:
        raise Refused
    return [entries[max(start for start in starts if start <= loop)] for loop in range(loops)]


def naive_clean(caption: str) -> str:
    """Cleaning itself has the original's outputs to go by (tests/unit/test_prompts.py); here its errors count."""
    try:
        cleaned = clean_caption(caption) if len(caption) <= 4000 else ""
    except PromptError:
        cleaned = ""
    if not cleaned:
        raise Refused
    return cleaned


CAPTION = st.one_of(
    st.sampled_from(["a red car", "A Boat at Night", "the OCEAN", "free shipping", "一只猫", ""]), texts("<b>", "&#")
)
ENTRIES = st.dictionaries(st.integers(0, 4), CAPTION, min_size=1, max_size=4).map(lambda drawn: sorted(drawn.items()))
ANY_ENTRIES = st.lists(st.tuples(st.integers(0, 2), CAPTION), max_size=3).map(lambda drawn: [(0, "a cat"), *drawn])
SCHEDULE = st.one_of(ENTRIES, ENTRIES, ANY_ENTRIES).map(
    lambda entries: "".join(f"|{start}|{caption}" for start, caption in entries)
)


@fuzz(0.1, prompt=st.one_of(SCHEDULE, SCHEDULE, CAPTION, texts("|0|", "|1|", "|")), loops=st.integers(1, 6))
def test_schedules_of_prompts(prompt, loops):
    return both(lambda: prompts_per_loop(prompt, loops), PromptError, lambda: naive_captions(prompt, loops))


@fuzz(
    0.1, text=texts("<!", "&#", "&amp;", "%41", "http://a.com", "@b", "#12", "x.png", "-", "_", "1x1", "_a1a1", "\x00")
)
def test_captions_are_words_and_single_spaces(text):
    try:
        caption = clean_caption(text)
    except PromptError:
        return None
    caption.encode()
    assert caption == " ".join(caption.split())
    return caption


# ----------------------------------------------------------------------------------------------- steps, sizes, settings


def naive_spacing(text: str, times: int) -> list[int]:
    """Of guided-diffusion's respace.py, which Open-Sora took its samplers from, as it stands there."""
    try:
        if text.startswith("ddim"):
            desired = int(text[len("ddim") :])
            for i in range(1, times):
                if len(range(0, times, i)) == desired:
                    return list(range(0, times, i))
            raise Refused
        counts = [int(x) for x in text.split(",")]
    except ValueError:
        raise Refused from None
    size_per, extra = divmod(times, len(counts))
    start, all_steps = 0, []
    for i, count in enumerate(counts):
        size = size_per + (1 if i < extra else 0)
        if size < count or count < 1:  # ours: the original takes 0 and -3 for no steps
            raise Refused
        stride = 1 if count <= 1 else (size - 1) / (count - 1)
        current = 0.0
        for _ in range(count):
            all_steps.append(start + round(current))
            current += stride
        start += size
    return all_steps


COUNT = st.one_of(st.integers(-1, 1100), st.integers(1, 30))
SPACING = st.one_of(
    COUNT.map(str),
    st.lists(COUNT, min_size=1, max_size=5).map(lambda counts: ",".join(map(str, counts))),
    COUNT.map("ddim{}".format),
    texts("ddim", "25", "1_0", "9" * 5000),
)


@fuzz(0.08, spacing=SPACING, times=st.one_of(st.just(1000), st.integers(1, 1000)))
def test_schedules_of_steps(spacing, times):
    found = both(lambda: space_timesteps(spacing, times), OpenSoraError, lambda: naive_spacing(spacing, times))
    if found and times == 1000:
        schedule = Schedule(spacing)
        assert found == sorted(set(found)) and len(schedule) == len(found)
        assert all(np.isfinite(value).all() for value in vars(schedule).values())
    return found


HUGE = 10**30
WHOLE = st.one_of(
    st.integers(), st.integers(-2, 40), st.sampled_from([HUGE, -HUGE, 2**63, np.int64(8), True, None, 1.5, "8"])
)
SIDE = st.one_of(st.integers(1, 300).map(lambda n: 8 * n), st.integers(-20, 9000), WHOLE)


def naive_size(size) -> tuple[int, int]:
    sides = [size, size] if isinstance(size, (int, np.integer)) else size
    if not isinstance(sides, (list, tuple)) or len(sides) != 2:
        raise Refused
    if not all(isinstance(side, (int, np.integer)) and side >= 8 for side in sides):
        raise Refused
    if int(sides[0]) * int(sides[1]) > MAX_AREA:
        raise Refused
    return int(sides[0]) // 8 * 8, int(sides[1]) // 8 * 8


@fuzz(0.08, size=st.one_of(SIDE, st.tuples(SIDE, SIDE), st.lists(SIDE, max_size=3), st.text(max_size=3)))
def test_sizes(size):
    return both(lambda: check_size(size), SizeError, lambda: naive_size(size))


VALUES = {
    "num_frames": WHOLE,
    "image_size": st.one_of(st.just((64, 64)), st.tuples(SIDE, SIDE)),
    "fps": WHOLE,
    "frame_interval": WHOLE,
    "sampler": st.sampled_from(["iddpm", "ddim", "dpm-solver", "euler", "", None, ["ddim"]]),
    "num_sampling_steps": WHOLE,
    "guidance_scale": st.one_of(st.floats(), WHOLE, st.just(4.0)),
    "cfg_channel": WHOLE,
    "loops": WHOLE,
    "condition_frames": WHOLE,
    "seed": WHOLE,
    "batch_size": WHOLE,
    "num_sample": WHOLE,
}
SMALL = st.integers(0, 6)
LOOPS = st.fixed_dictionaries(dict(num_frames=SMALL, loops=st.integers(1, 9), condition_frames=SMALL))
CHOSEN = st.one_of(
    st.lists(st.sampled_from(list(VALUES)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: VALUES[name] for name in names})
    ),
    LOOPS,
)


def naive_settings(num_frames=16, image_size=(256, 256), fps=24, frame_interval=3, sampler="iddpm",
                   num_sampling_steps=100, guidance_scale=7.0, cfg_channel=3, loops=1, condition_frames=None, seed=42,
                   batch_size=1, num_sample=1):  # fmt: skip
    """(frames of the finished video, its rate)"""

    def whole(value, least, most):
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and least <= value <= most

    naive_size(image_size)
    num_frames = 8 if num_frames == "8" else num_frames  # these two may be text: "4s", "29.97"
    fps = 8 if fps == "8" else fps
    if not (
        whole(num_frames, 1, 10_000) and whole(frame_interval, 1, 1000)
        and isinstance(fps, (int, float, np.integer)) and not isinstance(fps, bool)
        and 1 <= fps <= 1000 and fps / frame_interval >= 0.01
        and whole(num_sampling_steps, 2, 1000) and whole(loops, 1, 1000) and whole(seed, 0, 2**63 - 1)
        and whole(batch_size, 1, 10_000) and whole(num_sample, 1, 10_000)
        and sampler in ("iddpm", "ddim", "dpm-solver") and (cfg_channel is None or type(cfg_channel) is int)
        and (cfg_channel is None or 1 <= cfg_channel <= 4)
        and isinstance(guidance_scale, (int, float, np.integer)) and not isinstance(guidance_scale, bool)
        and -1000 <= guidance_scale <= 1000
        and (condition_frames is None if loops == 1 else whole(condition_frames, 1, num_frames - 1))
    ):  # fmt: skip
        raise Refused
    frames = 0
    for loop in range(int(loops)):
        frames += num_frames - (condition_frames if loop else 0)
    return frames, float(fps) / int(frame_interval)


@fuzz(0.09, chosen=CHOSEN)
def test_settings(chosen):
    def library():
        made = Settings(**chosen)
        assert repr(made)
        return made.total_frames, made.video_fps

    return both(library, OpenSoraError, lambda: naive_settings(**chosen))


KINDS = {
    str: lambda value: isinstance(value, str),
    int: lambda value: type(value) is int,
    float: lambda value: type(value) in (int, float),
    bool: lambda value: type(value) is bool,
    str | None: lambda value: value is None or isinstance(value, str),
    list[int]: lambda value: isinstance(value, list) and all(type(item) is int for item in value),
    list[str] | None: lambda value: value is None or (isinstance(value, list) and {type(i) for i in value} <= {str}),
    dict: lambda value: isinstance(value, dict),
}


USUAL = st.sampled_from(["", "a", None, True, False, 2, -1.5, [1, 2], ["a"], [], {"a": 1}, [1, "a"]])
VALUE = st.one_of(USUAL, USUAL, JSON, WHOLE)


@fuzz(0.05, name=st.sampled_from(["steps", "steps", "x"]), kind=st.sampled_from(list(KINDS)), value=VALUE)
def test_parameters_of_notebooks(name, kind, value):
    def naive():
        if name != "steps" or not KINDS[kind](value):
            raise Refused
        return True

    if type(value) is np.int64:  # papermill hands over JSON
        value = int(value)
    return both(lambda: check_parameters({"steps": kind}, {name: value}) is None, OpenSoraError, naive)


# -------------------------------------------------------------------------------------------------------- command lines


FRAME = "frame_0000.png"


class Film:
    """What the stand-in makes: its number of frames under the name that it is saved as, or in a folder of that name."""

    def __init__(self, frames: int):
        self.frames = frames

    def save(self, path: Path) -> Path:
        file = path if path.suffix else path / FRAME
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(self.frames))
        return path


class StandIn:
    """For OpenSora: no model, and films that are only counted."""

    class text:
        max_length = 8

        def count_tokens(caption):
            return len(caption.split())

    def generate(self, jobs, settings, on_step=None, trace=None):
        for job in jobs:
            on_step(None)
            yield job, Film(settings.total_frames)


def nothing(*_, **__):
    raise OpenSoraError("this far, and no further")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The working folder, with a picture and a clip of 5 frames; models, training and sweeps are stood in for."""
    from opensora_lite import Video

    folder = tmp_path_factory.mktemp("fuzz")
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Video(frames[:1]).save("a.png")
        Video(frames).save("b.mp4")
        (folder / "grid.yaml").write_text("grid: {seed: [0]}")
        (folder / "prompts.txt").write_text("a red car\n\na boat")
        patch.setattr(pipeline.OpenSora, "from_pretrained", lambda *_, **__: StandIn())
        patch.setattr(evaluate, "evaluate", nothing)
        patch.setattr(training, "train", nothing, raising=False)
        patch.setattr(sweep, "sweep", nothing)
        yield folder


def command(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, on a terminal that knows ASCII alone."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(arguments)
        except SystemExit as end:  # argparse's way
            code = end.code
    return code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


def files() -> dict[str, str | None]:
    """Every file below the working folder, and what is in it where that is a film of the stand-in."""
    found = (path for path in Path().rglob("*") if path.is_file())
    return {str(path): path.read_text() if path.stat().st_size < 8 else None for path in found}


STRATEGIES = ["0", "0", "0;0,1,0,-1,1", "0,0,-4,0,4", "0,0,0,0,all,0.4", "0,0,0,0,5,0.4", "0;0", "0;1,0,0,3",
              "0,0,0,0,1,1e-9", "0,5", "1", "x", ""]  # fmt: skip
REFERENCES = ["a.png", "b.mp4", "a.png;b.mp4", "b.mp4; a.png", "none.png", "a.png;", "grid.yaml"]
PAIRS = [
    ("a.png", "0"),
    ("a.png", "0;0"),
    ("a.png", "0,0,0,-1;0"),
    ("b.mp4", "0,0,-4,0,4"),
    ("a.png;b.mp4", "0;0,1,0,-2,2,0.4"),
]
INFO = st.one_of(
    st.just({}),
    st.sampled_from([{"reference_path": path, "mask_strategy": strategy} for path, strategy in PAIRS]),
    st.fixed_dictionaries(
        {}, optional={"reference_path": st.sampled_from(REFERENCES), "mask_strategy": st.sampled_from(STRATEGIES)}
    ),
)
NASTY = "a/b: <c>\t\u202ed.mp4"
PROMPT = st.tuples(
    st.sampled_from(
        ["a red car", "A boat.", "a cat", "the OCEAN", "|0|a car|1|a boat", "a [cat]", "一只猫", "~root", NASTY]
    ),
    INFO,
).map(lambda drawn: drawn[0] + (json.dumps(drawn[1]) if drawn[1] else ""))
FLAGS = {
    "--num-frames": st.sampled_from(["1", "4", "5", "8", "16", "0", "99999", "x"]),
    "--image-size": st.sampled_from([("64", "64"), ("8", "80"), ("7", "8"), ("99999992", "8"), ("8",)]),
    "--fps": st.sampled_from(["8", "24", "1001", "60"]),
    "--loop": st.sampled_from(["1", "2", "2", "3", "0", "1000000000"]),
    "--condition-frame-length": st.sampled_from(["1", "2", "3", "99"]),
    "--cfg_scale": st.sampled_from(["1", "7.5", "-2", "nan", "1e9"]),
    "--cfg-channel": st.sampled_from(["0", "3", "5"]),
    "--num-sample": st.sampled_from(["1", "2", "1000000000"]),
    "--seed": st.sampled_from(["0", "9" * 30]),
    "--save-format": st.sampled_from(["mp4", "webm", "gif", "webp", "png", "avi"]),
    "--sample-name": st.sampled_from(["name", "a.b", "~", "é", "", "a/b", "..", "x" * 300]),
    "--prompt-as-path": st.just(()),
    "--overwrite": st.just(()),
    "--reference-path": st.sampled_from(REFERENCES),
    "--mask-strategy": st.sampled_from(STRATEGIES),
    "--model": st.sampled_from(["tiny", "", "none"]),
}
CHOSEN_FLAGS = st.lists(st.sampled_from(list(FLAGS)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: FLAGS[name] for name in names})
)


def naive_request(prompts: list[str], flags: dict) -> dict[str, str]:
    """The films that a command makes: name -> its number of frames."""

    def number(name, kind=int, default=None):
        try:
            return kind(flags[name]) if name in flags else default
        except ValueError:
            raise Refused from None

    chosen = {
        "num_frames": number("--num-frames", default=16),
        "fps": number("--fps", default=24),
        "frame_interval": 1,
        "loops": number("--loop", default=1),
        "condition_frames": number("--condition-frame-length"),
        "guidance_scale": number("--cfg_scale", float, 4.0),
        "cfg_channel": number("--cfg-channel", default=0) or None,
        "num_sample": number("--num-sample", default=1),
        "seed": number("--seed", default=42),
        "image_size": tuple(map(int, flags.get("--image-size", (64, 64)))),
        "num_sampling_steps": 30,
    }
    total, rate = naive_settings(**chosen)
    form, name = flags.get("--save-format", "png" if total == 1 else "mp4"), flags.get("--sample-name", "sample")
    if form == "avi" or flags.get("--model", "tiny") != "tiny" or (form == "gif" and rate > 50):
        raise Refused
    if name in ("", "..", "a/b", "x" * 300) or ("--sample-name" in flags and "--prompt-as-path" in flags):
        raise Refused
    loops, frames = chosen["loops"], chosen["num_frames"]
    films = {}
    for index, prompt in enumerate(prompts):
        text, info = naive_split(prompt)
        naive_captions(text, loops)
        given = [("--reference-path", "reference_path"), ("--mask-strategy", "mask_strategy")]
        if any(flag in flags and len(prompts) > 1 for flag, _ in given):  # one value for several prompts
            raise Refused
        paths, strategy = (info.get(key, flags.get(flag)) for flag, key in given)
        lengths = [{"a.png": 1, "b.mp4": 5}.get(path.strip()) for path in paths.split(";")] if paths else []
        if None in lengths or (lengths and strategy is None):
            raise Refused
        segments = [] if strategy is None else naive_segments(strategy)
        naive_frames(segments, frames, lengths, loops)
        if {segment[1] for segment in segments} < set(range(len(lengths))):
            raise Refused
        if any(segment[5] and int(np.float32(segment[5]) * np.float32(30)) == 0 for segment in segments):
            raise Refused
        taken = chosen["condition_frames"] or 0
        later = [[loop, len(lengths) + loop - 1, -taken, 0, taken, 0.0] for loop in range(1, loops)]
        for k, segment in enumerate(segments):  # is anything of it left in the end?
            marked = [[*s[:5], i / 100] for i, s in enumerate(segments + later)]
            if k / 100 not in {f[2] for f in naive_frames(marked, frames, lengths, loops)[segment[0]] if f}:
                raise Refused
        for sample in range(chosen["num_sample"]):
            stem = f"{name}_{index}"
            if "--prompt-as-path" in flags:
                stem = {"A boat.": "A boat", NASTY: "a_b_ _c_d.mp4"}.get(text, text.replace("|", "_"))
            if form == "png" and total > 1:
                stem = stem.replace(".", "_")
            stem += f"-{sample}" if chosen["num_sample"] > 1 else ""
            film = f"samples/{stem}" + (f"/{FRAME}" if form == "png" and total > 1 else f".{form}")
            if film in films:
                raise Refused
            films[film] = str(total)
    return films


@fuzz(0.05, prompts=st.lists(PROMPT, min_size=1, max_size=3), flags=CHOSEN_FLAGS)
def test_whole_commands(prompts, flags):
    """Twice: all that was asked for is there, then nothing that exists is touched."""
    shutil.rmtree("samples", ignore_errors=True)
    before = files()
    words = ["generate", "--prompt", *prompts]
    for flag, value in flags.items():
        words += [flag, *([value] if isinstance(value, str) else value)]
    code, out, err = command(words)
    try:
        expected = naive_request(prompts, flags)
    except Refused:
        assert (code, files()) == (2, before) and "error: " in err and "Traceback" not in err, (words, code, err)
        return None
    assert (code, err) == (0, ""), (words, err)
    assert files() == before | expected and out.count("saved ") == len(expected)
    for film in expected:
        Path(film).write_text("mine")
    code, out, err = command(words)
    whole = dict.fromkeys(expected, "mine")
    if "--overwrite" in flags:
        assert code == 0 and files() == before | expected
    elif "--prompt-as-path" in flags:
        assert code == 0 and files() == before | whole and out.count("exists and is skipped") == len(expected)
    else:
        assert code == 2 and files() == before | whole and "--overwrite" in err
    return expected


WORD = st.sampled_from(
    ["--prompt", "--prompt-path", "prompts.txt", "grid.yaml", "0", "--out", "out", "--set", "seed=1", "seed=[", "=",
     "--references", "--loop", "--compare", "--num_frames", "--workers", "--scheduler", "--notebook", "first_steps",
     "a red car", "-1", "--", "--help", "--overwrite", "--prepare", "--model", "tiny", "--prompts", "--runs", "a.png",
     "--sampler", "ddim", "1e3", "{}", "x" * 300]
)  # fmt: skip
FIRST = st.sampled_from(
    [["generate"], ["explain"], ["evaluate"], ["train"], ["sweep"], ["generate", "--prompt", "a red car"],
     ["generate", "--prompt-path", "prompts.txt"], ["explain", "0"], ["evaluate", "--out", "out"],
     ["train", "first_steps", "--out", "out"], ["sweep", "grid.yaml", "--out", "out"]]
)  # fmt: skip
MORE = st.lists(st.one_of(WORD, WORD, st.text(st.characters(exclude_characters="/~\0"), max_size=6)), max_size=4)


@fuzz(0.04, first=FIRST, more=MORE)
def test_any_words(first, more):
    """A command ends with 0, or with 2 and a message, and then has written nothing."""
    words = first + more
    shutil.rmtree("samples", ignore_errors=True)
    before = files()
    code, out, err = command(words)
    assert code in (0, 2) and "Traceback" not in err, (words, code, err)
    if code == 2:
        assert "error: " in err and files() == before
        return None
    assert out
    return code


def test_the_number_of_cases():
    """As many as promised, and both outcomes in every test; with -s it prints them."""
    if ran.keys() != SHARES.keys():
        pytest.skip("only some of the fuzz tests were run")
    for name, cases in ran.items():
        print(f"\n{name}: {cases} cases, {results[name, 'taken']} taken, {results[name, 'refused']} refused", end="")
        assert min(results[name, "taken"], results[name, "refused"]) >= cases / 50
    print(f"\n{sum(ran.values())} cases in all")
    assert sum(SHARES.values()) == pytest.approx(1) and sum(ran.values()) >= CASES
