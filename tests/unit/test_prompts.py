"""The prompt language: equal to the release where the release is right, and clear errors where a prompt is wrong."""

import doctest
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opensora_lite import prompts
from opensora_lite.errors import PromptError
from opensora_lite.prompts import (
    PromptRow,
    clean_caption,
    prompts_per_loop,
    read_prompts,
    removed,
    split_prompt,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CAPTIONS = json.loads((GOLDEN / "captions.json").read_text(encoding="utf-8"))
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))

# Any text at all, lone surrogates included, and text made of what the functions look for.
FRAGMENTS = """| 0 1 |0| |2| a cat { } [ ] " ' : , \\ \\n \\u {} {"reference_path": "mask_strategy": "x.png" x.png
<! <![ <b> &amp; &# %20 ; . - _ 一 “ #12"""
anything = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.lists(st.sampled_from([*FRAGMENTS.split(), " ", "\n"])).map("".join),
)


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


def test_import_is_cheap():
    code = "import sys, opensora_lite.prompts; print({'paddle', 'ftfy', 'bs4'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_doctests():
    assert doctest.testmod(prompts).failed == 0


# -- clean_caption


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
        ("a/b/cat.gif", "a b cat. gif"),
    ],
)
def test_cleaning_rules(text, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a caption like a file name
        assert clean_caption(text) == expected


@given(anything)
@example("<![0")
@example("&#" + "9" * 5000)
@example("<a>" * 3000)
@example("a \ud83d cat")
def test_cleaning_any_text(text):
    result = result_or_prompt_error(clean_caption, text)
    assert result is None or result == result.strip()


@pytest.mark.parametrize(
    "text, parts",
    [
        ("a red car", []),
        ("A Café &amp; a bär, don't", []),  # another case, entities and punctuation are no loss
        ("红色 car on the 海洋 at sunset", ["红色", "海洋"]),
        ("a red红色car", ["红色"]),
        ("see https://cars.com/red now", ["https://cars.com/red"]),
        ("a cat, free shipping, page 5", ["free shipping, page 5"]),
        ("a <i>red</i> car", ["i"]),
        ("photo 1920x1080 by @bob", ["1920x1080", "bob"]),
        ("ａ　red　car", []),  # full width
        ("红色 car 红色", ["红色"]),
    ],
)
def test_what_cleaning_removes_is_named(text, parts):
    assert removed(text, clean_caption(text)) == parts


@given(anything)
def test_what_cleaning_removes_of_any_text(text):
    cleaned = result_or_prompt_error(clean_caption, text)
    if cleaned is not None:
        assert all(isinstance(part, str) and part for part in removed(text, cleaned))


# -- split_prompt


@pytest.mark.parametrize("case", PROMPTS["json_suffix"], ids=lambda case: case["prompt"][:30])
def test_suffix_as_released(case):
    assert split_prompt(case["prompt"]) == (case["text"], case["info"])


def test_suffix_beyond_the_release():
    paths = ["a[1].png", "{b}.png"]
    assert split_prompt('cat {"reference_path": ["a[1].png", "{b}.png"]} ') == ("cat ", {"reference_path": paths})
    assert split_prompt(r'cat {"reference_path": "C:\\new.png"}') == ("cat ", {"reference_path": r"C:\new.png"})
    assert split_prompt("cat {}") == ("cat ", {})


@pytest.mark.parametrize(
    "prompt, word",
    [
        ("A cat [close up]", "[close up]"),
        ('cat ["a.png"]', "list"),
        ("cat {'mask_strategy': '0'}", "double quotes"),
        ("cat {“mask_strategy”: “0”}", "double quotes"),
        ('cat {"mask_strategy": "0"} runs', "nothing after it"),
        ('cat {"mask_strategy": "0"}{"reference_path": "a"}', "Extra data"),
        (r'cat {"reference_path": "C:\x.png"}', "/ in paths"),
        ('cat {"mask_strategy": "0"', "delimiter"),
        ('cat {"reference_paths": "a.png"}', "unknown key 'reference_paths'"),
        ('cat {"mask_strategy": "0", "mask_strategy": "1"}', "twice"),
        ('cat {"mask_strategy": 0}', "mask_strategy must be text"),
        ('cat {"reference_path": null}', "reference_path must be text"),
        ('cat {"reference_path": []}', "reference_path must be"),
        ('cat {"reference_path": ["a.png", 1]}', "reference_path"),
    ],
)
def test_bad_suffixes(prompt, word):
    with pytest.raises(PromptError) as caught:
        split_prompt(prompt)
    assert word in str(caught.value)


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


# -- prompts_per_loop


@pytest.mark.parametrize("case", PROMPTS["loops"], ids=lambda case: f"{case['prompt']} x{case['loop']}")
def test_schedules_as_released(case):
    assert prompts_per_loop(case["prompt"], case["loop"]) == case["per_loop"]


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("A cat | A dog", ["a cat a dog"] * 2),  # no schedule: the bar is not at the beginning
        (" | 0 | A cat | 01 | A dog ", ["a cat", "a dog"]),
    ],
)
def test_schedules_beyond_the_release(prompt, expected):
    assert prompts_per_loop(prompt, 2) == expected


@pytest.mark.parametrize(
    "prompt, word",
    [
        ("|1|a", "start at loop 0"),
        ("|0|a|2|b|2|c", "increasing"),
        ("|0|a|2|b|1|c", "increasing"),
        ("|0|a|3|b", "before loops=3"),
        ("|0|a|-1|b", "increasing"),
        ("|0|a|2", "can't be read"),
        ("|a cat", "can't be read"),
        ("|0|a|x|b", "can't be read"),
        ("|0|a|" + "1" * 5000 + "|b", "can't be read"),
        ("|0|  |2|b", "nothing is left"),
        ("|0|a cat|1|一只猫", "English"),
        ("free shipping", "English"),
        (" \n", "the prompt is empty"),
        ("a." * 45_000, "90000 characters"),
    ],
)
def test_bad_schedules(prompt, word):
    with pytest.raises(PromptError) as caught:
        prompts_per_loop(prompt, 3)
    assert word in str(caught.value)


@given(st.one_of(anything, anything.map("|0|a|".__add__)), st.integers(-1, 9))
def test_schedules_of_any_text(prompt, loops):
    result = result_or_prompt_error(prompts_per_loop, prompt, loops)
    if result is not None:
        assert len(result) == loops > 0
        assert all(result)


# -- read_prompts


def texts(path):
    return [row.prompt for row in read_prompts(path)]


def test_prompt_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff  a cat \r\n\n \t\n|0|a|1|b{}\na caf\u00e9 \u2028 at night".encode())
    expected = ["a cat", "|0|a|1|b", "a caf\u00e9 \u2028 at night"]  # only line breaks end a line
    assert texts(path) == texts(str(path)) == expected


def test_comments_of_a_prompt_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# two prompts\na red car # 1\n  #\n\\#1 fan\n")
    assert texts(path) == ["a red car # 1", "#1 fan"]
    path.write_text("# nothing\n")
    with pytest.raises(PromptError, match="is empty"):
        read_prompts(path)


TABLE = """# two of them
path,text,num_frames,Mask-Strategy,reference_path

a.mp4,"a red car, at noon",16,0,car.png
b.mp4,"a ""blue"" boat",,,
#c.mp4,a comment
d.mp4,\\#1 fan
"""


def test_a_table_is_read_by_column(tmp_path):
    (tmp_path / "car.png").touch()
    for name, text in (("p.csv", TABLE), ("p.CSV", "\ufeff" + TABLE.replace("\n", "\r\n"))):
        (tmp_path / name).write_bytes(text.encode())
        car, boat, fan = read_prompts(tmp_path / name)
        assert car == PromptRow(
            "a red car, at noon", (str(tmp_path / "car.png"),), "0", {"path": "a.mp4", "num_frames": "16"}
        )
        assert boat == PromptRow('a "blue" boat', columns={"path": "b.mp4"})
        assert fan.prompt == "#1 fan"
    (tmp_path / "p.csv").write_text("prompt\n\\#1 fan\n# a comment\n")
    assert texts(tmp_path / "p.csv") == ["#1 fan"]
    (tmp_path / "p.csv").write_text("text;seed\na car, at noon;7\n")  # of a spreadsheet in German
    assert read_prompts(tmp_path / "p.csv") == [PromptRow("a car, at noon", columns={"seed": "7"})]
    (tmp_path / "p.tsv").write_text('# a, b, c\ntext\tseed\na car{"mask_strategy": "0"}\t7\n')
    assert read_prompts(tmp_path / "p.tsv") == [PromptRow("a car", None, "0", {"seed": "7"})]


@pytest.mark.parametrize(
    "table, word",
    [
        ("a red car\na blue boat\n", "column `text`"),
        ("text,prompt\na,b\n", "column `text`"),
        ("text,seed,seed\na,1,2\n", "each column once"),
        ("text,seed\na,1,2\n", "3 cells"),
        ('text\n"a\n', "as a table"),
        ("text\n", "is empty"),
        ("", "column `text`"),
    ],
)
def test_bad_tables(tmp_path, table, word):
    (tmp_path / "p.csv").write_text(table)
    with pytest.raises(PromptError, match=word):
        read_prompts(tmp_path / "p.csv")


def test_paths_are_looked_for_beside_the_file_then_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("sub/beside.png", "here.png", "both.png", "sub/both.png", "d0.mp4"):
        Path(name).touch()
    paths = "beside.png; here.png;both.png;beside.png#t=1,2;nowhere.png;https://example.org/clips/d0.mp4?x=1"
    Path("sub/p.txt").write_text(json.dumps({"reference_path": paths}).join(["a car", "\n"]))
    (row,) = read_prompts("sub/p.txt")
    beside = [str(Path("sub") / name) for name in ("beside.png", "both.png", "beside.png#t=1,2")]
    assert row.references == (beside[0], "here.png", beside[1], beside[2], "nowhere.png", "d0.mp4")
    with pytest.raises(PromptError, match="curl -LO"):
        PromptRow.parse('a car{"reference_path": "https://example.org/d1.mp4"}')


def test_bad_prompt_files(tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "blank").write_text(" \n\n")
    for path, word in [
        (tmp_path / "nowhere", "No such file"),
        (tmp_path / "latin", "UTF-8"),
        (tmp_path / "blank", "is empty"),
        (tmp_path, "prompt per line"),
        ("a\0b", "null"),
    ]:
        with pytest.raises(PromptError, match=word) as caught:
            read_prompts(path)
        assert repr(str(path)) in str(caught.value)


@given(st.binary())
def test_prompt_file_of_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_bytes(content)
    for name in ("prompts.txt", "prompts.csv"):
        (path.parent / name).write_bytes(content)
        result = result_or_prompt_error(texts, path.parent / name)
        assert result is None or result
