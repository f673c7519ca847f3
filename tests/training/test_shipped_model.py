"""The model in the package is what its card says, and does the least it must."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import pie_trio
from training.corpus import react, records, stream, tool_calls
from training.corpus.documents import chat
from training.corpus.toolbox import TOOLS
from training.export import CHAT_TEMPLATE, load_model
from training.generate import Generator
from training.speculate import foresee

FOLDER = Path(pie_trio.__file__).parent / "models" / "pie_tiny"
DRAFT_FOLDER = FOLDER.with_name("pie_tiny_draft")
CITY_QUESTION = "What is the weather in Oslo?"


@pytest.fixture(scope="module")
def shipped_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def generator(shipped_tokenizer: Tokenizer) -> Generator:
    return Generator(load_model(FOLDER), shipped_tokenizer)


def test_it_fits_the_kernels_and_the_package() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["head_dim"] == 64
    assert config["num_attention_heads"] // config["num_key_value_heads"] in (2, 4)
    assert config["max_position_embeddings"] >= 2048
    assert config["tie_word_embeddings"]
    assert (FOLDER / "model.safetensors").stat().st_size <= 8_000_000


def test_its_chat_template_is_the_one_of_the_corpus() -> None:
    config = json.loads((FOLDER / "tokenizer_config.json").read_text())
    assert config["chat_template"] == CHAT_TEMPLATE


def test_its_tokenizer_gives_back_the_corpus(shipped_tokenizer: Tokenizer) -> None:
    documents = stream(9)
    for _ in range(50):
        text = next(documents).text
        ids = shipped_tokenizer.encode(text).ids
        assert shipped_tokenizer.decode(ids, skip_special_tokens=False) == text


def test_it_calls_a_tool_in_json(generator: Generator) -> None:
    system = tool_calls.declare_tools([TOOLS["weather"], TOOLS["calculator"]])
    messages = (("system", system), ("user", CITY_QUESTION), ("assistant", ""))
    [text] = generator.complete([chat(*messages)[0].prompt])
    assert tool_calls.parse_calls(text) == [("weather", {"city": "Oslo"})]


def test_under_a_schema_it_writes_what_fits_whatever_it_was_asked(
    generator: Generator,
) -> None:
    pytest.importorskip("llguidance")
    prompts = [
        chat(("user", question), ("assistant", ""))[0].prompt
        for question in ("Write JSON.", "Tell me a story.", "What is 12 * 7?")
    ]
    kinds = {"kelmo": "boolean", "bira": "boolean"}
    schema = records.strict_schema(kinds)
    free = generator.complete_schemas(prompts, [schema] * 3, max_tokens=100)
    for text in free:
        assert text is None or records.matches(json.loads(text), kinds)
    assert any(text is not None for text in free)
    cut = generator.complete_schemas(prompts, [schema] * 3, max_tokens=5)
    assert cut == [None, None, None]


def test_it_calls_a_tool_in_a_transcript(generator: Generator) -> None:
    system = react.declare(["weather", "calculator"])
    messages = (("system", system), ("user", CITY_QUESTION), ("assistant", ""))
    [text] = generator.complete([chat(*messages)[0].prompt], stop=react.STOP)
    assert react.parse_action(text.removesuffix(react.STOP)) == (
        "weather",
        {"city": "Oslo"},
    )


def test_its_draft_has_the_same_tokens_and_foresees_most_of_a_story(
    generator: Generator, shipped_tokenizer: Tokenizer
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (DRAFT_FOLDER / name).read_text() == (FOLDER / name).read_text()
    draft = load_model(DRAFT_FOLDER)
    sizes = (sum(p.numel() for p in m.parameters()) for m in (draft, generator.model))
    assert next(sizes) * 7 < next(sizes)
    prompt = "Once upon a time"
    [text] = generator.complete([prompt], max_tokens=100)
    ids = (shipped_tokenizer.encode(part).ids for part in (prompt, text))
    hits = foresee(draft, *ids)
    assert sum(hits) > 0.6 * len(hits)


def test_transformers_gives_the_same_greedy_tokens(
    shipped_tokenizer: Tokenizer,
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    generator = Generator(load_model(FOLDER), shipped_tokenizer)
    documents = stream(11)
    prompts = [next(documents).turns[0].prompt or "Once upon" for _ in range(50)]
    ours = generator.complete(prompts, max_tokens=40)
    for prompt, text in zip(prompts, ours, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        assert ids[0].tolist() == shipped_tokenizer.encode(prompt).ids
        out = theirs.generate(ids, max_new_tokens=40, do_sample=False)[
            0, ids.shape[1] :
        ]
        ends = theirs.generation_config.eos_token_id
        kept = [token for token in out.tolist() if token not in ends]
        assert shipped_tokenizer.decode(kept, skip_special_tokens=False) == text
