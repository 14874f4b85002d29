"""Notebook widgets for opensora_lite: what shows, and lets a hand move, what the library computes.

Widgets import the library; the library never imports widgets. The names below are imported when they are first used.
"""

import importlib

_HOMES = {
    "MaskTimeline": "timeline",
    "LatentPlayer": "player",
    "AttentionView": "attention",
    "TaskLab": "lab",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
