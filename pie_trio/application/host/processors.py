"""``processors.wit``: what changes logits before a token is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.host.interface import HANDLES, fallible, interface
from pie_trio.application.host.receiving import start_request
from pie_trio.application.host.traits import check_trait
from pie_trio.application.wasm.values import (
    BOOL,
    F32,
    STRING,
    U32,
    Array,
    Enum,
    List,
    Option,
    Record,
    Tuple,
    Unit,
)
from pie_trio.engine_api import ProcessorSpec
from pie_trio.errors import BadArgumentError, LimitError, UnknownHandleError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.application.host.session import Session
    from pie_trio.control.processors import Processor
    from pie_trio.control.quotas import Share
    from pie_trio.control.served_model import ServedModel

__all__ = ["INTERFACE", "ProcessorUse", "resolve_processor"]

MAX_ACCEPTED = 4096
"""Tokens of one call: a grammar takes some microseconds for each."""

GRAMMAR_BYTES = 16
"""For each character of a grammar, which is more once it is compiled."""

PROCESSOR_BYTES = 4096
"""Of a processor or a copy of one: where it stands."""

GRAMMAR_KIND = Enum("json-schema", "regex", "lark", "gbnf")
GRAMMAR = Record(kind=GRAMMAR_KIND, text=STRING)
DRY = Record(multiplier=F32, base=F32, allowed_length=U32, breakers=List(U32))
MIROSTAT = Record(tau=F32, eta=F32)
PROCESSOR_SPEC = Record(
    grammar=Option(GRAMMAR),
    bias=List(Tuple(U32, F32)),
    allowed_tokens=Option(List(U32)),
    repetition_penalty=F32,
    presence_penalty=F32,
    frequency_penalty=F32,
    dry=Option(DRY),
    window=U32,
    prompt=List(U32),
    mirostat=Option(MIROSTAT),
)


class ProcessorUse:
    """Counts the processors that the engine has of an instance.

    Also those that are made, and were given back meanwhile; that commands use on their way; and
    the copies of decode streams.

    Args:
        share: Of the quotas that count them too.
        max_processors: Most of them.
        max_bytes: The same for what they were made of.
    """

    def __init__(self, share: Share, max_processors: int, max_bytes: int) -> None:
        self.num = self.num_bytes = 0
        self._share = share
        self._max_processors, self._max_bytes = max_processors, max_bytes

    def check(self, count: int, num_bytes: int = PROCESSOR_BYTES) -> None:
        """Raise unless there may be so many more.

        Args:
            count: Of processors.
            num_bytes: Of each.

        Raises:
            LimitError: They may not.
        """
        if self.num + count > self._max_processors:
            raise LimitError(
                f"{self.num + count} processors asked for, but an inferlet may have "
                f"{self._max_processors}: give some back first; those count that are being "
                "made, that commands use, and the copies of decode streams"
            )
        wanted = self.num_bytes + count * num_bytes
        if wanted > self._max_bytes:
            raise LimitError(
                f"processors would take {wanted} bytes, but an inferlet may have "
                f"{self._max_bytes}: give some back first, or make grammars smaller"
            )
        self._share.check("processors", count)
        self._share.check("processor_bytes", count * num_bytes)

    def take(self, num_bytes: int = PROCESSOR_BYTES) -> Callable[[], None]:
        """Count one more, after :meth:`check`; call what this returns once it is gone."""
        self._add(1, num_bytes)
        return lambda: self._add(-1, -num_bytes)

    def _add(self, count: int, num_bytes: int) -> None:
        self.num += count
        self.num_bytes += num_bytes
        if count > 0:
            self._share.take("processors")
            self._share.take("processor_bytes", num_bytes)
        else:
            self._share.give("processors")
            self._share.give("processor_bytes", -num_bytes)


def create_processor(
    session: Session, number: int, model: str, spec: Sequence[Any]
) -> int:
    """Make a processor under an unused number, and return a ticket."""
    served, table = session.model(model), session.processors
    check_trait(served.info, "processors")
    if number == 0:
        raise BadArgumentError(
            "a processor's number is above 0, which stands for none: choose another"
        )
    read = _read_spec(spec)
    if read.grammar_kind:
        check_trait(served.info, "grammar")
    table.check_unused([number])
    use, num_bytes = session.processor_use, _spec_bytes(read)
    use.check(1, num_bytes)
    is_counted: list[Callable[[], None]] = []
    processor = served.processors.new(lambda: is_counted.pop()())

    async def work() -> None:
        try:
            await served.processors.compile(processor, read, session.compiling_turn)
        except BaseException:
            if _find(session, number) is processor:  # else it was given back meanwhile
                table.remove(number)
            raise

    ticket = start_request(session, "a processor", work)
    is_counted.append(use.take(num_bytes))
    table.add(number, processor)
    return ticket


def fork_processor(session: Session, source: int, targets: list[int]) -> None:
    """Let unused numbers go on from where a processor is."""
    table = session.processors
    found = table.get(source)
    if 0 in targets:
        raise BadArgumentError("a processor's number is above 0: choose another")
    table.check_unused(targets)
    session.processor_use.check(len(targets))
    for target in targets:
        found.check_idle()
        table.add(target, found.fork(session.processor_use.take()))


def accept(session: Session, number: int, tokens: list[int]) -> int:
    """Tell a processor which tokens were chosen, and return how many it allows."""
    found = session.processors.get(number)
    if len(tokens) > MAX_ACCEPTED:
        raise LimitError(
            f"a processor accepts {MAX_ACCEPTED} tokens a call, got {len(tokens)}: split them"
        )
    return found.accept(tokens)


def rollback(session: Session, number: int, count: int) -> None:
    """Take back the latest tokens."""
    session.processors.get(number).roll_back(count)


def allowed(session: Session, number: int) -> NDArray[np.uint32]:
    """Return a bit for each token that is allowed next."""
    return session.processors.get(number).allowed()


def has_ended(session: Session, number: int) -> bool:
    """Say whether nothing but the end can follow."""
    return session.processors.get(number).has_ended()


def destroy_processor(session: Session, numbers: list[int]) -> None:
    """Give processors back."""
    for number in numbers:
        session.processors.remove(number).drop()


def resolve_processor(
    session: Session, number: int, model: ServedModel
) -> Processor | None:
    """Return the processor that a sampler names; None for 0.

    Raises:
        UnsupportedError: The model has none.
        UnknownHandleError: It is not the guest's.
        BadArgumentError: It is another model's.
        BusyError: It is being made.
    """
    if not number:
        return None
    check_trait(model.info, "processors")
    found = session.processors.get(number)
    if not found.belongs_to(model.processors):
        raise BadArgumentError(
            f"processor {number} was made for another model than {model.info.name}"
        )
    found.check_made()
    return found


def _spec_bytes(spec: ProcessorSpec) -> int:
    """Return what a processor takes, about, that is made of a spec."""
    num_tokens = len(spec.bias) + len(spec.allowed_tokens or ()) + len(spec.prompt)
    num_tokens += len(spec.dry_breakers)
    return PROCESSOR_BYTES + 8 * num_tokens + GRAMMAR_BYTES * len(spec.grammar)


def _find(session: Session, number: int) -> Processor | None:
    try:
        return session.processors.get(number)
    except UnknownHandleError:
        return None


def _read_spec(values: Sequence[Any]) -> ProcessorSpec:
    (
        grammar,
        bias,
        allowed_tokens,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        dry,
        window,
        prompt,
        mirostat,
    ) = values
    fields: dict[str, Any] = {}
    if grammar is not None:
        fields["grammar_kind"], fields["grammar"] = grammar
    if dry is not None:
        multiplier, base, allowed_length, breakers = dry
        fields["dry_multiplier"], fields["dry_base"] = multiplier, base
        fields["dry_allowed_length"] = allowed_length
        fields["dry_breakers"] = tuple(breakers)
    if mirostat is not None:
        fields["mirostat_tau"], fields["mirostat_eta"] = mirostat
    return ProcessorSpec(
        bias=tuple(bias),
        allowed_tokens=None if allowed_tokens is None else tuple(allowed_tokens),
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        window=window,
        prompt=tuple(prompt),
        **fields,
    )


INTERFACE = interface(
    "processors",
    {
        "create-processor": fallible(
            create_processor, U32, U32, STRING, PROCESSOR_SPEC
        ),
        "fork-processor": fallible(fork_processor, Unit(), U32, HANDLES),
        "accept": fallible(accept, U32, U32, HANDLES),
        "rollback": fallible(rollback, Unit(), U32, U32),
        "allowed": fallible(allowed, Array(U32), U32),
        "has-ended": fallible(has_ended, BOOL, U32),
        "destroy-processor": fallible(destroy_processor, Unit(), HANDLES),
    },
    types={
        "grammar-kind": GRAMMAR_KIND,
        "grammar": GRAMMAR,
        "dry": DRY,
        "mirostat": MIROSTAT,
        "processor-spec": PROCESSOR_SPEC,
    },
)
