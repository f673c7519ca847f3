"""What the page of results says beside the figures: the paper's, goals, and why something is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks._digest import Goal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SECTIONS", "Section"]

VLLM, UNCACHED = "vLLM", "vLLM, no prefix cache"
ALL = "Pie #1 #2 #3"


@dataclass(frozen=True, slots=True)
class Section:
    """A benchmark on the page.

    Attributes:
        name: Of the benchmark.
        title: Of the section.
        paper: What the paper measured.
        ours: What is measured here, and how to read it.
        goals: What is to be reached.
        why: Why Pie loses where it does; told only if it does.
        is_printed: Its script prints figures and keeps none.
    """

    name: str
    title: str
    paper: str
    ours: str
    goals: Sequence[Goal] = ()
    why: str = ""
    is_printed: bool = False


DECODING = (
    "What counts here is how fast tokens are decoded: what the server does for each of them is Python, on the "
    "processors that compute the model, and a thread of the engine that it displaces lets the other wait."
)

SECTIONS: Sequence[Section] = (
    Section(
        "agents",
        "Agents",
        "Fig. 6, 1B: ReACT (8 calls of tools) 4.27 s and 29.94 agents/s, CodeACT 3.18 s and 40.18/s, Swarm (32) "
        "6.14 s and 5.21/s; up to 15 % less latency and 30 % more throughput than vLLM and SGLang, and "
        "more with each call.",
        "Agents as inferlets, whose KV pages stay while a tool works, against the same agents with the `openai` "
        "client. A tool is an HTTP server on loopback.",
        (
            Goal("throughput", VLLM, least=1.3, where={"calls": 8}),
            Goal("latency", VLLM, most=0.85, where={"calls": 8}),
        ),
        DECODING
        + " It is made up for by what need not be read again, which grows with the "
        "calls. A swarm here is five inferlets that launch each other, much of which is page "
        "faults of the copied image, which the clients of vLLM do not have to.",
    ),
    Section(
        "function_calling",
        "Three optimisations of an agent",
        "Fig. 7: with all three 3.5 times the throughput of the same workflow in Python on vLLM, which did not "
        "cache prefixes.",
        "#1 keeps what was read of the documentation, #2 starts a call as soon as it is written, #3 drops what "
        "was said about a function once it was called.",
        (
            Goal("throughput", VLLM, least=2.0),
            Goal("throughput", UNCACHED, least=3.5),
        ),
        "vLLM's prefix cache does what #1 does, and a client may let calls overlap as #2 does. "
        "What is left for a program inside are the turns to the server and #3. "
        + DECODING,
    ),
    Section(
        "techniques",
        "Techniques",
        "Fig. 8: trees, recursions, graphs and skeletons of thought with up to 28 % less latency and 34 % more "
        "throughput; the attention sink with a latency 1.5 times lower and more than 30 times the throughput of "
        "StreamingLLM; all others about equal.",
        "Thoughts have a script, since random weights decide nothing; the others are the programs of `examples/`. "
        "Windows, attention sinks and modules that are reused at other positions are nothing that vLLM does: it "
        "computes the whole.",
        tuple(
            Goal("throughput", VLLM, least=1.34, where={"technique": name})
            for name in ("tree", "recursion", "graph", "skeleton")
        ),
        DECODING
        + " Speculation, sinks, windows and modules are programs that take their tokens one "
        "by one, which costs a guest's turn for each, one after the other.",
    ),
    Section(
        "launch",
        "Launches",
        "Fig. 9: up to 896 inferlets at once in 10 to 50 ms warm and 35 to 81 ms cold, on 32 cores: about "
        "1.8 ms of a core each.",
        "From the request to the first call of the host, cold and from guests made ahead, which are kept for "
        "some only. The time until all run is that of as many launches one after the other on two cores.",
    ),
    Section(
        "calls",
        "Calls",
        "Fig. 10, up to 896 inferlets: less than 30 us in the control layer, 10 to 300 us in the inference layer.",
        "Over an engine that answers at once, with guests in Wasm. What a guest itself computes for a call is its Python.",
    ),
    Section(
        "calls_per_token",
        "Calls for each token",
        "Fig. 11: text completion 1.6 calls of the inference layer and 1.5 of the control layer; beams about "
        "17 and 13.",
        "Counted, not timed, in the examples on pie-tiny.",
    ),
    Section(
        "overhead",
        "What programmability costs",
        "Table 3, 8B, 32 at once: 65.59 ms a token, vLLM 64.06; sampling that is not pipelined 1.32, embedding 0.07, "
        "scheduling 0.05, returning distributions 0.07, crossing layers 0.006, Wasm 0.001. Table 4, overhead "
        "against vLLM: 2.39 % at 8B, 5.64 % at 3B, 11.41 % at 1B.",
        "The engine alone runs in a loop; stream and stepwise are inferlets over the same engine. Beside each "
        "figure stands the engine's over it: of a token, the share of its speed that is left.",
    ),
    Section(
        "policies",
        "Policies of batching",
        "Table 5, 128 inferlets, requests a second: eager 5.61, K 30.09, T 78.11, adaptive 84.85.",
        "Steps take a fixed time, so that the figures are those of the policies: 15 ms and 0.1 ms a token, and 50 ms as of a "
        "larger model. What `rendezvous` gains is a step of two; what it pays are the guests' turns between two "
        "steps, so that it gains the more the longer a step is.",
    ),
    Section(
        "traces",
        "Requests as they came to real services",
        "The paper has none.",
        "Azure's and Mooncake's traces, shortened and slowed down to what the machine can serve.",
        why=DECODING,
    ),
    Section(
        "scaling",
        "Growth",
        "The paper goes up to 896 inferlets.",
        "Each doubles until something gives. `each` is what one more takes in memory.",
    ),
    Section(
        "quantization",
        "Quality of 8 bits",
        "The paper has none.",
        "`--quantize int8` on pie-tiny and documents that it has not learned. The divergence is Kullback and Leibler's, from "
        "float32's distributions; the same token is the most likely one. Nothing here depends on time.",
    ),
    Section(
        "peers",
        "Tokens a second of other engines",
        "The paper has none.",
        "Completions of the same prompts, through HTTP.",
        is_printed=True,
    ),
)
