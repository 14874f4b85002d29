"""Open-Sora 1.1 inference in PaddlePaddle, small enough to be read in an afternoon.

The names below are imported when they are first used, so that `import opensora_lite` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

from opensora_lite.device import set_environment as _set_environment

if TYPE_CHECKING:  # the same names, for editors and type checkers, which do not run __getattr__
    from opensora_lite.errors import OpenSoraError as OpenSoraError
    from opensora_lite.masks import MaskStrategy as MaskStrategy
    from opensora_lite.masks import Segment as Segment
    from opensora_lite.pipeline import OpenSora as OpenSora
    from opensora_lite.request import Settings as Settings
    from opensora_lite.runtime.memory import estimate_memory as estimate_memory
    from opensora_lite.trace import Trace as Trace
    from opensora_lite.video import Video as Video
    from opensora_lite.video import read_video as read_video

_HOMES = {
    "OpenSora": "pipeline",
    "Settings": "request",
    "MaskStrategy": "masks",
    "Segment": "masks",
    "estimate_memory": "runtime.memory",
    "Trace": "trace",
    "Video": "video",
    "read_video": "video",
    "OpenSoraError": "errors",
}
__all__ = list(_HOMES)
__version__ = "0.1.0"

_set_environment()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
