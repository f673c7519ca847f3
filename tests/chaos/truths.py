"""What reports of inferlets must say: tokens, texts, messages of topics, and keys of the store."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from pie_trio.inference.fake import fake_continuation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.control.store import Store
    from tests.chaos.world import NotedTopics

BOS = 256


class Key:
    """A key that one instance alone writes, with numbers that grow.

    Attributes:
        attempted: The last number that was to be written.
        written: The last one that was.
        is_open: What became of the last attempt was not told.
        is_of_child: Its parent may have left before it was told more.
    """

    def __init__(self) -> None:
        self.attempted = self.written = 0
        self.is_open = self.is_of_child = False


class Truths:
    """Compares reports with the model, the topics and the store.

    Attributes:
        counts: Reports by kind; and tokens, missed messages and keys.
        failures: What was found to be wrong, and not raised yet.
    """

    def __init__(self, topics: NotedTopics) -> None:
        self._topics = topics
        self.counts: Counter[str] = Counter()
        self.failures: list[AssertionError] = []
        self._written: dict[tuple[tuple[int, ...], str], str] = {}
        self._keys: dict[tuple[str, str], Key] = {}

    def check(
        self, owner: str, kind: str, values: Sequence[Any], *, is_of_child: bool
    ) -> None:
        """Assert that a report is true."""
        match kind, values:
            case "tokens", [before, found]:
                wanted = fake_continuation(before, len(found))
                self.counts["tokens compared"] += len(found)
                assert found == wanted, (
                    f"after {before} came {found} instead of {wanted}"
                )
            case "written", [before, pattern, text]:
                self._check_written(before, pattern, text)
            case "imported", [name, token_ids]:
                text = bytes(token_ids[1:]).decode()
                assert token_ids[0] == BOS, token_ids
                assert text == f"{owner} shares {name * 5}", f"{owner} found {text!r}"
            case "heard-of", [topic, heard]:
                self._check_heard(f"{owner}/{topic}", heard)
            case (("writes" | "wrote" | "failed"), [key, number]):
                self._note_write(kind, owner, key, number)
                self._keys[owner, key].is_of_child = is_of_child
            case "shared", [text]:
                assert text.split()[0] == owner, f"{owner} reads {text!r}"
            case _, []:
                pass
            case (("cancelled" | "hole" | "heard"), [_]):
                pass
            case _:
                raise AssertionError(f"a report that nobody plans: {kind} {values}")

    def _check_written(self, before: list[int], pattern: str, text: str) -> None:
        """Assert that a text fits its grammar, and is the same each time."""
        assert re.fullmatch(pattern, text), f"{text!r} is no {pattern}"
        first = self._written.setdefault((tuple(before), pattern), text)
        assert first == text, f"after {before} came {text!r}, and once {first!r}"

    def _check_heard(self, topic: str, heard: list[tuple[str, str, int]]) -> None:
        """Assert that what was heard was said in that order, and what was missed is known."""
        said = self._topics.log.get(topic, [])
        last = None
        for sender, text, num_missed in heard:
            assert (sender, text) in said, f"nobody said {text!r} in {topic}"
            place = said.index((sender, text))
            if last is not None:
                self.counts["missed"] += num_missed
                assert place - last - 1 == num_missed, (
                    f"{place - last - 1} of {topic} are missing before {sender} {text}, but "
                    f"{num_missed} were told"
                )
            last = place

    def _note_write(self, kind: str, owner: str, key: str, number: int) -> None:
        found = self._keys.setdefault((owner, key), Key())
        if kind == "writes":
            found.attempted, found.is_open = number, True
            return
        assert number == found.attempted, f"{key}: {kind} {number} without an attempt"
        found.is_open = False
        if kind == "wrote":
            found.written = number

    async def check_store(self, store: Store) -> None:
        """Assert that the store has what it has acknowledged, and nothing that failed."""
        for (owner, key), known in self._keys.items():
            raw = await store.get(owner, key)
            found = 0 if raw is None else int(raw)
            allowed = {
                known.written,
                known.attempted if known.is_open else known.written,
            }
            is_known = not known.is_of_child or found < known.written
            assert not is_known or found in allowed, (
                f"{owner}'s {key} is {found}, not of {allowed}"
            )
            self.counts["keys"] += 1
