"""Queues, order and batches: whatever is asked for in whatever order, as one at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from pie_trio.control.commands import Kind, Priority
from pie_trio.engine_api import NO_SLOT
from tests.control.beside import Beside, WatchedEngine, told_to_fail
from tests.control.guests import PAGE_SIZE
from tests.control.machines import WITHOUT_SHRINKING, CountedMachine
from tests.control.one_by_one import OneByOne
from tests.control.queue_guests import Barrier, QueueGuest, Record
from tests.control.replays import BROKEN, Replays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pie_trio.control.queues import CommandQueue
    from tests.control.queue_guests import Submitted

NUM_GUESTS = 3
MAX_HANDLES, MAX_EMBEDS, MAX_QUEUES = 6, 3, 3
FEW_PAGES, MANY_PAGES = 6, 60


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

    Each result is compared with that of a reference: see :class:`Replays`.
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
        failed = self.engine.failed_steps
        self.record = Record(
            self.pool, lambda command: self.is_short or command.batch in failed
        )
        self.plain = OneByOne(PAGE_SIZE)
        self.replays = Replays(
            self.plain,
            failed,
            is_short=self.is_short,
            is_chunked=self.is_chunked,
        )
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

    @precondition(lambda self: any(guest.plain for guest in self.alive))
    @rule(
        guest=INDEX,
        before=st.lists(FORWARD, max_size=2),
        after=st.lists(FORWARD, max_size=2),
    )
    def synchronize(
        self, guest: int, before: list[Forward], after: list[Forward]
    ) -> None:
        """Synchronize a queue, which may get commands just before and after that."""
        chosen = self.pick(guest)
        queue = chosen.queue

        def begin() -> None:
            for forward in before:
                self.submit_forward(replace(forward, guest=guest))
            barrier = Barrier([s for s in self.record.unfinished if s.queue is queue])

            def pass_barrier() -> None:
                barrier.num_calls += 1
                if not barrier.is_due:
                    self.record.wrong.append("a barrier was passed too early")

            barrier.take_away = queue.synchronize(pass_barrier)
            self.barriers.append(barrier)
            for forward in after:
                self.submit_forward(replace(forward, guest=guest))

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
        if not chosen.embeds:
            return
        (slot,) = choose([index], chosen.embeds)
        self.plain.free_embed(chosen.embeds.pop(slot))
        chosen.stored.pop(slot, None)
        chosen.slots.remove(slot)
        self.do(lambda: self.world.embeds.release(slot))

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
        def submit() -> None:
            for forward in forwards:
                self.submit_forward(forward)

        self.do(submit)

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
            lambda: self.replays.forward(
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
                lambda: self.replays.copy(submitted, *pages, start, into, count),
                lambda: submitted.is_done,
            )

        self.do(submit)

    @precondition(lambda self: any(guest.embeds for guest in self.alive))
    @rule(guest=INDEX, index=INDEX)
    def project(self, guest: int, index: int) -> None:
        chosen = self.pick(guest)
        slots = choose([index], chosen.stored or chosen.embeds)
        if not slots:
            return
        self.do(lambda: self.submit_project(chosen, slots[0]))

    def submit_project(self, guest: QueueGuest, slot: int) -> None:
        guest.project(slot, 0)
        submitted, embed = guest.latest, guest.embeds[slot]
        self.plain.later(
            lambda: self.replays.project(submitted, embed), lambda: submitted.is_done
        )

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
        slots = [
            slot for guest in self.guests if not guest.is_closed for slot in guest.slots
        ]
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
        if self.is_short or self.beside.device.is_busy:
            return
        for submitted in self.record.unfinished:
            command = submitted.command
            if command.is_withdrawn and not command.copies:
                assert not self.record.is_ready(submitted), "whatever is waited for"
        if self.is_prompt and not self.batcher.arrivals.num_expected:
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


def choose(picks: Sequence[int], among: Iterable[int]) -> list[int]:
    """Return different keys, fewer where there are fewer."""
    keys = list(among)
    return list(dict.fromkeys(keys[pick % len(keys)] for pick in picks)) if keys else []


TestQueues = QueueMachine.TestCase
TestQueues.settings = settings(
    max_examples=settings().max_examples // 2, phases=WITHOUT_SHRINKING
)
