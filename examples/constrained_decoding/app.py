"""Text that fits a JSON Schema, a regular expression or a grammar, whatever the model likes."""

from typing import Literal

from inferlet_py import Context, Grammar, Sampler, inferlet, send

PERSON = """{"type": "object", "additionalProperties": false, "required": ["name", "age"],
"properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer",
"minimum": 0, "maximum": 120}}}"""
DATE = r"(19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
SUM = """\
root ::= term " + " term
term ::= number | "(" number " * " number ")"
number ::= [1-9] [0-9]?
"""
FORMS = {
    "json": Grammar.json_schema(PERSON),
    "regex": Grammar.regex(DATE),
    "ebnf": Grammar.gbnf(SUM),
}


@inferlet
async def main(
    form: Literal["json", "regex", "ebnf"] = "json",
    prompt: str = "",
    schema: str = PERSON,
    temperature: float = 1.0,
    seed: int = 0,
    max_tokens: int = 64,
) -> None:
    """Generate text of a form.

    Args:
        form: An object with name and age, a date, or a sum.
        prompt: What to ask for; something that fits the form without.
        schema: Of the JSON.
        temperature: 0 always takes the most likely token that fits.
        seed: Of the draws.
        max_tokens: Most tokens to generate.
    """
    grammar = Grammar.json_schema(schema) if form == "json" else FORMS[form]
    asked = prompt or f"Write JSON.\nSchema: {schema}"
    async with Context() as ctx:
        await ctx.fill(f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n")
        sampler = Sampler(temperature=temperature, seed=seed)
        async for chunk in ctx.generate(
            max_tokens=max_tokens, sampler=sampler, grammar=grammar
        ):
            await send(chunk.text)
