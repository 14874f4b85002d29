"""Make the sweep again that notebook 14 reads: results.csv and films/. To be run when the weights have changed.

python notebooks/assets/sweep/make_sweep.py

The 24 runs take a few minutes on a laptop. They are made in out/sweep-WEIGHTS of the repository, with an index.html to
look at; a second start goes on where the first was stopped, and other weights have another folder.
"""

import argparse
import shutil
import sys
from pathlib import Path

from opensora_lite.io.fingerprints import weights_id
from opensora_lite.request import model_folder
from opensora_lite.tools.sweep import read_grid, sweep

HERE = Path(__file__).parent
OUT = HERE.parents[2] / "out"
COLUMNS = ["seed", "guidance_scale", "steps", "shows.place", "shows.time", "shows.subject", "shows.color"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="[2]")
    workers = parser.parse_args().workers
    name = weights_id(model_folder("tiny"))
    out = OUT / f"sweep-{name}"
    table = sweep(read_grid(HERE / "grid.yaml"), out, workers, say=print, on_progress=tell)
    if (table["status"] == "failed").any():
        sys.exit("\n".join(table["error"].dropna()))
    if weights_id(model_folder("tiny")) != name:
        sys.exit("the weights were changed while the sweep was running: start again, and it begins anew")

    films = HERE / "films"
    shutil.rmtree(films, ignore_errors=True)
    films.mkdir()
    kept = table[COLUMNS].copy()
    kept["weights"] = name
    kept["film"] = [
        f"films/seed_{r.seed}_guidance_{r.guidance_scale:g}_steps_{r.steps}.mp4" for r in table.itertuples()
    ]
    for source, target in zip(table["film"], kept["film"], strict=True):
        shutil.copy(out / source, HERE / target)
    kept.to_csv(HERE / "results.csv", index=False, lineterminator="\n")
    print(f"{len(kept)} runs: {HERE / 'results.csv'}; {out / 'index.html'}")


def tell(finished, failed, total):
    print(f"{finished} finished, {failed} failed, of {total}", flush=True)


if __name__ == "__main__":
    main()
