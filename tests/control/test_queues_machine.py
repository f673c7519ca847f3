"""Queues, order and batches: whatever is asked for in whatever order, as one at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from pie_trio.control.commands import Kind, Priority, embed_key
from pie_trio.engine_api import NO_SLOT
from pie_trio.errors import CancelledError, EngineError, OutOfPagesError
from tests.control.beside import Beside, WatchedEngine, told_to_fail
from tests.control.guests import PAGE_SIZE
from tests.control.machines import CountedMachine
from tests.control.one_by_one import OneByOne
from tests.control.queue_guests import Barrier, QueueGuest, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pie_trio.control.queues import CommandQueue
    from tests.control.one_by_one import PlainEmbed, PlainPage
    from tests.control.queue_guests import Submitted

NUM_GUESTS = 3
MAX_HANDLES, MAX_EMBEDS, MAX_QUEUES = 6, 3, 3
FEW_PAGES, MANY_PAGES = 6, 60
BROKEN = 7
"""A forward with this token fails alone."""


@dataclass(frozen=True)
class Forward:
    """What is asked for; places are chosen among those that there are.

    Attributes:
        stores: Keep the hidden state of the last token there.
        reads: Let the hidden state there enter instead of the first token.
    """

    guest: int
    picks: list[int]
    tokens: list[int]
    start: int
    stores: int | None
    reads: int | None


INDEX = st.integers(0, 99)
TOKENS = st.lists(
    st.sampled_from([*range(8, 40), BROKEN]), min_size=1, max_size=2 * PAGE_SIZE
)
PICKS = st.lists(INDEX, min_size=1, max_size=3)
FORWARD = st.builds(
    Forward,
    guest=INDEX,
    picks=PICKS,
    tokens=TOKENS,
    start=st.sampled_from([0, 0, 0, 1, 2, 4, 5]),
    stores=st.none() | INDEX,
    reads=st.none() | INDEX,
)
DECODE = st.builds(
    Forward,
    guest=INDEX,
    picks=PICKS,
    tokens=st.lists(st.integers(8, 99), min_size=1, max_size=1),
    start=st.integers(0, 9),
    stores=st.none(),
    reads=st.none(),
)
CONTROLS = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(["adaptive", "rendezvous", "eager", "k_or_t:3,0.02"]),
        "max_batch": st.sampled_from([2, 256, 256]),
        "max_batch_tokens": st.sampled_from([2, 5, 2048, 2048]),
        "inline_seconds": st.sampled_from([0.0, 0.0, 9.0]),
        "num_pages": st.sampled_from([MANY_PAGES, MANY_PAGES, FEW_PAGES]),
    }
)


class QueueMachine(CountedMachine):
    """Inferlets with queues on one model, whose steps end, or fail, when the machine says so.

    Each result is compared with that of a reference that runs the commands one at a time. A
    command may fail only where it was withdrawn, its step failed, or it would see a slot that
    such a command was to write; where pages are short, also for that.
    """

    @initialize(control=CONTROLS)
    def begin(self, control: dict[str, object]) -> None:
        pages = control["num_pages"]
        self.is_short = pages == FEW_PAGES
        self.is_chunked = control["max_batch_tokens"] != 2048
        self.is_prompt = control["policy"] != "k_or_t:3,0.02"
        self.engine = WatchedEngine(
            num_pages=pages, page_size=PAGE_SIZE, broken_token_ids=(BROKEN,)
        )
        self.beside = Beside(engine=self.engine, **control)
        self.world = self.beside.world
        self.batcher, self.pool = self.world.batcher, self.world.pool
        self.record, self.plain = Record(), OneByOne(PAGE_SIZE)
        self.barriers: list[Barrier] = []
        self.guests: list[QueueGuest] = []
        for _ in range(NUM_GUESTS):
            self.launch()
        for guest in self.guests:
            self.add_pages(guest, guest.allocate(2))
            self.add_embed(guest)

    # ---- what the rules share ---------------------------------------------------------

    @property
    def alive(self) -> list[QueueGuest]:
        return [guest for guest in self.guests if not guest.is_closed]

    def pick(self, index: int) -> QueueGuest:
        alive = self.alive
        return alive[index % len(alive)]

    def do(self, function: Callable[[], object]) -> None:
        """Do something in the world, and see what comes of it."""
        self.beside.call(function)
        self.plain.replay()

    def launch(self) -> None:
        guest = self.beside.call(
            lambda: QueueGuest(self.world, self.record, len(self.world.guests))
        )
        guest.on_close = lambda: self.note_closed(guest)
        self.world.guests.append(guest)
        self.guests.append(guest)

    def add_pages(self, guest: QueueGuest, handles: Sequence[int]) -> None:
        for handle in handles:
            guest.plain[handle] = self.plain.new_page()

    def add_embed(self, guest: QueueGuest) -> None:
        slot = self.beside.call(guest.allocate_embed)
        assert slot not in guest.embeds, "a slot is never lent twice"
        guest.embeds[slot] = self.plain.new_embed()

    def note_closed(self, guest: QueueGuest) -> None:
        for submitted in self.record.unfinished:
            if submitted.command.tenant is guest.tenant:
                self.note_withdrawn(submitted)
        for page in guest.plain.values():
            self.plain.free_page(page)
        for embed in guest.embeds.values():
            self.plain.free_embed(embed)

    def note_withdrawn(self, submitted: Submitted) -> None:
        """Whoever is in the step that runs will have run, if that is its only step."""
        command = submitted.command
        is_running = command.batch == self.batcher.num_steps and command.batch > 0
        may_be_cut = self.is_chunked and command.kind == Kind.FORWARD
        if may_be_cut or not (is_running and self.beside.device.is_busy):
            submitted.is_unwanted = True

    # ---- queues -----------------------------------------------------------------------

    @precondition(lambda self: self.alive)
    @rule(guest=INDEX, queue=INDEX, priority=st.sampled_from(Priority))
    def change_queue(self, guest: int, queue: int, priority: Priority) -> None:
        """Choose a queue and its priority; open it if there is room."""
        chosen = self.pick(guest)
        index = queue % MAX_QUEUES
        if index >= len(chosen.queues):
            chosen.queue = chosen.open_queue()
        else:
            chosen.queue = chosen.queues[index]
        chosen.queue.priority = priority

    @precondition(lambda self: any(len(guest.queues) > 1 for guest in self.alive))
    @rule(guest=INDEX, queue=INDEX)
    def destroy_queue(self, guest: int, queue: int) -> None:
        chosen = self.pick(guest)
        if len(chosen.queues) < 2:
            return
        closed = chosen.queues.pop(queue % len(chosen.queues))
        chosen.queue = chosen.queues[0]

        def destroy() -> None:
            for submitted in self.record.unfinished:
                if submitted.queue is closed:
                    self.note_withdrawn(submitted)
            closed.withdraw_all()

        self.do(destroy)

    @precondition(lambda self: self.alive)
    @rule(guest=INDEX)
    def synchronize(self, guest: int) -> None:
        queue = self.pick(guest).queue
        barrier = Barrier([s for s in self.record.unfinished if s.queue is queue])
        self.barriers.append(barrier)

        def pass_barrier() -> None:
            barrier.num_calls += 1
            if not barrier.is_due:
                self.record.wrong.append("a barrier was passed too early")

        def begin() -> None:
            barrier.take_away = queue.synchronize(pass_barrier)

        self.do(begin)

    @precondition(lambda self: self.barriers)
    @rule(index=INDEX)
    def take_barrier_away(self, index: int) -> None:
        barrier = self.barriers[index % len(self.barriers)]
        barrier.is_taken_away |= not barrier.is_due
        self.do(barrier.take_away)

    @precondition(lambda self: self.record.unfinished)
    @rule(index=INDEX)
    def withdraw(self, index: int) -> None:
        unfinished = self.record.unfinished
        submitted = unfinished[index % len(unfinished)]

        def withdraw() -> None:
            self.note_withdrawn(submitted)
            submitted.command.withdraw()

        self.do(withdraw)

    # ---- pages and embeds -------------------------------------------------------------

    @precondition(lambda self: self.alive)
    @rule(guest=INDEX, count=st.integers(1, 2))
    def allocate(self, guest: int, count: int) -> None:
        chosen = self.pick(guest)
        if len(chosen.plain) + count <= MAX_HANDLES:
            self.add_pages(chosen, self.beside.call(lambda: chosen.allocate(count)))

    @precondition(lambda self: any(guest.plain for guest in self.alive))
    @rule(guest=INDEX, picks=PICKS, other=INDEX)
    def fork(self, guest: int, picks: list[int], other: int) -> None:
        """Share pages with another handle, of the same inferlet or of another one."""
        source, target = self.pick(guest), self.pick(other)
        handles = choose(picks, source.plain)
        if len(target.plain) + len(handles) > MAX_HANDLES:
            return
        made = self.beside.call(lambda: target.fork(handles, source))
        for old, new in zip(handles, made, strict=True):
            target.plain[new] = self.plain.new_page(source.plain[old])

    @precondition(lambda self: any(guest.plain for guest in self.alive))
    @rule(guest=INDEX, picks=PICKS)
    def release(self, guest: int, picks: list[int]) -> None:
        chosen = self.pick(guest)
        handles = choose(picks, chosen.plain)

        def release() -> None:
            chosen.release(handles)
            self.batcher.poke()

        for handle in handles:
            self.plain.free_page(chosen.plain.pop(handle))
        self.do(release)

    @precondition(lambda self: self.alive)
    @rule(guest=INDEX)
    def allocate_embed(self, guest: int) -> None:
        chosen = self.pick(guest)
        if len(chosen.embeds) < MAX_EMBEDS:
            self.add_embed(chosen)

    @precondition(lambda self: any(guest.embeds for guest in self.alive))
    @rule(guest=INDEX, index=INDEX)
    def release_embed(self, guest: int, index: int) -> None:
        chosen = self.pick(guest)
        for slot in choose([index], chosen.embeds):
            self.plain.free_embed(chosen.embeds.pop(slot))
            chosen.stored.pop(slot, None)
            chosen.slots.remove(slot)
            self.do(lambda slot=slot: self.world.embeds.release(slot))  # type: ignore[misc]

    # ---- commands ---------------------------------------------------------------------

    @precondition(lambda self: any(guest.plain for guest in self.alive))
    @rule(forwards=st.lists(FORWARD, min_size=1, max_size=4))
    def forward(self, forwards: list[Forward]) -> None:
        """Submit some forwards at once."""
        self.submit(forwards)

    @precondition(lambda self: any(guest.plain for guest in self.alive))
    @rule(forwards=st.lists(DECODE, min_size=2, max_size=6))
    def decode(self, forwards: list[Forward]) -> None:
        self.submit(forwards)

    def submit(self, forwards: list[Forward]) -> None:
        self.do(lambda: [self.submit_forward(forward) for forward in forwards])

    def submit_forward(self, forward: Forward) -> None:
        guest = self.pick(forward.guest)
        handles = choose(forward.picks, guest.plain)
        if not handles:
            return
        room = len(handles) * PAGE_SIZE
        start = forward.start % room
        tokens = forward.tokens[: room - start]
        slots = [NO_SLOT] * len(tokens)
        if forward.reads is not None and guest.embeds:
            slots[:1] = choose([forward.reads], guest.stored or guest.embeds)
        stores = [] if forward.stores is None else [forward.stores]
        store = next(iter(choose(stores, guest.embeds)), None)
        if store == slots[0]:  # the session takes another place for it
            store = None
        before = [guest.table.get(handle) for handle in handles]
        guest.forward(tokens, handles, start=start, store=store, input_slots=slots)
        submitted = guest.latest
        pages = [guest.plain[handle] for handle in handles]
        targets = {copy.target for copy in submitted.command.copies}
        own = [
            guest.plain[handle]
            for handle, old in zip(handles, before, strict=True)
            if guest.table.get(handle) in targets - {old}
        ]
        inputs = [guest.embeds.get(slot) for slot in slots]
        stored = None
        if store is not None:
            stored = guest.stored[store] = guest.embeds[store]
        self.plain.later(
            lambda: self.replay_forward(
                submitted, pages, own, tokens, start, inputs, stored
            ),
            lambda: submitted.is_done,
        )

    @precondition(lambda self: any(guest.plain for guest in self.alive))
    @rule(
        guest=INDEX,
        picks=st.lists(INDEX, min_size=2, max_size=2),
        start=st.integers(0, PAGE_SIZE - 1),
        into=st.integers(0, PAGE_SIZE - 1),
    )
    def copy(self, guest: int, picks: list[int], start: int, into: int) -> None:
        chosen = self.pick(guest)
        handles = choose(picks, chosen.plain)
        if not handles:
            return
        source, target = handles[0], handles[-1]
        count = PAGE_SIZE - max(start, into)

        def submit() -> None:
            chosen.copy(source, target, start, into, count)
            submitted = chosen.latest
            pages = chosen.plain[source], chosen.plain[target]
            self.plain.later(
                lambda: self.replay_copy(submitted, *pages, start, into, count),
                lambda: submitted.is_done,
            )

        self.do(submit)

    @precondition(lambda self: any(guest.embeds for guest in self.alive))
    @rule(guest=INDEX, index=INDEX)
    def project(self, guest: int, index: int) -> None:
        chosen = self.pick(guest)
        slots = choose([index], chosen.stored or chosen.embeds)

        def submit() -> None:
            for slot in slots:
                chosen.project(slot, 0)
                submitted, embed = chosen.latest, chosen.embeds[slot]
                self.plain.later(
                    lambda: self.replay_project(submitted, embed),
                    lambda: submitted.is_done,
                )

        self.do(submit)

    # ---- steps, time, inferlets -------------------------------------------------------

    @precondition(lambda self: self.beside.device.is_busy)
    @rule(count=st.integers(1, 4))
    def end_steps(self, count: int) -> None:
        for _ in range(count):
            self.do(self.beside.device.let_go)

    @precondition(lambda self: self.beside.device.is_busy)
    @rule(is_bug=st.booleans())
    def fail_step(self, is_bug: bool) -> None:
        """Let the step fail, or the next one where pages are just moved."""
        self.engine.failure = told_to_fail(is_bug=is_bug)
        self.do(self.beside.device.let_go)

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.6]))
    def pass_time(self, seconds: float) -> None:
        self.do(lambda: self.beside.clock.jump(seconds))

    @precondition(lambda self: self.alive)
    @rule(guest=INDEX, is_coming=st.booleans())
    def announce(self, guest: int, is_coming: bool) -> None:
        """Let batches wait for an inferlet, or no longer."""
        name = self.pick(guest).tenant.name
        arrivals = self.batcher.arrivals
        self.do(lambda: (arrivals.expect if is_coming else arrivals.settle)(name))

    @precondition(lambda self: self.alive)
    @rule(guest=INDEX)
    def suspend(self, guest: int) -> None:
        tenant = self.pick(guest).tenant
        self.do(lambda: self.batcher.suspend(tenant, lambda: None))

    @precondition(lambda self: self.alive)
    @rule(guest=INDEX)
    def end_guest(self, guest: int) -> None:
        self.do(self.pick(guest).close)

    @precondition(lambda self: len(self.alive) < NUM_GUESTS)
    @rule()
    def launch_another(self) -> None:
        self.launch()

    # ---- what each command should have done -------------------------------------------

    def replay_forward(
        self,
        submitted: Submitted,
        pages: list[PlainPage],
        own: list[PlainPage],
        tokens: list[int],
        start: int,
        inputs: list[PlainEmbed | None],
        store: PlainEmbed | None,
    ) -> None:
        command, outcome = submitted.command, submitted.outcomes[0]
        read = [embed for embed in inputs if embed is not None]
        sees_hole = self.plain.sees_hole(pages, start, len(tokens), read)
        if not isinstance(outcome, Exception):
            assert not sees_hole, "nobody sees what was never written"
            assert not submitted.is_unwanted or self.is_chunked, "it was withdrawn"
            assert BROKEN not in tokens
            token = self.plain.run(pages, tokens, start, inputs=inputs, store=store)
            assert outcome is not None
            assert outcome[0].token_ids.tolist() == [token]
            return
        self.check_failure(
            submitted, outcome, may_fail=sees_hole or BROKEN in tokens
        )
        if not command.is_copied:
            for page in own:
                page.is_good = [False] * PAGE_SIZE
        if done := command.num_run:
            self.plain.run(
                pages, tokens[:done], start, inputs=inputs[:done], is_whole=False
            )
        self.plain.spoil(pages, start + done, len(tokens) - done)
        if store is not None:
            store.is_good = False

    def replay_copy(
        self,
        submitted: Submitted,
        source: PlainPage,
        target: PlainPage,
        start: int,
        into: int,
        count: int,
    ) -> None:
        command, outcome = submitted.command, submitted.outcomes[0]
        is_of_shared = len(command.copies) == 2
        kept = set(range(PAGE_SIZE)) - set(range(into, into + count))
        copied = [(source, slot) for slot in range(start, start + count)]
        if is_of_shared:
            copied += [(target, slot) for slot in kept]
        lacks = [
            page.positions[slot] >= 0 and not page.is_good[slot]
            for page, slot in copied
        ]
        if outcome is None:
            assert not any(lacks), "what was never written is not copied"
        else:
            assert isinstance(outcome, Exception)
            self.check_failure(submitted, outcome, may_fail=any(lacks))
        if command.is_copied:
            self.plain.copy(source, target, start, into, count)
            return
        moved = source.positions[start : start + count]
        target.positions[into : into + count] = moved
        is_lost = is_of_shared or command.batch in self.engine.failed_steps
        lost = range(PAGE_SIZE) if is_lost else range(into, into + count)
        for slot in lost:
            target.is_good[slot] = False

    def replay_project(self, submitted: Submitted, embed: PlainEmbed) -> None:
        outcome = submitted.outcomes[0]
        if isinstance(outcome, Exception):
            self.check_failure(submitted, outcome, may_fail=not embed.is_good)
            return
        assert embed.is_good, "nobody sees what was never stored"
        assert not submitted.is_unwanted, "it was withdrawn"
        assert outcome is not None
        assert outcome[0].token_ids.tolist() == [self.plain.project(embed)]

    def check_failure(
        self, submitted: Submitted, error: Exception, *, may_fail: bool
    ) -> None:
        """Assert that there was a reason."""
        if self.is_short and isinstance(error, OutOfPagesError):
            return
        has_failed = submitted.command.batch in self.engine.failed_steps
        assert isinstance(error, CancelledError | EngineError), error
        assert may_fail or has_failed or submitted.is_unwanted, error

    # ---- what must hold ---------------------------------------------------------------

    @invariant()
    def nothing_is_out_of_order(self) -> None:
        assert self.record.wrong == []
        assert self.engine.wrong == []

    @invariant()
    def queues_and_inferlets_count_what_is_unfinished(self) -> None:
        unfinished = self.record.unfinished
        assert self.batcher.num_unfinished == len(unfinished)
        by_queue = Counter(submitted.queue for submitted in unfinished)
        by_tenant = Counter(submitted.command.tenant for submitted in unfinished)
        queues: list[CommandQueue] = [q for g in self.guests for q in g.queues]
        for queue in {*queues, *by_queue}:
            assert queue.num_unfinished == by_queue[queue]
        for guest in self.guests:
            assert len(guest.tenant.unfinished) == by_tenant[guest.tenant]

    @invariant()
    def every_page_has_the_owners_and_pins_that_stand_for_it(self) -> None:
        self.world.check()
        owners = Counter(page for g in self.guests for page in g.table.values())
        pins = Counter(
            page for s in self.record.unfinished for page in s.command.pages.tolist()
        )
        assert self.pool.num_virtual == len({*owners, *pins})
        for page in {*owners, *pins}:
            assert self.pool.num_owners(page) == owners[page]
            assert self.pool.num_pins(page) == pins[page]
        slots = [slot for guest in self.guests if not guest.is_closed for slot in guest.slots]
        used = [slot for s in self.record.unfinished for slot in s.command.embeds]
        assert len(set(slots)) == len(slots), "a slot is one inferlet's alone"
        num_held = len({*slots, *used})
        assert self.world.embeds.num_free == self.engine.info.num_embeds - num_held

    @invariant()
    def barriers_are_passed_once_all_before_them_is_done(self) -> None:
        for barrier in self.barriers:
            is_due = barrier.is_due and not barrier.is_taken_away
            assert barrier.num_calls == int(is_due)

    @invariant()
    def the_device_does_not_idle_while_something_could_run(self) -> None:
        if self.is_short or not self.is_prompt or self.beside.device.is_busy:
            return
        if not self.batcher.arrivals.num_expected:
            assert not self.record.unfinished

    def teardown(self) -> None:
        if not hasattr(self, "beside"):
            return
        try:
            self.do(self.beside.device.open)
            for _ in range(300):
                if self.record.unfinished:
                    self.do(lambda: self.beside.clock.jump(0.1))
            assert not self.record.unfinished, "every command ends"
            self.nothing_is_out_of_order()
            self.barriers_are_passed_once_all_before_them_is_done()
            assert self.plain.replay() == 0
            for guest in self.alive:
                self.do(guest.close)
            self.queues_and_inferlets_count_what_is_unfinished()
            assert self.pool.num_virtual == 0
        finally:
            self.beside.close()


def choose(picks: Sequence[int], among: dict[int, object] | dict[int, PlainPage] | dict[int, PlainEmbed]) -> list[int]:
    """Return different keys, fewer where there are fewer."""
    keys = list(among)
    return list(dict.fromkeys(keys[pick % len(keys)] for pick in picks)) if keys else []


TestQueues = QueueMachine.TestCase
TestQueues.settings = settings(max_examples=settings().max_examples // 5)
