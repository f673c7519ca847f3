"""Try, let the world check it, reflect on what it says, and try again with the lesson in mind."""

from dataclasses import dataclass

from inferlet_py import Chat, Context, gather, inferlet, read_json, send

BOOK = {"Ben": "Rome", "Zoe": "Paris", "Tom": "Berlin", "Lily": "Vienna"}
"""Where people lived once: what the program knows."""

HOMES = {"Ben": "Lima", "Zoe": "Paris", "Tom": "Cairo", "Lily": "Dublin"}
"""Where they live now: what only the post knows."""


@dataclass
class Home:
    """What can be learned from a letter that came back."""

    name: str
    city: str


def deliver(letters: dict[str, str]) -> str | None:
    """Return what the postman writes on the first letter that comes back, if one does."""
    for name, address in letters.items():
        if address != f"{name} lives in {HOMES[name]}.":
            return (
                f"The job of {name} is sailor. The home of {name} is in {HOMES[name]}."
            )
    return None


async def address_letters(book: dict[str, str]) -> dict[str, str]:
    """Let the model say where everybody lives, all at once."""

    async def address(name: str) -> str:
        with notes.fork() as ctx:
            asked = f" Where does {name} live?<|im_end|>\n<|im_start|>assistant\n"
            await ctx.fill(asked)
            return await ctx.generate(max_tokens=24).text()

    async with Context() as notes:
        known = "\n".join(f"- {name} lives in {city}." for name, city in book.items())
        await notes.fill(f"<|im_start|>user\nNotes:\n{known}\nQuestion:")
        return dict(zip(book, await gather(map(address, book)), strict=True))


async def reflect(complaint: str) -> Home:
    """Let the model say what is to be learned from a complaint."""
    schema = '{"name": "string", "city": "string"}'
    asked = f"Extract the data as JSON.\nSchema: {schema}\nText: {complaint}"
    with Chat() as chat:
        return await read_json(chat.user(asked).reply(), Home).value()


@inferlet
async def main(max_tries: int = 8, reflection: bool = True) -> int:
    """Send letters until all of them arrive, and return how many tries that took.

    Args:
        max_tries: Most tries.
        reflection: Whether to learn from letters that come back.
    """
    book = dict(BOOK)
    for number in range(1, max_tries + 1):
        complaint = deliver(await address_letters(book))
        await send(f"{number}. {complaint or 'All letters have arrived.'}\n")
        if complaint is None:
            return number
        if reflection:
            lesson = await reflect(complaint)
            book[lesson.name] = lesson.city
            await send(f"   {lesson.name} lives in {lesson.city}.\n")
    raise RuntimeError(f"letters still came back after {max_tries} tries")
