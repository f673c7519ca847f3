"""``%%inferlet``: a cell of a notebook as a program on a server. ``%load_ext pie_trio.client.notebook``.

It needs IPython: ``pip install pie-trio[notebook]``.
"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, magics_class

from pie_trio.application.run.arguments import parse_program_arguments
from pie_trio.client.blocking import BlockingClient
from pie_trio.client.errors import ProgramFailedError
from pie_trio.client.events import Log, Message
from pie_trio.errors import PieError

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from pie_trio.client.events import Event

__all__ = ["CellFailedError", "load_ipython_extension"]

USAGE = "usage: %%inferlet [--server URL] NAME [--ARGUMENT VALUE ...]"
SERVER = "--server"


class CellFailedError(Exception):
    """A program of a cell has failed. IPython shows the author's lines instead of ours."""

    def __init__(self, error: PieError) -> None:
        super().__init__(str(error))
        self.error = error

    def _render_traceback_(self) -> list[str]:
        """Return what IPython prints."""
        if isinstance(self.error, ProgramFailedError) and self.error.traceback:
            return self.error.traceback.rstrip().splitlines()
        return [f"{type(self.error).__name__}: {self.error}"]


@magics_class
class _InferletMagics(Magics):
    """The magic."""

    @cell_magic
    def inferlet(self, line: str, cell: str) -> Any:
        """Deploy the cell as the program NAME, run it, and return what it returns.

        usage: %%inferlet [--server URL] NAME [--ARGUMENT VALUE ...]

        Messages and the log are printed as they come. Without --server it is the one of
        $PIE_SERVER. Numbers of lines in tracebacks are those of the cell.
        """
        server, name, words = _parse(line)
        try:
            with BlockingClient(server) as pie:
                # In place of the line of the magic, so that lines keep their numbers.
                program = pie.deploy(b"\n" + cell.encode(), name)
                try:
                    arguments = parse_program_arguments(
                        program.raw, words, program=f"%%inferlet {name}"
                    )
                except SystemExit:  # it has printed the usage
                    return None
                with pie.run(name, **arguments) as run:
                    for event in run:
                        _print(event)
                assert run.outcome is not None, "else the iteration has raised"
                return run.outcome.value
        except PieError as error:
            raise CellFailedError(error) from None


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Add the magic; IPython calls this for ``%load_ext``."""
    shell.register_magics(_InferletMagics)


def _parse(line: str) -> tuple[str | None, str, list[str]]:
    """Return the server, the name and the program's arguments in the line of a magic.

    Raises:
        UsageError: There is no name.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{error}; {USAGE}") from error
    server = None
    if words[:1] == [SERVER] and len(words) > 1:
        server, words = words[1], words[2:]
    if not words or words[0].startswith("-"):
        raise UsageError(USAGE)
    return server, words[0], words[1:]


def _print(event: Event) -> None:
    match event:
        case Message():
            content = event.content
            text = (
                content
                if isinstance(content, str)
                else content.decode(errors="replace")
            )
            print(text, end="", flush=True)  # noqa: T201 - into the cell
        case Log():
            is_plain = event.source in ("stdout", "stderr")
            prefix = "" if is_plain else f"[{event.source}] "
            print(f"{prefix}{event.text}", file=sys.stderr, flush=True)  # noqa: T201
        case _:
            pass
