"""What T5 reads of a caption: its sentencepiece tokenizer, without Paddle."""

import unicodedata
from pathlib import Path
from typing import Any, Protocol

from opensora_lite.errors import CheckpointError


class Reader(Protocol):
    """Who knows what is read of a cleaned caption: a CaptionTokenizer, or `text.TextEmbeddings`."""

    max_length: int  # tokens that are read at most

    def count_tokens(self, caption: str) -> int:
        """Tokens of a caption, including the end mark and those cut off."""

    def unknown(self, caption: str) -> list[str]:
        """The parts with letters, digits or pictographs that the tokenizer has no piece for."""


class CaptionTokenizer:
    """A sentencepiece processor, and the number of tokens of a caption that the model reads."""

    def __init__(self, processor: Any, max_length: int):
        self.processor, self.max_length = processor, max_length

    def count_tokens(self, caption: str) -> int:
        """As of Reader."""
        return len(self.processor.encode(caption)) + 1

    def unknown(self, caption: str) -> list[str]:
        """As of Reader.

        T5's pieces are those of English, German, French and Romanian; most others become one <unk> token each.
        """
        ids, pieces = self.processor.encode(caption), self.processor.encode(caption, out_type=str)
        missing = (p for i, p in zip(ids, pieces, strict=True) if i == self.processor.unk_id() and _says_something(p))
        return list(dict.fromkeys(missing))


def _says_something(piece: str) -> bool:
    """Whether a piece has a letter, a digit or a pictograph; missing punctuation is no loss."""
    return any(c.isalnum() or unicodedata.category(c) == "So" for c in piece)


def find_tokenizer(folder: Path) -> Path | None:
    """The spiece.model of a T5 folder: within, or in diffusers' tokenizer/, which is within or beside the folder."""
    places = (place / "spiece.model" for place in (folder, folder / "tokenizer", folder.parent / "tokenizer"))
    return next((place for place in places if place.exists()), None)


def open_tokenizer(folder: Path) -> Any:
    """The sentencepiece processor of a T5 folder. Raises CheckpointError."""
    import sentencepiece

    path = find_tokenizer(folder)
    if path is None:
        raise CheckpointError(
            f"no tokenizer at {folder / 'spiece.model'}: a T5 folder holds it beside its weights, a diffusers folder in"
            " tokenizer/"
        )
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
        raise CheckpointError(f"{path} is no sentencepiece model ({error})") from error
