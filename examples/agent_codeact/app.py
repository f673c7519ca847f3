"""Let the model answer in Python: its code runs in a sandbox of its own, with a time limit."""

# /// pie
# grants = { spawn = true }
# ///

import contextlib
import io
import re

from inferlet_py import (
    Chat,
    ChildFailedError,
    TooSlowError,
    fail_after,
    inferlet,
    send,
    spawn,
)


async def run(code: str, seconds: float) -> str:
    """Return what code prints, or what is wrong with it; it runs in a child of this program."""
    try:
        with fail_after(seconds):
            async with spawn(code=code) as child:
                return str(await child.wait())
    except ChildFailedError as error:
        return f"{error.kind}: {error.message}"
    except TooSlowError:
        return f"stopped after {seconds:g} seconds"


@inferlet
async def main(
    question: str = "What is the average of 31, 4, 15, 92?",
    seconds: float = 2.0,
    max_acts: int = 4,
    code: str = "",
) -> str:
    """Answer a question with a few lines of Python.

    Args:
        question: As `What is "kelmo" backwards?` or `What is the sum of 1 to 100?`
        seconds: That the code may take.
        max_acts: Most times that it may write some.
        code: Only run this, and return what it prints: what the program launches itself with.
    """
    if code:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(code, {})
        return output.getvalue()[:1000].strip()  # as much as the model may read
    with Chat("Answer with Python code.") as chat:
        chat.user(question)
        for _ in range(max_acts):
            text = await chat.reply().text()
            written = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
            if written is None:
                return text
            printed = await run(written[1], seconds)
            await send(f"{text}\n{printed}\n")
            chat.add("tool", printed)
    raise RuntimeError(f"no answer after {max_acts} acts")
