"""The work that the benchmark times, in Paddle: a process of its own that answers as tests/peers/serve.py says.

python paddle_side.py < requests > answers
"""

import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import opensora_lite  # noqa: F401, E402, I001  sets Paddle's environment variables
import numpy as np  # noqa: E402

from opensora_lite.device import quiet  # noqa: E402
from opensora_lite.lean_imports import lean_paddlenlp  # noqa: E402

with quiet(), lean_paddlenlp():  # imports are no part of what a model needs
    import paddle
    from paddlenlp.transformers import T5EncoderModel  # noqa: F401
    from ppdiffusers.models.autoencoder_kl import AutoencoderKL  # noqa: F401

from peers.serve import clock, forget_peak, peak_memory, serve, threads, timed  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from opensora_lite import OpenSora  # noqa: E402
from opensora_lite.samplers import CFG  # noqa: E402
from opensora_lite.text import load_text_encoder  # noqa: E402

works = {}  # what has been made ready: a pipeline or None, and a function, by the names that requests use
before = 0  # bytes that the process held before it loaded its first model


def pipeline(models, engine):
    """engine: None for the dynamic mode, or the precision in which models are compiled."""
    pipe = OpenSora.from_pretrained(**models, device="cpu")
    if engine:
        return pipe.compile(precision=engine)
    pipe._worth_compiling = lambda *request: False  # nothing is compiled on its own
    return pipe


def step(models, engine, told, y, mask):
    pipe, height, width = pipeline(models, engine), told["height"], told["width"]
    generation = pipe.spec.generation
    latent_size = (generation.latent_frames(told["num_frames"]), height // 8, width // 8)
    y, mask = paddle.to_tensor(y), paddle.to_tensor(mask)
    conditions = pipe.stdit.conditions.shared(y, mask, latent_size, height, width, told["fps"])
    predict = CFG(pipe.engine or pipe.stdit, conditions, told["scale"], told["channels"])
    return pipe, lambda x, timestep: predict(paddle.to_tensor(x), int(timestep.item())).output


def decode(models, engine, told):
    pipe = pipeline(models, engine)
    return pipe, lambda z: (pipe.engine or pipe.vae).decode(paddle.to_tensor(z), told["num_frames"])


def caption(models, engine, told):
    model = load_text_encoder(models["t5"], 200).model

    def encode(ids, mask):
        ids, mask = paddle.to_tensor(ids), paddle.to_tensor(mask)
        return model(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state

    return None, encode


def video(models, engine, told, caption):
    pipe = pipeline(models, engine)
    settings = dict(
        num_frames=told["num_frames"],
        image_size=(told["height"], told["width"]),
        fps=told["fps"],
        guidance_scale=told["scale"],
        cfg_channel=told["channels"],
        num_sampling_steps=len(told["timesteps"]),
        sampler="rectified-flow" if pipe.spec.generation.is_flow else "ddim",
    )

    def make(ids, mask, z, seed):
        frames = pipe(caption, seed=int(seed.item()), **settings).frames
        return paddle.to_tensor(frames.transpose(3, 0, 1, 2)[None])

    return pipe, make


KINDS = {function.__name__: function for function in (step, decode, caption, video)}


def ready(name, kind, models, told, engine=None, inputs=None, **more):
    """Loads what a piece of work needs. models: folders by part; told: numbers that do not change between turns."""
    global before
    if not works:
        forget_peak()
        before = peak_memory()
    start = time.perf_counter()
    works[name] = KINDS[kind](models, engine, told, **more, **(load_file(inputs) if inputs else {}))
    return {"seconds": time.perf_counter() - start, "versions": {}, "threads": threads()}


def turn(name, inputs, outputs=None):
    """Does that work, and says how long it took. outputs: "out"."""
    (pipe, function), arrays = works[name], load_file(inputs)
    with paddle.no_grad(), warnings.catch_warnings(record=True) as said:
        out, seconds = timed(lambda: function(**arrays).numpy())
    if getattr(pipe and pipe.engine, "failed", False):  # then the models compute as ever, and a warning says so
        raise RuntimeError(f"not compiled: {'; '.join(str(warning.message) for warning in said)}")
    if outputs:
        save_file({"out": np.ascontiguousarray(out)}, outputs)
    return {"seconds": seconds}


def memory():
    """The most that the process has held beyond its imports, in bytes."""
    return {"peak": None if before is None else peak_memory() - before}


CHAIN = 4  # products one after the other, so that what surrounds them counts less


def predictor(size, precision):
    """`CHAIN` products with square matrices as Paddle Inference computes them: in bf16 nothing else of Paddle can."""
    with tempfile.TemporaryDirectory() as folder:
        layers = [paddle.nn.Linear(size, size, bias_attr=False) for _ in range(CHAIN)]
        static = paddle.jit.to_static(paddle.nn.Sequential(*layers), full_graph=True)
        paddle.jit.save(static, f"{folder}/model", input_spec=[paddle.static.InputSpec([size, size], "float32", "x")])
        files = [next(str(f) for f in Path(folder).iterdir() if f.suffix in endings) for endings in ENDINGS]
        config = paddle.inference.Config(*files)
        config.disable_glog_info()
        config.set_cpu_math_library_num_threads(threads())
        config.enable_mkldnn()
        if precision == "bf16":
            config.enable_mkldnn_bfloat16()
        return paddle.inference.create_predictor(config)


ENDINGS = [(".json", ".pdmodel"), (".pdiparams",)]  # of the graph, as Paddle 3 and 2.6 write it, and of its weights
predictors = {}


def product(size, precision):
    """Seconds of a product of two square matrices; Paddle's best, by the engine or without."""
    if (size, precision) not in predictors:
        predictors[size, precision] = predictor(size, precision)
    a, b = np.random.randn(size, size).astype(np.float32), paddle.randn([size, size])
    start = clock()
    predictors[size, precision].run([paddle.to_tensor(a)])
    seconds = [(clock() - start) / CHAIN]
    if precision == "fp32":
        a = paddle.to_tensor(a)
        start = clock()
        paddle.matmul(a, b).numpy()
        seconds.append(clock() - start)
    return {"seconds": min(seconds)}


if __name__ == "__main__":
    serve([ready, turn, memory, product])
