"""Write the points of an answer first, and then all of them at the same time."""

import re
from dataclasses import dataclass

from inferlet_py import Chat, inferlet, open_nursery


@dataclass
class Section:
    """A point of the outline, and what there is to say about it."""

    point: str
    text: str = ""


@inferlet
async def main(topic: str = "owl", num_points: int = 3) -> list[Section]:
    """Write about a topic, point by point.

    Args:
        topic: An animal, best of all.
        num_points: From 2 to 5.
    """

    async def expand(section: Section) -> None:
        with Chat() as chat:
            asked = f"Write about one point.\nTopic: {topic}\nPoint: {section.point}"
            section.text = await chat.user(asked).reply(max_tokens=80).text()

    with Chat() as chat:
        chat.user(f"Write an outline with {num_points} points.\nTopic: {topic}")
        outline = await chat.reply(max_tokens=80).text()
    sections = [Section(point) for point in re.findall(r"^\d\. (.+)$", outline, re.M)]
    async with open_nursery() as nursery:
        for section in sections:
            nursery.start_soon(expand, section)
    return sections
