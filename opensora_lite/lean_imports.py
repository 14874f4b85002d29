"""Imports of paddlenlp's T5 and of ppdiffusers without paddlenlp's __init__.

That __init__ also imports a web server (fastapi), applications (scikit-learn) and data sets (pandas): four fifths of
the import time, none of which T5 or ppdiffusers use. A later `import paddlenlp` runs it as usual.
"""

import contextlib
import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder


class LeanPackage(importlib.abc.MetaPathFinder):
    """A package whose submodules can be imported before its __init__ has run.

    name: of a package that has not been imported. attributes: those of the package that its submodules read.
    """

    def __init__(self, name: str, **attributes: object):
        spec = PathFinder.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        self.module = importlib.util.module_from_spec(spec)
        vars(self.module).update(attributes)
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """importlib's hook: a regular import of the package runs its __init__ in the module made here."""
        spec = PathFinder.find_spec(fullname) if fullname == self.module.__name__ else None
        if spec is not None and spec.loader is not None:
            vars(spec.loader)["create_module"] = lambda spec: self.module
        return spec

    @contextlib.contextmanager
    def without_init(self) -> Iterator[None]:
        """Context in which submodules can be imported; outside of it, the package counts as not imported."""
        sys.modules[self.module.__name__] = self.module
        try:
            yield
        finally:
            del sys.modules[self.module.__name__]


@contextlib.contextmanager
def lean_paddlenlp() -> Iterator[None]:
    """Context for imports of paddlenlp's T5 and of ppdiffusers. Raises ModuleNotFoundError without paddlenlp."""
    if "paddlenlp" in sys.modules:  # fully imported
        yield
        return
    package = next((finder for finder in sys.meta_path if isinstance(finder, LeanPackage)), None)
    if package is None:
        package = LeanPackage("paddlenlp", __version__=importlib.metadata.version("paddlenlp"))
    with package.without_init():
        importlib.import_module("paddlenlp.data")  # as in the __init__: its cyclic imports only work in that order
        yield
