"""From a caption to vectors: a sentencepiece tokenizer and the encoder of T5 v1.1.

Axes: B captions · L tokens. Source: Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer, arXiv:1910.10683; Open-Sora 1.1 uses the encoder of t5-v1_1-xxl and reads its last layer.
"""

import difflib
import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from opensora_lite.device import lean_paddlenlp, quiet
from opensora_lite.errors import CheckpointError, DeviceError, PromptError
from opensora_lite.io.checkpoints import (
    build,
    build_meta,
    check_fields,
    check_state_dict,
    legible,
    load,
    open_checkpoint,
    read_config,
    read_safetensors,
)
from opensora_lite.io.files import write_safetensors

EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # one table under two names; files hold one or both


RANGES = {  # of the fields of a config: whatever is beyond them was not meant
    "vocab_size": (2, 2**20),
    "d_model": (1, 2**14),
    "d_kv": (1, 2**12),
    "d_ff": (1, 2**17),
    "num_layers": (1, 128),
    "num_heads": (1, 1024),
    "relative_attention_num_buckets": (4, 64),
    "relative_attention_max_distance": (17, 2**20),  # beyond a quarter of the buckets, which hold one distance each
    "layer_norm_epsilon": (1e-12, 1.0),
    "pad_token_id": (0, 2**20),
    "eos_token_id": (0, 2**20),
}
T5_FIELDS = (*RANGES, "feed_forward_proj")  # of a config.json, which the encoder is made from


class TextEncoder:
    """A tokenizer and a T5 encoder, which turn cleaned captions into vectors of a fixed number of tokens.

    model: paddlenlp's T5EncoderModel. tokenizer: a sentencepiece processor. max_length: L, tokens of a caption.
    """

    def __init__(self, model, tokenizer, max_length: int):
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length

    def count_tokens(self, caption: str) -> int:
        """Tokens of a caption, the end mark included; those beyond `max_length` will not be read."""
        return len(self.tokenizer.encode(caption)) + 1

    def pieces(self, caption: str) -> list[str]:
        """The tokens of a caption as text, "▁" where a word begins, as far as they are read; the end mark is last."""
        return [*self.tokenizer.encode(caption, out_type=str)[: self.max_length - 1], "</s>"]

    def tokenize(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask, int64 [B, L]: pieces, an end mark, padding; the mask is 1 where a token stands."""
        config = self.model.config
        ids = np.full((len(captions), self.max_length), config.pad_token_id, np.int64)
        mask = np.zeros_like(ids)
        for row, caption in enumerate(captions):
            tokens = [*self.tokenizer.encode(caption)[: self.max_length - 1], config.eos_token_id]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return ids, mask

    @property
    def width(self) -> int:
        """Numbers of a vector, d_model."""
        return self.model.config.d_model

    def encode(self, captions: list[str]) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Vectors [B, 1, L, d_model] and mask int64 [B, L] of cleaned captions (`prompts.clean_caption`).

        One caption at a time: its vectors are the same in every company. Raises DeviceError where they are not finite.
        """
        ids, mask = (paddle.to_tensor(a) for a in self.tokenize(captions))
        rows = [dict(input_ids=ids[i : i + 1], attention_mask=mask[i : i + 1]) for i in range(len(captions))]
        with paddle.no_grad():
            hidden = paddle.concat([self.model(**row, return_dict=True).last_hidden_state for row in rows])
        if not bool(paddle.isfinite(hidden).all()):  # known of T5 in fp16, whose range its activations can exceed
            raise DeviceError(
                f'the text encoder overflows in {hidden.dtype}; load the model with dtype="bf16" or "fp32"'
            )
        return hidden[:, None], mask

    def record(self, captions: Iterable[str]) -> "TextEmbeddings":
        """What `encode` says of cleaned captions, to be kept in its place. Raises DeviceError as `encode` does."""
        told = {}
        for caption in dict.fromkeys(captions):
            y, mask = self.encode([caption])
            read = y[0, 0, : int(mask.sum())]
            vectors: np.ndarray = read.astype("float32").numpy()  # numpy has no bf16; float32 holds all of it
            told[caption] = EmbeddedCaption(vectors, tuple(self.pieces(caption)), self.count_tokens(caption))
        return TextEmbeddings(told, self.max_length)


@dataclass(frozen=True)
class EmbeddedCaption:
    """What T5 said of one caption."""

    vectors: np.ndarray  # float32 [tokens, d_model], of the tokens that were read
    pieces: tuple[str, ...]  # these tokens as text, the end mark last
    count: int  # tokens of the caption, the end mark and those that were not read included


class TextEmbeddings:
    """What T5 said of some captions, which takes the place of a TextEncoder for these.

    So T5, by far the largest of the released models, need not be there when videos are made: its vectors can come from
    another machine. captions: {cleaned caption: EmbeddedCaption}. max_length: L, tokens of a caption.
    """

    def __init__(self, captions: Mapping[str, EmbeddedCaption], max_length: int):
        self.captions, self.max_length = dict(captions), max_length

    def __repr__(self) -> str:
        return f"TextEmbeddings({len(self.captions)} captions, vectors of {self.width} numbers)"

    @property
    def width(self) -> int:
        """Numbers of a vector, d_model."""
        return next(iter(self.captions.values())).vectors.shape[-1]

    def check(self, captions: Iterable[str]) -> None:
        """Raise PromptError where one of the cleaned `captions` is not among those that were embedded."""
        for caption in captions:
            if caption not in self.captions:
                near = difflib.get_close_matches(caption, self.captions, n=1)
                known = f'the nearest of its {len(self.captions)} captions is "{near[0]}"' if near else "none is near"
                raise PromptError(
                    f'the text embeddings do not hold the caption "{legible(caption)}" ({legible(known)});'
                    " encode it with `opensora-lite encode-text`, or give T5"
                )

    def record(self, captions: Iterable[str]) -> "TextEmbeddings":
        """Those of these cleaned captions alone. Raises PromptError where one was not embedded."""
        chosen = list(captions)
        self.check(chosen)
        return TextEmbeddings({caption: self.captions[caption] for caption in chosen}, self.max_length)

    def count_tokens(self, caption: str) -> int:
        """Tokens of a caption, the end mark included. Raises PromptError where it was not embedded."""
        self.check([caption])
        return self.captions[caption].count

    def pieces(self, caption: str) -> list[str]:
        """The tokens of a caption as text. Raises PromptError where it was not embedded."""
        self.check([caption])
        return list(self.captions[caption].pieces)

    def encode(self, captions: list[str]) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Vectors [B, 1, L, d_model] and mask int64 [B, L], as `TextEncoder.encode` gives them, in float32.

        Raises PromptError where a caption was not embedded.
        """
        self.check(captions)
        y = np.zeros([len(captions), 1, self.max_length, self.width], np.float32)
        mask = np.zeros([len(captions), self.max_length], np.int64)
        for row, caption in enumerate(captions):
            vectors = self.captions[caption].vectors
            y[row, 0, : len(vectors)], mask[row, : len(vectors)] = vectors, 1
        return paddle.to_tensor(y), paddle.to_tensor(mask)

    def save(self, path: str | Path) -> None:
        """Write them to `path`, a safetensors file that `read` understands. Raises OpenSoraError where it cannot be."""
        about = [[caption, e.pieces, e.count] for caption, e in self.captions.items()]
        text = json.dumps({"max_length": self.max_length, "captions": about}, ensure_ascii=False).encode()
        tensors = {f"vectors.{i}": e.vectors for i, e in enumerate(self.captions.values())}
        write_safetensors(path, {"captions": np.frombuffer(text, np.uint8), **tensors})

    @classmethod
    def read(cls, path: str | Path) -> "TextEmbeddings":
        """Those that `save` wrote to `path`. Raises CheckpointError for a broken file, or one of another kind."""
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


def load_text_encoder(path: str | Path, max_length: int, dtype: str = "float32") -> TextEncoder:
    """The T5 encoder of a folder in Hugging Face's layout: config.json, spiece.model, one or several safetensors.

    Raises CheckpointError, before anything is allocated, where files are missing, broken or do not fit.
    """
    import sentencepiece

    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    config, tensors = read_config(path), with_both_embeddings(open_checkpoint(path))
    if not (folder / "spiece.model").exists():
        raise CheckpointError(f"no tokenizer at {folder / 'spiece.model'}: a T5 folder holds it beside its weights")
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    except RuntimeError as error:
        raise CheckpointError(f"{folder / 'spiece.model'} is no sentencepiece model ({error})") from error
    what = f"T5 checkpoint {path}"
    model = build_meta(new_encoder, config)
    check_state_dict(model, tensors, what=what)
    ids = max(tokenizer.get_piece_size() - 1, model.config.pad_token_id, model.config.eos_token_id)
    if ids >= model.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer and the special tokens of {folder} have ids up to {ids}, but the model knows"
            f" {model.config.vocab_size} tokens: spiece.model and config.json are of different models"
        )
    return TextEncoder(load(build(new_encoder, config, dtype=dtype), tensors, what=what), tokenizer, max_length)


def with_both_embeddings(tensors: dict) -> dict:
    """The same table with the token embedding under both of its names."""
    return {**{other: tensors[name] for name in EMBEDDINGS if name in tensors for other in EMBEDDINGS}, **tensors}


def new_encoder(config: dict):
    """A T5EncoderModel of paddlenlp for the fields of a Hugging Face config.json, not initialised.

    Raises CheckpointError for another model's, and for values that no T5 has.
    """
    with quiet(), lean_paddlenlp():
        from paddlenlp.transformers import T5Config, T5EncoderModel
        from paddlenlp.transformers.model_utils import no_init_weights

    if config.get("model_type", "t5") != "t5":
        raise CheckpointError(
            f'the text encoder\'s config has model_type "{legible(config["model_type"])}"; a T5 is needed'
        )
    check_fields(config, RANGES, "the text encoder's config")
    activation = config.get("feed_forward_proj", "relu")
    if activation not in ("relu", "gated-gelu"):
        raise CheckpointError(
            f"the text encoder's config has feed_forward_proj = {reprlib.repr(activation)};"
            " relu or gated-gelu is needed"
        )
    fields = {name: config[name] for name in T5_FIELDS if name in config}
    with no_init_weights():  # its random start takes minutes at full size, and every value is replaced
        return T5EncoderModel(T5Config(**fields, dropout_rate=0.0, use_cache=False, is_encoder_decoder=False))
