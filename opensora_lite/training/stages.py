"""The stages of a run: the VAE, the latents of the clips, then T5 and the transformer together.

`Stages` is what both generations share; `Stages11` and `Stages12` say how a recipe of Open-Sora 1.1 or 1.2 makes its
models, batches and losses.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import paddle
import paddle.distributed as dist

from opensora_lite.generations import OPEN_SORA_11, Generation, generation_of
from opensora_lite.io.checkpoints import read_safetensors
from opensora_lite.io.files import atomic_write, write_json, write_safetensors
from opensora_lite.latent_time import CHUNK
from opensora_lite.liteworld import world
from opensora_lite.tokenizer import open_tokenizer
from opensora_lite.training import models
from opensora_lite.training.configs import (
    new_tokenizer,
    spatial_config,
    spatial_spread,
    stdit3_config,
    video_vae_config,
)
from opensora_lite.training.data import (
    Batch,
    Latents,
    Pictures,
    Shot,
    ShotLatents,
    VideoPairs,
    clip_at,
    shot_at,
)
from opensora_lite.training.losses import TrainingSchedule, flow_losses, training_losses, vae_loss, video_vae_loss
from opensora_lite.training.recipe import Learning, PictureLearning, VideoLearning, parse_kind, parse_size
from opensora_lite.training.trainer import Progress, Trainer
from opensora_lite.vae import from_uint8
from opensora_lite.video_vae import SPATIAL_FACTOR, load_any_vae


class Stages:
    """The models of a run and what trains them. `run.train` calls the methods in the order in which they stand here.

    Subclasses have: twin, the PyTorch trainer of such recipes; generation; text, stdit and vae, initialized models;
    clips; and the methods that raise NotImplementedError here.
    """

    twin: ClassVar[str]
    generation: Generation
    text: Any
    stdit: Any
    vae: Any

    def __init__(
        self,
        recipe: Any,
        out: Path,
        on_step: Callable[[Progress], None] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ):
        self.recipe, self.out, self.on_step, self.say = recipe, out, on_step, say
        self.state = out / "state"

    # --- the VAE --------------------------------------------------------------------------------------------------

    def train_vae(self):
        """Read the VAE of out/vae; if there is none, train and write it first."""
        config = self.out / "vae" / "config.json"
        if not config.exists():
            self.fit_vae()
            if dist.get_rank() == 0:
                self.export_vae()
        wait_for(config)
        self.vae = load_any_vae(self.out / "vae")  # in float16 precision, as in a resumed run

    def fit_vae(self):
        """Train the stages of the VAE, and measure the scale of its latents."""
        raise NotImplementedError

    def export_vae(self):
        """Write out/vae."""
        raise NotImplementedError

    def fit(self, name: str, title: str, layers: dict[str, paddle.nn.Layer], learning: Learning, loss: Callable):
        """Train a stage of the VAE from its checkpoint on; the layers then have the averaged weights."""
        trainer = self.trainer(name, layers, learning, loss)
        self.say(f"{title}: {count(trainer):,} parameters, step {trainer.step} of {learning.steps}")
        trainer.fit()
        trainer.finish()

    def trainer(self, name: str, layers: dict[str, paddle.nn.Layer], learning: Learning, loss: Callable) -> Trainer:
        """The Trainer of a stage, resumed if there is a checkpoint."""
        return Trainer(name, layers, learning, loss, self.state, self.recipe.save_every, self.on_step)

    # --- T5 and the transformer -----------------------------------------------------------------------------------

    def encode_clips(self) -> Any:
        """The training set of T5 and the transformer: Latents or ShotLatents."""
        raise NotImplementedError

    def encoded(self, name: str, clips: list, encode: Callable[[Any], np.ndarray]) -> list[np.ndarray]:
        """encode(clip) of each clip in float16; computed once, then read from out/state."""
        path = self.state / f"{name}.safetensors"
        if dist.get_rank() == 0 and not path.exists():
            self.say(f"encoding {len(clips)} clips")
            write_safetensors(path, {str(i): encode(clip).astype(np.float16) for i, clip in enumerate(clips)})
        wait_for(path)
        tensors = read_safetensors(path)
        return [np.array(tensors[str(i)].read()) for i in range(len(clips))]

    def diffusion_trainer(self, data: Any) -> Trainer:
        """The Trainer of T5 and the transformer. data: from `encode_clips`."""
        rank, processes = dist.get_rank(), dist.get_world_size()

        def loss(step):
            batch = data.batch(self.recipe, step).part(rank, processes)
            return self.losses(batch)["loss"].mean(), batch.kind

        return self.trainer("diffusion", {"stdit": self.stdit, "t5": self.text.model}, self.recipe.diffusion, loss)

    def losses(self, batch: Batch) -> dict[str, paddle.Tensor]:
        """The losses [B] of a Batch, with gradients of T5 and the transformer."""
        raise NotImplementedError

    # --- the model folder -----------------------------------------------------------------------------------------

    def export(self):
        """Write stdit/, t5/ and pipeline.json."""
        models.export_stdit(self.out, self.stdit)
        models.export_text_encoder(self.out, self.text)
        write_json(self.out / "pipeline.json", self.settings | self.trained_on)

    @property
    def settings(self) -> dict[str, Any]:
        """Default Settings of the model."""
        raise NotImplementedError

    @property
    def trained_on(self) -> dict[str, Any]:
        """The sizes and words that the model was trained on."""
        raise NotImplementedError


def most_common(values: Iterable) -> list:
    """The different values, the most common one first."""
    return [value for value, _ in Counter(values).most_common()]


def wait_for(path: Path):
    """Wait until another process has written a file; a barrier would time out after half an hour."""
    while not path.exists():
        time.sleep(0.5)


def count(trainer: Trainer) -> int:
    """The number of trained parameters."""
    return sum(p.size for p in trainer.parameters.values())


def caption_vectors(stdit, text, batch: Batch):
    """T5's vectors [B, 1, L, d_model] of the captions, and their mask [B, L], with gradients of T5."""
    ids, mask = (paddle.to_tensor(array) for array in text.tokenize(batch.captions))
    y = text.model(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state[:, None]
    # as released: the null caption has the caption's length and mask, as in CFG
    null = stdit.null_caption[: y.shape[2]].expand(y.shape)
    return paddle.where(paddle.to_tensor(batch.dropped)[:, None, None, None], null, y), mask


def tensors_of(batch: Batch) -> tuple[list[paddle.Tensor], dict[str, paddle.Tensor]]:
    """x_0, t, noise and x_mask of a batch, and its conditions."""
    arrays = (batch.x_0, batch.t, batch.noise, batch.x_mask)
    conditions = {name: paddle.to_tensor(value) for name, value in batch.conditions.items()}
    return [paddle.to_tensor(array) for array in arrays], conditions


# ---------------------------------------------------------------------------------------------------------------------
#   Open-Sora 1.1: frame VAE, STDiT2
# ---------------------------------------------------------------------------------------------------------------------


class Stages11(Stages):
    """The stages of a Recipe."""

    twin, generation = "train_torch.py", OPEN_SORA_11
    titles: ClassVar = {"vae": "VAE", "decoder": "VAE decoder"}

    def __init__(self, recipe, *args):
        super().__init__(recipe, *args)
        rng = np.random.default_rng([recipe.seed, 0])
        self.text = models.new_text_encoder(recipe.diffusion, rng)
        self.stdit = models.new_stdit(recipe.diffusion, rng)
        self.vae = models.new_vae(recipe.vae, recipe.seed)
        self.schedule, self.weights = TrainingSchedule(), paddle.to_tensor(recipe.diffusion.loss_weights())

    @cached_property
    def clips(self) -> list:
        """The clips of the recipe's world."""
        return [clip_at(self.recipe.world, i) for i in range(self.recipe.world.clips)]

    def frames(self, clip) -> np.ndarray:
        """uint8 [T, height, width, 3]"""
        return clip.render(self.recipe.world.num_frames)

    def fit_vae(self):
        """Train the VAE, then its decoder further, as far as the recipe says."""
        v, vae = self.recipe.vae, self.vae
        if not v.stages:
            return
        clips = self.clips[: v.clips]
        self.say(f"rendering {len(clips)} clips for the VAE")
        pictures = Pictures(clips, [self.frames(clip) for clip in clips])
        for name, stage in v.stages.items():
            if name == "decoder":
                freeze(vae.model.encoder, vae.model.quant_conv)
            self.fit(name, self.titles[name], {"vae": vae.model}, stage, partial(self.picture_loss, stage, pictures))
        if v.init is None:
            vae.scaling_factor = 1.0
            sample = [vae.encode_frames(self.frames(clip)).ravel() for clip in self.clips[:100]]
            vae.scaling_factor = 1 / float(np.concatenate(sample).std())  # latents of standard deviation 1

    def picture_loss(self, stage: PictureLearning, pictures: Pictures, step: int):
        """Loss of the VAE in a step, and the size of the pictures."""
        rank, processes = dist.get_rank(), dist.get_world_size()
        batch, noise = (part[rank::processes] for part in pictures.batch(stage, self.recipe.seed, step))
        size = "x".join(map(str, batch.shape[2:]))
        return vae_loss(self.vae.model, paddle.to_tensor(batch), paddle.to_tensor(noise), stage), size

    def export_vae(self):
        """Write out/vae."""
        models.export_vae(self.out, self.vae)

    def encode_clips(self) -> Latents:
        """Scaled latents [C, T, h, w] of all clips."""
        return Latents(
            self.clips, self.encoded("latents", self.clips, lambda c: self.vae.encode_frames(self.frames(c)))
        )

    def losses(self, batch: Batch) -> dict[str, paddle.Tensor]:
        """`training_losses`: "loss", "mse" and "vb"."""
        return diffusion_losses(self.stdit, self.text, self.schedule, batch, self.weights)

    @property
    def settings(self) -> dict[str, Any]:
        """The most common size and frame rate, the longest clips."""
        w = self.recipe.world
        return dict(
            num_frames=max(length for stage in self.recipe.diffusion.stages for length in stage.lengths),
            image_size=list(parse_size(most_common(w.sizes)[0])),
            fps=most_common(w.fps)[0],
            frame_interval=1,
            num_sampling_steps=30,
            guidance_scale=4.0,
            cfg_channel=None,
        )

    @property
    def trained_on(self) -> dict[str, Any]:
        """Sizes, and all words of LiteWorld's captions."""
        sizes = most_common(self.recipe.world.sizes)
        return dict(trained_sizes=[list(parse_size(size)) for size in sizes], known_words=world.vocabulary())


def freeze(*layers):
    """Exclude layers from further training."""
    for layer in layers:
        for parameter in layer.parameters():
            parameter.stop_gradient = True


def diffusion_losses(stdit, text, schedule: TrainingSchedule, batch: Batch, weights=None) -> dict:
    """`training_losses` of a Batch, with gradients of STDiT2 and T5."""
    (x_0, t, noise, x_mask), conditions = tensors_of(batch)
    y, mask = caption_vectors(stdit, text, batch)
    return training_losses(stdit, schedule, x_0, t, noise, y, mask, x_mask, weights, **conditions)


# ---------------------------------------------------------------------------------------------------------------------
#   Open-Sora 1.2: video VAE, STDiT3
# ---------------------------------------------------------------------------------------------------------------------


class Stages12(Stages):
    """The stages of a VideoRecipe."""

    twin = "train_flow_torch.py"
    titles: ClassVar = {"temporal": "temporal VAE", "decoder": "both decoders"}

    def __init__(self, recipe, *args):
        super().__init__(recipe, *args)
        self.generation = generation_of(stdit3_config(recipe), video_vae_config(recipe.vae, [], []))
        rng = np.random.default_rng([recipe.seed, 0])
        t5 = self.out / "t5"
        tokenizer = (
            open_tokenizer(t5)
            if (t5 / "spiece.model").exists()
            else new_tokenizer(recipe.seed, recipe.diffusion.vocabulary)
        )
        self.text = models.text_encoder(recipe.diffusion, tokenizer, rng)
        self.stdit = models.new_stdit3(recipe, rng)
        self.vae = models.new_video_vae(recipe.vae)

    @cached_property
    def clips(self) -> list[Shot]:
        """The clips of the recipe's world."""
        return [shot_at(self.recipe.world, i) for i in range(self.recipe.world.clips)]

    def fit_vae(self):
        """Train the temporal VAE, then the frame decoder too, and measure shift and scale of each channel's latents."""
        v, model = self.recipe.vae, self.vae.model
        clips = [shot_at(self.recipe.world, i, v.kinds) for i in range(v.clips)]
        encode = self.vae.frames.encode_frames
        latents = self.encoded("vae_latents", clips, lambda clip: encode(clip.render(CHUNK)))
        self.say(f"rendering {len(clips)} clips for the VAE")
        pairs = VideoPairs(clips, [clip.render(CHUNK) for clip in clips], latents, v.channels)
        modules, spread = dict(model.named_sublayers()), spatial_spread(spatial_config(v), SPATIAL_FACTOR)
        models.start_as_linear_code(self.vae, latents, spread, self.recipe.seed)
        for name, stage in v.stages.items():
            layers = {part: modules[part] for part in v.TRAINED[name]}
            self.fit(name, self.titles[name], layers, stage, partial(self.clip_loss, name, stage, pairs, spread))
        with paddle.no_grad():
            sample = [model.temporal_vae.encode(paddle.to_tensor(x[None], "float32")).numpy()[0] for x in latents]
        z = np.concatenate([moments[: v.channels].reshape([v.channels, -1]) for moments in sample], 1)
        for buffer, value in ((model.shift, z.mean(1)), (model.scale, z.std(1, ddof=1))):
            buffer.set_value(value.reshape(buffer.shape))

    def clip_loss(self, name: str, stage: VideoLearning, pairs: VideoPairs, spread: float, step: int):
        """Loss of the VAE in a step of stage `name`, and the size of the clips. spread: as in `video_vae_loss`."""
        rank, processes = dist.get_rank(), dist.get_world_size()
        stream = self.recipe.vae.STREAMS[name]
        *arrays, still, decoded = pairs.batch(stage, self.recipe.seed, stream, step)
        x, pixels, noise = (paddle.to_tensor(array[rank::processes]) for array in arrays)
        decoded = paddle.to_tensor(decoded)
        loss = video_vae_loss(self.vae.model, name, spread, stage, x, pixels, noise, still, decoded)
        return loss, "x".join(map(str, pixels.shape[2:]))

    def export_vae(self):
        """Write out/vae."""
        models.export_video_vae(self.out, self.vae, self.recipe.vae)

    def encode_clips(self) -> ShotLatents:
        """Latents of all clips, and of images of their frames."""
        return ShotLatents(self.clips, self.encoded("latents", self.clips, self.clip_and_images))

    def clip_and_images(self, clip: Shot) -> np.ndarray:
        """float32 [3, C, T, h, w]: the latents that ShotLatents wants of a clip."""
        x = self.vae.frames.encode(from_uint8(clip.render(clip.num_frames)))
        windows = self.generation.windows(clip.num_frames)
        frames = [x[:, :, window.last : window.last + 1] for window in windows]
        images = self.vae.encode_temporal(paddle.concat(frames)).split(len(frames))
        references = list(images)  # right where the length is 1
        for length, places in self.generation.stills(clip.num_frames).items():
            if length > 1:
                clips = paddle.concat([frames[latent] for latent in places]).tile([1, 1, length, 1, 1])
                stills = self.vae.encode_temporal(clips).split(len(places))
                for still, (latent, place) in zip(stills, places.items(), strict=True):
                    references[latent] = still[:, :, place : place + 1]
        rows = [self.vae.encode_temporal(x), paddle.concat(images, 2), paddle.concat(references, 2)]
        return paddle.concat(rows).numpy()

    def diffusion_trainer(self, data: Any) -> Trainer:
        """As in Stages; the tokenizer is written before the first checkpoint of weights that belong to it."""
        path = self.out / "t5" / "spiece.model"
        if dist.get_rank() == 0 and not path.exists():
            with atomic_write(path) as temporary:
                temporary.write_bytes(self.text.tokenizer.serialized_model_proto())
        return super().diffusion_trainer(data)

    def losses(self, batch: Batch) -> dict[str, paddle.Tensor]:
        """`flow_losses`: "loss"."""
        (x_0, t, noise, x_mask), conditions = tensors_of(batch)
        y, mask = caption_vectors(self.stdit, self.text, batch)
        return flow_losses(self.stdit, x_0, t, noise, y, mask, x_mask, **conditions)

    @property
    def settings(self) -> dict[str, Any]:
        """The most common kind of clips and frame rate."""
        num_frames, *size = parse_kind(most_common(self.recipe.world.kinds)[0])
        return dict(
            num_frames=num_frames,
            image_size=size,
            fps=most_common(self.recipe.world.fps)[0],
            frame_interval=1,
            sampler="rectified-flow",
            num_sampling_steps=12,
            guidance_scale=4.0,
            cfg_channel=None,
        )

    @property
    def trained_on(self) -> dict[str, Any]:
        """Sizes, and all words of LiteWorld's captions and scores."""
        sizes = most_common(tuple(parse_kind(kind)[1:]) for kind in self.recipe.world.kinds)
        return dict(trained_sizes=[list(size) for size in sizes], known_words=world.shot_vocabulary())
