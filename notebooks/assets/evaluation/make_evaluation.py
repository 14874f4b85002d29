"""Make the results again that lesson 12 reads: results.csv, thumbnails.npz and wrong.webp. To be run when the weights
have changed.

python notebooks/assets/evaluation/make_evaluation.py

300 videos: the 100 prompts of `opensora-lite evaluate` in each of RUNS. That takes some five minutes on a laptop. Runs
are kept in out/evaluation-WEIGHTS of the repository; a second start goes on where the first was stopped.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from opensora_lite import OpenSora
from opensora_lite.io.fingerprints import weights_id
from opensora_lite.liteworld.evaluate import ATTRIBUTES, prompt_of, scenes, steadiness, verdict
from opensora_lite.request import model_folder

HERE = Path(__file__).parent
OUT = HERE.parents[2] / "out"

# name -> guidance scale, steps of DPM-Solver++, and seed; video i of a run has the seed 1000 · seed + i
RUNS = {
    "guidance 4": (4.0, 12, 0),
    "guidance 1": (1.0, 12, 0),
    "4 steps": (4.0, 4, 0),
}
ROWS, FRAMES = 8, range(0, 16, 2)  # of wrong.webp


def thumbnails(frames: np.ndarray) -> np.ndarray:
    """The mean colours of 4×4 cells of every second frame: uint8 [T, h, w, 3] -> uint8 [T / 2, 4, 4, 3]."""
    T, height, width, _ = frames[::2].shape
    cells = frames[::2].reshape(T, 4, height // 4, 4, width // 4, 3)
    return cells.mean(axis=(2, 4)).round().astype(np.uint8)


def run(pipe: OpenSora, name: str, folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """A table with a row for each prompt, and the frames of all videos, uint8 [100, 16, 64, 64, 3]."""
    guidance_scale, steps, seed = RUNS[name]
    table, frames = folder / f"{name}.csv", folder / f"{name}.npy"
    if not table.exists():
        made, rows = [], []
        for first in range(0, 100, 10):
            chosen = scenes()[first : first + 10]
            settings = dict(guidance_scale=guidance_scale, num_sampling_steps=steps, sampler="dpm-solver")
            prompts = [prompt_of(scene, pipe.settings) for scene in chosen]
            # of several prompts, the i-th has the seed `seed + i`
            videos = pipe(prompts, seed=1000 * seed + first, batch_size=10, **settings)
            for scene, prompt, video in zip(chosen, prompts, videos, strict=True):
                seen, right = verdict(scene, video.frames)
                words = [word for word in vars(seen).values() if word]
                row = {name: int(right[name]) if name in right else None for name in (*ATTRIBUTES, "together")}
                steady = steadiness(scene, video.frames)
                rows.append({"prompt": prompt, "seen": " ".join(words), **row, "steady": steady})
                made.append(video.frames)
            print(f"{name}: {len(rows)} of 100", flush=True)
        np.save(frames, np.stack(made))
        found = pd.DataFrame(rows)
        columns = [*ATTRIBUTES, "together"]
        found[columns] = found[columns].astype("Int64")
        found.to_csv(table, index=False)
    return pd.read_csv(table, dtype=dict.fromkeys((*ATTRIBUTES, "together"), "Int64")), np.load(frames)


def main():
    name = weights_id(model_folder("tiny"))
    folder = OUT / f"evaluation-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    pipe = OpenSora.from_pretrained("tiny")
    tables, small, wrong = [], {}, []
    for title in RUNS:
        table, frames = run(pipe, title, folder)
        tables.append(table.assign(run=title, weights=name))
        small[title] = np.stack([thumbnails(video) for video in frames])
        if title == "guidance 4":
            wrong += [np.concatenate(frames[i, FRAMES], axis=1) for i in np.flatnonzero(table["together"] == 0)]
    if weights_id(model_folder("tiny")) != name:
        sys.exit("the weights were changed meanwhile: start again, and it begins anew")
    everything = pd.concat(tables)
    order = ["run", "prompt", "seen", *ATTRIBUTES, "together", "steady", "weights"]
    everything[order].to_csv(HERE / "results.csv", index=False, lineterminator="\n", float_format="%.4g")
    np.savez_compressed(HERE / "thumbnails.npz", **small)
    Image.fromarray(np.concatenate(wrong[:ROWS])).save(HERE / "wrong.webp", quality=90)
    print(everything.groupby("run", sort=False)[[*ATTRIBUTES, "together", "steady"]].mean())


if __name__ == "__main__":
    main()
