"""Train ``pie-tiny``: Muon for the matrices, AdamW for the rest, warm-up and decay.

Resumable at any checkpoint. The rate is constant until the last ``decay_steps``; to
end a run early, resume it with fewer ``--steps``, and the decay starts sooner.
"""

from __future__ import annotations

import argparse
import csv
import logging
import signal
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from training.batches import Batch, make_batch
from training.induction import plant_induction
from training.model import Llama, ModelConfig
from training.muon import Muon
from training.plot import plot_losses
from training.tokenizer import twins

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_LOG_EVERY = 20


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One run. Lengths and shares come as ``step:value`` pairs, from that step on."""

    seed: int = 1
    steps: int = 8800
    warmup_steps: int = 40
    decay_steps: int = 1900
    tokens_per_step: int = 2048
    lengths: str = "0:256,6900:512,8200:2048"
    copy_shares: str = "0:0.25,400:0.1,1200:0.03,4900:0.05"
    long_shares: str = "0:0,6900:0.06,8200:0.3"
    drill_shares: str = "0:0,4900:0.45"
    # Higher rates wipe out the planted heads before training can use them.
    muon_lr: float = 0.01
    adam_lr: float = 0.003
    weight_decay: float = 0.01
    checkpoint_minutes: float = 5.0


def value_at(plan: str, step: int) -> float:
    """Return the value that ``plan``, such as ``0:256,2400:512``, has at ``step``."""
    pairs = (pair.split(":") for pair in plan.split(","))
    return [float(value) for start, value in pairs if int(start) <= step][-1]


def rate_at(config: TrainConfig, step: int) -> float:
    """Return the factor of the learning rate at ``step``, in (0, 1]."""
    rising = (step + 1) / config.warmup_steps
    falling = (config.steps - step) / max(1, config.decay_steps)
    return min(1.0, rising, falling)


class Trainer:
    """Model, optimisers and step: all that a checkpoint holds."""

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainConfig,
        tokenizer: Tokenizer,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.model_config = config, model_config
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.model = Llama(model_config)
        plant_induction(self.model, config.seed, twins(tokenizer))
        self.model.to(self.device)
        self.step = 0
        self.num_tokens = 0
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, param in self.model.named_parameters():
            is_matrix = param.ndim == 2 and not name.startswith("embed")
            (matrices if is_matrix else others).append(param)
        decay = config.weight_decay
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=config.muon_lr, weight_decay=decay),
            torch.optim.AdamW(
                others, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0
            ),
        ]
        self.loss_of: Callable[[Batch], Tensor] = self._loss

    def compile(self) -> None:
        """Fuse the step with ``torch.compile``: half as fast again on a CPU."""
        self.loss_of = torch.compile(self._loss, dynamic=False)

    def _loss(self, batch: Batch) -> Tensor:
        hidden = self.model(batch.token_ids, torch.bfloat16)
        logits = self.model.logits(hidden.flatten(0, 1))
        losses = functional.cross_entropy(
            logits, batch.targets.flatten(), reduction="none"
        )
        weights = batch.weights.flatten()
        return (losses * weights).sum() / weights.sum()

    def train_step(self) -> float:
        """Take one step and return its loss."""
        length = int(value_at(self.config.lengths, self.step))
        batch = make_batch(
            self.tokenizer,
            seed=self.config.seed,
            step=self.step,
            batch_size=max(1, self.config.tokens_per_step // length),
            length=length,
            copy_share=value_at(self.config.copy_shares, self.step),
            long_share=value_at(self.config.long_shares, self.step),
            drill_share=value_at(self.config.drill_shares, self.step),
        )
        batch = Batch(*(getattr(batch, f.name).to(self.device) for f in fields(Batch)))
        loss = self.loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = rate_at(self.config, self.step)
        rates = (self.config.muon_lr, self.config.adam_lr)
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.num_tokens += batch.token_ids.numel()
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """Return everything that resuming needs."""
        return {
            "step": self.step,
            "num_tokens": self.num_tokens,
            "model_config": asdict(self.model_config),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what ``state()`` returned."""
        self.step, self.num_tokens = state["step"], state["num_tokens"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def save(self, path: Path) -> None:
        """Write a checkpoint; an interrupted write leaves the older one whole."""
        partial = path.with_suffix(".partial")
        torch.save(self.state(), partial)
        partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what ``Trainer.save`` wrote."""
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state


def run(
    trainer: Trainer,
    folder: Path,
    *,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Train to the last step, with a log, checkpoints and a loss curve.

    Once ``is_stopped`` returns true, the step at hand ends and a checkpoint is written.
    """
    config = trainer.config
    log_path = folder / "losses.csv"
    is_new = not log_path.exists()
    saved_at = began_at = time.monotonic()
    first_tokens, losses = trainer.num_tokens, []
    with log_path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(["step", "tokens", "loss"])
        while trainer.step < config.steps and not is_stopped():
            losses.append(trainer.train_step())
            if trainer.step % _LOG_EVERY == 0:
                loss = sum(losses) / len(losses)
                losses.clear()
                seconds = time.monotonic() - began_at
                speed = (trainer.num_tokens - first_tokens) / seconds
                writer.writerow([trainer.step, trainer.num_tokens, f"{loss:.4f}"])
                file.flush()
                message = "step %d/%d  loss %.4f  %.1fM tokens  %.0f tokens/s"
                millions = trainer.num_tokens / 1e6
                logger.info(message, trainer.step, config.steps, loss, millions, speed)
            if time.monotonic() - saved_at > 60 * config.checkpoint_minutes:
                trainer.save(folder / "checkpoint.pt")
                saved_at = time.monotonic()
    is_done = trainer.step >= config.steps
    trainer.save(folder / ("final.pt" if is_done else "checkpoint.pt"))
    plot_losses(folder)


def parse_args() -> argparse.Namespace:
    """Return the command line: paths, and one flag for each field of the configs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler")
    parser.add_argument("--threads", type=int, default=2)
    for config in (TrainConfig(), ModelConfig()):
        for field in fields(config):
            value = getattr(config, field.name)
            flag = f"--{field.name.replace('_', '-')}"
            parser.add_argument(flag, type=type(value), default=value)
    return parser.parse_args()


def main() -> None:
    """Train from the command line."""
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    values = vars(args)
    config = TrainConfig(**{f.name: values[f.name] for f in fields(TrainConfig)})
    shape = ModelConfig(**{f.name: values[f.name] for f in fields(ModelConfig)})
    args.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    shape = replace(shape, vocab_size=tokenizer.get_vocab_size())
    trainer = Trainer(shape, config, tokenizer, args.device)
    if args.resume is not None:
        trainer.load_state(load_checkpoint(args.resume))
    if args.compile:
        trainer.compile()
    stop_signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stop_signals.append(received))
    run(trainer, args.folder, is_stopped=lambda: bool(stop_signals))


if __name__ == "__main__":
    main()
