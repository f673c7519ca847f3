"""What a server does ahead of its first requests, beside them: it compiles what comes with Pie."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pie_trio.errors import PieError

if TYPE_CHECKING:
    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.server.program_store import ProgramStore

__all__ = ["compile_built_in"]

logger = logging.getLogger(__name__)


async def compile_built_in(launcher: Launcher, programs: ProgramStore) -> None:
    """Compile the programs that come with Pie, which takes about a second of the processor.

    One at a time, and only while there is room for another instance besides, so that no launch
    is refused for it. What is left out is compiled when it is first launched.
    """
    for program in programs.built_in:
        if launcher.num_running + 1 >= launcher.max_instances:
            return
        try:
            await launcher.compile(program.source)
        except PieError:
            logger.exception("%s, which comes with Pie, was not compiled", program.name)
