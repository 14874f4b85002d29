"""The prompt language: equal to the release where the release is right, and clear where a prompt is not."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opensora_lite.errors import PromptError
from opensora_lite.prompts import clean_caption, prompts_per_loop, read_prompts, split_prompt

GOLDEN = Path(__file__).parents[1] / "golden"
CAPTIONS = json.loads((GOLDEN / "captions.json").read_text(encoding="utf-8"))
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))

# Any text at all, half characters included, and text made of what the functions look for.
FRAGMENTS = """| 0 1 |0| |2| a cat { } [ ] " ' : , \\ \\n \\u {} {"reference_path": "mask_strategy": "x.png" x.png
<! <![ <b> &amp; &# %20 ; . - _ 一 “ #12"""
anything = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.lists(st.sampled_from([*FRAGMENTS.split(), " ", "\n"])).map("".join),
)
patient = settings(deadline=None, database=None)


def result_or_prompt_error(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # bs4 takes "<?xml" for a document of another kind; that, too, is only a warning.
        warnings.filterwarnings("ignore", message="It looks like you're using an HTML parser to parse an XML document")
        try:
            return function(*arguments)
        except PromptError as error:
            str(error).encode()  # can be printed
            return None


def message_of(function, *arguments) -> str:
    with pytest.raises(PromptError) as caught:
        function(*arguments)
    return str(caught.value)


def pointed_at(message: str) -> str:
    """What stands above the carets."""
    shown, carets = message.splitlines()[-2:]
    return shown[carets.index("^") : len(carets)]


def test_import_is_cheap():
    code = "import sys, opensora_lite.prompts; print({'paddle', 'ftfy', 'bs4'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


# clean_caption


@pytest.mark.parametrize("case", CAPTIONS, ids=lambda case: case["text"][:30])
def test_cleaning_as_released(case):
    assert clean_caption(case["text"]) == case["clean"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("black-and-white", "black-and-white"),
        ("a-b_c-d_e", "a b c d e"),
        ("page page 1 2", ""),  # the first pass leaves "page 2", the second nothing
        ("a#1234b", "a 1234b"),
        ("か cat", "か cat"),
        ("&#65;BC", "abc"),  # the second pass lowers what the first one decoded
        ("a https:///x.org/b?q b", "a ?q b"),
        ("1:30 ", "1:30"),
    ],
)
def test_cleaning_rules(text, expected):
    assert clean_caption(text) == expected


def test_a_caption_like_a_file_name_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clean_caption("a/b/cat.gif") == "a b cat. gif"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a \ud83d cat", "the caption cannot be cleaned: it contains half a character (a lone surrogate)"),
        (f"&#{'9' * 5000};", 'the caption cannot be cleaned, which reads it as HTML: leave out "&#" and "<!"'),
        ("<![]", 'the caption cannot be cleaned, which reads it as HTML: leave out "&#" and "<!"'),
    ],
)
def test_captions_that_cannot_be_cleaned(text, expected):
    try:
        clean_caption(text)
    except PromptError as error:
        assert str(error) == expected
    else:
        assert text == "<![]"  # newer versions of Python's HTML parser take it


@patient
@given(anything)
@example("<![0")
@example("&#" + "9" * 5000)
@example("<a>" * 3000)
def test_cleaning_any_text(text):
    result = result_or_prompt_error(clean_caption, text)
    assert result is None or result == result.strip()


# split_prompt


@pytest.mark.parametrize("case", PROMPTS["json_suffix"], ids=lambda case: case["prompt"][:30])
def test_suffix_as_released(case):
    assert split_prompt(case["prompt"]) == (case["text"], case["info"])


def test_suffix_beyond_the_release():
    paths = ["a[1].png", "{b}.png"]
    assert split_prompt('cat {"reference_path": ["a[1].png", "{b}.png"]} ') == ("cat ", {"reference_path": paths})
    assert split_prompt(r'cat {"reference_path": "C:\\new.png"}') == ("cat ", {"reference_path": r"C:\new.png"})
    assert split_prompt("cat {}") == ("cat ", {})


FORM = '{"reference_path": …, "mask_strategy": …}'


@pytest.mark.parametrize(
    "prompt, expected, place",
    [
        (
            "A cat [close up]",
            f'"[" starts the JSON suffix, {FORM}: leave brackets out of the text, or use parentheses',
            "[",
        ),
        (
            "A {cute} cat",
            f'"{{" starts the JSON suffix, {FORM}: leave brackets out of the text, or use parentheses',
            "{",
        ),
        (
            'cat ["a.png"]',
            f'"[" starts the JSON suffix, {FORM}: leave brackets out of the text, or use parentheses',
            "[",
        ),
        ("cat {'mask_strategy': '0'}", f"JSON takes straight double quotes only: write {FORM}", "'"),
        ("cat {\"mask_strategy\": '0'}", f"JSON takes straight double quotes only: write {FORM}", "'"),
        ("cat {“mask_strategy”: “0”}", f"JSON takes straight double quotes only: write {FORM}", "“"),
        ('cat {"mask_strategy": "0"} runs', "text after the JSON suffix: put everything else before it", " runs"),
        (
            'cat {"mask_strategy": "0"}{"reference_path": "a"}',
            "a second bracket after the JSON suffix: put everything else before it",
            '{"reference_path": "a"}',
        ),
        (
            r'cat {"reference_path": "C:\x.png"}',
            r"a backslash in the JSON suffix: write / or \\ in a path",
            "\\",
        ),
        (
            r'cat {"reference_path": "C:\users"}',
            r"a backslash in the JSON suffix: write / or \\ in a path",
            None,  # Python's versions differ
        ),
        (
            r'cat {"reference_path": "C:\new.png"}',
            r'a backslash in "reference_path" is read as an escape: write / or \\',
            '"reference_path":',
        ),
        (
            'cat {"mask_strategy": "0"',
            "the JSON suffix cannot be read from here on: Expecting ',' delimiter",
            "",
        ),
        (
            'cat {"reference_paths": "a.png"}',
            'unknown key "reference_paths" in the JSON suffix: did you mean "reference_path"?',
            '"reference_paths":',
        ),
        ('cat {"fps": 8}', f'unknown key "fps" in the JSON suffix: write {FORM}', '"fps":'),
        (
            'cat {"mask_strategy": "0", "mask_strategy": "1"}',
            'the key "mask_strategy" stands twice in the JSON suffix: give it once',
            '"mask_strategy":',
        ),
        (
            'cat {"mask_strategy": 0}',
            'the value of "mask_strategy" in the JSON suffix must be text: "0" or "0;0,1,0,-1,1"',
            '"mask_strategy":',
        ),
        (
            'cat {"mask_strategy": ["0"]}',
            'the value of "mask_strategy" in the JSON suffix must be text: "0" or "0;0,1,0,-1,1"',
            '"mask_strategy":',
        ),
        *(
            (
                f'cat {{"reference_path": {value}}}',
                'the value of "reference_path" in the JSON suffix must be text, or a list of texts: '
                '"a.png", "a.png;b.mp4" or ["a.png", "b.mp4"]',
                '"reference_path":',
            )
            for value in ("null", "{}", "[]", '["a.png", 1]')
        ),
        (
            '{"mask_strategy": "0"}',
            "no text before the JSON suffix: say what the video shows",
            '{"mask_strategy": "0"}',
        ),
    ],
)
def test_bad_suffixes(prompt, expected, place):
    message = message_of(split_prompt, prompt)
    first, shown, _ = message.splitlines()
    assert first == expected
    assert shown == f"    {prompt}"
    assert place is None or pointed_at(message) in (place, place or "^")


def test_the_place_is_right_after_line_breaks():
    assert pointed_at(message_of(split_prompt, "a cat\nin the sun\t[close up]")) == "["


@patient
@given(st.one_of(anything, anything.map(lambda text: f'cat {{"reference_path": {text}'), anything.map("cat {".__add__)))
@example('cat {"a": ' + "[" * 100_000)
@example('cat {"a": ' + "9" * 5000 + "}")
@example(r'cat {"\ud800": 1}')
def test_splitting_any_text(prompt):
    result = result_or_prompt_error(split_prompt, prompt)
    if result is not None:
        text, info = result
        assert prompt.startswith(text)
        assert info.keys() <= {"reference_path", "mask_strategy"}
        assert text == prompt or "{" in prompt


# prompts_per_loop


@pytest.mark.parametrize("case", PROMPTS["loops"], ids=lambda case: f"{case['prompt']} x{case['loop']}")
def test_schedules_as_released(case):
    assert prompts_per_loop(case["prompt"], case["loop"]) == case["per_loop"]


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("A cat | A dog", ["a cat a dog"] * 2),  # no schedule: the bar does not begin it
        (" | 0 | A cat | 01 | A dog ", ["a cat", "a dog"]),
    ],
)
def test_schedules_beyond_the_release(prompt, expected):
    assert prompts_per_loop(prompt, 2) == expected


WRITE = "write |0|a cat|2|a dog: each loop to start at, then its caption"
ENGLISH = "nothing is left of this caption: describe the video in English, which the model was trained on"


@pytest.mark.parametrize(
    "prompt, expected, place",
    [
        ("|1|a", f"the schedule must start at loop 0, not 1: {WRITE}", "1"),
        ("|0|a|2|b|2|c", "starts must increase, 2 to 2 does not", "2"),
        ("|0|a|2|b|1|c", "starts must increase, 2 to 1 does not", "1"),
        ("|0|a|2", f"a start without a caption: {WRITE}", "2"),
        ("|a cat", f"a start without a caption: {WRITE}", "a cat"),
        ("|0|a|x|b", f"a start must be a number of 1 to 9 digits: {WRITE}", "x"),
        ("|0|a|-1|b", f"a start must be a number of 1 to 9 digits: {WRITE}", "-1"),
        ("|0|a|٢|b", f"a start must be a number of 1 to 9 digits: {WRITE}", "٢"),
        ("|0|a|1_0|b", f"a start must be a number of 1 to 9 digits: {WRITE}", "1_0"),
        ("|0|a|1234567890|b", f"a start must be a number of 1 to 9 digits: {WRITE}", "1234567890"),
        ("|0|a|3|b", "loop 3 is never reached: with loops=3 the last is loop 2", "3"),
        ("|0|  |2|b", f"an empty caption: {WRITE}", "  "),
        ("|0|a cat|1|一只猫", f"cleaning removes CJK characters, and {ENGLISH}", "一只猫"),
        ("一只猫", f"cleaning removes CJK characters, and {ENGLISH}", "一只猫"),
        (
            "free shipping",
            f"cleaning removes addresses, file names, identifiers, markup and the words of shops, and {ENGLISH}",
            "free shipping",
        ),
    ],
)
def test_bad_schedules(prompt, expected, place):
    message = message_of(prompts_per_loop, prompt, 3)
    first, shown, _ = message.splitlines()
    assert first == expected
    assert shown == f"    {prompt}"
    assert pointed_at(message) == place


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_empty_prompt(prompt):
    assert message_of(prompts_per_loop, prompt, 1) == "the prompt is empty: say what the video shows"


@pytest.mark.parametrize("loops", [0, -1])
def test_no_loops(loops):
    assert message_of(prompts_per_loop, "a cat", loops) == f"loops must be at least 1, not {loops}"


@patient
@given(st.one_of(anything, anything.map("|0|a|".__add__)), st.integers(-1, 9))
@example("|0|a|" + "1" * 5000 + "|b", 9)
def test_schedules_of_any_text(prompt, loops):
    result = result_or_prompt_error(prompts_per_loop, prompt, loops)
    if result is not None:
        assert len(result) == loops
        assert all(result)


# read_prompts


def test_prompt_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff  a cat \r\n\n \t\n|0|a|1|b{}\na caf\u00e9 \u2028 at night".encode())
    expected = ["a cat", "|0|a|1|b{}", "a café \u2028 at night"]  # only line breaks end a line
    assert read_prompts(path) == read_prompts(str(path)) == expected


def test_bad_prompt_files(tmp_path):
    path = tmp_path / "prompts.txt"
    name = f"prompt file '{path}'"
    assert message_of(read_prompts, path) == f"{name} does not exist"
    path.write_bytes(b"caf\xe9")
    assert message_of(read_prompts, path) == f"{name} is not UTF-8 text (byte 3): save it as UTF-8"
    path.write_text(" \n\n")
    assert message_of(read_prompts, path) == f"{name} is empty: write one prompt a line"
    assert (
        message_of(read_prompts, tmp_path)
        == f"prompt file '{tmp_path}' is a directory: give a text file, one prompt a line"
    )
    assert message_of(read_prompts, path / "below").startswith(f"prompt file '{path}/below' cannot be read: ")
    assert message_of(read_prompts, "a\0b") == r"prompt file 'a\x00b' cannot be read: embedded null byte"


@patient
@given(st.binary())
def test_prompt_file_of_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_bytes(content)
    result = result_or_prompt_error(read_prompts, path)
    assert result is None or all(line == line.strip() != "" for line in result)


def test_captions_of_endless_length_are_refused_at_once():
    with pytest.raises(PromptError, match=r"a caption has 90000 characters, of which the model reads 200 tokens"):
        prompts_per_loop("a." * 45_000, 1)
