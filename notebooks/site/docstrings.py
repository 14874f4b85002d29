"""Plain-text docstrings as reStructuredText, for the API reference.

The package's docstrings are plain text with Markdown's backticks. In reStructuredText a `*`, a `|` or an indented
formula would be markup, and often a warning. Text is therefore escaped, indented blocks and tables become literal
blocks, and lines of the form `name: meaning` become a list.
"""

import dataclasses
import inspect
import re

SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
ITEM = re.compile(r"([*_a-z][*\w]*(?:, [*\w]+)*): +(.*)")
SECTION = re.compile(r"(Args|Arguments|Returns|Raises|Yields|Attributes|Shapes|Example|Examples|Notes?|Sources?):$")
FIELD = re.compile(r"^ {4}(\w+): [^#\n]*  # (.+(?:\n {8,}# .+)*)", re.MULTILINE)


def escape(text: str) -> str:
    """Inline text: code stays code, everything else is literal."""
    out, end = [], 0
    for match in SPAN.finditer(text):
        out.append(re.sub(r"([\\*|`]|_(?!\w))", r"\\\1", text[end : match.start()]))
        before, after = text[max(0, match.start() - 1) : match.start()], text[match.end() : match.end() + 1]
        code = " ".join(match[2].split())
        out.append(("\\ " if before.isalnum() else "") + f"``{code}``" + ("\\ " if after.isalnum() else ""))
        end = match.end()
    out.append(re.sub(r"([\\*|`]|_(?!\w))", r"\\\1", text[end:]))
    return re.sub(r"^([-+=~#.]{2,}|[-+] |\d+\.|\.\.)", r"\\\1", "".join(out))


def items(lines: list[str]) -> list[str]:
    """The lines as items: an indented line continues the one above, and so does one without a name of its own."""
    found: list[str] = []
    for line in lines:
        starts = not line.startswith(" ") and (ITEM.match(line) or line.startswith("- "))
        if starts or not found:
            found.append(line.strip())
        else:
            found[-1] += " " + line.strip()
    return found


def block(lines: list[str]) -> list[str]:
    """One block of lines between two empty ones."""
    if lines[0].startswith(">>>"):
        return lines
    if all(line.startswith("  ") for line in lines) or lines[0].lstrip().startswith("|"):
        return ["::", "", *("    " + line for line in lines)]
    if SECTION.match(lines[0]) and len(lines) > 1:
        return [f"**{lines[0]}**", "", *block(inspect.cleandoc("\n".join(["", *lines[1:]])).splitlines())]
    if sum(bool(re.match(r"\S.*?  +\S", line)) for line in lines) > 1:  # columns
        return ["::", "", *("    " + line for line in lines)]
    indented = next((i for i, line in enumerate(lines) if line.startswith("  ")), None)
    entries = items(lines)
    if len(entries) > 1 or ITEM.match(entries[0]) or entries[0].startswith("- "):
        named = [(match, entry) for entry in entries for match in [ITEM.match(entry)]]
        return [
            f"- ``{match[1]}``: {escape(match[2])}" if match else f"- {escape(entry.removeprefix('- '))}"
            for match, entry in named
        ]
    if indented:  # a sentence, and an indented formula right below it
        return [*block(lines[:indented]), "", *block(lines[indented:])]
    return escape("\n".join(lines)).splitlines()


def blocks(text: str) -> list[str]:
    out: list[str] = []
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        if part.strip():
            out += [*block(part.splitlines()), ""]
    return out


def fields(cls: type) -> list[str]:
    """The comments beside the fields of a dataclass, as a list."""
    said = {name: re.sub(r"\n *#", "", text) for name, text in FIELD.findall(inspect.getsource(cls))}
    return [f"- ``{f.name}``: {escape(said[f.name])}" for f in dataclasses.fields(cls) if f.name in said]


def process(app, what: str, name: str, thing: object, options, lines: list[str]) -> None:
    """Sphinx's autodoc-process-docstring."""
    home = getattr(thing, "__module__", None) or ""
    if what in ("method", "function", "attribute") and home.startswith("paddle"):
        lines[:] = [f"``{home}.{getattr(thing, '__name__', '')}``"]  # not the whole page of Paddle's reference
        return
    lines[:] = blocks("\n".join(lines))
    if what == "class" and dataclasses.is_dataclass(thing):
        lines += [*fields(thing), ""]


def plain_types(app, what: str, name: str, thing: object, options, signature: str | None, returns: str | None):
    """Sphinx's autodoc-process-signature: `Annotated[int, bounds]` becomes int."""
    return signature and without_annotated(signature), returns and without_annotated(returns)


def without_annotated(text: str) -> str:
    while (start := re.search(r"(?:\w+\.)*Annotated\[", text)) is not None:
        depth, first, end = 1, None, start.end()
        while depth:
            depth += (text[end] in "[({") - (text[end] in "])}")
            if text[end] == "," and depth == 1 and first is None:
                first = end
            end += 1
        text = text[: start.start()] + text[start.end() : first] + text[end:]
    return text
