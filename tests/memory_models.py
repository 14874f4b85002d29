"""Models of any size with random weights, and the memory of runs of them in processes of their own.

`python memory_models.py measure ARGUMENTS…` is such a process; tests call `measured`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMPT = "a red car driving right on the ocean at sunset"


def write_model(folder: Path, stdit: dict, t5: dict, vae: dict) -> Path:
    """A model folder with random weights. stdit, t5, vae: fields that replace those of the small model's configs."""
    import numpy as np
    import paddle

    from opensora_lite import OpenSora
    from opensora_lite.io.checkpoints import read_config
    from opensora_lite.request import model_folder
    from opensora_lite.stdit2 import STDiT2, STDiT2Config
    from opensora_lite.text import TextEncoder, new_encoder
    from opensora_lite.training.models import export_stdit, export_text_encoder, export_vae
    from opensora_lite.vae import FrameVAE, new_autoencoder

    tiny = OpenSora.from_pretrained("tiny")
    configs = {name: read_config(model_folder("tiny") / name) for name in ("t5", "vae")}
    t5_fields, vae_fields = {**configs["t5"], **t5}, {**configs["vae"], **vae}
    encoder, rng = new_encoder(t5_fields), np.random.default_rng(0)
    for value in encoder.state_dict().values():
        value.set_value(rng.standard_normal(value.shape, np.float32) * 0.02)
    config = STDiT2Config(**{"caption_channels": t5_fields["d_model"], "model_max_length": 32, **stdit})
    paddle.seed(0)
    export_stdit(folder, STDiT2(config))
    export_text_encoder(folder, TextEncoder(encoder, tiny.text.tokenizer, 32))
    export_vae(folder, FrameVAE(new_autoencoder(vae_fields)))
    return folder


def write_model12(folder: Path) -> Path:
    """A model folder of Open-Sora 1.2: a random STDiT3 and temporal VAE, and the T5 and frame-wise VAE of 1.1."""
    import shutil

    import paddle

    from opensora_lite.io.checkpoints import read_config
    from opensora_lite.io.files import write_json
    from opensora_lite.request import model_folder
    from opensora_lite.stdit3 import STDiT3, STDiT3Config
    from opensora_lite.training.models import export, export_stdit
    from opensora_lite.vae import load_vae
    from opensora_lite.video_vae import VideoAutoencoder

    tiny = model_folder("tiny")
    config = STDiT3Config(48, 1, 2, caption_channels=96, model_max_length=32, base_size=64)
    paddle.seed(0)
    export_stdit(folder, STDiT3(config))
    shutil.copytree(tiny / "t5", folder / "t5")

    temporal = dict(filters=8, num_groups=4, num_res_blocks=1)
    temporal |= dict(channel_multipliers=[1, 1, 1], temporal_downsample=[True, True])
    fields = dict(vae_2d={"from_pretrained": "vae_2d"}, vae_temporal=temporal, model_type="VideoAutoencoderPipeline")
    vae = VideoAutoencoder({**read_config(tiny / "vae"), **fields})
    vae.spatial_vae.module.set_state_dict(load_vae(tiny / "vae").model.state_dict())
    vae.scale.set_value(paddle.ones_like(vae.scale))
    export(vae, folder / "vae" / "model.safetensors")
    write_json(folder / "vae" / "config.json", fields)
    write_json(folder / "vae" / "vae_2d" / "config.json", read_config(tiny / "vae"))
    settings = dict(num_frames=17, image_size=[64, 64], frame_interval=1, num_sampling_steps=4, guidance_scale=4.0)
    write_json(folder / "pipeline.json", settings | {"sampler": "rectified-flow", "cfg_channel": None})
    return folder


def measured(model="tiny", **settings) -> dict:
    """{"peak": bytes beyond imports, "loaded": bytes after it was loaded, "digest": of the frames} of one video.

    settings: of the call, those of `from_pretrained` that LOADING names, and `compiled`, a precision or None for not.
    """
    command = [sys.executable, __file__, "measure", str(model), json.dumps(settings)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def status(name: str) -> int:
    """Bytes of this process: "VmRSS", what it has in memory now, or "VmHWM", the most since `reset`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def measure(model: str, settings: dict) -> dict:
    """Import everything, then make one video, and see what that takes."""
    import hashlib
    import importlib
    import math

    from opensora_lite import OpenSora, pipeline
    from opensora_lite.device import import_paddle

    import_paddle()
    for name in ("runtime.engine", "samplers", "stdit2", "text", "vae", "video"):
        importlib.import_module(f"opensora_lite.{name}")
    importlib.import_module("av")
    text, vae = (importlib.import_module(f"opensora_lite.{name}") for name in ("text", "vae"))
    text.new_encoder(dict(d_model=8, d_kv=2, d_ff=8, num_layers=1, num_heads=2, vocab_size=16))
    vae.new_autoencoder({})
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    precision = settings.pop("compiled", None)
    loading = {name: settings.pop(name) for name in list(settings) if name in LOADING}
    pipe = OpenSora.from_pretrained(None if model == "None" else model, **loading)
    loaded = status("VmRSS") - before
    if precision is None:
        pipeline.COMPILED_TOKENS = math.inf
    else:
        pipe.compile(precision)
    video = pipe(PROMPT, **settings)
    digest = hashlib.sha256(video.frames.tobytes()).hexdigest()
    return {"peak": status("VmHWM") - before, "loaded": loaded, "digest": digest}


LOADING = ("micro_batch_size", "sequential", "text_embeddings", "stdit", "vae", "t5")


if __name__ == "__main__":
    print("\n" + json.dumps(measure(sys.argv[2], json.loads(sys.argv[3]))))
