r"""The prompt language of Open-Sora 1.1: what one line of text tells the model.

    |0|A boat at sunrise|2|A boat at night{"reference_path": "boat.png", "mask_strategy": "0"}
    captions, each with the loop           JSON suffix: which images or videos are given,
    from which it holds                    and which of their frames go where

`split_prompt` takes the suffix off, `prompts_per_loop` spreads the captions over the loops, `clean_caption`
brings each into the form that the model was trained on, and `read_prompts` reads a file of such lines.
"""

import difflib
import html
import json
import os
import re
import urllib.parse
import warnings
from pathlib import Path
from typing import Any

from opensora_lite.errors import PromptError, underline

# ---------------------------------------------------------------------------------------------------------------------
# Caption cleaning: a table of rules (pattern, replacement), applied in this order
# ---------------------------------------------------------------------------------------------------------------------


def _rules(*table: tuple[str, str]) -> list[tuple[re.Pattern, str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in table]


_HOST = r"[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE_TYPE = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"

# Addresses go first, while their punctuation is still there.
_ADDRESSES = _rules(
    (r"<person>", "person"),  # the data sets' placeholder for a name; as markup it would vanish
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{_HOST})", ""),  # as released: a scheme alone, or a host with its path
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{_HOST})", ""),  # as released: www with a colon; what is left of hosts
)

_CHARACTERS = _rules(
    # characters that the captions should not have, or have in one form only
    (r"@\w+\b", ""),  # @nickname
    (r"[\u31c0-\u9fff]+", ""),  # CJK strokes … CJK unified ideographs; kana (\u3040-\u30ff) stays
    (
        r"[-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
        r"\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),  # a run of dashes of any kind
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    # remains of HTML and of web pages
    (r"&quot;?", ""),  # an entity that was escaped twice
    (r"&amp", ""),  # as released: its semicolon stays
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # IP address
    (r"\d:\d\d\s+$", ""),  # as released: a time of day loses its end, but only before trailing space
    (r"\\n", " "),  # backslash and n, a line break of some JSON
    (r"#(?:\d{1,3}|\d{5,})\b", ""),  # article number; as released: not with four digits
    (r"\b\d{6,}\b", ""),  # identification number
    (rf"(?<!\S)\S+\.{_FILE_TYPE}", ""),  # file name; the look-behind only spares useless attempts
    # runs of punctuation
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[][#®•©™&@·º½¾¿¡§~(){}|\\/*]+", " "),
    (r"\s+\.\s+", " "),  # a full stop that stands alone
)

_WORDS = _rules(
    # identifiers: letters and digits mixed
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    # the language of shops and stock footage
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE_TYPE}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[x\u0445×]\d+\.?\d*\b", ""),  # 1920x1080, with a Latin or Cyrillic x or a times sign
    # spacing
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    # the two ends; as released: space at an end shields what stands beside it
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),  # one word that begins with a full stop
)


def clean_caption(text: str) -> str:
    """The caption as the model saw captions in training: lower case, without markup, addresses, identifiers.

    Cleaning is done twice, as released: the first pass can uncover what the second one removes. The result can be
    empty. Source: `text_preprocessing` in Open-Sora 1.1's t5.py, which has it from PixArt-alpha and DeepFloyd IF.

    Raises PromptError where the text cannot be read: half a surrogate pair, or markup that no HTML parser takes.

    >>> clean_caption("A <b>red</b> car, see https://cars.com")
    'a red car, see'
    """
    from bs4.builder import ParserRejectedMarkup

    try:
        return _clean_once(_clean_once(text))
    except UnicodeEncodeError:
        raise PromptError("the caption cannot be cleaned: it contains half a character (a lone surrogate)") from None
    except (ParserRejectedMarkup, ValueError) as error:  # ValueError: int() refuses the digits of an endless &#999…;
        raise PromptError('the caption cannot be cleaned, which reads it as HTML: leave out "&#" and "<!"') from error


def _clean_once(text: str) -> str:
    import ftfy  # imported here, as bs4 is: both are slow to load

    text = urllib.parse.unquote_plus(text).strip().lower()
    text = _apply(_ADDRESSES, text)
    text = _html_text(text)
    text = _apply(_CHARACTERS, text)
    if text.count("-") + text.count("_") > 3:  # this-is-my-cute-cat; black-and-white stays
        text = text.replace("-", " ").replace("_", " ")
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _apply(_WORDS, text).strip()


def _apply(rules: list[tuple[re.Pattern, str]], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _html_text(text: str) -> str:
    from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a caption may well look like a file name
        return BeautifulSoup(text, "html.parser").text


# ---------------------------------------------------------------------------------------------------------------------
# JSON suffix
# ---------------------------------------------------------------------------------------------------------------------

_KEYS = {
    "reference_path": 'text, or a list of texts: "a.png", "a.png;b.mp4" or ["a.png", "b.mp4"]',
    "mask_strategy": 'text: "0" or "0;0,1,0,-1,1"',
}
_SUFFIX = '{"reference_path": …, "mask_strategy": …}'


def split_prompt(prompt: str) -> tuple[str, dict[str, str | list[str]]]:
    """The text of a prompt, and what its JSON suffix says: (text, info).

    The first `{` or `[` starts the suffix, as released. Its keys: "reference_path", one path, several joined by `;`,
    or (not in the release) a list of paths; and "mask_strategy". A prompt without a suffix has the info {}. The text
    is neither stripped nor cleaned. Source: `extract_json_from_prompts` of Open-Sora 1.1's inference-long.py.

    Raises PromptError where the suffix is not one JSON object at the end of the prompt, where a key is unknown or
    given twice, where a value has the wrong type, and where no text precedes the suffix.

    >>> split_prompt('a boat{"reference_path": "boat.png", "mask_strategy": "0"}')
    ('a boat', {'reference_path': 'boat.png', 'mask_strategy': '0'})
    """
    bracket = re.search(r"[{[]", prompt)
    if bracket is None:
        return prompt, {}
    start = bracket.start()
    if not re.match(r"""\{\s*["'“”‘’}]""", prompt[start:]):
        advice = "leave brackets out of the text, or use parentheses"
        raise _pointed(f'"{bracket[0]}" starts the JSON suffix, {_SUFFIX}: {advice}', prompt, start, start + 1)
    try:
        # Pairs instead of a dict: a key that is given twice would be lost.
        pairs, end = json.JSONDecoder(object_pairs_hook=list).raw_decode(prompt, start)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        raise _unreadable_suffix(prompt, start, error) from None
    if rest := prompt[end:].strip():
        what = "a second bracket" if rest[0] in "{[" else "text"
        raise _pointed(f"{what} after the JSON suffix: put everything else before it", prompt, end, len(prompt))
    for index, (key, value) in enumerate(pairs):
        _check_pair(prompt, start, key, value, repeated=key in dict(pairs[:index]))
    if not prompt[:start].strip():
        raise _pointed("no text before the JSON suffix: say what the video shows", prompt, start, end)
    return prompt[:start], dict(pairs)


def _unreadable_suffix(prompt: str, start: int, error: Exception) -> PromptError:
    at = getattr(error, "pos", start)
    reason = getattr(error, "msg", str(error))
    if "escape" in reason:
        advice = "a backslash in the JSON suffix: write / or \\\\ in a path"
    elif prompt[at : at + 1] in tuple("'“”‘’"):
        advice = f"JSON takes straight double quotes only: write {_SUFFIX}"
    else:
        advice = f"the JSON suffix cannot be read from here on: {reason}"
    return _pointed(advice, prompt, at, at + 1)


def _check_pair(prompt: str, start: int, key: str, value: object, repeated: bool) -> None:
    found = re.compile(rf'"{re.escape(key)}"\s*:').search(prompt, start)  # None where the key is written with escapes
    start, end = found.span() if found else (start, len(prompt))
    name = json.dumps(key)
    if repeated:
        raise _pointed(f"the key {name} stands twice in the JSON suffix: give it once", prompt, start, end)
    if key not in _KEYS:
        nearest = difflib.get_close_matches(key, _KEYS, n=1)
        hint = f'did you mean "{nearest[0]}"?' if nearest else f"write {_SUFFIX}"
        raise _pointed(f"unknown key {name} in the JSON suffix: {hint}", prompt, start, end)
    texts: list[Any] = value if isinstance(value, list) and value and key == "reference_path" else [value]
    if not all(isinstance(text, str) for text in texts):
        raise _pointed(f"the value of {name} in the JSON suffix must be {_KEYS[key]}", prompt, start, end)
    if any(ord(character) < 32 for text in texts for character in text):  # C:\new.png is JSON, with a line break
        raise _pointed(f"a backslash in {name} is read as an escape: write / or \\\\", prompt, start, end)


# ---------------------------------------------------------------------------------------------------------------------
# Captions for loops
# ---------------------------------------------------------------------------------------------------------------------

MAX_CAPTION = 4_000  # characters; the rules for hosts and numbers take time with the square of the length
_FORM = "write |0|a cat|2|a dog: each loop to start at, then its caption"


def prompts_per_loop(prompt: str, loops: int) -> list[str]:
    """One cleaned caption for each of `loops` loops; `prompt` is the text that `split_prompt` returns.

    `|0|a cat|2|a dog` is a schedule: a cat from loop 0 on, a dog from loop 2 on. Any other prompt holds for all loops;
    a `|` that does not begin it is cleaned away. Source: `process_prompts` of Open-Sora 1.1's inference-long.py.

    Raises PromptError where loops < 1, where the prompt or a caption of it is empty (before or after cleaning), and
    where a schedule lacks a part, has a start that is no number, does not start at 0, does not increase, or has an
    entry that no loop reaches.

    >>> prompts_per_loop("|0|A cat.|2|a dog", loops=3)
    ['a cat.', 'a cat.', 'a dog']
    """
    if loops < 1:
        raise PromptError(f"loops must be at least 1, not {loops}")
    if not prompt.strip():
        raise PromptError("the prompt is empty: say what the video shows")
    if not prompt.lstrip().startswith("|"):
        return [_cleaned(prompt, 0, len(prompt))] * loops

    parts = list(re.finditer(r"(?<=\|)[^|]*", prompt))
    if len(parts) % 2:
        raise _pointed(f"a start without a caption: {_FORM}", prompt, *parts[-1].span())
    entries: list[tuple[int, str]] = []  # start, caption
    for number, caption in zip(parts[::2], parts[1::2], strict=True):
        if not re.fullmatch(r"\s*[0-9]{1,9}\s*", number[0], re.ASCII):
            raise _pointed(f"a start must be a number of 1 to 9 digits: {_FORM}", prompt, *number.span())
        start = int(number[0])
        if not entries and start != 0:
            raise _pointed(f"the schedule must start at loop 0, not {start}: {_FORM}", prompt, *number.span())
        if entries and start <= entries[-1][0]:
            raise _pointed(f"starts must increase, {entries[-1][0]} to {start} does not", prompt, *number.span())
        if start >= loops:
            unreached = f"loop {start} is never reached: with loops={loops} the last is loop {loops - 1}"
            raise _pointed(unreached, prompt, *number.span())
        entries.append((start, _cleaned(prompt, *caption.span())))
    ends = [start for start, _ in entries[1:]] + [loops]
    return [caption for (start, caption), end in zip(entries, ends, strict=True) for _ in range(start, end)]


def _cleaned(prompt: str, start: int, end: int) -> str:
    if end - start > MAX_CAPTION:
        raise PromptError(f"a caption has {end - start} characters, of which the model reads 200 tokens: shorten it")
    if not prompt[start:end].strip():
        raise _pointed(f"an empty caption: {_FORM}", prompt, start, end)
    if caption := clean_caption(prompt[start:end]):
        return caption
    cjk = re.search(r"[\u31c0-\u9fff]", prompt[start:end])
    removed = "CJK characters" if cjk else "addresses, file names, identifiers, markup and the words of shops"
    advice = "describe the video in English, which the model was trained on"
    raise _pointed(f"cleaning removes {removed}, and nothing is left of this caption: {advice}", prompt, start, end)


def _pointed(message: str, prompt: str, start: int, end: int) -> PromptError:
    shown = "".join(character if character.isprintable() else " " for character in prompt)  # a line break would bend it
    return PromptError(f"{message}\n{underline(shown, start, end)}")


# ---------------------------------------------------------------------------------------------------------------------
# Prompt files
# ---------------------------------------------------------------------------------------------------------------------

MAX_FILE = 10_000_000  # bytes


def read_prompts(path: str | os.PathLike) -> list[str]:
    """The prompts of the UTF-8 text file at `path`, one a line, stripped; blank lines are skipped.

    Raises PromptError where the file is missing, a directory, unreadable, too long, not UTF-8, or holds no prompt.
    Source: `load_prompts` of Open-Sora 1.1's inference-long.py.
    """
    name = f"prompt file {str(path)!r}"
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE + 1)  # /dev/zero has no end
        text = content[:MAX_FILE].decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except FileNotFoundError:
        raise PromptError(f"{name} does not exist") from None
    except IsADirectoryError:
        raise PromptError(f"{name} is a directory: give a text file, one prompt a line") from None
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        raise PromptError(f"{name} cannot be read: {error}") from None
    if len(content) > MAX_FILE:
        raise PromptError(f"{name} has more than {MAX_FILE // 10**6} MB: split it")
    prompts = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    if not prompts:
        raise PromptError(f"{name} is empty: write one prompt a line")
    return prompts
