"""Trains a small BigGAN-style pair on a folder of images, with attention by smyrf.

    python examples/gan/train.py --size 64 --attention 32 --method tree --out runs/tree

Run it again after it was stopped, however it was: it goes on from OUT/checkpoint.pt and computes
the same bits that it would have computed without the stop.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from pathlib import Path
from typing import Any

import checkpoint
import pictures
import torch
from images import DEFAULT, Crops
from networks import METHODS, NOISE, Discriminator, Generator, Shape, attention_by
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from smyrf.compare.problem import Problem

FORMAT = "smyrf/examples/gan 1"  # of checkpoints
# Two time scales, as SAGAN has them.
GENERATOR_RATE, DISCRIMINATOR_RATE = 1e-4, 4e-4
BETAS = (0.0, 0.999)
AVERAGED = 0.999  # of the averaged weights, what one step leaves; less in the first steps
SAMPLES, COLUMNS = 32, 8

# libgomp ends the process where the system has no more threads to give.
MOST = {"batch": 10**4, "steps": 10**9, "every": 10**9, "threads": 256}

# What may differ between the runs that share a checkpoint.
FREE = ("images", "steps", "every", "out", "threads")


class Trainer:
    """Both networks, their optimizers, random numbers and losses: all that a checkpoint holds."""

    def __init__(self, settings: argparse.Namespace) -> None:
        shape = Shape(settings.size, settings.attention, settings.width)
        attend = attention_by(settings.method, settings.tolerance, settings.density)
        torch.manual_seed(settings.seed)
        self.batch = settings.batch
        self.fixed = {k: v for k, v in vars(settings).items() if k not in FREE}
        self.generator = Generator(shape, attend)
        self.discriminator = Discriminator(shape, attend)
        self.averaged = copy.deepcopy(self.generator).eval()
        self.optimizers = [
            torch.optim.Adam(network.parameters(), rate, BETAS)
            for network, rate in (
                (self.generator, GENERATOR_RATE),
                (self.discriminator, DISCRIMINATOR_RATE),
            )
        ]
        self.crops = Crops(settings.images, settings.size, settings.seed)
        self.random = torch.Generator().manual_seed(settings.seed)
        self.losses: tuple[list[float], list[float]] = ([], [])  # discriminator's, generator's
        self.sample_noise = torch.randn(SAMPLES, NOISE, generator=self.random)

    @property
    def steps(self) -> int:
        """How many are done."""
        return len(self.losses[0])

    def step(self) -> None:
        """One step of the discriminator and one of the generator.

        Raises Problem where a loss is not finite.
        """
        real = self.crops.batch(self.batch)
        with torch.no_grad():
            false = self.generator(self._noise())
        loss = (1 - self.discriminator(real)).relu().mean()
        loss = loss + (1 + self.discriminator(false)).relu().mean()
        self._update(self.optimizers[1], loss)
        self.discriminator.requires_grad_(False)
        generator_loss = -self.discriminator(self.generator(self._noise())).mean()
        self._update(self.optimizers[0], generator_loss)
        self.discriminator.requires_grad_(True)
        self._average()
        for kept, value in zip(self.losses, (loss, generator_loss), strict=True):
            kept.append(value.item())

    def sheet(self) -> bytes:
        """Images by the averaged weights, of the same noise every time."""
        with torch.no_grad():
            images = torch.cat([self.averaged(z) for z in self.sample_noise.split(self.batch)])
        return pictures.sheet(images, COLUMNS)

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": self.fixed,
            "fingerprint": self.crops.fingerprint,
            "networks": [network.state_dict() for network in self._networks()],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "crops": self.crops.state_dict(),
            "random": self.random.get_state(),
            "losses": self.losses,
        }

    def load_state_dict(self, state: dict[str, Any], path: Path) -> None:
        """Raises Problem if it was made with other settings or other images."""
        checkpoint.check_settings(path, state, self.fixed)
        with checkpoint.contents(path):
            if state["fingerprint"] != self.crops.fingerprint:
                raise Problem(
                    f"{path}: was made with other images; give the same, or another --out"
                )
            for network, kept in zip(self._networks(), state["networks"], strict=True):
                network.load_state_dict(kept)
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.crops.load_state_dict(state["crops"])
            self.random.set_state(state["random"])
            self.losses = tuple(state["losses"])

    def _networks(self) -> tuple[torch.nn.Module, ...]:
        return self.generator, self.discriminator, self.averaged

    def _noise(self) -> torch.Tensor:
        return torch.randn(self.batch, NOISE, generator=self.random)

    def _update(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise Problem(f"step {self.steps + 1}: a loss is {loss.item()}; the checkpoint is kept")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def _average(self) -> None:
        leaves = min(AVERAGED, (1 + self.steps) / (10 + self.steps))
        for kept, new in zip(self.averaged.parameters(), self.generator.parameters(), strict=True):
            kept.lerp_(new, 1 - leaves)
        # What batch norms and spectral norms remember.
        for kept, new in zip(self.averaged.buffers(), self.generator.buffers(), strict=True):
            kept.copy_(new)


def train(settings: argparse.Namespace) -> Trainer:
    """Up to `steps` steps, from the checkpoint in `out` if there is one."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with checkpoint.writing_to(settings.out):
        return train_alone(settings)


def train_alone(settings: argparse.Namespace) -> Trainer:
    trainer = Trainer(settings)
    path = settings.out / "checkpoint.pt"
    if path.exists():
        trainer.load_state_dict(checkpoint.load(path, FORMAT), path)
    with Progress(
        TextColumn("step {task.completed} of {task.total}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task("", total=settings.steps, completed=trainer.steps)
        while trainer.steps < settings.steps:
            trainer.step()
            now = " and ".join(f"{kept[-1]:.2f}" for kept in trainer.losses)
            progress.update(task, advance=1, description=f"losses {now}")
            if trainer.steps % settings.every == 0 or trainer.steps == settings.steps:
                checkpoint.save(path, FORMAT, trainer.state_dict())
                show(trainer, settings)
    return trainer


def show(trainer: Trainer, settings: argparse.Namespace) -> None:
    title = f"{settings.method}, attention at {settings.attention} x {settings.attention}"
    checkpoint.write_whole(settings.out / f"samples-{trainer.steps:06d}.png", trainer.sheet())
    checkpoint.write_whole(settings.out / "losses.png", pictures.losses(*trainer.losses, title))


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """What `table.py` has, too."""
    parser.add_argument(
        "images", nargs="?", type=Path, default=DEFAULT, help="default: %(default)s"
    )
    parser.add_argument("--size", type=int, default=128, help="pixels a side of a crop")
    parser.add_argument("--width", type=int, default=16, help="channels at the full size")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tolerance", type=float, default=0.1, help="of tree")
    parser.add_argument("--density", type=float, default=0.25, help="of lsh")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="default: as many as PyTorch takes")


def check(settings: argparse.Namespace) -> None:
    """Raises Problem where networks of that shape can't be."""
    shape = Shape(settings.size, settings.attention, settings.width)
    if settings.size < 8 or settings.size & (settings.size - 1):
        raise Problem(f"--size {settings.size}: must be a power of 2, at least 8")
    sides = shape.sides()[1:]
    if settings.attention not in sides:
        raise Problem(
            f"--attention {settings.attention}: must be one of {', '.join(map(str, sides))}"
        )
    if settings.width < 8 or settings.width % 8:
        raise Problem(f"--width {settings.width}: must be a multiple of 8")
    for name, most in MOST.items():
        value = getattr(settings, name, None)
        if value is not None and not 1 <= value <= most:
            raise Problem(f"--{name} {value}: must be from 1 to {most}")
    if not 0 <= settings.seed < 2**32:
        raise Problem(f"--seed {settings.seed}: must be from 0 to 2^32 - 1")
    if not 0 <= settings.tolerance < 1:
        raise Problem(f"--tolerance {settings.tolerance}: must be from 0 to below 1")
    if not 0 < settings.density < 1:
        raise Problem(f"--density {settings.density}: must be above 0 and below 1")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_network_options(parser)
    parser.add_argument("--attention", type=int, default=64, help="pixels a side where it sits")
    parser.add_argument("--method", choices=METHODS, default="tree")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--out", type=Path, default=Path("gan-run"), help="default: %(default)s")
    settings = parser.parse_args(arguments)
    check(settings)
    return settings


def main(arguments: list[str]) -> None:
    try:
        train(parse(arguments))
    except Problem as problem:
        sys.exit(f"train.py: {problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
