from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from training.batches import PROMPT_WEIGHT, encode, make_batch
from training.corpus import Turn
from training.corpus.documents import Document, chat
from training.export import export, load_model
from training.generate import Generator
from training.model import Llama, ModelConfig
from training.train import TrainConfig, Trainer, load_checkpoint, rate_at, run, value_at

SHAPE = ModelConfig(
    vocab_size=600,
    hidden_size=64,
    intermediate_size=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
)
CONFIG = TrainConfig(
    steps=6,
    warmup_steps=2,
    decay_steps=2,
    tokens_per_step=256,
    lengths="0:64,4:128",
    long_shares="0:0,4:0.5",
)


def test_a_resumed_run_ends_in_the_same_state(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole, first, second = (Trainer(SHAPE, CONFIG, tokenizer) for _ in range(3))
    for _ in range(CONFIG.steps):
        whole.train_step()
    for _ in range(3):
        first.train_step()
    first.save(tmp_path / "checkpoint.pt")
    second.load_state(load_checkpoint(tmp_path / "checkpoint.pt"))
    while second.step < CONFIG.steps:
        second.train_step()
    assert second.num_tokens == whole.num_tokens
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], tensor)


def test_a_run_writes_its_log_and_lowers_the_loss(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    trainer = Trainer(SHAPE, replace(CONFIG, steps=40, lengths="0:64"), tokenizer)
    run(trainer, tmp_path)
    rows = (tmp_path / "losses.csv").read_text().split()
    losses = [float(row.split(",")[2]) for row in rows[1:]]
    assert losses[-1] < losses[0]
    assert (tmp_path / "final.pt").exists()


def test_a_stopped_run_leaves_a_checkpoint(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    trainer = Trainer(SHAPE, CONFIG, tokenizer)
    run(trainer, tmp_path, is_stopped=lambda: trainer.step == 2)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 2
    assert not (tmp_path / "final.pt").exists()


def test_a_batch_depends_on_seed_and_step_alone(tokenizer: Tokenizer) -> None:
    def batch(step: int) -> torch.Tensor:
        return make_batch(
            tokenizer,
            seed=1,
            step=step,
            batch_size=2,
            length=64,
            copy_share=0.1,
            long_share=0.1,
        ).token_ids

    assert torch.equal(batch(1), batch(1))
    assert not torch.equal(batch(1), batch(2))


def test_targets_follow_their_tokens(tokenizer: Tokenizer) -> None:
    batch = make_batch(
        tokenizer,
        seed=1,
        step=1,
        batch_size=2,
        length=64,
        copy_share=0.0,
        long_share=0.0,
    )
    assert torch.equal(batch.token_ids[:, 1:], batch.targets[:, :-1])


def test_completions_weigh_more_than_prompts(tokenizer: Tokenizer) -> None:
    document = Document("", "", chat(("user", "Hi!"), ("assistant", "Hello!")))
    token_ids, weights = encode(tokenizer, document)
    weighed = [i for i, w in zip(token_ids, weights, strict=True) if w >= 1]
    text = tokenizer.decode(weighed, skip_special_tokens=False)
    assert text == "Hello!<|im_end|>"
    assert PROMPT_WEIGHT in weights


def test_a_story_ends_once(tokenizer: Tokenizer) -> None:
    document = Document("", "", (Turn("", "The end.<|endoftext|>"),))
    token_ids, _ = encode(tokenizer, document)
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == document.text


def test_the_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, decay_steps=20)
    rates = [rate_at(config, step) for step in (0, 9, 50, 79, 90, 99)]
    assert rates == pytest.approx([0.1, 1, 1, 1, 0.5, 0.05])


def test_a_plan_holds_from_its_step_on() -> None:
    assert [value_at("0:256,10:512", step) for step in (0, 9, 10, 99)] == [
        256,
        256,
        512,
        512,
    ]


def test_cached_decoding_matches_the_whole_forward(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = Llama(SHAPE)
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.2)  # the zero init would hide attention
    prompts = ["Once upon a time", "Hi", "The code of Anna is 42. What is it?"]
    for prompt, text in zip(
        prompts,
        Generator(model, tokenizer).complete(prompts, max_tokens=12),
        strict=True,
    ):
        assert text == greedy(model, tokenizer, prompt, max_tokens=12)


def greedy(model: Llama, tokenizer: Tokenizer, prompt: str, *, max_tokens: int) -> str:
    ids = tokenizer.encode(prompt).ids
    start = len(ids)
    ends = [tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>")]
    while len(ids) < start + max_tokens:
        with torch.inference_mode():
            hidden = model(torch.tensor([ids]), torch.float32)
            best = int(model.logits(hidden[0, -1]).argmax())
        if best in ends:
            break
        ids.append(best)
    return tokenizer.decode(ids[start:], skip_special_tokens=False)


def test_an_export_loads_as_the_same_model(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    trainer = Trainer(SHAPE, CONFIG, tokenizer)
    trainer.train_step()
    trainer.save(tmp_path / "checkpoint.pt")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    export(tmp_path / "checkpoint.pt", tmp_path / "tokenizer.json", tmp_path / "model")
    from_folder = load_model(tmp_path / "model").state_dict()
    from_checkpoint = load_model(tmp_path / "checkpoint.pt").state_dict()
    for name, tensor in from_checkpoint.items():
        assert torch.equal(from_folder[name], tensor)
