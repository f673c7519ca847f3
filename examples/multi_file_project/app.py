"""Find the likeliest continuation of a text, and be sure of it."""

from dataclasses import dataclass

from likeliest.search import Search

from inferlet_py import Context, inferlet


@dataclass
class Answer:
    """What was found.

    Attributes:
        text: The continuation.
        logprob: The logarithm of its probability.
        expanded: Beginnings that were looked into.
        is_certain: None is likelier, of the tokens that were looked at.
    """

    text: str
    logprob: float
    expanded: int
    is_certain: bool


@inferlet
async def main(
    prompt: str = "Once upon a time",
    length: int = 20,
    branches: int = 8,
    width: int = 8,
    capacity: int = 256,
) -> Answer:
    """Continue a prompt.

    Args:
        prompt: The text to continue.
        length: Tokens to add.
        branches: Likely tokens to look at behind each beginning.
        width: Beginnings to look into at once.
        capacity: Most beginnings to keep.
    """
    async with Context() as root:
        await root.fill(prompt)
        search = Search(root, branches=branches, capacity=capacity)
        try:
            found = await search.run(length, width)
        finally:
            search.close()
        node = found.node
        text = root.model.detokenize(node.token_ids)
        return Answer(text, node.logprob, found.num_expanded, found.is_certain)
