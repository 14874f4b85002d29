"""Initialization of the models, and their export in the format of the released weights.

Random numbers come from numpy: a seed gives the same initialization on every device.
"""

from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import paddle

from opensora_lite.errors import OpenSoraError
from opensora_lite.io.checkpoints import linear_weights
from opensora_lite.io.files import atomic_write, write_json, write_safetensors
from opensora_lite.request import model_folder
from opensora_lite.stdit2 import STDiT2, STDiT2Config, load_stdit
from opensora_lite.stdit3 import STDiT3, STDiT3Config
from opensora_lite.text import T5Fields, TextEncoder, load_text_encoder, new_encoder
from opensora_lite.tokenizer import open_tokenizer
from opensora_lite.training.configs import (
    spatial_config,
    stdit3_config,
    t5_config,
    vae_config,
    video_vae_config,
)
from opensora_lite.training.linear_code import temporal_vae_start
from opensora_lite.training.recipe import (
    DiffusionRecipe,
    FlowRecipe,
    VAERecipe,
    VideoRecipe,
    VideoVAERecipe,
)
from opensora_lite.vae import FrameVAE, load_vae, new_autoencoder
from opensora_lite.video_vae import SPATIAL_FACTOR, VideoAutoencoder, VideoVAE

# ---------------------------------------------------------------------------------------------------------------------
#   Initialization
# ---------------------------------------------------------------------------------------------------------------------


def new_stdit(d: DiffusionRecipe, rng: np.random.Generator) -> STDiT2:
    """An initialized STDiT2 whose output is 0, or the trained one of `init`. Raises OpenSoraError if its sizes differ.

    As released (opensora/models/stdit/stdit2.py, initialize_weights, initialize_temporal): the output projections of
    cross-attention and temporal attention and the last layer are 0, as in adaLN-Zero (DiT, arXiv:2212.09748, sec. 3.2).
    """
    config = STDiT2Config(
        hidden_size=d.hidden_size,
        depth=d.depth,
        num_heads=d.num_heads,
        caption_channels=d.d_model,
        model_max_length=d.model_max_length,
        input_sq_size=d.input_sq_size,
    )
    if d.init is not None:
        model = load_stdit(model_folder(d.init) / "stdit")
        check_same(f"diffusion.init {d.init}", asdict(model.config), asdict(config))
        return model
    model = STDiT2(config)
    narrow = ("t_embedder.", "t_block.", "t_block_temp.", "y_embedder.y_proj.")
    zero = ("*cross_attn.proj.weight", "*attn_temp.proj.weight", "final_layer.linear.weight")
    initialize(model, rng, narrow, zero)
    return model


def new_stdit3(recipe: VideoRecipe, rng: np.random.Generator) -> STDiT3:
    """An initialized STDiT3 whose output is 0.

    As released (opensora/models/stdit/stdit3.py, initialize_weights): besides what is 0 in an STDiT2, temporal blocks
    add nothing at first, and the frame rate has no effect.
    """
    model = STDiT3(STDiT3Config.from_dict(stdit3_config(recipe)))
    narrow = ("t_embedder.", "fps_embedder.", "t_block.", "y_embedder.y_proj.")
    zero = ("*cross_attn.proj.weight", "final_layer.linear.weight", "fps_embedder.mlp.2.weight")
    in_time = ("temporal_blocks.*.attn.proj.weight", "temporal_blocks.*.mlp.fc2.weight")
    initialize(model, rng, narrow, (*zero, *in_time))
    return model


def initialize(model: STDiT2 | STDiT3, rng: np.random.Generator, narrow: tuple[str, ...], zero: tuple[str, ...]):
    """Initialize a transformer. narrow: how names of Linear weights of standard deviation 0.02 begin. zero: patterns of
    those that are 0.
    """
    config, linears = model.config, linear_weights(model)
    for name, value in model.state_dict().items():
        if name == "y_embedder.y_embedding":
            start = normal(rng, value.shape, config.caption_channels**-0.5)
        elif "scale_shift_table" in name:
            start = normal(rng, value.shape, config.hidden_size**-0.5)
        elif any(fnmatch(name, pattern) for pattern in zero) or is_bias_of(linears, name):
            start = np.zeros(value.shape, np.float32)
        elif name in linears:
            start = normal(rng, value.shape, 0.02) if name.startswith(narrow) else xavier(rng, value.shape)
        elif name == "x_embedder.proj.weight":  # a linear layer on patches
            start = xavier(rng, [value.shape[0], value.size // value.shape[0]]).reshape(value.shape)
        else:  # norm weights, a bias, the rotary frequencies
            continue
        value.set_value(start)


def is_bias_of(linears: set[str], name: str) -> bool:
    """Whether `name` is that of the bias of a Linear layer. linears: the names of their weights."""
    return name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in linears


def new_text_encoder(d: DiffusionRecipe, rng: np.random.Generator) -> TextEncoder:
    """An initialized T5 encoder with the tokenizer of LiteWorld's captions, or the trained one of `init`."""
    folder = model_folder(d.init or "tiny")
    if d.init is not None:
        text = load_text_encoder(folder / "t5", d.model_max_length)
        wanted = t5_config(d, text.tokenizer.get_piece_size())
        check_same(f"diffusion.init {d.init}", {name: getattr(text.model.config, name) for name in wanted}, wanted)
        return text
    return text_encoder(d, open_tokenizer(folder / "t5"), rng)


def text_encoder(d: DiffusionRecipe | FlowRecipe, tokenizer, rng: np.random.Generator) -> TextEncoder:
    """An initialized T5 encoder. tokenizer: a sentencepiece processor."""
    model = new_encoder(t5_config(d, tokenizer.get_piece_size()))
    linears = linear_weights(model)
    for name, value in model.state_dict().items():
        if "relative_attention_bias" in name:
            value.set_value(normal(rng, value.shape, 0.1))
        elif name.endswith("SelfAttention.q.weight"):  # T5 doesn't scale scores by 1/√d
            value.set_value(normal(rng, value.shape, (value.shape[0] * d.d_kv) ** -0.5))
        elif name in linears:
            value.set_value(normal(rng, value.shape, value.shape[0] ** -0.5))
        elif name == "shared.weight":
            value.set_value(normal(rng, value.shape, 1.0))
        elif value.ndim == 1:  # norm weights
            value.set_value(np.ones(value.shape, np.float32))
    return TextEncoder(model, tokenizer, d.model_max_length)


def new_vae(v: VAERecipe, seed: int) -> FrameVAE:
    """A frame VAE with ppdiffusers' initialization, or the trained one of `init`."""
    if v.init is not None:
        vae = load_vae(model_folder(v.init) / "vae")
        found = {name: vae.model.config[name] for name in VAE_FIELDS}
        found = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
        check_same(f"vae.init {v.init}", found, vae_config(v))
        return vae
    paddle.seed(seed)
    return FrameVAE(new_autoencoder(vae_config(v)))


def new_video_vae(v: VideoVAERecipe) -> VideoVAE:
    """A video VAE with the trained frame VAE of `spatial`, shift 0 and scale 1, for `start_as_linear_code`."""
    spatial = spatial_config(v)
    vae = VideoVAE(VideoAutoencoder({**spatial, **video_vae_config(v, [], [])}))
    vae.frames.model.set_state_dict(load_vae(model_folder(v.spatial) / "vae").model.state_dict())
    vae.model.scale.set_value(paddle.ones_like(vae.model.scale))
    return vae


def start_as_linear_code(vae: VideoVAE, latents: list[np.ndarray], spread: float, seed: int):
    """Initialize a temporal VAE as the best linear code of spatial latents, [C, T, h, w] each (linear_code.py)."""
    parameters = dict(vae.model.temporal_vae.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    for name, start in temporal_vae_start(shapes, latents, spread, seed).items():
        parameters[name].set_value(start)


def check_same(what: str, found: dict, wanted: dict):
    """Raise OpenSoraError if the model to start from has other sizes than the recipe."""
    for name, value in wanted.items():
        if found[name] != value:
            raise OpenSoraError(f"{what} has {name} {found[name]}, the recipe {value}; they must be equal")


def normal(rng, shape, std) -> np.ndarray:
    """Normal numbers of mean 0, float32 of this shape."""
    return (rng.standard_normal(shape, np.float32) * std).astype(np.float32)


def xavier(rng, shape) -> np.ndarray:
    """Uniform numbers of variance 2 / (inputs + outputs), float32 of this shape (Glorot and Bengio, 2010, eq. 16)."""
    bound = (6 / (shape[0] + shape[1])) ** 0.5
    return rng.uniform(-bound, bound, shape).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
#   Configs and files
# ---------------------------------------------------------------------------------------------------------------------


VAE_FIELDS = tuple(vae_config(VAERecipe()))


def stdit_config(model: STDiT2 | STDiT3) -> dict:
    """config.json of a transformer, with the released fields."""
    c = model.config
    fixed = dict(model_type=c.model_type, input_size=[None, None, None], pred_sigma=True, **c.released)
    return {**fixed, **asdict(c)}


def export(layer, path: Path, leave_out: tuple[str, ...] = ()):
    """Write a layer's weights in the released format: float16 safetensors, Linear weights [out, in]."""
    linears = linear_weights(layer)
    tensors = {
        name: (value.numpy().T if name in linears else value.numpy()).astype(np.float16)
        for name, value in layer.state_dict().items()
        if name not in leave_out
    }
    write_safetensors(path, tensors, {"format": "pt"})


def export_stdit(folder: Path, stdit: STDiT2 | STDiT3):
    """stdit/ of a model folder."""
    export(stdit, folder / "stdit" / "model.safetensors")
    write_json(folder / "stdit" / "config.json", stdit_config(stdit))


def export_text_encoder(folder: Path, text: TextEncoder):
    """t5/ of a model folder."""
    export(text.model, folder / "t5" / "model.safetensors", leave_out=("encoder.embed_tokens.weight",))
    config = {name: getattr(text.model.config, name) for name in T5Fields.__dataclass_fields__}
    kind = dict(model_type="t5", architectures=["T5EncoderModel"], is_encoder_decoder=False, tie_word_embeddings=False)
    write_json(folder / "t5" / "config.json", {**kind, **config, "dropout_rate": 0.0})
    with atomic_write(folder / "t5" / "spiece.model") as temporary:
        temporary.write_bytes(text.tokenizer.serialized_model_proto())


def export_vae(folder: Path, vae: FrameVAE):
    """vae/ of a model folder."""
    config = {name: vae.model.config[name] for name in VAE_FIELDS}
    export(vae.model, folder / "vae" / "diffusion_pytorch_model.safetensors")
    config |= {"_class_name": "AutoencoderKL", "scaling_factor": round(vae.scaling_factor, 6)}
    write_json(folder / "vae" / "config.json", config)


def export_video_vae(folder: Path, vae: VideoVAE, v: VideoVAERecipe):
    """vae/ of a model folder. v: the recipe of `vae`."""
    shift, scale = ([round(x, 6) for x in t.flatten().tolist()] for t in (vae.model.shift, vae.model.scale))
    export(vae.model, folder / "vae" / "model.safetensors")
    write_json(folder / "vae" / "vae_2d" / "config.json", {**spatial_config(v), "scaling_factor": SPATIAL_FACTOR})
    write_json(folder / "vae" / "config.json", video_vae_config(v, shift, scale))
