"""Make the results again that lesson 14 reads: results.csv and films/. To be run when the weights have changed, after
make_evaluation.py, whose results are most of the grid.

python notebooks/assets/sweep/make_sweep.py

Three studies, 166 new videos in one process and in batches, which takes a few minutes on a laptop. Parts that are done
are kept in out/sweep-WEIGHTS of the repository; a second start goes on where the first was stopped.
"""

import itertools
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from opensora_lite import OpenSora, Video
from opensora_lite.io.fingerprints import weights_id
from opensora_lite.liteworld.describe import describe
from opensora_lite.liteworld.evaluate import ATTRIBUTES, prompt_of, psnr, scenes, verdict
from opensora_lite.liteworld.world import Scene
from opensora_lite.request import model_folder
from opensora_lite.video import read_reference

HERE = Path(__file__).parent
ASSETS, OUT = HERE.parent, HERE.parents[2] / "out"

# easy: one prompt, every combination
EASY, EASY_SETTINGS = Scene("ocean", "sunset", "car", "red", "right"), dict(num_frames=8, sampler="ddim")
SEEDS, SCALES, STEPS = (0, 1), (1.0, 4.0, 8.0), (4, 8, 16, 32)
# grid: the 100 prompts of `opensora-lite evaluate`, prompt i with seed i, in every combination
GRID = list(itertools.product((1.0, 4.0), (4, 12)))
MADE = {(1.0, 12): "guidance 1", (4.0, 12): "guidance 4", (4.0, 4): "4 steps"}  # by make_evaluation.py
# edit: a clip that is edited, with the settings of the sweep in the lesson
EDIT, RATIOS, EDIT_SEEDS = "a blue boat sailing right on the ocean at noon", (0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8), 6
EDIT_SETTINGS = dict(num_frames=8, sampler="ddim", num_sampling_steps=24)
BATCH = 10


def words(seen) -> str:
    return " ".join(word for word in vars(seen).values() if word)


def judged(scene: Scene, frames: np.ndarray) -> dict:
    """What a video shows, and which words are right."""
    seen, right = verdict(scene, frames)
    return {"seen": words(seen)} | {n: int(right[n]) if n in right else None for n in (*ATTRIBUTES, "together")}


def easy(pipe: OpenSora) -> tuple[list[dict], list[np.ndarray]]:
    rows, made, prompt = [], [], prompt_of(EASY, pipe.settings)
    for seed, scale, steps in itertools.product(SEEDS, SCALES, STEPS):
        video = pipe(prompt, seed=seed, guidance_scale=scale, num_sampling_steps=steps, **EASY_SETTINGS)
        setting = {"seed": seed, "guidance_scale": scale, "steps": steps, "prompt": prompt}
        rows.append(setting | judged(EASY, video.frames))
        made.append(video.frames)
    return rows, made


def grid(pipe: OpenSora, scale: float, steps: int) -> tuple[list[dict], list[np.ndarray]]:
    settings = dict(sampler="dpm-solver", num_sampling_steps=steps, guidance_scale=scale, batch_size=BATCH)
    rows = []
    for first in range(0, 100, BATCH):
        chosen = scenes()[first : first + BATCH]
        prompts = [prompt_of(scene, pipe.settings) for scene in chosen]
        for i, video in enumerate(pipe(prompts, seed=first, **settings)):  # the i-th has the seed `seed + i`
            rows.append({"seed": first + i, "prompt": prompts[i]} | judged(chosen[i], video.frames))
    return rows, []


def edit(pipe: OpenSora, ratio: float) -> tuple[list[dict], list[np.ndarray]]:
    frames = EDIT_SETTINGS["num_frames"]
    clip = read_reference(ASSETS / "car.mp4", 64, 64)[:frames]
    source = dict(references=[str(ASSETS / "car.mp4")], mask_strategy=f"0,0,0,0,{frames},{ratio:g}")
    videos = pipe(EDIT, seed=0, num_sample=EDIT_SEEDS, batch_size=EDIT_SEEDS, **source, **EDIT_SETTINGS)
    rows = [
        {"seed": i, "prompt": EDIT, "seen": words(describe(video)), "psnr": psnr(video.frames, clip)}
        for i, video in enumerate(videos)
    ]
    return rows, [video.frames for video in videos]


def parts() -> dict[str, tuple]:
    """name -> a function and its arguments."""
    found: dict[str, tuple] = {f"edit_{r:g}": (edit, r) for r in RATIOS}
    found |= {f"grid_{s:g}_{n}": (grid, s, n) for s, n in GRID if (s, n) not in MADE}
    return found | {"easy": (easy,)}


def part(pipe: OpenSora, folder: Path, name: str) -> pd.DataFrame:
    """The rows of a part, read from the folder or made."""
    path = folder / f"{name}.csv"
    if not path.exists():
        make, *arguments = parts()[name]
        rows, made = make(pipe, *arguments)
        if made:
            np.save(path.with_suffix(".npy"), np.stack(made))
        pd.DataFrame(rows).to_csv(path, index=False)
        print(f"{name}: {len(rows)} videos", flush=True)
    return pd.read_csv(path)


def main():
    name = weights_id(model_folder("tiny"))
    folder = OUT / f"sweep-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    evaluated = pd.read_csv(ASSETS / "evaluation" / "results.csv")
    if set(evaluated["weights"]) != {name}:
        sys.exit("the weights have changed: run make_evaluation.py first")
    pipe = OpenSora.from_pretrained("tiny")
    made = {key: part(pipe, folder, key) for key in parts()}
    if weights_id(model_folder("tiny")) != name:
        sys.exit("the weights were changed meanwhile: start again, and it begins anew")

    tables = [made["easy"].assign(study="easy")]
    for scale, steps in GRID:
        known = MADE.get((scale, steps))
        table = made[f"grid_{scale:g}_{steps}"] if known is None else evaluated[evaluated["run"] == known]
        tables.append(table.assign(study="grid", guidance_scale=scale, steps=steps, seed=range(len(table))))
    steps = EDIT_SETTINGS["num_sampling_steps"]
    tables += [made[f"edit_{r:g}"].assign(study="edit", steps=steps, edit_ratio=r) for r in RATIOS]
    order = [
        "study",
        "guidance_scale",
        "steps",
        "edit_ratio",
        "seed",
        "prompt",
        "seen",
        *ATTRIBUTES,
        "together",
        "psnr",
    ]
    table = pd.concat(tables).reindex(columns=order)
    table[[*ATTRIBUTES, "together"]] = table[[*ATTRIBUTES, "together"]].astype("Int64")
    table.assign(weights=name).to_csv(HERE / "results.csv", index=False, lineterminator="\n", float_format="%.4g")

    films = HERE / "films"
    shutil.rmtree(films, ignore_errors=True)
    films.mkdir()
    for row, frames in zip(made["easy"].itertuples(), np.load(folder / "easy.npy"), strict=True):
        Video(frames).save(films / f"seed_{row.seed}_guidance_{row.guidance_scale:g}_steps_{row.steps}.mp4")
    for ratio in RATIOS:
        for seed, frames in enumerate(np.load(folder / f"edit_{ratio:g}.npy")):
            Video(frames).save(films / f"seed_{seed}_edit_{ratio:g}.mp4")
    print(f"{len(table)} videos: {HERE / 'results.csv'}")


if __name__ == "__main__":
    main()
