"""The results of a sweep: a table (results.csv, results.parquet) and a page with the videos (index.html)."""

import itertools
from pathlib import Path
from typing import Any

from opensora_lite.io.files import atomic_write
from opensora_lite.tools.grid import Grid, describe, text_of

FILM = "film.mp4"
FILES = ("results.csv", "results.parquet", "index.html")
OWN_COLUMNS = ("status", "error", "seconds", "notebook", "film")


def save(grid: Grid, rows: dict[str, dict[str, Any]], out: Path):
    """Write the results of the finished and failed runs; rows: name of a run -> its row. Returns the table."""
    table = tabulate([rows[run.name] for run in grid.runs if run.name in rows])
    csv, parquet, page = (out / name for name in FILES)
    with atomic_write(csv) as temporary:
        table.to_csv(temporary, index=False)
    with atomic_write(parquet) as temporary:
        table.to_parquet(temporary, index=False)
    with atomic_write(page) as temporary:
        temporary.write_text(gallery(grid, rows), encoding="utf-8")
    return table


def tabulate(rows: list[dict[str, Any]]):
    """A pandas.DataFrame of rows: parameters, recorded values, status, error, seconds, notebook, film.

    Nested values have dotted names. A recorded value with the name of a parameter is left out if it only repeats the
    parameter, and is called recorded.NAME otherwise.
    """
    import pandas

    columns: dict[str, list] = {}
    for name in dict.fromkeys(name for row in rows for name in row["parameters"]):
        values = [row["parameters"].get(name) for row in rows]
        columns[f"parameter.{name}" if name in OWN_COLUMNS else name] = values
    flat = [flattened(row["recorded"]) for row in rows]
    for name in dict.fromkeys(name for values in flat for name in values):
        repeats = all(
            name in row["parameters"] and values.get(name, ...) in (..., row["parameters"][name])
            for row, values in zip(rows, flat, strict=True)
        )
        if not repeats:
            taken = name in OWN_COLUMNS or name in columns
            columns[f"recorded.{name}" if taken else name] = [values.get(name) for values in flat]
    columns |= {name: [row[name] for row in rows] for name in OWN_COLUMNS}
    return pandas.DataFrame({name: column(values) for name, values in columns.items()})


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def column(values: list):
    """A pandas array of one type, as parquet needs it; lists and mixed types become text."""
    import pandas

    if not any(isinstance(value, list) for value in values):
        array = pandas.array(values)  # Int64, Float64, boolean or string, where all values are of one kind
        if array.dtype != object:
            return array
    return pandas.array([None if value is None else text_of(value) for value in values], dtype="string")


def gallery(grid: Grid, rows: dict[str, dict[str, Any]]) -> str:
    """An HTML page with the videos, in a table for each combination of all axes but the last two."""
    import jinja2

    runs = iter(grid.runs)
    tables = []
    if grid.axes:
        *outer, across = grid.axes
        down = outer.pop() if outer else None
        columns = [describe({across: value}) for value in grid.axes[across]]
        for values in itertools.product(*(grid.axes[name] for name in outer)):
            lines = [
                (describe({down: value}) if down else "", list(itertools.islice(runs, len(columns))))
                for value in (grid.axes[down] if down else [None])
            ]
            tables.append((describe(dict(zip(outer, values, strict=True))), columns, lines))
    failed = sum(row["status"] == "failed" for row in rows.values())
    summary = [f"{len(rows) - failed} of {len(grid.runs)} runs finished"]
    summary += [f"{failed} failed"] if failed else []
    summary += [f"in all: {describe(grid.parameters)}"] if grid.parameters else []

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"flattened": flattened, "number": number}
    template = Path(__file__).with_name("gallery.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=f"Sweep of {grid.notebook.name}",
        summary="; ".join(summary),
        tables=tables,
        singles=list(zip(runs, map(describe, grid.singles), strict=True)),
        rows=rows,
        label=lambda run: describe(grid.chosen(run)),
    )


def number(value: Any) -> str:
    """A recorded value for people: floats with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else text_of(value)
