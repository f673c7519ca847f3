"""Search for an answer by Monte Carlo: play drafts to their end, and go where they end well."""

import math
from dataclasses import dataclass, field

from inferlet_py import Context, Sampler, inferlet, send

PROMPT = "<|im_start|>user\nRepeat exactly.\n{}<|im_end|>\n<|im_start|>assistant\n"
VERDICT = (
    "<|im_start|>user\nQuestion: Repeat: {}\nCandidate: {}\n"
    "Is it right? Say yes or no.<|im_end|>\n<|im_start|>assistant\n"
)


@dataclass
class Node:
    """A beginning of an answer: what ends with it, and how the drafts through it ended."""

    context: Context
    parent: "Node | None" = None
    children: dict[int, "Node"] = field(default_factory=dict[int, "Node"])
    visits: int = 0
    total: float = 0.0

    def promise(self, exploration: float) -> float:
        """Return the upper confidence bound of its value."""
        if self.parent is None or self.visits == 0:
            return math.inf
        spread = math.sqrt(math.log(self.parent.visits) / self.visits)
        return self.total / self.visits + exploration * spread


@inferlet
async def main(
    words: str = "nolzi shirtro golmep",
    num_drafts: int = 24,
    branches: int = 2,
    temperature: float = 1.8,
    exploration: float = 0.5,
    enough: float = 0.95,
    seed: int = 3,
) -> str:
    """Repeat words, though drafts are drawn so hot that most of them are wrong.

    Args:
        words: To be repeated.
        num_drafts: Drafts to play.
        branches: Most next tokens to try after each beginning.
        temperature: Of the drafts.
        exploration: How much what was tried seldom is preferred.
        enough: A draft of this value ends the search.
        seed: Of the drafts.
    """
    root = Node(Context())
    await root.context.fill(PROMPT.format(words))
    start, ends = len(root.context), root.context.model.info.eos_tokens
    best = (-1.0, "")
    for index in range(num_drafts):
        node = root
        while node.children:  # selection
            node = max(node.children.values(), key=lambda n: n.promise(exploration))
        if node.visits or node is root:  # expansion
            for token in (await node.context.forward(top=branches)).token_ids:
                if token not in ends:
                    node.children[token] = Node(node.context.fork(), node)
                    node.children[token].context.append([token])
            node = next(iter(node.children.values()), node)
        with node.context.fork() as draft:  # a draft to the end
            sampler = Sampler(temperature=temperature, seed=seed + index)
            await draft.generate(max_tokens=24, sampler=sampler).text()
            text = draft.model.detokenize(draft.token_ids[start:])
        with Context() as judge:  # its value
            await judge.fill(VERDICT.format(words, text), reuse=True)
            value = (await judge.forward()).prob(judge.model.tokenize("yes")[0])
        if value > best[0]:
            best = value, text
            await send(f"{index + 1}: {text!r} {value:.2f}\n")
        if value >= enough:
            break
        above: Node | None = node
        while above is not None:  # everything before it is worth more, or less
            above.visits, above.total = above.visits + 1, above.total + value
            above = above.parent
    return best[1]
