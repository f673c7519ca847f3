from random import Random

import torch
from tokenizers import Tokenizer

from training.batches import encode
from training.corpus import COPY_FAMILY, Split, draw
from training.induction import plant_induction
from training.model import Llama, ModelConfig


def copied_share(model: Llama, tokenizer: Tokenizer) -> float:
    """Return how many tokens of exact copies the model predicts."""
    rng, hits = Random(1), []
    for _ in range(4):
        ids, weights = encode(tokenizer, draw(COPY_FAMILY, rng, Split.TRAIN))
        token_ids = torch.tensor(ids)
        with torch.inference_mode():
            hidden = model(token_ids[None, :-1], torch.float32)
            best = model.logits(hidden[0]).argmax(-1)
        hits.append((best == token_ids[1:])[torch.tensor(weights[1:]) >= 1])
    return float(torch.cat(hits).float().mean())


def test_a_planted_model_copies_before_any_training(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = Llama(ModelConfig(num_layers=2))
    assert copied_share(model, tokenizer) < 0.1
    plant_induction(model, seed=0)
    assert copied_share(model, tokenizer) > 0.6


def test_planting_depends_on_the_seed_alone() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        model = Llama(ModelConfig(num_layers=2))
        plant_induction(model, seed=3)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
