import pytest
import torch

from training.model import Llama, ModelConfig
from training.speculate import foresee, num_steps


@pytest.mark.parametrize(
    ("hits", "steps"),
    [
        ([], 0),
        ([False, False, False], 3),
        ([True, True, True], 1),
        ([True, True, True, True], 2),  # 2 kept, 1 of the target; the last one
        ([True, False, True, False], 2),
    ],
)
def test_each_step_keeps_what_was_foreseen_and_adds_one(
    hits: list[bool], steps: int
) -> None:
    assert num_steps(hits, num_drafted=2) == steps


@torch.inference_mode()
def test_a_model_foresees_itself_and_no_other_token() -> None:
    torch.manual_seed(0)
    model = Llama(ModelConfig(vocab_size=50, hidden_size=64, num_layers=1))
    prompt, text = [3, 1, 4], list[int]()
    for _ in range(6):
        hidden = model(torch.tensor([[*prompt, *text]]), torch.float32)
        text.append(int(model.logits(hidden[0, -1]).argmax()))
    assert all(foresee(model, prompt, text))
    text[5] = (text[5] + 1) % 50
    assert foresee(model, prompt, text) == [True] * 5 + [False]
