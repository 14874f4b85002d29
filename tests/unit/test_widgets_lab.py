"""TaskLab without a browser: the checks of its form, runs, cancelling, failures, results, and its code."""

import io
import itertools
import shlex
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("anywidget", reason="needs the widgets: pip install -e '.[notebook]'")

from opensora_lite.widgets import TaskLab
from opensora_lite.widgets import lab as lab_module
from opensora_lite.widgets.lab import Request
from opensora_lite.widgets.request_code import command_line, python_code
from opensora_lite.widgets.widget import encoded

from opensora_lite import MaskStrategy, OpenSora, OpenSoraError, Settings, Video, read_video
from opensora_lite.errors import MaskStrategyError, MediaError, Note, PromptError, SizeError, note
from opensora_lite.generations import OPEN_SORA_12
from opensora_lite.liteworld import world
from opensora_lite.pipeline import Progress
from opensora_lite.request import ModelSpec, model_defaults, model_spec, released_settings
from opensora_lite.tools import cli

TINY = model_defaults("tiny")[0]


class Tensor(np.ndarray):
    """The part of a Paddle tensor's interface that previews use."""

    def numpy(self):
        return np.asarray(self)


class FakePipe:
    """A pipeline that makes noise of the seed; it waits at every step until `gate` is open."""

    def __init__(self):
        self.settings, self.spec = TINY, model_spec("tiny")
        self.gate = threading.Event()
        self.gate.set()
        self.seconds_per_step = 0.0  # as reported
        self.steps, self.decoded, self.error = 0, [], None

    def generate(self, jobs, settings, on_step):
        (job,) = jobs
        height, width = settings.image_size
        latents = np.zeros((1, 4, settings.num_frames, height // 8, width // 8), np.float32).view(Tensor)
        for loop in range(settings.loops):
            for number in range(1, settings.num_sampling_steps + 1):
                assert self.gate.wait(60)
                if self.error:
                    raise self.error
                self.steps += 1
                step = SimpleNamespace(number=number, x_0=latents, sample=latents, active=None)
                seconds = self.steps * self.seconds_per_step
                on_step(Progress((job,), 0, 1, loop, step, settings.num_sampling_steps, seconds))
        rng = np.random.default_rng(job.seed)
        frames = rng.integers(0, 256, (settings.total_frames, height, width, 3), np.uint8)
        yield job, Video(frames, settings.video_fps, prompt=job.prompt)

    def decode(self, latents):
        self.decoded.append(latents.shape)
        return np.zeros((latents.shape[1], 8 * latents.shape[2], 8 * latents.shape[3], 3), np.uint8)


@pytest.fixture
def fake():
    return FakePipe()


@pytest.fixture
def clip() -> Video:
    return Video(world.render(world.sample_scene(np.random.default_rng(5)), 8, 64, 64))


def quick(pipe, *arguments, **settings) -> TaskLab:
    return TaskLab(pipe, *arguments, **{"num_frames": 4, "num_sampling_steps": 2, **settings})


def page(lab: TaskLab, do: str, **details) -> dict:
    """Sends a message as the page does; returns the reply."""
    replies = []
    lab.send = lambda content, buffers=None: replies.append({**content, "buffers": buffers})
    try:
        lab._handle_custom_msg({"do": do, "id": "7", **details}, [])
    finally:
        del lab.send
    (reply,) = replies
    assert reply["reply"] == "7"
    return reply


# ---------------------------------------------------------------------------------------------------------------------
#   The form
# ---------------------------------------------------------------------------------------------------------------------

INVALID = [
    ({"prompt": ""}, "prompt", PromptError, "empty"),
    ({"prompt": None}, "prompt", PromptError, "text"),
    ({"prompt": 'a car {"mask_strategy": "0"}'}, "prompt", PromptError, "JSON suffix"),
    ({"prompt": "|1|a car"}, "prompt", PromptError, "loop 0"),
    ({"num_frames": 0}, "num_frames", SizeError, "num_frames"),
    ({"num_frames": None}, "num_frames", SizeError, "None"),
    ({"num_frames": 2}, "num_frames", MaskStrategyError, "target_start"),
    ({"image_size": [4, 64]}, "image_size", SizeError, "at least 8"),
    ({"fps": 0.5}, "fps", OpenSoraError, "fps"),
    ({"sampler": "euler"}, "sampler", OpenSoraError, "euler"),
    ({"num_sampling_steps": 1}, "num_sampling_steps", OpenSoraError, "at least 2"),
    ({"guidance_scale": None}, "guidance_scale", OpenSoraError, "number"),
    ({"prompt": "красная машина"}, "prompt", PromptError, "English"),  # T5's tokenizer knows neither word
    ({"loops": 0}, "loops", OpenSoraError, "loops"),
    ({"loops": 2, "condition_frames": 4}, "condition_frames", OpenSoraError, "a loop has 4 frames"),
    ({"condition_frames": 2}, "condition_frames", OpenSoraError, "one loop"),
    ({"seed": -1}, "seed", OpenSoraError, "at least 0"),
    ({"num_sampling_steps": 2}, "timeline", MaskStrategyError, "less than one of 2 steps"),
]


@pytest.mark.parametrize(("values", "field", "error", "text"), INVALID)
def test_an_error_is_reported_for_its_field(fake, clip, values, field, error, text):
    lab = quick(fake, [clip], strategy="0;0,0,0,3,1,0.3", num_sampling_steps=8)
    before, code = dict(lab.form), lab.python_code
    with pytest.raises(error, match=text):
        lab.change(**values)
    assert (lab.form, lab.errors, lab.python_code) == (before, {}, code)  # from Python: nothing changes

    reply = page(lab, "change", values=values)  # from the page: the form keeps the typed values
    assert "failure" not in reply
    assert list(lab.errors) == [field] and text in lab.errors[field]
    assert lab.form == {**before, **values} and lab.python_code == lab.command_line == ""
    assert text in page(lab, "generate")["failure"] and lab.state == "idle"
    with pytest.raises(error):
        lab.generate()

    page(lab, "change", values={name: before[name] for name in values})
    assert lab.errors == {} and lab.python_code == code


def test_several_mistakes_are_said_at_once(fake):
    lab = quick(fake)
    page(lab, "change", values={"prompt": "", "num_sampling_steps": 1, "guidance_scale": None})
    assert set(lab.errors) == {"prompt", "num_sampling_steps", "guidance_scale"}
    lab.change(seed=3)  # is not in the way of what was wrong before
    assert lab.form["seed"] == 3 and len(lab.errors) == 3


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (dict(prompt=" "), PromptError, "empty"),
        (dict(strategy="0"), MaskStrategyError, "no references"),
        (dict(references=["nowhere.png"]), MediaError, "nowhere.png"),
        (dict(num_frames=0), SizeError, "num_frames"),
        (dict(loops=2), OpenSoraError, "condition_frames"),
        (dict(steps=8), TypeError, "unknown setting steps"),
        (dict(num_sample=2), TypeError, "unknown setting num_sample"),
        (dict(model={"folder": "x"}), TypeError, "takes no folder"),
    ],
)
def test_arguments_that_cannot_be(fake, arguments, error, text):
    with pytest.raises(error, match=text):
        TaskLab(fake, **arguments)


def test_unknown_names_are_refused(fake):
    lab = quick(fake)
    with pytest.raises(TypeError, match="TaskLab has no steps"):
        lab.change(steps=3)
    assert "TaskLab has no steps" in page(lab, "change", values={"steps": 3})["failure"]
    assert "'dance'" in page(lab, "dance")["failure"]


def test_loops_bring_the_frames_that_they_take_over(fake):
    lab = quick(fake, num_frames=8)
    page(lab, "change", values={"loops": 3})
    assert lab.form["condition_frames"] == 2 and not lab.errors
    assert (lab.timeline.loops, lab.timeline.condition_frames) == (3, 2)
    page(lab, "change", values={"loops": 1})
    assert lab.form["condition_frames"] is None and not lab.errors


def test_the_form_and_the_timeline_keep_step(fake, clip):
    lab = quick(fake, [clip], strategy="0,0,0,0,4")
    lab.change(num_frames=16, image_size=(48, 80))
    assert (lab.timeline.num_frames, lab.timeline.image_size) == (16, (48, 80))
    lab.timeline.change(num_frames=8, strategy="0,0,-2,0,2")
    assert lab.form["num_frames"] == 8
    assert "0,0,-2,0,2" in lab.python_code and "num_frames=8" in lab.python_code

    page(lab, "change", values={"num_frames": 1})  # too few for the strategy: the timeline waits
    assert lab.timeline.num_frames == 8 and "num_frames" in lab.errors
    lab.timeline.strategy = "0"
    assert lab.timeline.num_frames == 1 and lab.errors == {}


def test_a_mistake_in_the_timelines_text_is_in_the_way(fake, clip):
    lab = quick(fake, [clip])
    lab.timeline.set_state({"draft": "0,high"})
    assert lab.timeline.error and "correct or undo it" in lab.errors["timeline"]
    assert "correct or undo it" in page(lab, "generate")["failure"]
    lab.timeline.set_state({"draft": "0"})
    assert lab.errors == {} and 'mask_strategy="0"' in lab.python_code


def test_references_that_are_not_used_stay_out(fake, clip):
    lab = quick(fake, [clip, clip.frames[0], clip.frames[1]], strategy="0,2")
    assert 'references=[reference_0],\n    mask_strategy="0"' in lab.python_code
    lab.generate(wait=True)
    lab.change(strategy=None, references=())
    lab.restore(1)  # with all references
    assert len(lab.timeline.references) == 3 and lab.timeline.text == "0,2"


def test_another_size_is_offered_once_it_is_used(fake):
    lab = quick(fake)
    assert lab.sizes == [(64, 64), (48, 80), (80, 48)]
    lab.change(image_size=(32, 32))
    assert lab.sizes[-1] == (32, 32)


# ---------------------------------------------------------------------------------------------------------------------
#   Runs
# ---------------------------------------------------------------------------------------------------------------------


def test_notes_are_shown_and_are_no_warnings(fake):
    """Of the form as soon as it has them, of a run when it has ended; both are gone when the prompt is changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        lab = quick(fake, prompt="a red zebra")
        assert len(lab.notes) == 1 and "zebra" in lab.notes[0]
        generate = fake.generate

        def noted(*arguments):
            note("the reference is poor")
            yield from generate(*arguments)

        fake.generate = noted
        lab.generate(wait=True)
        assert "zebra" in lab.notes[0] and lab.notes[1:] == ["the reference is poor"]
        page(lab, "change", values={"prompt": "a red car"})
        assert lab.notes == []


def test_the_page_gets_its_fields_from_the_settings(fake):
    fields = {field["name"]: field for field in quick(fake).fields}
    assert (fields["num_sampling_steps"]["least"], fields["num_sampling_steps"]["most"]) == (2, 1000)
    assert fields["fps"]["least"] == 1 and fields["seed"]["least"] == 0 and "camera_motion" not in fields
    assert fields["guidance_scale"]["step"] == "any" and fields["loops"]["step"] == 1


def test_a_lab_of_1_2(fake):
    fake.settings, fake.spec = released_settings(OPEN_SORA_12), ModelSpec(generation=OPEN_SORA_12)
    parts = {"stdit": "a", "t5": "b", "vae": "c"}
    lab = TaskLab(fake, model=parts, num_frames=34, image_size=(64, 64), num_sampling_steps=2)
    assert lab.timeline.state["num_frames"] == 10 and {"aes", "flow", "camera_motion"} < {f["name"] for f in lab.fields}
    lab.change(loops=2, flow=5, camera_motion="pan left")
    assert lab.form["condition_frames"] == 17 and lab.timeline.state["taken_over"] == 5
    assert "camera_motion='pan left'" in lab.python_code and "--camera-motion 'pan left'" in lab.command_line
    x_0 = np.zeros((1, 4, 10, 8, 8), np.float32).view(Tensor)
    lab._make_preview(SimpleNamespace(x_0=x_0, sample=x_0, active=None))
    assert fake.decoded == [(4, 5, 8, 8)]  # the latent frames of a chunk


def test_a_run(fake):
    lab = quick(fake, seed=5, loops=2, condition_frames=1)
    states, stands = [], []
    lab.observe(lambda change: states.append(change["new"]), "state")
    lab.observe(lambda change: stands.append((change["new"]["loop"], change["new"]["step"])), "progress")
    video = lab.generate(wait=True)
    assert states == ["running", "done"] and stands == [(1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert lab.progress["done"] == 1 and lab.progress["left"] == 0
    (result,) = lab.results
    assert result.video is video and len(video) == 7 and result.request.settings.seed == 5
    assert lab.shown == 1 and lab.video == result.media and lab.history[0]["type"] == "video/mp4"
    assert Image.open(io.BytesIO(lab.history[0]["picture"])).size == (196, 64)  # three frames, two gaps


def test_the_page_makes_one_video_at_a_time(fake):
    lab = quick(fake)
    fake.gate.clear()
    assert "failure" not in page(lab, "generate") and lab.state == "running"
    assert "in progress" in page(lab, "generate")["failure"]
    with pytest.raises(OpenSoraError, match="in progress"):
        lab.generate(wait=True)
    assert not lab.wait(0.01)
    fake.gate.set()
    assert lab.wait(60) and lab.state == "done" and len(lab.results) == 1


def test_cancel_takes_effect_at_the_next_step(fake):
    lab = quick(fake, num_sampling_steps=50)
    page(lab, "cancel")  # without a run nothing happens
    assert lab.state == "idle"
    fake.gate.clear()
    page(lab, "generate")
    page(lab, "cancel")
    assert lab.state == "cancelling"
    fake.gate.set()
    assert lab.wait(60) and lab.state == "cancelled" and fake.steps == 1 and lab.results == []
    lab.change(num_sampling_steps=2)
    assert len(lab.generate(wait=True)) == 4 and lab.state == "done"


def test_who_waits_for_a_run_that_is_cancelled_is_told(fake):
    lab = quick(fake, num_sampling_steps=50)
    fake.gate.clear()
    lab.observe(lambda _: (lab.cancel(), fake.gate.set()), "progress")
    with pytest.raises(OpenSoraError, match="the video was cancelled"):
        lab.generate(wait=True)


def test_interrupting_who_waits_cancels(fake, monkeypatch):
    lab = quick(fake, num_sampling_steps=50)
    fake.gate.clear()

    def interrupted(thread, timeout=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lab.generate(wait=True)
    assert lab.state == "cancelling"
    fake.gate.set()
    assert lab.wait(60) and lab.state == "cancelled"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OpenSoraError("the disk is full"), "the disk is full"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_what_goes_wrong_in_a_run_is_said(fake, error, message):
    lab = quick(fake)
    fake.error = error
    with pytest.raises(type(error)):
        lab.generate(wait=True)
    assert (lab.state, lab.failure) == ("failed", message)
    fake.error = None
    page(lab, "generate")
    assert lab.wait(60) and (lab.state, lab.failure) == ("done", "")


def test_previews_are_small_rare_and_gone_in_the_end(fake, monkeypatch):
    """The clock of the run is that of the fake pipeline: a second per step, three seconds per preview."""
    clock = itertools.count(step=3)
    monkeypatch.setattr(lab_module.time, "perf_counter", lambda: float(next(clock)))
    fake.seconds_per_step = 1.0
    lab = quick(fake, num_frames=16, num_sampling_steps=100)
    previews = []
    lab.observe(lambda change: previews.append(change["new"]), "preview")
    lab.generate(wait=True)
    assert set(fake.decoded) == {(4, 4, 8, 8)}  # [C, T, h, w] of four frames
    assert len(fake.decoded) == 1 + 2  # the duration of the first isn't known before; then at most 10 % of 100 seconds
    assert previews[-1] == b"" and all(preview.startswith(b"\xff\xd8") for preview in previews[:-1])


def test_a_run_is_compiled_in_its_thread(pipe):
    engine = pytest.importorskip("opensora_lite.runtime.engine")
    if getattr(engine, "ov", None) is None or not engine.available():
        pytest.skip("needs OpenVINO")
    lab = TaskLab(pipe, num_sampling_steps=30)  # from so many steps on compiling pays off
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the model runs uncompiled", RuntimeWarning)
        assert len(lab.generate(wait=True)) == pipe.settings.num_frames


def test_closing_ends_the_run(fake):
    lab = quick(fake, num_sampling_steps=1000)
    fake.gate.clear()
    lab.generate()
    lab.close()
    fake.gate.set()
    assert lab.wait(60) and fake.steps == 1


# ---------------------------------------------------------------------------------------------------------------------
#   Results
# ---------------------------------------------------------------------------------------------------------------------


def test_the_newest_results_are_kept(fake):
    lab = quick(fake, num_frames=16, image_size=(64, 64))
    lab.generate(wait=True)
    lab.compare(1)
    for seed in range(lab_module.MAX_RESULTS + 1):
        lab.change(seed=seed)
        lab.generate(wait=True)
    assert [result.number for result in lab.results] == list(range(3, 15)) == [e["number"] for e in lab.history]
    assert (lab.dropped, lab.shown, lab.compared) == (2, 14, 0)
    with pytest.raises(OpenSoraError, match="result 1 does not exist; there are 3 to 14"):
        lab.restore(1)
    pictures = sum(len(entry["picture"]) for entry in lab.history)
    assert len(lab.video) + pictures < 250_000  # even of noise, which does not compress


def test_large_videos_are_fetched(fake):
    lab = quick(fake, num_frames=24, image_size=(256, 256))
    lab.generate(wait=True)
    assert lab.video == b"" and len(lab.results[0].media) > lab_module.MAX_SYNCED
    assert page(lab, "video", number=1)["buffers"] == [lab.results[0].media]
    assert "does not exist" in page(lab, "video", number=2)["failure"]


def test_a_single_frame_is_a_picture(fake):
    lab = quick(fake, num_frames=1)
    video = lab.generate(wait=True)
    assert lab.history[0]["type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(lab.video))), video.frames[0])


def test_results_are_shown_compared_and_restored(fake, clip):
    lab = quick(fake, [clip], "a boat", "0,0,0,0,2", seed=1)
    lab.generate(wait=True)
    code = lab.python_code
    lab.change(seed=2, prompt="a car", num_frames=8, strategy="0,0,0,0,8,0.9", sampler="ddim")
    lab.generate(wait=True)
    first, second = lab.results
    assert (lab.shown, lab.video) == (2, second.media)
    page(lab, "show", number=1)
    page(lab, "compare", number=2)
    assert (lab.shown, lab.compared, lab.video) == (1, 2, first.media)
    page(lab, "compare", number=0)
    assert lab.compared == 0
    page(lab, "restore", number=1)
    assert lab.python_code == code and lab.timeline.text == "0,0,0,0,2" and lab.form["prompt"] == "a boat"
    assert np.array_equal(lab.generate(wait=True).frames, first.video.frames)
    assert "there are 1 to 3" in page(lab, "restore", number=9)["failure"]


# ---------------------------------------------------------------------------------------------------------------------
#   Code
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch, clip):
    """A working folder with a picture and a clip under awkward names."""
    monkeypatch.chdir(tmp_path)
    Video(clip.frames[:1]).save("it's a beach.png")
    clip.save("-clip; 2.mp4")
    return tmp_path


ASKED = {
    "text": dict(prompt='a "red" car\'s $HOME', num_frames=3),
    "begins with a dash": dict(prompt="-5 degrees: a --boat_sailing", sampler="ddim", guidance_scale=-1e-5),
    "files": dict(references=["it's a beach.png"], strategy="0", image_size=(48, 80), seed=7),
    "names with ;": dict(references=["it's a beach.png", "-clip; 2.mp4"], strategy="0;0,1,-2,-2,2", fps=12),
    "loops": dict(prompt="|0|a red car|1|a blue car", loops=2, condition_frames=1, cfg_channel=3, frame_interval=2),
}


@pytest.mark.parametrize("name", ASKED)
def test_the_code_makes_the_same_video(pipe, folder, monkeypatch, name):
    lab = quick(pipe, **ASKED[name])
    frames = lab.generate(wait=True).frames

    def loaded(*arguments, **options):
        assert (arguments, options.get("device")) in ((("tiny",), None), ((None,), None))
        return pipe

    monkeypatch.setattr(OpenSora, "from_pretrained", loaded)
    names = {}
    exec(lab.python_code, names)
    assert np.array_equal(names["video"].frames, frames)

    program, *arguments = shlex.split(lab.command_line)
    assert program == "opensora-lite" and cli.main(arguments) == 0
    assert (folder / "samples" / "sample_0.mp4").read_bytes() == lab.results[0].media


def test_the_code_runs_in_a_process_of_its_own(pipe, folder):
    lab = quick(pipe, ["it's a beach.png"], strategy="0")
    video = lab.generate(wait=True)
    program = f"{lab.python_code}\nvideo.save('python.mp4')"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    command = lab.command_line.replace("opensora-lite", f"{shlex.quote(sys.executable)} -m opensora_lite.tools.cli", 1)
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert (folder / "python.mp4").read_bytes() == lab.results[0].media
    assert (folder / "samples" / "sample_0.mp4").read_bytes() == lab.results[0].media
    assert len(read_video("python.mp4")) == len(video)


def test_references_that_are_not_files_get_names(pipe, folder, clip, monkeypatch):
    picture, drawing = clip.frames[:1], Image.fromarray(clip.frames[2])
    lab = quick(pipe, [clip.frames[3], picture, drawing], strategy="0;0,1,0,1;0,2,0,2", num_frames=5)
    video = lab.generate(wait=True)
    assert "# reference_0 is an array uint8 [64, 64, 3], as given to TaskLab\n" in lab.python_code
    assert "# reference_2 is a PIL image 64×64, as given to TaskLab\n" in lab.python_code
    monkeypatch.setattr(OpenSora, "from_pretrained", lambda *_, **__: pipe)
    names = {"reference_0": clip.frames[3], "reference_1": picture, "reference_2": drawing, "Video": Video}
    exec(lab.python_code, names)
    assert np.array_equal(names["video"].frames, video.frames)

    comments = [line for line in lab.command_line.split("\n") if line.startswith("#")]
    assert comments[0].startswith("# First save these references") and len(comments) == 4
    for comment in comments[1:]:
        exec(comment.removeprefix("#").strip(), names)
    assert cli.main(shlex.split(lab.command_line, comments=True)[1:]) == 0
    (folder / "lab.mp4").write_bytes(lab.results[0].media)
    assert np.array_equal(read_video("samples/sample_0.mp4").frames, read_video("lab.mp4").frames)
    assert [r["name"] for r in read_video("samples/sample_0.mp4").info["references"]] != [None] * 3

    lab.change(references=[clip], strategy="0,0,0,0,5,0.6")
    assert "reference_0 is Video(8 frames, 64×64, 24 fps)" in lab.python_code
    assert 'reference_0.save("reference_0.mp4")  # lossy' in lab.command_line
    assert "--reference-path reference_0.mp4" in lab.command_line


def request(prompt: str, settings=TINY) -> Request:
    return Request(prompt, settings, (), MaskStrategy(), (), MaskStrategy())


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_prompt_survives_python_and_the_shell(prompt):
    called = []
    pipe = SimpleNamespace(from_pretrained=lambda model: lambda *arguments, **settings: called.append(arguments))
    code = python_code(request(prompt), TINY, {"model": "tiny"}).split("\n", 1)
    assert code[0] == "from opensora_lite import OpenSora"
    exec(code[1], {"OpenSora": pipe})
    assert called == [(prompt,)]
    if "\0" not in prompt:  # which no program can be given
        words = shlex.split(command_line(request(prompt), TINY, {"model": "tiny"}))
        parsed = cli.parser().parse_args([cli.with_hyphens(word) for word in words[1:]])
        assert parsed.prompt == [prompt]


def test_only_what_differs_from_the_model_stands_in_the_code():
    asked = request("a car", replace(TINY, seed=3, guidance_scale=5.5))
    assert python_code(asked, TINY, {"model": "tiny"}).split("pipe(\n")[1] == (
        '    "a car",\n    guidance_scale=5.5,\n    seed=3,\n)\nvideo'
    )
    assert command_line(request("a car"), TINY, {"model": "tiny"}) == "opensora-lite generate --prompt 'a car'"


def test_the_code_names_the_model_as_it_was_loaded(fake):
    parts = {"stdit": "a b", "t5": "t5", "vae": "vae", "dtype": "bf16", "micro_batch_size": 4}
    asked = request("a car", Settings())
    assert "OpenSora.from_pretrained(stdit='a b', t5='t5', vae='vae', dtype='bf16', micro_batch_size=4)" in python_code(
        asked, Settings(), parts
    )
    words = shlex.split(command_line(asked, Settings(), parts))
    parsed = cli.parser().parse_args(words[1:])
    assert (parsed.stdit, parsed.t5, parsed.vae) == ("a b", "t5", "vae")
    assert (parsed.dtype, parsed.micro_batch_size, parsed.model) == ("bf16", 4, None)
    with pytest.raises(OpenSoraError, match="say how it was loaded"):
        TaskLab(fake, model=parts)
    fake.settings = Settings()
    with pytest.raises(OpenSoraError, match="say how it was loaded"):
        TaskLab(fake)
    lab = TaskLab(fake, model=parts)
    assert lab.sizes[0] == (256, 256) and "--model-pretrained-path 'a b'" in lab.command_line


# ---------------------------------------------------------------------------------------------------------------------
#   Pages without a kernel, and the end of Python
# ---------------------------------------------------------------------------------------------------------------------


def test_what_a_page_without_a_kernel_shows(fake, clip):
    def shown():
        lab = quick(fake, [clip], "a boat", "0")
        lab.generate(wait=True)
        return lab, lab._repr_mimebundle_()[0]

    (lab, bundle), (_, again) = shown(), shown()
    line = 'TaskLab("a boat": 4 frames · 64×64 · iddpm, 2 steps · guidance 4 · seed 42 · 0; 1 result)'
    assert repr(lab) == bundle["text/plain"] == line
    assert bundle["text/html"] == again["text/html"]
    picture, text = lab.still()
    assert text == line and picture.dtype == np.uint8
    page(lab, "change", values={"prompt": ""})
    assert repr(lab) == 'TaskLab("": errors: prompt; 1 result)'
    assert lab.still()[0].shape == picture.shape
    lab.change(prompt="a boat", num_frames=64)  # the timeline is too wide; there is still the result
    assert 100 < lab.still()[0].shape[0] < picture.shape[0]


def test_the_still_picture_is_small(pipe):
    lab = quick(pipe, num_frames=16, num_sampling_steps=8)
    lab.generate(wait=True)
    assert len(encoded(lab.still()[0])) < 60_000
    lab.change(num_frames=64)
    assert len(encoded(lab.still()[0])) < 60_000


def test_python_can_end_while_a_video_is_made(folder):
    program = """
from opensora_lite import OpenSora
from opensora_lite.widgets import TaskLab
lab = TaskLab(OpenSora.from_pretrained("tiny"), num_sampling_steps=1000)
lab.generate()
lab.wait(1)
print(lab.state)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "running"), done.stderr
