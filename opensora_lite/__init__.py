"""Open-Sora 1.1 inference in PaddlePaddle, small enough to be read in an afternoon.

The names below are imported when they are first used, so that `import opensora_lite` takes no time.
"""

import importlib

from opensora_lite.runtime import prepare as _prepare

_HOMES = {
    "OpenSora": "pipeline",
    "Settings": "pipeline",
    "MaskStrategy": "masks",
    "Segment": "masks",
    "Trace": "trace",
    "Video": "video",
    "read_video": "video",
    "OpenSoraError": "errors",
}
__all__ = list(_HOMES)
__version__ = "0.1.0"

_prepare()


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
