"""Open-Sora 1.1 inference in PaddlePaddle, small enough to be read in an afternoon."""

from opensora_lite import runtime as _runtime

_runtime.prepare()
