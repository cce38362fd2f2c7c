"""A class-conditional GAN that learns from real images under the difficulty controller.

The critic, kept in bounds by spectral normalisation or by a penalty on its gradient (R1), is trained by the hinge loss;
the generator, normalised per class, is sampled from an exponential average of its weights. Where a student is at hand
the generator's objective becomes `L_adv + lambda * L_distill`, in which it pulls against the student (see
`synthkd.generators.objective`).

Difficulty d is the length of latent vectors: samples start from normal vectors times `0.85 + 0.15 d`, so that easy
images lie near the middle of their class (the truncation trick: Brock et al. 2019). Training draws lengths evenly
between that and 1, the fewer short ones the higher the difficulty, so no sample of that difficulty or a higher one
leaves what was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.augment import augment_for_critic
from synthkd.data.epochs import EpochSource
from synthkd.data.read.splits import RealData
from synthkd.errors import ConfigError
from synthkd.generators.gan_networks import ConditionalGenerator, Critic, critic_hinge, gradient_penalty
from synthkd.generators.objective import STUDENT_TERMS, GeneratedView, judging
from synthkd.generators.rounds import agreed_spec, sampled_round
from synthkd.generators.settings import CGANSettings
from synthkd.losses.objective import Loss, Objective
from synthkd.metrics.diversity import cluster_modes, mode_collapse
from synthkd.models.classifier import Classifier
from synthkd.models.contract import finite_logits
from synthkd.models.size import in_proportion
from synthkd.models.weights import finite_state, load_strictly, read_weights, save_weights
from synthkd.rng import Rows, derive, stream
from synthkd.settings import AugmentSettings
from synthkd.taps import evaluating
from synthkd.training.ema import WeightAverage
from synthkd.training.learner import require_finite
from synthkd.types import Batch, ImageSpec, Round, to_float

WEIGHTS = "generator.safetensors"
BETAS = (0.0, 0.9)
"""Of both Adams: momentum chases an opponent that has moved on."""
R1_EVERY = 4
"""Steps of the critic between two with the R1 penalty, which then counts so many times (Karras et al. 2020)."""
SHORTEST = 0.85
"""Length of latent vectors at difficulty 0; shorter ones lose more variety than they win in certainty."""
MEASURED = 50
"""Samples per class in a measurement of mode collapse; a class is judged from about 7 on."""
CLUSTERS = 20
"""Modes where no teacher names the class."""
MOST_CLUSTERED = 2000
"""Real images, at most, that are clustered."""


def latent_length(difficulty: float) -> float:
    """Factor of normal latent vectors at a difficulty in [0, 1]."""
    return SHORTEST + (1.0 - SHORTEST) * difficulty


class CGAN:
    """The conditional GAN of one set of real images.

    Args:
        settings: sizes, rates and weights.
        teacher: the frozen teacher, only read; None where images are made without one.
        seed: the run's seed.
        accelerator: device and precision.
        train: real images to learn from; None for a generator that is restored to sample only.
        holdout: real images against which mode collapse is measured; may be empty.
        spec: the images, needed where there is neither a teacher nor real data.

    Raises:
        ConfigError: images of a size or number of channels that the networks do not make, a teacher of other images,
            a student's term without a teacher, or nothing that says what the images are.
    """

    def __init__(
        self,
        settings: CGANSettings,
        teacher: Classifier | None,
        seed: int,
        accelerator: Accelerator,
        train: RealData | None = None,
        holdout: RealData | None = None,
        spec: ImageSpec | None = None,
    ) -> None:
        self.settings = settings
        self.spec = agreed_spec("cgan", spec, teacher, train)
        self._teacher = teacher
        self._seed = seed
        self._accelerator = accelerator
        self._device = accelerator.device
        self._train = train
        self._holdout = holdout
        weights = {"distillation": settings.distillation, "semantic": settings.semantic}
        self._student_terms: Objective[GeneratedView] | None = None
        if any(weights.values()):
            if teacher is None:
                raise ConfigError("generator.distillation and generator.semantic need a teacher; set both to 0")
            self._student_terms = Objective({name: STUDENT_TERMS[name] for name in weights}, weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "cgan/init"))
            network = in_proportion(
                lambda: ConditionalGenerator(self.spec, settings.latent, settings.embedding, settings.width),
                f"generator, latent={settings.latent}, embedding={settings.embedding}, width={settings.width} for "
                f"{self.spec}",
            )
            critic = in_proportion(
                lambda: Critic(self.spec, settings.critic_width, settings.head, settings.spectral_norm),
                f"generator, critic_width={settings.critic_width} for {self.spec}",
            )
        self.network = network.to(self._device).to(memory_format=torch.channels_last)
        self.critic = critic.to(self._device).to(memory_format=torch.channels_last)
        self._average = WeightAverage(self.network, settings.ema)
        self._optimizer = torch.optim.Adam(self.network.parameters(), settings.lr, BETAS)
        self._critic_optimizer = torch.optim.Adam(self.critic.parameters(), settings.critic_lr, BETAS)
        # half precision would need a gradient scaler of its own here; bfloat16 does not
        self._autocast = nullcontext if accelerator.mixed_precision == "fp16" else accelerator.autocast
        self._source = (
            None
            if train is None
            else EpochSource(
                train.images, train.labels, settings.batch_size, AugmentSettings(), derive(seed, "cgan"), self._device
            )
        )

    def fit(self, index: int, difficulty: float, student: nn.Module | None = None) -> dict[str, float]:
        """The training steps of one round.

        Args:
            index: number of the round, which sets its batches and noise.
            difficulty: in [0, 1].
            student: takes part in the student's terms, unchanged; None leaves them out.

        Returns:
            The latest loss terms and the generator's total, named `generator/...`; in every `measure_every`-th round
            also `generator/mode_collapse`, the share of classes (without a teacher: of clusters of the real images)
            that the samples miss, where the holdout can tell.

        Raises:
            ConfigError: a generator without real data, which was saved for sampling.
            TrainingError: when a loss is not finite.
        """
        s = self.settings
        difficulty = self._difficulty(difficulty)
        terms: dict[str, float] = {}
        self.network.train()
        self.critic.train()
        for step in range(index * s.steps, (index + 1) * s.steps):
            terms |= self._step(step, index, difficulty, student)
        if (index + 1) % s.measure_every == 0 and (rate := self._collapse(index, difficulty)) is not None:
            terms["generator/mode_collapse"] = rate
        return terms

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """One round: training steps, then a batch of images with balanced labels.

        Args and errors are those of `fit`; a ConfigError also says when there is no teacher to label the images.
        """
        terms = self.fit(index, difficulty, student)
        count = self.settings.batch_size
        return sampled_round(self.sample, difficulty, self._teacher, self._seed, index, count, self._accelerator, terms)

    @torch.no_grad()
    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images of the asked labels from the averaged weights, each a function of its label and row.

        Args:
            labels: int64 `[N]`.
            difficulty: in [0, 1], the length of the latent vectors; without `curriculum` they are full.
            rng: random rows; image i is made from row `rng.start + i`.

        Returns:
            float32 `[N, C, H, W]` in [0, 1].
        """
        network = self._average.module
        latent = rng.normal(len(labels), self.settings.latent) * latent_length(self._difficulty(difficulty))
        with evaluating(network):
            images: Tensor = network(latent.to(self._device), labels.to(self._device))
        return images.contiguous()

    def _difficulty(self, asked: float) -> float:
        return asked if self.settings.curriculum else 1.0

    def _step(self, step: int, index: int, difficulty: float, student: nn.Module | None) -> dict[str, float]:
        """Steps of the critic, then one of the generator through the images that the critic saw last."""
        s = self.settings
        if self._source is None:
            raise ConfigError("this generator was saved to be sampled from and has no real data to learn from")
        losses: list[Loss] = []
        for number in range(step * s.critic_steps, (step + 1) * s.critic_steps):
            batch = self._source.batch(number)
            made = self._generate(batch.labels, number, difficulty)
            losses = [self._critic_loss(batch, made.detach(), number)]
            _descend(losses[0], self._critic_optimizer, index)
        losses.append(self._generator_loss(made, batch.labels, step, difficulty, student))
        _descend(losses[1], self._optimizer, index)
        self._average.update(self.network)
        terms = {"loss": losses[1].total} | {name: term for loss in losses for name, term in loss.terms.items()}
        return {f"generator/{name}": float(term.detach()) for name, term in terms.items()}

    def _generate(self, labels: Tensor, number: int, difficulty: float) -> Tensor:
        """Images with gradient, for the labels of a real batch, so that classes are as frequent on both sides."""
        noise = stream(self._seed, "cgan/latent", number)
        shortest = latent_length(difficulty)
        lengths = shortest + (1.0 - shortest) * torch.rand(len(labels), 1, generator=noise)
        latent = torch.randn(len(labels), self.settings.latent, generator=noise) * lengths
        with self._autocast():
            images: Tensor = self.network(latent.to(self._device), labels)
        return images

    def _critic_loss(self, batch: Batch, made: Tensor, number: int) -> Loss:
        s = self.settings
        rng = stream(self._seed, "cgan/augment", number)
        count = len(batch)
        both = augment_for_critic(torch.cat([batch.images, made]), s.augment, rng)
        penalised = s.r1 > 0 and number % R1_EVERY == 0
        if penalised:
            both.requires_grad_()
        with self._autocast():
            score, logits = self.critic(both, torch.cat([batch.labels, batch.labels]))
        terms = {"critic": critic_hinge(score[:count], score[count:])}
        total = terms["critic"]
        if logits is not None:
            terms["critic_class"] = F.cross_entropy(logits[:count], batch.labels)
            total = total + terms["critic_class"]
        if penalised:
            terms["r1"] = gradient_penalty(score[:count], both)
            total = total + R1_EVERY * s.r1 * terms["r1"]
        return Loss(total, terms)

    def _generator_loss(
        self, made: Tensor, labels: Tensor, step: int, difficulty: float, student: nn.Module | None
    ) -> Loss:
        seen = augment_for_critic(made, self.settings.augment, stream(self._seed, "cgan/augment made", step))
        self.critic.requires_grad_(False)
        with self._autocast():
            score, logits = self.critic(seen, labels)
        self.critic.requires_grad_(True)
        terms = {"fooling": -score.mean()}
        total = terms["fooling"]
        if logits is not None:
            terms["class"] = F.cross_entropy(logits, labels)
            total = total + terms["class"]
        if self._student_terms is not None and self._teacher is not None and student is not None:
            with judging(self._teacher, student, self._autocast, self.settings.semantic > 0) as look:
                loss = self._student_terms(look(made, labels, difficulty), 0, 1)
            total, terms = total + loss.total, terms | dict(loss.terms)
        return Loss(total, terms)

    def _collapse(self, index: int, difficulty: float) -> float | None:
        """Share of the modes of the holdout that samples of the training labels miss; None where it cannot tell."""
        if self._train is None or self._holdout is None or len(self._holdout) == 0:
            return None
        rng = stream(self._seed, "cgan/collapse", index)
        asked = torch.randint(len(self._train), (MEASURED * self.spec.classes,), generator=rng)
        made = torch.cat(
            [
                self.sample(labels, difficulty, Rows(self._seed, f"collapse/{index}", 256 * part))
                for part, labels in enumerate(self._train.labels[asked].split(256))
            ]
        )
        if self._teacher is not None:
            seen = torch.cat([self._teacher_logits(part).argmax(1) for part in made.split(256)])
            return mode_collapse(self._holdout.labels, seen).rate
        chosen = [torch.randperm(len(d), generator=rng)[:MOST_CLUSTERED] for d in (self._train, self._holdout)]
        real, holdout = (
            _coarse(to_float(d.images[rows])) for d, rows in zip((self._train, self._holdout), chosen, strict=True)
        )
        modes = cluster_modes(real, holdout, _coarse(made), min(CLUSTERS, len(real)), self._seed)
        return mode_collapse(modes.holdout, modes.generated).rate

    @torch.no_grad()
    def _teacher_logits(self, images: Tensor) -> Tensor:
        assert self._teacher is not None
        with evaluating(self._teacher), self._autocast():
            logits: Tensor = self._teacher(images)
        return finite_logits(logits.float())

    def save(self, directory: Path) -> None:
        """Write what sampling needs, the averaged weights, to `generator.safetensors` in a directory."""
        save_weights(self._average.module, directory / WEIGHTS)

    def restore(self, directory: Path) -> None:
        """Read what `save` wrote into a generator of the same settings and images.

        Raises:
            ModelError: a file that is missing, damaged or of other settings.
        """
        path = directory / WEIGHTS
        state = read_weights(path)
        load_strictly(self._average.module, state, str(path))
        load_strictly(self.network, state, str(path))

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": finite_state(self.network, "generator"),
            "critic": finite_state(self.critic, "generator: its critic"),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "critic_optimizer": self._critic_optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.critic.load_state_dict(state["critic"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._critic_optimizer.load_state_dict(state["critic_optimizer"])


def _descend(loss: Loss, optimizer: torch.optim.Optimizer, index: int) -> None:
    require_finite(loss, "generator", index, "round")
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    optimizer.step()


def _coarse(images: Tensor) -> Tensor:
    """Pixels `[N, D]` of images reduced to sides of at most 8: what a picture is at a glance."""
    height, width = images.shape[-2:]
    return F.adaptive_avg_pool2d(images.cpu(), (min(8, height), min(8, width))).flatten(1)
