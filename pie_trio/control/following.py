"""Forwards that go on where another one ended: checked once, then moved on token by token.

A loop that decodes asks for the same forward again and again, a slot further on. What was found out
about the one before still holds as long as no handle was changed and no slot overwritten, which
is counted (`PageTable.changes`); otherwise it is found out anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.control.forwards import ForwardPlan, GuestForward, plan_forward
from pie_trio.engine_api import ForwardRequest, OutputSpec
from pie_trio.errors import BadArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.config import ControlConfig
    from pie_trio.control.page_table import PageTable
    from pie_trio.control.pages import PageIds, PagePool
    from pie_trio.engine_api import ModelInfo

__all__ = ["ForwardTail"]

NOTHING_KNOWN = -1
LAST_ROW = np.zeros(1, np.int32)
"""Of a forward of one token."""


@dataclass(slots=True)
class ForwardTail:
    """Where a forward ended, and what one that follows has in common with it.

    Attributes:
        handles: Its pages, in order, as the guest calls them.
        output: What it returned for its last token; of the same sampler, whatever the rows.
        adapter: Its adapter, or "".
        num_slots: Slots of the context, its own included.
        position: Of its last token.
        pages: ``[n]`` intp, the virtual pages that the handles stood for.
        changes: Of the table when it was planned, if a follower of it sees all slots and needs
            no mask.
    """

    handles: list[int]
    output: OutputSpec
    adapter: str
    num_slots: int
    position: int
    pages: PageIds
    changes: int

    @classmethod
    def of(
        cls, wanted: GuestForward, plan: ForwardPlan, table: PageTable
    ) -> ForwardTail | None:
        """Return the tail of a forward; None if it did not return its last token alone."""
        if len(wanted.outputs) != 1 or wanted.input_slots is not None:
            return None
        output, last = wanted.outputs[0], len(wanted.token_ids) - 1
        if len(output.rows) != 1 or output.rows[0] != last:
            return None
        if last:
            output = _at_row(output, LAST_ROW)
        tail = cls(
            wanted.pages,
            output,
            wanted.adapter,
            wanted.start + last + 1,
            int(wanted.positions[last]),
            plan.request.page_ids,
            NOTHING_KNOWN,
        )
        tail._learn(plan, table, is_own_mask=wanted.mask is not None)
        return tail

    def plan_next(
        self,
        token_ids: NDArray[np.int32],
        new_handles: Sequence[int],
        table: PageTable,
        pool: PagePool,
        info: ModelInfo,
        config: ControlConfig,
        *,
        max_mask_entries: int,
    ) -> ForwardPlan:
        """Plan the forward of these tokens, and move to its end. A refused one changes nothing.

        Args:
            token_ids: ``[n]`` int32; their slots and positions are those that follow.
            new_handles: Pages behind the others.
            table: The guest's pages.
            pool: The model's pages.
            info: The model.
            config: Limits.
            max_mask_entries: Room for its mask.

        Raises:
            InferletError: As :func:`plan_forward`.
        """
        plan = None
        if len(token_ids) == 1 and not new_handles:
            plan = self._move(token_ids, table, pool, info)
        if plan is not None:
            self.num_slots += 1
            self.position += 1
            return plan
        count = len(token_ids)
        first = self.position + 1
        if first + count > 2**31 - 1:
            raise BadArgumentError(
                f"positions {first} to {first + count - 1} are beyond the largest, {2**31 - 2}"
            )
        row = LAST_ROW if count == 1 else np.array([count - 1], np.int32)
        wanted = GuestForward(
            token_ids,
            np.arange(first, first + count, dtype=np.int32),
            [*self.handles, *new_handles],
            self.num_slots,
            None,
            (self.output if count == 1 else _at_row(self.output, row),),
            None,
            self.adapter,
        )
        plan = plan_forward(
            wanted, table, pool, info, config, max_mask_entries=max_mask_entries
        )
        self.handles = wanted.pages
        self.num_slots += count
        self.position += count
        self._learn(plan, table)
        return plan

    def _learn(
        self,
        plan: ForwardPlan,
        table: PageTable,
        *,
        is_own_mask: bool = False,
    ) -> None:
        self.pages = plan.request.page_ids
        is_plain = (
            plan.request.mask is None
            and not is_own_mask
            # Each page once, and nothing to copy.
            and plan.pages is plan.request.page_ids
            and (not table.hidden or table.hidden.keys().isdisjoint(self.handles))
        )
        self.changes = table.changes if is_plain else NOTHING_KNOWN

    def _move(
        self,
        token_ids: NDArray[np.int32],
        table: PageTable,
        pool: PagePool,
        info: ModelInfo,
    ) -> ForwardPlan | None:
        """Return the plan for one more token, if everything is as it was; None if not."""
        slot, pages = self.num_slots, self.pages
        index = slot // pool.page_size
        if (
            self.changes != table.changes
            or index >= len(pages)
            or not 0 <= token_ids[0] < info.vocab_size
            or self.position >= 2**31 - 2
            or (self.adapter and self.adapter not in info.adapters)
        ):
            return None
        page = int(pages[index])
        if pool.num_owners(page) != 1:
            return None  # it gets a page of its own
        position = np.array([self.position + 1], np.int32)
        if pool.set_positions(pages, slot, position):
            # Others may count on that slot; this context ended before it.
            table.changes += 1
            self.changes = table.changes
        request = ForwardRequest(
            token_ids,
            position,
            pages,
            slot + 1,
            None,
            (self.output,),
            None,
            self.adapter,
        )
        return ForwardPlan(request, pages, [page])


def _at_row(output: OutputSpec, rows: NDArray[np.int32]) -> OutputSpec:
    return OutputSpec(
        rows,
        output.sampler,
        output.top_k,
        logprobs=output.logprobs,
        entropy=output.entropy,
        logits=output.logits,
        hidden=output.hidden,
        processor=output.processor,
    )
