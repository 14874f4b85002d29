"""The command line: `opensora-lite generate`, `encode-text`, `explain`, `evaluate`, `train`, `convert` and others.

`generate` takes the flags of PaddleMIX's Open-Sora example, in either spelling (--frame-interval, --frame_interval).
Mistakes are one message and exit code 2, before a model is loaded. Existing files are only replaced with --overwrite.
`sweep` executes the notebook that it is given; no other command executes anything.
"""

import argparse
import contextlib
import gc
import io
import sys
import warnings
from collections.abc import Iterator

from opensora_lite.errors import Note, OpenSoraError
from opensora_lite.tools.stopping import Terminated, stoppable

COMMANDS = {
    "generate": "turn prompts into videos",
    "encode-text": "save T5's embeddings of prompts for generate",
    "explain": "say in plain English what a mask strategy does",
    "info": "say how a saved video was made: prompt, seed, settings, model",
    "evaluate": "measure how well a model follows prompts and keeps references",
    "train": "train a model, or continue a run that was stopped",
    "convert": "write the weights of a pickle, such as a .pt file, as safetensors",
    "sweep": "run a notebook with every combination of parameters",
    "doctor": "report what this machine has, what is missing or slow, and what to do",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; argv: its words, None for those of the process.

    Returns the exit code: 0; 1 if runs of a sweep failed, or if `doctor` found that no video can be made; 2 for a
    mistake in the request; 130 after Ctrl-C, and 143 after SIGTERM, which stops a command in the same way.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's streams have no encoding
            stream.reconfigure(errors="backslashreplace")  # for terminals that cannot show a file's name
    try:
        arguments = parser().parse_args([with_hyphens(word) for word in (sys.argv[1:] if argv is None else argv)])
        with stoppable(), printed_notes():
            return arguments.run(arguments) or 0
    except (OpenSoraError, OSError, RecursionError) as error:  # RecursionError: JSON nested thousands deep
        print(f"opensora-lite: error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"opensora-lite: error: there is not enough memory ({str(error) or 'none is left'})", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"opensora-lite: stopped; {str(stop) or 'nothing was saved'}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    finally:
        if argv is None:  # the process ends: no collection of all of Paddle's objects, which takes half a second
            gc.freeze()


@contextlib.contextmanager
def printed_notes() -> Iterator[None]:
    """A block in which a Note is a line "note: …", once for each text; other warnings are as they were."""
    others, said = warnings.showwarning, set()

    def show(message, category, *where, **more):
        if not issubclass(category, Note):
            others(message, category, *where, **more)
        elif str(message) not in said:
            said.add(str(message))
            print(f"note: {message}", flush=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        warnings.showwarning = show
        yield


class Command(argparse.ArgumentParser):
    """The parser of a command, which is imported when it is used.

    So `opensora-lite --help` is fast, and `doctor` runs where packages that the others import are missing.
    """

    def parse_known_args(self, args=None, namespace=None):
        """Add the options of this command, then parse."""
        name = self.prog.split()[-1]
        if name == "doctor":
            self.set_defaults(run=doctor)
        elif self.get_default("run") is None:
            try:
                from opensora_lite.tools.commands import COMMANDS
            except ImportError as error:
                self.error(f"{error}; `opensora-lite doctor` says what to install")
            add_options, run = COMMANDS[name]
            add_options(self)
            self.set_defaults(run=run)
        return super().parse_known_args(args, namespace)


def parser() -> argparse.ArgumentParser:
    """All commands and their options; `run` of the parsed arguments is the function of the command."""
    top = argparse.ArgumentParser(prog="opensora-lite", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(required=True, metavar="COMMAND", parser_class=Command)
    for name, help in COMMANDS.items():
        commands.add_parser(name, help=help)
    return top


def with_hyphens(word: str) -> str:
    """--cfg_scale=4 -> --cfg-scale=4: PaddleMIX's example has flags in both spellings."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else word


def doctor(a: argparse.Namespace) -> int:
    """Print what `examine` finds. Returns the exit code: 1 if no video can be made."""
    from opensora_lite.tools.doctor import examine, report

    print("Importing the packages and measuring for 3 seconds …\n", flush=True)
    findings = examine()
    print(report(findings))
    return int(any(finding.blocks for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
