"""Which models of a pipeline are in memory.

`Resident` keeps all of them; `Offloaded` keeps T5 and the transformer alternately. `OpenSora` uses either through the
same attributes: transformer, text, vae and text_for(captions).
"""

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from opensora_lite.device import give_back_memory
from opensora_lite.errors import NeedsMemory

if TYPE_CHECKING:  # these import paddle
    from opensora_lite.runtime.engine import Engine
    from opensora_lite.stdit2 import STDiT2
    from opensora_lite.stdit3 import STDiT3
    from opensora_lite.text import TextEmbeddings, TextEncoder
    from opensora_lite.vae import FrameVAE
    from opensora_lite.video_vae import VideoVAE

LOADING = ("the weights", "close other programs, or use a machine with more memory")  # for NeedsMemory


class Transformer:
    """An STDiT2 and its compiled forms, together with the VAE's decoder: one Engine per precision."""

    def __init__(self, stdit: "STDiT2 | STDiT3", vae: "FrameVAE | VideoVAE"):
        self.stdit, self.vae = stdit, vae
        self.engines: dict[str, Engine] = {}

    def engine(self, precision: str) -> "Engine":
        """The Engine of that precision ("auto", "fp32" or "bf16"), made when it is first asked for."""
        from opensora_lite.runtime.engine import Engine

        if precision not in self.engines:
            self.engines[precision] = Engine(self.stdit, self.vae, precision)
        return self.engines[precision]


class Resident:
    """All models are in memory. stdit: STDiT2. text: TextEncoder, or TextEmbeddings in its place. vae: FrameVAE."""

    def __init__(self, stdit: "STDiT2 | STDiT3", text: "TextEncoder | TextEmbeddings", vae: "FrameVAE | VideoVAE"):
        self.transformer, self.text, self.vae = Transformer(stdit, vae), text, vae

    def __repr__(self) -> str:
        return "all models in memory"

    def text_for(self, captions: Sequence[str]) -> "TextEncoder | TextEmbeddings":
        """The encoder for the captions of a request. Raises PromptError if TextEmbeddings lack one of them."""
        from opensora_lite.text import TextEmbeddings

        if isinstance(self.text, TextEmbeddings):
            self.text.check(captions)
        return self.text


class Offloaded:
    """T5 and STDiT2 are never in memory together: loading one frees the other. The VAE, which is small, stays.

    load_stdit, load_text: load the two models. STDiT2 stays while the VAE decodes, because the next loop or batch needs
    it again; the memory of decoding is set by `micro_batch_size`.
    """

    def __init__(
        self,
        load_stdit: "Callable[[], STDiT2 | STDiT3]",
        load_text: "Callable[[], TextEncoder]",
        vae: "FrameVAE | VideoVAE",
    ):
        self.vae = vae
        self._loaders = {"transformer": lambda: Transformer(load_stdit(), vae), "text": load_text}
        self._loaded: dict[str, Any] = {}  # at most one of them

    def __repr__(self) -> str:
        return f"in memory: {', '.join([*self._loaded, 'vae'])}"

    def _load(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded.clear()
            gc.collect()  # layers refer to each other in cycles
            give_back_memory()
            with NeedsMemory(*LOADING):
                self._loaded[name] = self._loaders[name]()
        return self._loaded[name]

    @property
    def transformer(self) -> Transformer:
        """STDiT2, loaded if need be."""
        return self._load("transformer")

    @property
    def text(self) -> "TextEncoder":
        """T5, loaded if need be."""
        return self._load("text")

    def text_for(self, captions: Sequence[str]) -> "TextEmbeddings":
        """The encoded captions of a request; STDiT2 can be loaded afterwards."""
        return self.text.embed(captions)
