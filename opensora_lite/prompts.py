r"""The prompts of Open-Sora 1.1: captions for the loops of a video, and a JSON suffix with references.

    |0|A boat at sunrise|2|A boat at night{"reference_path": "boat.png", "mask_strategy": "0"}

This prompt uses the first caption in loops 0 and 1 and the second one from loop 2 on. `split_prompt` separates the JSON
suffix, `prompts_per_loop` gives one caption for each loop, `clean_caption` normalizes a caption as in training, and
`read_prompts` reads a file with one prompt per line, or a table.
"""

import bisect
import csv
import difflib
import html
import io
import json
import os
import re
import urllib.parse
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from opensora_lite.errors import PromptError, shown
from opensora_lite.validation import Count, check

MAX_CAPTION = 4_000  # characters; the time that the rules take grows with the square of the length
MAX_FILE = 10_000_000  # bytes of a prompt file

# -- caption cleaning: rules (pattern, replacement), applied in this order


def _rules(*table: tuple[str, str]) -> list[tuple[re.Pattern, str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in table]


_WORD = r"[^\W_]+"  # letters and digits
_HOST = r"[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE_TYPE = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"

# URLs, before the other rules remove their punctuation.
_URLS = _rules(
    (r"<person>", "person"),  # placeholder for a name in the data sets; the HTML parser would remove it
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{_HOST})", ""),  # as released: "https://" alone, or a host with its path
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{_HOST})", ""),  # as released: "www" with a colon; hosts again
)

_CHARACTERS = _rules(
    # characters to remove or to unify
    (r"@\w+\b", ""),  # @nickname
    (r"[\u31c0-\u9fff]+", ""),  # Chinese characters; kana (\u3040-\u30ff) stay
    (
        r"[-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
        r"\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),  # any kind of dash
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    # remains of HTML and web pages
    (r"&quot;?", ""),  # an entity that was escaped twice
    (r"&amp", ""),  # as released: the semicolon stays
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # IP address
    (r"\d:\d\d\s+$", ""),  # as released: the end of a time of day, before trailing space only
    (r"\\n", " "),  # backslash and n: a line break in JSON
    (r"#(?:\d{1,3}|\d{5,})\b", ""),  # item number; as released: not with four digits
    (r"\b\d{6,}\b", ""),  # long number
    (rf"(?<!\S)\S+\.{_FILE_TYPE}", ""),  # file name; the look-behind only saves time
    # runs of punctuation
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[][#®•©™&@·º½¾¿¡§~(){}|\\/*]+", " "),
    (r"\s+\.\s+", " "),  # a full stop between spaces
)

_WORDS = _rules(
    # identifiers of letters and digits
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    # phrases of shops and stock footage
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE_TYPE}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[x\u0445×]\d+\.?\d*\b", ""),  # 1920x1080, with a Latin x, a Cyrillic x or a times sign
    # spacing
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    # both ends; as released: not if there is a space at that end
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),  # a single word that begins with a full stop
)


def clean_caption(text: str) -> str:
    """The caption in the form of the training captions: lower case, without markup, addresses and identifiers.

    The rules are applied twice, as released, since the first pass can uncover what the second one removes. The result
    can be empty. Source: `text_preprocessing` in Open-Sora 1.1's t5.py, taken from PixArt-alpha and DeepFloyd IF.

    Raises PromptError for text that ftfy or the HTML parser can't read.

    >>> clean_caption("A <b>red</b> car, see https://cars.com")
    'a red car, see'
    """
    from bs4.builder import ParserRejectedMarkup

    try:
        return _clean_once(_clean_once(text))
    except (ParserRejectedMarkup, ValueError) as error:
        raise PromptError(f"the caption {shown(text)} can't be cleaned: leave out special characters") from error


def _clean_once(text: str) -> str:
    import ftfy  # slow to import, like bs4
    from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

    text = urllib.parse.unquote_plus(text).strip().lower()
    text = _apply(_URLS, text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a caption may look like a file name
        text = BeautifulSoup(text, "html.parser").text
    text = _apply(_CHARACTERS, text)
    if text.count("-") + text.count("_") > 3:  # this-is-my-cute-cat, but not black-and-white
        text = text.replace("-", " ").replace("_", " ")
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _apply(_WORDS, text).strip()


def removed(text: str, cleaned: str) -> list[str]:
    """The parts of a caption with the letters and digits that cleaning removed, in lower case.

    cleaned: `clean_caption(text)`.

    >>> removed("A red汽车 car, see https://cars.com", "a red car, see")
    ['汽车', 'https://cars.com']
    """
    import ftfy

    text = html.unescape(ftfy.fix_text(urllib.parse.unquote_plus(text))).lower()
    words, kept = list(re.finditer(_WORD, text)), re.findall(_WORD, cleaned)
    parts = []
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, [w.group() for w in words], kept, False).get_opcodes():
        if tag in ("delete", "replace"):
            start, end = words[i1].start(), words[i2 - 1].end()
            parts += [text[start + a : start + b] for a, b in _removed_spans(text[start:end], "".join(kept[j1:j2]))]
    return list(dict.fromkeys(parts))


def _removed_spans(text: str, kept: str) -> list[tuple[int, int]]:
    """(start, end) of the parts of `text` whose letters and digits are not in `kept`."""
    places = [place for place, character in enumerate(text) if re.match(_WORD, character)]
    matcher = difflib.SequenceMatcher(None, [text[place] for place in places], kept, False)
    return [
        (places[i1], places[i2 - 1] + 1) for tag, i1, i2, _, _ in matcher.get_opcodes() if tag in ("delete", "replace")
    ]


def _apply(rules: list[tuple[re.Pattern, str]], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


# -- JSON suffix

_SUFFIX: dict[str, Any] = {"reference_path": str | Annotated[list[str], Field(min_length=1)], "mask_strategy": str}


def split_prompt(prompt: str) -> tuple[str, dict[str, str | list[str]]]:
    """The captions of a prompt, not cleaned, and its JSON suffix: (text, info). Without a suffix, info is {}.

    As released, the first `{` or `[` begins the suffix. Its keys: "reference_path", one path, several joined by `;`, or
    (an addition of this library) a list of paths; and "mask_strategy". Source: `extract_json_from_prompts` in
    Open-Sora 1.1's inference-long.py.

    Raises PromptError if the suffix is not a JSON object or has other keys or values.

    >>> split_prompt('a boat{"reference_path": "boat.png", "mask_strategy": "0"}')
    ('a boat', {'reference_path': 'boat.png', 'mask_strategy': '0'})
    """
    bracket = re.search(r"[{[]", prompt)
    if bracket is None:
        return prompt, {}
    text, suffix = prompt[: bracket.start()], prompt[bracket.start() :]
    try:
        info = json.loads(suffix.strip(), object_pairs_hook=_without_repeats)
        if not isinstance(info, dict):
            raise ValueError("it is a list")
        if unknown := info.keys() - _SUFFIX.keys():
            raise ValueError(f"unknown key {shown(min(unknown))}")
    except (ValueError, RecursionError) as error:
        raise PromptError(
            f"the JSON suffix {shown(suffix)} can't be read ({error}); write it like"
            ' {"reference_path": "a.png", "mask_strategy": "0"}, with double quotes, / in paths, nothing after it,'
            " and no other brackets in the prompt"
        ) from None
    for key, value in info.items():
        check(_SUFFIX[key], value, key, PromptError)
    return text, info


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


# -- captions of loops


def prompts_per_loop(prompt: str, loops: int) -> list[str]:
    """One cleaned caption for each of `loops` loops, as in `captions_per_loop`.

    Raises PromptError as that does, and for a caption of which nothing is left by cleaning.

    >>> prompts_per_loop("|0|A cat.|2|a dog", loops=3)
    ['a cat.', 'a cat.', 'a dog']
    """
    captions = captions_per_loop(prompt, loops)
    cleaned = {caption: cleaned_caption(caption) for caption in dict.fromkeys(captions)}
    return [cleaned[caption] for caption in captions]


def captions_per_loop(prompt: str, loops: int) -> list[str]:
    """One caption, not cleaned, for each of `loops` loops. prompt: the text of `split_prompt`.

    `|0|a cat|2|a dog` is a schedule: "a cat" from loop 0 on, "a dog" from loop 2 on. Any other prompt is the caption of
    all loops. Source: `process_prompts` in Open-Sora 1.1's inference-long.py.

    Raises PromptError for an empty prompt, and for a schedule whose loops don't start at 0, don't increase, or are
    never reached.

    >>> captions_per_loop("|0|A cat.|2|a dog", loops=3)
    ['A cat.', 'A cat.', 'a dog']
    """
    check(Count, loops, "loops", PromptError)
    if not prompt.strip():
        raise PromptError("the prompt is empty: say what the video shows")
    if not prompt.lstrip().startswith("|"):
        return [prompt] * loops

    parts = prompt.lstrip()[1:].split("|")
    try:
        starts = [int(start) for start in parts[::2]]
    except ValueError:
        starts = []
    captions = parts[1::2]
    if not starts or len(starts) != len(captions):
        raise PromptError(f"the schedule {shown(prompt)} can't be read; write |0|a cat|2|a dog: start, caption, …")
    if starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= loops:
        raise PromptError(
            f"the captions of the schedule start at loops {shown(starts)}; the first must start at loop 0, the others"
            f" in increasing order, and before loops={loops}"
        )
    return [captions[bisect.bisect(starts, loop) - 1] for loop in range(loops)]


def cleaned_caption(caption: str) -> str:
    """`clean_caption`, which must leave something. Raises PromptError."""
    if len(caption) > MAX_CAPTION:
        raise PromptError(f"a caption has {len(caption)} characters, of which the model reads 200 tokens: shorten it")
    cleaned = clean_caption(caption)
    if not cleaned:
        raise PromptError(
            f"nothing is left of the caption {shown(caption)}: cleaning removes Chinese characters, addresses, file"
            " names and markup; describe the video in English, the language of the training captions"
        )
    return cleaned


# -- scores (Open-Sora 1.2)


def with_scores(
    caption: str, aes: float | None = None, flow: float | None = None, camera_motion: str | None = None
) -> str:
    """The caption with the scores that Open-Sora 1.2 was trained to read, to be added before cleaning.

    aes: how beautiful, about 4 to 7. flow: how much moves, from 0. camera_motion: "pan right", "zoom in", "static" and
    so on. None: not said. A score that the caption holds already is not added.
    Source: `append_score_to_prompts` in Open-Sora 1.2's inference_utils.py.

    >>> with_scores("A car.", aes=6.5, flow=12, camera_motion="pan right")
    'A car. aesthetic score: 6.5. motion score: 12.0. camera motion: pan right.'
    """
    scores = {
        "aesthetic score": None if aes is None else f"{aes:.1f}",
        "motion score": None if flow is None else f"{flow:.1f}",
        "camera motion": camera_motion,
    }
    for name, value in scores.items():
        if value is not None and f"{name}:" not in caption:  # as released: only in lower case
            caption += f" {name}: {value}."
    return caption


# -- prompt files


@dataclass(frozen=True)
class PromptRow:
    """A prompt with what belongs to it: a line of a prompt file, a row of a table, or text of the command line."""

    prompt: str  # without its JSON suffix
    references: tuple[str, ...] | None = None  # paths
    mask_strategy: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # a table's other cells that are not empty, by column

    @classmethod
    def parse(cls, text: str, folder: Path | None = None) -> "PromptRow":
        """A prompt with its JSON suffix; the suffix's paths are looked for in `folder` first. Raises PromptError."""
        prompt, suffix = split_prompt(text)
        strategy: Any = suffix.get("mask_strategy")
        return cls(prompt, split_paths(suffix.get("reference_path"), folder), strategy)


def split_paths(paths: str | list[str] | None, folder: Path | None = None) -> tuple[str, ...] | None:
    """The paths of a list, or of text that joins them by ";", each found by `locate`."""
    if paths is None:
        return None
    return tuple(locate(path.strip(), folder) for path in (paths.split(";") if isinstance(paths, str) else paths))


def locate(path: str, folder: Path | None = None) -> str:
    """Where a file is: in `folder`, if it is there, else `path` as it is, in the working directory.

    Of an address, as the originals' examples have them, the file of that name is meant: nothing is downloaded.
    Raises PromptError if an address was not downloaded.
    """
    address = re.match(r"https?://", path)
    name = urllib.parse.unquote(urllib.parse.urlsplit(path).path).rpartition("/")[2] if address else path
    places = [folder / name, Path(name)] if folder else [Path(name)]
    for place in places:
        if name and os.path.lexists(re.sub(r"#t=[^#]*$", "", str(place))):  # #t=2,4: a part of a clip
            return str(place)
    if address:
        raise PromptError(
            f"nothing is downloaded by this program: fetch {path} with `curl -LO {path}`; then {name or 'it'} is found"
            " in the working directory"
        )
    return path


def read_prompts(path: str | os.PathLike) -> list[PromptRow]:
    """The prompts of a UTF-8 file.

    A .csv or .tsv is a table with a column `text` or `prompt`; `reference_path` and `mask_strategy` are columns too,
    and the others are kept by name. Any other file has a prompt on each line. Blank lines are skipped, and those that
    begin with #, unless it is written \\#. Paths are looked for beside the file first, then in the working directory.

    Raises PromptError if the file can't be read, is too long or contains no prompt. Source: `load_prompts` in
    Open-Sora 1.1's inference-long.py, and in 1.2's inference_utils.py for the column `text`.
    """
    name = f"prompt file {str(path)!r}"
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE + 1)  # a video given by mistake can have gigabytes
        text = content[:MAX_FILE].decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null character in the name
        raise PromptError(f"{name} can't be read ({error}); give a UTF-8 text file with one prompt per line") from None
    if len(content) > MAX_FILE:
        raise PromptError(f"{name} has more than {MAX_FILE // 10**6} MB: split it")
    folder = Path(path).parent
    if Path(path).suffix.lower() in (".csv", ".tsv"):
        rows = _read_table(text, name, folder)
    else:
        lines = (line.strip() for line in text.replace("\r", "\n").split("\n"))
        rows = [PromptRow.parse(_without_escape(line), folder) for line in lines if line and not line.startswith("#")]
    if not rows:
        raise PromptError(f"{name} is empty: write one prompt per line")
    return rows


def _without_escape(text: str) -> str:
    """`\\#` at the beginning is a # that begins no comment."""
    return text[1:] if text.startswith("\\#") else text


def _read_table(text: str, name: str, folder: Path) -> list[PromptRow]:
    header = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    delimiter = max(",;\t", key=header.count)  # spreadsheets write ; where the comma is the decimal point
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise PromptError(f"{name} can't be read as a table ({error})") from None
    records = [record for record in table if any(map(str.strip, record)) and not record[0].lstrip().startswith("#")]
    columns = [column.strip().lower().replace("-", "_") for column in records[0]] if records else []
    texts = [column for column in columns if column in ("text", "prompt")]
    if len(texts) != 1 or len(set(columns)) < len(columns):
        raise PromptError(
            f"{name} needs one column `text` or `prompt`, and each column once; it has {', '.join(columns) or 'none'}"
        )
    rows = []
    for record in records[1:]:
        if len(record) > len(columns):
            raise PromptError(f"{name} has a row of {len(record)} cells under {len(columns)} columns: {shown(record)}")
        cells = {column: cell.strip() for column, cell in zip(columns, record, strict=False) if cell.strip()}
        row = PromptRow.parse(_without_escape(cells.pop(texts[0], "")), folder)
        paths, strategy = cells.pop("reference_path", None), cells.pop("mask_strategy", None)
        rows.append(
            PromptRow(row.prompt, row.references or split_paths(paths, folder), row.mask_strategy or strategy, cells)
        )
    return rows
