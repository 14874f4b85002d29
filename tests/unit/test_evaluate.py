"""The measure itself: fixed prompts, verdicts of known clips, distances with a closed form, one run."""

import json
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image

from opensora_lite import MaskStrategy, Settings, Video
from opensora_lite.errors import OpenSoraError
from opensora_lite.generations import OPEN_SORA_12
from opensora_lite.liteworld import evaluate as measure
from opensora_lite.liteworld.describe import Description
from opensora_lite.liteworld.evaluate import Report, compare, evaluate, features, frechet, picture, psnr, save
from opensora_lite.liteworld.world import (
    CAMERA_MOTIONS,
    COLORS,
    DIRECTIONS,
    MOTION_SCORES,
    PLACES,
    SUBJECTS,
    TIMES,
    Scene,
    caption,
    render,
    sample_layout,
)
from opensora_lite.request import ModelSpec
from opensora_lite.tools import cli

SMALL = dict(num_frames=6, image_size=(64, 64), frame_interval=1)


# ---------------------------------------------------------------------------------------------------------- prompts


def test_the_prompts_are_these():
    prompts = [caption(scene) for scene in measure.scenes()]
    assert len(set(prompts)) == len(prompts) == 100
    assert prompts[:3] == [
        "the ocean at sunrise",
        "a red car driving left on the city at noon",
        "a blue boat sailing right on the desert at sunset",
    ]
    assert prompts[-2:] == ["a red bird flying right over the desert at night", "a cyberpunk-style meadow"]


def test_the_prompts_are_balanced():
    scenes = measure.scenes()
    moving = [scene for scene in scenes if scene.subject]
    assert Counter(scene.place for scene in scenes) == dict.fromkeys(PLACES, 25)
    assert Counter(scene.time for scene in scenes) == dict.fromkeys(TIMES, 20)
    assert Counter(scene.subject for scene in scenes) == {None: 12, **dict.fromkeys(SUBJECTS, 22)}
    assert Counter(scene.direction for scene in moving) == dict.fromkeys(DIRECTIONS, 44)
    assert set(Counter(scene.color for scene in moving).values()) == {14, 15, 16}
    for one, other in (("subject", "color"), ("subject", "direction"), ("color", "direction"), ("place", "subject")):
        pairs = Counter((getattr(scene, one), getattr(scene, other)) for scene in moving)
        even = len(moving) / len(pairs)
        assert len(pairs) == len({a for a, _ in pairs}) * len({b for _, b in pairs})
        assert 0.7 * even < min(pairs.values()) <= max(pairs.values()) < 1.4 * even
    assert {scene.subject for scene in scenes[:12]} == {None, *SUBJECTS}  # what the picture shows
    assert {scene.place for scene in scenes[:12]} == set(PLACES) and {scene.time for scene in scenes[:12]} == set(TIMES)


# --------------------------------------------------------------------------------------------------------- verdicts


def drawn(*words, seed=0, **sizes):
    return render(sample_layout(Scene(*words), np.random.default_rng(seed)), **sizes)


def test_a_verdict_has_an_entry_for_what_the_caption_says():
    scene = Scene("ocean", "sunrise", "car", "red", "left")
    _, right = measure.verdict(scene, drawn("ocean", "sunrise", "car", "red", "left"))
    names = {"place", "time", "subject", "color", "direction", "together", "goes left", "sun rises"}
    assert right == dict.fromkeys(names, True)

    seen, right = measure.verdict(scene, drawn("ocean", "sunrise", "car", "green", "right"))
    wrong = {name for name, is_right in right.items() if not is_right}
    assert wrong == {"color", "direction", "goes left", "together"}
    assert (seen.color, seen.direction) == ("green", "right")

    # a subject that nobody asked for is wrong; its color is not asked about
    _, right = measure.verdict(Scene("ocean", "noon"), drawn("ocean", "noon", "car", "red", "left"))
    assert right == {"place": True, "time": True, "subject": False, "together": False}


def test_a_sun_must_move_the_right_way():
    rising = drawn("ocean", "sunrise", num_frames=10)
    still = rising[5:6].repeat(10, axis=0)
    for clip, time, expected in (
        (rising, "sunrise", True),
        (rising[::-1], "sunrise", False),
        (still, "sunrise", False),
        (still, "sunset", False),
        (drawn("ocean", "sunset", num_frames=10), "sunset", True),
    ):
        _, right = measure.verdict(Scene("ocean", time), clip)
        assert right["sun rises" if time == "sunrise" else "sun sinks"] is expected
    # the pace is that of the clip's own clock
    assert measure.verdict(Scene("ocean", "sunrise"), drawn("ocean", "sunrise", fps=48), 48)[1]["sun rises"]


def test_steadiness_is_that_of_the_prompted_subject():
    frames = drawn("desert", "noon", "car", "red", "left", num_frames=6)
    assert measure.steadiness(Scene("desert", "noon"), frames) is None
    assert measure.steadiness(Scene("desert", "noon", "car", "red", "left"), frames) == 1.0
    assert measure.steadiness(Scene("desert", "noon", "car", "blue", "left"), frames) == 0.0
    assert measure.steadiness(Scene("desert", "noon", "car"), drawn("desert", "noon", num_frames=6)) == 0.0


# --------------------------------------------------------------------------------------------------- Open-Sora 1.2

FLOW = Settings(num_frames=17, image_size=(64, 64), frame_interval=1, sampler="rectified-flow", cfg_channel=None)


def test_prompts_of_1_2_say_how_the_camera_and_the_subject_move():
    scenes = measure.scenes(100, FLOW)
    assert [replace(scene, camera="static", motion_score=None) for scene in scenes] == measure.scenes()
    assert Counter(scene.camera for scene in scenes) == dict.fromkeys(CAMERA_MOTIONS, 20)
    for place_or_time in ("place", "time"):
        assert len({(scene.camera, getattr(scene, place_or_time)) for scene in scenes}) in (20, 25)
    scores = Counter(scene.motion_score for scene in scenes)
    assert scores[None] == 12 and min(scores[score] for score in MOTION_SCORES) > 25
    assert {scene.motion_score for scene in measure.scenes(100, replace(FLOW, num_frames=51))} == {None, 3}
    assert measure.prompt_of(scenes[1], FLOW).startswith("a red car driving left on the city at noon motion score: ")
    assert "camera motion: pan left." in measure.prompt_of(scenes[1], FLOW)


@pytest.mark.parametrize("i", [1, 2, 3, 4])
def test_a_verdict_on_a_shot(i):
    """A rendered shot is right; of its neighbours at least the camera motion is wrong."""
    scene = measure.scenes(5, FLOW)[i]
    frames = measure._drawn(scene, 0, FLOW)
    right = measure.verdict(scene, frames, 24, is_shot=True)[1]
    assert right.pop("together") and all(right.values()) and {"camera", "speed"} < set(right)
    other = replace(scene, camera=CAMERA_MOTIONS[0 if scene.camera != "static" else 1], motion_score=7)
    wrong = measure.verdict(other, frames, 24, is_shot=True)[1]
    assert not wrong["camera"] and wrong["speed"] == (scene.motion_score == 7)
    assert "camera" not in measure.verdict(scene, frames)[1]


def test_tasks_of_1_2_count_latent_frames():
    requests = {task: measure._request(task, 0, FLOW, OPEN_SORA_12) for task in measure.tasks_of(OPEN_SORA_12)}
    assert {task: str(request.strategy) for task, request in requests.items()} == {
        "image": "0",
        "connect": "0;0,1,0,-1",
        "extend": "0,0,-2,0,2",
        "edit": "0,0,0,0,all,0.4",
    }
    assert [len(clip) for clip in requests["extend"].references] == [5]  # two latent frames


# --------------------------------------------------------------------------------------------------- whole reports

SCENES = [Scene(place, time) for place, time in product(PLACES, TIMES)]
SCENES += [Scene(*words) for words in product(PLACES, TIMES, SUBJECTS, COLORS, DIRECTIONS)]
BY_CAPTION = {caption(scene): scene for scene in SCENES}


class Draftsman:
    """In place of an OpenSora: draws what is asked for, changed by `change`, and keeps the frames it is given.

    Its latents are the pixels, so that reconstructions are exact. `drawn` has the scenes of all clips by their pixels.
    """

    settings, spec = Settings(**SMALL), ModelSpec()

    def __init__(self, change=lambda scene: scene, keep=True):
        self.change, self.keep, self.drawn = change, keep, {}

    def encode(self, frames):
        return frames.transpose(3, 0, 1, 2) / np.float32(127.5) - 1

    def decode(self, latents, num_frames=None):
        return np.rint((latents + 1) * 127.5).astype(np.uint8).transpose(1, 2, 3, 0)

    def draw(self, scene, seed, settings):
        scene = sample_layout(scene, np.random.default_rng(seed))
        frames = render(scene, settings.num_frames, *settings.image_size)
        self.drawn[frames.tobytes()] = scene
        return frames

    def generate(self, jobs, settings, on_step=None):
        for i, job in enumerate(jobs):
            assert job.seed == settings.seed + i and settings.batch_size == 4
            scene = self.change(BY_CAPTION[job.prompt])
            frames = self.draw(scene, measure.HELD_OUT + i, settings)  # so that text gives the rendered clips
            for k, source in enumerate(job.frames[0]):
                if self.keep and source.edit_ratio == 0:
                    frames[k] = job.references[source.reference].frames([source.frame], *settings.image_size)[0]
            self.drawn[frames.tobytes()] = scene
            yield job, Video(frames, prompt=job.prompt)
            if on_step and i % settings.batch_size == 0:
                for _ in range(settings.num_sampling_steps):
                    on_step(None)

    def describe(self, frames):
        scene = self.drawn[frames.tobytes()]
        moving = (scene.subject, scene.color, scene.direction) if scene.subject else ()
        return Description(scene.place, scene.time, *moving)

    def sun_motion(self, frames):
        return {"sunrise": 0.014, "sunset": -0.014}.get(self.drawn[frames.tobytes()].time)


def judged(draftsman, **arguments):
    """The report on a draftsman whose clips are not looked at: it says itself what it has drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_drawn", draftsman.draw)
        patch.setattr(measure, "describe", draftsman.describe)
        patch.setattr(measure, "sun_motion", draftsman.sun_motion)
        patch.setattr(measure, "steady_frames", lambda frames, color: np.arange(len(frames)) > 0)
        return evaluate(draftsman, **arguments)


@pytest.fixture(scope="module")
def perfect():
    return judged(Draftsman(), prompts=10, runs=2)


def values(report):
    return {name: score.value for name, score in report.scores.items()}


def test_who_draws_what_is_asked_for_gets_everything(perfect):
    found = values(perfect)
    shares = [f"prompt.{name}" for name in (*measure.ATTRIBUTES, "together")]
    shares += [f"motion.{name}" for name in measure.MOTIONS]
    assert {name: found[name] for name in shares} == dict.fromkeys(shares, 1.0)
    assert {name: score.rendered for name, score in perfect.scores.items() if name in shares} == dict.fromkeys(
        shares, 1
    )
    for task in ("image", "connect", "extend", "prepend"):
        assert found[f"{task}.kept"] == found[f"{task}.worst"] == 100
    assert found["text.kept"] is None
    assert found["edit.edited"] < 30 and found["edit.time"] == 1
    assert found["vae.64×64"] == found["vae.48×80"] == found["vae.80×48"] == 100
    for name in ("frechet.frames", "frechet.motion"):  # the same clips; the floor has other ones
        assert found[name] == pytest.approx(0, abs=1e-6)
        assert perfect.scores[name].rendered > 1e-3


def test_counts_say_what_was_looked_at(perfect):
    counts = {name: score.count for name, score in perfect.scores.items()}
    assert (counts["prompt.place"], counts["prompt.color"]) == (10, 8)  # scenes 0 and 9 have no subject
    assert (counts["motion.sun rises"], counts["motion.sun sinks"]) == (2, 2)
    assert counts["motion.goes left"] + counts["motion.goes right"] == counts["motion.steady"] == 8
    assert perfect.scores["motion.steady"].value == pytest.approx(5 / 6)  # of all frames but the first
    assert [counts[f"{task}.kept"] for task in measure.TASKS[:4]] == [2, 4, 2 * 2, 2 * 2]
    assert (counts["edit.edited"], counts["edit.time"], counts["vae.64×64"]) == (2 * 6, 2, 4 * 10)


def test_a_wrong_color_costs_the_color_and_nothing_else():
    def next_color(scene):
        colors = tuple(COLORS)
        return replace(scene, color=colors[(colors.index(scene.color) + 1) % len(colors)])

    steps = []
    report = judged(Draftsman(next_color), prompts=10, runs=0, on_progress=lambda *progress: steps.append(progress))
    found = values(report)
    assert found["prompt.color"] == 0
    assert found["prompt.together"] == 2 / 10  # where there is no subject
    assert [found[f"prompt.{name}"] for name in ("place", "time", "subject", "direction")] == [1] * 4
    assert report.scores["prompt.color"].rendered == 1
    assert found["frechet.frames"] > 1e-4
    assert "image.kept" not in found
    # 10 prompts in batches of 4 are 3 batches; 3 clips pass through the VAE for each, and 10 of each of 3 sizes
    total = 3 * report.settings["num_sampling_steps"] + 3 * 10 + 3 * 10
    assert steps == [(done, total) for done in range(1, total + 1)]


def test_who_ignores_the_references_keeps_nothing():
    found = values(judged(Draftsman(keep=False), prompts=1, runs=2))
    assert max(found[f"{task}.kept"] for task in ("image", "connect", "extend", "prepend")) < 30
    assert found["extend.worst"] < found["extend.kept"]
    assert found["prompt.color"] is None  # prompt 0 has no subject


def test_what_the_tasks_are_given():
    settings = replace(Draftsman.settings, num_frames=16)
    strategies = {task: measure._request(task, 0, settings) for task in measure.TASKS}
    shapes = {task: [len(clip) for clip in request.references] for task, request in strategies.items()}
    assert shapes == {"image": [1], "connect": [1, 1], "extend": [6], "prepend": [6], "edit": [16]}
    assert strategies["image"].strategy == MaskStrategy.parse("0")
    assert strategies["connect"].strategy == MaskStrategy.parse("0;0,1,0,-1,1")
    assert strategies["extend"].strategy == MaskStrategy.parse("0,0,-6,0,6")
    assert strategies["prepend"].strategy == MaskStrategy.parse("0,0,0,-6,6")
    assert strategies["edit"].strategy == MaskStrategy.parse("0,0,0,0,all,0.4")
    times = [[measure._request(task, i, settings).scene.time for task in ("image", "edit")] for i in range(8)]
    assert {given == asked for given, asked in times} == {False}
    assert {asked for _, asked in times} == {"cyberpunk", "noon"}
    assert not np.array_equal(*strategies["connect"].references)


# -------------------------------------------------------------------------------------------------------- distances


def cloud(mean, deviations):
    """Points [2 D, D] with exactly this mean and these standard deviations, uncorrelated."""
    D = len(mean)
    points = np.sqrt(D) * np.diag(deviations)
    return np.concatenate([points, -points]) + mean


def test_frechet_distance_of_gaussians():
    a, b = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5])
    s, t = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.0])
    x, y = cloud(a, s), cloud(b, t)
    expected = ((a - b) ** 2).sum() + ((s - t) ** 2).sum()  # covariances that commute
    assert frechet(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet(y, x) == pytest.approx(expected, rel=1e-6)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    assert frechet(x @ turned, y @ turned) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_covariances_that_do_not_commute():
    """For 2×2: tr((C₁C₂)^½) = sqrt(tr(C₁C₂) + 2 sqrt(det(C₁C₂)))."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 2)) @ [[1, 0.9], [0, 0.3]], rng.normal(size=(50, 2)) @ [[0.2, -1], [0, 2]]
    C, D = np.cov(x.T, bias=True), np.cov(y.T, bias=True)
    shared = np.sqrt(np.trace(C @ D) + 2 * np.sqrt(np.linalg.det(C @ D)))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(C + D) - 2 * shared
    assert frechet(x, y) == pytest.approx(expected, rel=1e-9)


def test_features_are_as_many_at_every_size():
    latents = np.arange(4 * 3 * 8 * 8, dtype=np.float32).reshape(4, 3, 8, 8)
    frames, motion = features(latents)
    assert frames.shape == (3, 64) and motion.shape == (2, 64)
    assert frames[1, 0] == latents[0, 1, :2, :2].mean() and frames[2, -1] == latents[-1, 2, -2:, -2:].mean()
    assert np.allclose(motion, 64)
    assert features(np.zeros((4, 3, 6, 10)))[0].shape == (3, 64)
    assert features(np.zeros((4, 3, 2, 3)))[0].shape == (3, 24)


def test_psnr():
    a = np.zeros((2, 2, 3), np.uint8)
    assert psnr(a, a) == 100
    assert psnr(a, a + 255) == pytest.approx(0)
    assert psnr(a, a + 1) == pytest.approx(48.13, abs=0.01)


# ------------------------------------------------------------------------------------- tables, pictures, files, CLI


def test_the_table(perfect):
    lines = replace(perfect, model="tiny").table().splitlines()
    assert lines[0].startswith("tiny: 10 prompts, each task 2 times; 6×64×64 at 24 fps, iddpm, 100 steps")
    assert lines[1].split() == ["model", "rendered", "of"]
    table = {tuple(line.split()[:-3]): line.split()[-3:] for line in lines[2:] if "%" not in line}
    assert table["text", "kept"] == ["–", "–", "0"]
    assert "prompt   place                 100 %      100 %       10" in lines
    assert len({len(line) for line in lines[1:]}) == 1  # one width


def test_two_reports_side_by_side(perfect):
    color = perfect.scores["prompt.color"]
    worse = replace(perfect, scores={**perfect.scores, "prompt.color": replace(color, value=0.25)})
    del worse.scores["image.kept"]
    lines = compare(worse, perfect).splitlines()
    assert "         color                  25 %      100 %    +75 %" in lines
    assert "image    kept                      –   100.0 dB        –" in compare(worse, perfect)
    assert "         color                 100 %       25 %    -75 %" in compare(perfect, worse)


def test_the_picture_shows_clips_and_what_is_wrong(perfect):
    def red(image):
        red, green, blue = np.moveaxis(np.asarray(image)[:, -330:].astype(int), -1, 0)
        return (red - np.maximum(green, blue) > 100).any(1)

    sheet = picture(perfect)
    rows = 10 + len(measure.TASKS)
    assert sheet.height == rows * (96 + 6) and sheet.width > 6 * 96
    frames = perfect.clips[1].frames
    shown = np.asarray(sheet.crop((0, 102, 96, 198)).resize((64, 64), Image.BOX))
    assert psnr(shown, frames[0]) > 25 > psnr(shown, perfect.clips[2].frames[0])
    clip = perfect.clips[1]
    wrong = replace(clip, right={**clip.right, "color": False})
    assert not red(picture(replace(perfect, clips=(clip,)))).any()
    assert red(picture(replace(perfect, clips=(clip, wrong))))[102:].any()
    with pytest.raises(OpenSoraError, match="no clips"):
        picture(replace(perfect, clips=()))


def test_a_report_comes_back_from_its_file_and_failure_leaves_the_old_one(perfect, tmp_path, monkeypatch):
    report = replace(perfect, clips=perfect.clips[:1])
    paths = save(report, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.json", "sheet.png"]
    assert Report.read(paths[0]) == report
    before = paths[0].read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OpenSoraError, match=r"report\.json cannot be written: No space left"):
        save(replace(report, runs=7), paths[0].parent)
    assert paths[0].read_bytes() == before
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["report.json", "sheet.png"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda report: report["settings"].pop("fps"),
        lambda report: report["settings"].update(image_size=[64]),
        lambda report: report.update(scores={"text.kept": dict(value="many", rendered=None, count=1, unit="dB")}),
        lambda report: report.update(scores={"text.kept": dict(value=1.0, rendered=None, count=1, unit="furlong")}),
        lambda report: report.update(scores={"text.kept": dict(value=1.0)}),
    ],
)
def test_a_report_that_was_changed_by_hand(perfect, tmp_path, damage):
    report = perfect.to_dict()
    report.pop("clips")
    damage(report)
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(OpenSoraError, match="is not a report"):
        Report.read(tmp_path / "report.json")


def run(capsys, *arguments):
    code = cli.main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_small_model_from_the_command_line_twice_the_same(pipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("opensora_lite.pipeline.OpenSora.from_pretrained", lambda *_, **__: pipe)
    monkeypatch.setattr(measure, "VAE_CLIPS", 1)
    small = ["--prompts", 2, "--runs", 1, "--num-frames", 4, "--image-size", 32, 32, "--num-sampling-steps", 4]
    code, out, err = run(capsys, *small, "--out", tmp_path)
    assert code == 0, err
    report = Report.read(tmp_path / "report.json")
    assert report.table() in out and f"saved {tmp_path / 'sheet.png'}" in out
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["num_sampling_steps"] == 4
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 7 * 102

    found = values(report)
    for task in ("image", "connect", "extend", "prepend"):  # all but the noise of the last step is there again
        assert 25 < found[f"{task}.worst"] <= found[f"{task}.kept"] < 60
    assert found["edit.edited"] < found["image.kept"]
    assert all(20 < found[f"vae.{size}"] < 45 for size in ("32×32", "24×40", "40×24"))
    assert [report.scores[f"prompt.{name}"].rendered for name in ("place", "time")] == [1, 1]

    again = evaluate(pipe, prompts=2, runs=1, num_frames=4, image_size=(32, 32), num_sampling_steps=4)
    assert replace(again, model="tiny") == report

    code, out, _ = run(capsys, "--compare", tmp_path / "report.json", tmp_path / "report.json")
    assert code == 0 and "before  tiny: 2 prompts" in out and "+0 %" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--prompts", 0], "prompts"),
        (["--prompts", 101], "prompts"),
        (["--runs", -1], "runs"),
        (["--num-frames", 1], "num_frames"),
        (["--image-size", 64, 24], "image_size"),
        (["--compare", "a.json", "b.json", "--out", "c"], "--out"),
        (["--num-sampling-steps", 2], "num_sampling_steps"),
        (["--sampler", "euler"], "sampler"),
        (["--model", "nowhere"], "nowhere"),
        (["--out", "file"], "file"),
        (["--out", "taken"], "report.json"),
        (["--compare", "nowhere.json", "file"], "nowhere.json"),
        (["--compare", "file", "file"], "not a report"),
        (["--compare", "list.json", "list.json"], "not a report"),
    ],
)
def test_what_cannot_be_done_is_said_before_a_model_is_loaded(tmp_path, capsys, monkeypatch, arguments, message):
    def loading(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("opensora_lite.pipeline.OpenSora.from_pretrained", loading)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not json")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "taken" / "report.json").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("opensora-lite: error: ") and message in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(prompts=True), "prompts"),
        (dict(runs=2.0), "runs"),
        (dict(loops=2, condition_frames=2), "loops"),
        (dict(num_sample=2), "num_sample"),
    ],
)
def test_wrong_arguments_in_python(wrong, message):
    class Nobody:
        settings = Settings(**SMALL)  # and nothing else: no work may begin

    with pytest.raises(OpenSoraError, match=message):
        evaluate(Nobody(), **wrong)
