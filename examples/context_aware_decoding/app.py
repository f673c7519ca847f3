"""Prefer what a context makes more likely: what the model says without it counts against."""

import math

from inferlet_py import Context, gather, inferlet

QUESTION = "Question: {}<|im_end|>\n<|im_start|>assistant\n"


@inferlet
async def main(
    question: str = "What is the capital of France?",
    notes: str = "- The capital of France is Oslo.",
    alpha: float = 2.0,
    max_tokens: int = 32,
) -> str:
    """Answer a question by notes, and not by what the model was taught.

    Args:
        question: About the notes.
        notes: One a line.
        alpha: How much the answer without the notes counts against; 0 is greedy decoding.
        max_tokens: Most tokens to generate.
    """
    with Context() as full, Context() as bare:
        asked = QUESTION.format(question)
        await full.fill(f"<|im_start|>user\nNotes:\n{notes}\n{asked}")
        await bare.fill(f"<|im_start|>user\n{asked}")
        start = len(full)
        for _ in range(max_tokens):
            dists = await gather(ctx.forward(top=256) for ctx in (full, bare))
            noted, known = (
                {token: math.log(max(prob, 1e-9)) for token, prob in dist}
                for dist in dists
            )
            floor = min(known.values())
            scores = {
                token: (1 + alpha) * logprob - alpha * known.get(token, floor)
                for token, logprob in noted.items()
                if logprob > max(noted.values()) + math.log(0.1)
            }
            token = max(scores, key=lambda token: scores[token])
            if token in full.model.info.eos_tokens:
                break
            full.append([token])
            bare.append([token])
        return full.model.detokenize(full.token_ids[start:])
