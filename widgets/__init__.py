"""Notebook widgets: MaskTimeline, LatentPlayer, AttentionView and TaskLab, and `figures` for the course's plots.

Needs the `notebook` extra; without it, importing this package raises ModuleNotFoundError with the install command.
The library never imports this package. Each widget is imported on first use.
"""

import importlib
import importlib.util

MISSING = [name for name in ("anywidget", "ipywidgets", "matplotlib") if importlib.util.find_spec(name) is None]
if MISSING:
    raise ModuleNotFoundError(
        f"{__name__} needs {', '.join(MISSING)}, which the notebook extra installs;"
        ' in the checkout of this repository run: pip install -e ".[cpu,notebook]"',
        name=MISSING[0],
    )

_MODULES = {"MaskTimeline": "timeline", "LatentPlayer": "player", "AttentionView": "attention", "TaskLab": "lab"}
__all__ = list(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
