"""What a recipe says of its models: their config.json, and the tokenizer of Open-Sora 1.2.

Without Paddle: the PyTorch twins (tests/peers) use it too, and begin with equal weights.
"""

import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from opensora_lite.io.checkpoints import read_config
from opensora_lite.latent_time import CHUNK
from opensora_lite.liteworld import world
from opensora_lite.request import model_folder
from opensora_lite.training.data import LATENT_CHANNELS
from opensora_lite.training.recipe import TransformerLearning, VAERecipe, VideoRecipe, VideoVAERecipe

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# ---------------------------------------------------------------------------------------------------------------------
#   config.json
# ---------------------------------------------------------------------------------------------------------------------


def t5_config(d: TransformerLearning, vocabulary: int) -> dict[str, Any]:
    """config.json of the T5 encoder. vocabulary: number of tokens."""
    return dict(
        vocab_size=vocabulary,
        d_model=d.d_model,
        d_kv=d.d_kv,
        d_ff=d.d_ff,
        num_layers=d.num_layers,
        num_heads=d.t5_heads,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )


def vae_config(v: VAERecipe) -> dict[str, Any]:
    """config.json of the frame VAE without scaling_factor, which is measured after training."""
    levels = len(v.block_out_channels)
    return dict(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=list(v.block_out_channels),
        layers_per_block=v.layers_per_block,
        act_fn="silu",
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=v.norm_num_groups,
    )


def stdit3_config(recipe: VideoRecipe) -> dict[str, Any]:
    """config.json of an STDiT3, with the released fields."""
    d = recipe.diffusion
    return dict(
        model_type="STDiT3",
        input_size=[None, None, None],
        input_sq_size=d.input_sq_size,
        in_channels=recipe.vae.channels,
        patch_size=[1, 2, 2],
        hidden_size=d.hidden_size,
        depth=d.depth,
        num_heads=d.num_heads,
        mlp_ratio=4.0,
        pred_sigma=True,
        caption_channels=d.d_model,
        model_max_length=d.model_max_length,
        qk_norm=d.qk_norm,
        base_size=d.base_size,
    )


def video_vae_config(v: VideoVAERecipe, shift: list[float], scale: list[float]) -> dict[str, Any]:
    """config.json of a video VAE, with the released fields; that of its spatial part is vae_2d/config.json.

    shift, scale: of the latents of each channel, measured after training.
    """
    return dict(
        architectures=["VideoAutoencoderPipeline"],
        model_type="VideoAutoencoderPipeline",
        vae_2d=dict(type="VideoAutoencoderKL", from_pretrained="vae_2d", micro_batch_size=4, local_files_only=True),
        vae_temporal=dict(
            type="VAE_Temporal",
            in_out_channels=LATENT_CHANNELS,
            latent_embed_dim=v.channels,
            embed_dim=v.channels,
            filters=v.filters,
            num_res_blocks=v.num_res_blocks,
            channel_multipliers=[1, 2, 2, 4],
            temporal_downsample=[False, True, True],
            num_groups=1,  # see linear_code.py
        ),
        freeze_vae_2d=False,
        cal_loss=False,
        micro_frame_size=CHUNK,
        shift=shift,
        scale=scale,
        from_pretrained=None,
    )


def spatial_config(v: VideoVAERecipe) -> dict[str, Any]:
    """config.json of the frame VAE in a video VAE. Raises CheckpointError if there is none."""
    return read_config(model_folder(v.spatial) / "vae")


def spatial_spread(config: dict[str, Any], factor: float) -> float:
    """Standard deviation of the latents of a frame VAE times `factor`; its own scaling_factor makes it 1."""
    return round(factor / config.get("scaling_factor", factor), 3)


# ---------------------------------------------------------------------------------------------------------------------
#   Open-Sora 1.2: how the temporal VAE starts, and the tokenizer
# ---------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def new_tokenizer(seed: int, vocabulary: int) -> "SentencePieceProcessor":
    """A tokenizer for LiteWorld's captions and scores; it knows all of ASCII. vocabulary: tokens, at most."""
    import sentencepiece

    texts = []
    for i in range(6000):
        rng = np.random.default_rng([seed, 5, i])
        shot = world.sample_shot(rng)
        score = f" aesthetic score: {rng.uniform(4, 7):.1f}. motion score: {rng.uniform(0, 10):.1f}."
        texts.append(world.caption(shot, rng) + (score if i % 4 == 0 else "") + world.score_suffix(shot))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",  # words become single tokens
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        required_chars="".join(map(chr, range(33, 65))) + "".join(map(chr, range(91, 127))),
        split_digits=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
