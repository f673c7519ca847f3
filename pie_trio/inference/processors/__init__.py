"""What changes the logits of a sequence before a token is chosen; numpy only.

Bias, penalties, allowed tokens, grammars, Mirostat: :class:`~pie_trio.engine_api.ProcessorSpec`
says what each does, and in which order.
"""

from pie_trio.inference.processors.prepared import Prepared
from pie_trio.inference.processors.table import (
    NOTHING,
    ProcessorTable,
    WithProcessors,
    grammar_vocabulary,
)

__all__ = [
    "NOTHING",
    "Prepared",
    "ProcessorTable",
    "WithProcessors",
    "grammar_vocabulary",
]
