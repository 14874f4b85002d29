"""Text encoder: sentencepiece tokens and the encoder of T5 v1.1.

Axes: B captions · L tokens. Source: Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer, arXiv:1910.10683. Open-Sora 1.1 uses the encoder of t5-v1_1-xxl; the model class is paddlenlp's.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import paddle
from pydantic import Field

from opensora_lite.device import quiet
from opensora_lite.errors import CheckpointError, DeviceError, PromptError, note
from opensora_lite.io.checkpoints import (
    build,
    build_meta,
    check_state_dict,
    find_part,
    legible,
    load,
    open_checkpoint,
    read_config,
    read_safetensors,
    without_prefix,
)
from opensora_lite.io.files import write_safetensors
from opensora_lite.lean_imports import lean_paddlenlp
from opensora_lite.tokenizer import open_tokenizer
from opensora_lite.validation import Whole, known_fields, validated

DECODER = ("decoder.", "lm_head.")  # of a whole T5
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # one tensor under two names; files hold one or both


class TextEncoder:
    """A tokenizer and a T5 encoder: cleaned captions to vectors of a fixed number of tokens.

    model: paddlenlp's T5EncoderModel. tokenizer: a sentencepiece processor. max_length: L, tokens of a caption.
    """

    def __init__(self, model, tokenizer, max_length: int):
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length

    @property
    def width(self) -> int:
        """Channels of a vector, d_model."""
        return self.model.config.d_model

    def count_tokens(self, caption: str) -> int:
        """Tokens of a caption, including the end mark; those beyond `max_length` are cut off."""
        return len(self.tokenizer.encode(caption)) + 1

    def pieces(self, caption: str) -> list[str]:
        """The tokens of a caption as text, "▁" at the beginning of a word, without those cut off; the end mark last."""
        return [*self.tokenizer.encode(caption, out_type=str)[: self.max_length - 1], "</s>"]

    def tokenize(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask, int64 [B, L]: pieces, an end mark, padding; the mask is 1 except for padding."""
        config = self.model.config
        ids = np.full((len(captions), self.max_length), config.pad_token_id, np.int64)
        mask = np.zeros_like(ids)
        for row, caption in enumerate(captions):
            tokens = [*self.tokenizer.encode(caption)[: self.max_length - 1], config.eos_token_id]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return ids, mask

    def encode(self, captions: list[str]) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Vectors [B, 1, L, d_model] and mask int64 [B, L] of cleaned captions (`prompts.clean_caption`).

        Captions are encoded one at a time, so that vectors don't depend on the batch. Raises DeviceError if they aren't
        finite.
        """
        ids, mask = (paddle.to_tensor(a) for a in self.tokenize(captions))
        rows = [dict(input_ids=ids[i : i + 1], attention_mask=mask[i : i + 1]) for i in range(len(captions))]
        with paddle.no_grad():
            hidden = paddle.concat([self.model(**row, return_dict=True).last_hidden_state for row in rows])
        if not bool(paddle.isfinite(hidden).all()):  # T5's activations can exceed the range of fp16
            raise DeviceError(
                f'the text encoder overflows in {hidden.dtype}; load the model with dtype="bf16" or "fp32"'
            )
        return hidden[:, None], mask

    def embed(self, captions: Iterable[str]) -> "TextEmbeddings":
        """The vectors of cleaned captions, to be kept. Raises DeviceError as `encode` does."""
        found = {}
        for caption in dict.fromkeys(captions):
            y, mask = self.encode([caption])
            vectors: np.ndarray = y[0, 0, : int(mask.sum())].astype("float32").numpy()  # numpy has no bf16
            found[caption] = EmbeddedCaption(vectors, tuple(self.pieces(caption)), self.count_tokens(caption))
        return TextEmbeddings(found, self.max_length)


@dataclass(frozen=True)
class EmbeddedCaption:
    """T5's vectors of one caption."""

    vectors: np.ndarray  # float32 [tokens, d_model], without padding
    pieces: tuple[str, ...]  # these tokens as text, the end mark last
    count: int  # tokens of the caption, including the end mark and those cut off


class TextEmbeddings:
    """T5's vectors of some captions; replaces a TextEncoder for these.

    T5 is by far the largest of the released models; its vectors can be computed on another machine, or before the other
    models are loaded. captions: {cleaned caption: EmbeddedCaption}. max_length: L, tokens of a caption.
    """

    def __init__(self, captions: Mapping[str, EmbeddedCaption], max_length: int):
        self.captions, self.max_length = dict(captions), max_length

    def __repr__(self) -> str:
        return f"TextEmbeddings({len(self.captions)} captions, {self.width} channels)"

    @property
    def width(self) -> int:
        """Channels of a vector, d_model."""
        return next(iter(self.captions.values())).vectors.shape[-1]

    def check(self, captions: Iterable[str]) -> None:
        """Raise PromptError if one of the cleaned `captions` has no vectors here."""
        for caption in captions:
            if caption not in self.captions:
                near = difflib.get_close_matches(caption, self.captions, n=1)
                known = f'the nearest of its {len(self.captions)} captions is "{near[0]}"' if near else "none is near"
                raise PromptError(
                    f'the text embeddings do not hold the caption "{legible(caption)}" ({legible(known)});'
                    " encode it with `opensora-lite encode-text`, or give T5"
                )

    def embed(self, captions: Iterable[str]) -> "TextEmbeddings":
        """Only those of these cleaned captions. Raises PromptError if one has no vectors here."""
        chosen = list(captions)
        self.check(chosen)
        return TextEmbeddings({caption: self.captions[caption] for caption in chosen}, self.max_length)

    def count_tokens(self, caption: str) -> int:
        """As of TextEncoder. Raises PromptError if the caption has no vectors here."""
        self.check([caption])
        return self.captions[caption].count

    def unknown(self, caption: str) -> list[str]:
        """Nothing: T5 read the captions elsewhere, where `opensora-lite encode-text` or `encode_text` said it."""
        return []

    def pieces(self, caption: str) -> list[str]:
        """As of TextEncoder. Raises PromptError if the caption has no vectors here."""
        self.check([caption])
        return list(self.captions[caption].pieces)

    def encode(self, captions: list[str]) -> tuple[paddle.Tensor, paddle.Tensor]:
        """As of TextEncoder, in float32. Raises PromptError if a caption has no vectors here."""
        self.check(captions)
        y = np.zeros([len(captions), 1, self.max_length, self.width], np.float32)
        mask = np.zeros([len(captions), self.max_length], np.int64)
        for row, caption in enumerate(captions):
            vectors = self.captions[caption].vectors
            y[row, 0, : len(vectors)], mask[row, : len(vectors)] = vectors, 1
        return paddle.to_tensor(y), paddle.to_tensor(mask)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of captions and vectors, 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for caption, e in self.captions.items():
            digest.update(json.dumps([caption, e.vectors.shape]).encode() + e.vectors.tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that `read` reads. Raises OpenSoraError if that fails."""
        about = [[caption, e.pieces, e.count] for caption, e in self.captions.items()]
        text = json.dumps({"max_length": self.max_length, "captions": about}, ensure_ascii=False).encode()
        tensors = {f"vectors.{i}": e.vectors for i, e in enumerate(self.captions.values())}
        write_safetensors(path, {"captions": np.frombuffer(text, np.uint8), **tensors})

    @classmethod
    def read(cls, path: str | Path) -> "TextEmbeddings":
        """The embeddings that `save` wrote. Raises CheckpointError for a broken file, or one of another kind."""
        tensors = read_safetensors(path)
        try:
            about = json.loads(tensors["captions"].read().tobytes())
            found = {}
            for i, (caption, pieces, count) in enumerate(about["captions"]):
                vectors = tensors[f"vectors.{i}"].read()
                right = isinstance(caption, str) and type(count) is int and all(isinstance(p, str) for p in pieces)
                if not right or vectors.dtype != np.float32 or vectors.shape[:1] != (len(pieces),) or vectors.ndim != 2:
                    raise ValueError(f"caption {i} and its vectors do not belong together")
                if not np.isfinite(vectors).all():
                    raise ValueError(f"the vectors of caption {i} are not finite")
                found[caption] = EmbeddedCaption(np.array(vectors), tuple(pieces), count)
            widths = {e.vectors.shape[1] for e in found.values()}
            longest = max(len(e.pieces) for e in found.values())
            if (
                len(widths) != 1
                or type(about["max_length"]) is not int
                or not 1 <= longest <= about["max_length"] <= 1024
            ):
                raise ValueError("its captions are not of one model")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} does not hold text embeddings ({legible(str(error))});"
                " `opensora-lite encode-text` writes files that do"
            ) from error
        return cls(found, about["max_length"])


@validated(CheckpointError, "the text encoder's config")
class T5Fields:
    """The fields of a T5 encoder's config.json that are used; defaults as in Hugging Face's T5Config."""

    vocab_size: Annotated[Whole, Field(ge=2, le=2**20)] = 32128
    d_model: Annotated[Whole, Field(ge=1, le=2**14)] = 512
    d_kv: Annotated[Whole, Field(ge=1, le=2**12)] = 64  # channels per head
    d_ff: Annotated[Whole, Field(ge=1, le=2**17)] = 2048
    num_layers: Annotated[Whole, Field(ge=1, le=128)] = 6
    num_heads: Annotated[Whole, Field(ge=1, le=1024)] = 8
    relative_attention_num_buckets: Annotated[Whole, Field(ge=4, le=64)] = 32
    relative_attention_max_distance: Annotated[Whole, Field(ge=17, le=2**20)] = 128  # > a quarter of the buckets
    layer_norm_epsilon: Annotated[float, Field(ge=1e-12, le=1)] = 1e-6
    pad_token_id: Annotated[Whole, Field(ge=0, le=2**20)] = 0
    eos_token_id: Annotated[Whole, Field(ge=0, le=2**20)] = 1
    feed_forward_proj: Literal["relu", "gated-gelu"] = "relu"


def load_text_encoder(path: str | Path, max_length: int, dtype: str = "float32") -> TextEncoder:
    """The T5 encoder of a folder in Hugging Face's layout: config.json, spiece.model, one or several safetensors.

    path: as in `io.checkpoints.find_part`. In a diffusers folder, spiece.model is that of tokenizer/. The decoder of a
    whole T5 is passed over, which is a Note.
    Raises CheckpointError, before anything is allocated, where files are missing, broken or of another model.
    """
    path = find_part(path, "t5")
    config, tensors = read_config(path), open_checkpoint(path)
    tokenizer = open_tokenizer(path if path.is_dir() else path.parent)
    what = f"T5 checkpoint {path}"
    model = build_meta(new_encoder, config)
    whole = without_prefix(model, tensors, path)
    tensors = with_both_embeddings({name: whole[name] for name in whole if not name.startswith(DECODER)})
    check_state_dict(model, tensors, what=what)
    if left := [name for name in whole if name.startswith(DECODER)]:
        note(f"the {what} is whole: only its encoder is loaded, and {len(left)} tensors of its decoder are passed over")
    ids = max(tokenizer.get_piece_size() - 1, model.config.pad_token_id, model.config.eos_token_id)
    if ids >= model.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer and the special tokens of {path} have ids up to {ids}, but the model has"
            f" {model.config.vocab_size} tokens: spiece.model and config.json are of different models"
        )
    return TextEncoder(load(build(new_encoder, config, dtype=dtype), tensors, what=what), tokenizer, max_length)


def with_both_embeddings(tensors: dict) -> dict:
    """The same table with the token embedding under both of its names."""
    return {**{other: tensors[name] for name in EMBEDDINGS if name in tensors for other in EMBEDDINGS}, **tensors}


def new_encoder(config: dict):
    """An uninitialised T5EncoderModel of paddlenlp for the fields of a Hugging Face config.json.

    Raises CheckpointError for the config of another kind of model, and for values that no T5 has.
    """
    with quiet(), lean_paddlenlp():
        from paddlenlp.transformers import T5Config, T5EncoderModel
        from paddlenlp.transformers.model_utils import no_init_weights

    if config.get("model_type", "t5") != "t5":
        raise CheckpointError(f'the text encoder\'s config has model_type "{legible(config["model_type"])}", not t5')
    names = [f.name for f in fields(T5Fields)]
    chosen = T5Fields(**known_fields(config, names, "the text encoder's config", CheckpointError))
    with no_init_weights():  # random initialisation takes minutes at full size, and every parameter is replaced
        return T5EncoderModel(T5Config(**asdict(chosen), dropout_rate=0.0, use_cache=False, is_encoder_decoder=False))
