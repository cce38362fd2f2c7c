"""A class-conditional GAN that learns from real images under the difficulty scheduler.

The critic, regularised by spectral normalisation or by a penalty on its gradient (R1), is trained with the hinge loss.
The generator has class-conditional BatchNorm and is sampled from an exponential average of its weights. With a student,
the generator's objective becomes `L_adv + lambda * L_distill`, in which it opposes the student (see
`synthkd.generators.teacher_student`).

The difficulty d sets the length of latent vectors: samples start from normal vectors times `0.85 + 0.15 d`. Training
draws lengths uniformly between that and 1, so the higher the difficulty, the fewer short vectors are trained; the
lengths of samples at this or a higher difficulty are always among the trained ones.
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
from synthkd.generators.latent import AveragedNetwork, descend, latent_length
from synthkd.generators.local import local_accelerator
from synthkd.generators.rounds import SampledRounds, agreed_spec, labelling_teacher, require_real_data
from synthkd.generators.settings import CGANSettings
from synthkd.generators.teacher_student import STUDENT_TERMS, JointOutputs, joint_forward, teacher_logits
from synthkd.losses.objective import Loss, Objective
from synthkd.metrics.diversity import cluster_modes, mode_collapse
from synthkd.models.size import in_proportion
from synthkd.models.weights import finite_state
from synthkd.rng import Rows, derive, stream
from synthkd.settings import AugmentSettings
from synthkd.types import Batch, ImageSpec, to_float

BETAS = (0.0, 0.9)
"""Of both Adam optimisers; without momentum, since the opponent changes at every step."""
R1_EVERY = 4
"""The R1 penalty is computed at every fourth step of the critic, with four times the weight (Karras et al. 2020)."""
MEASURED = 50
"""Samples per class in a measurement of mode collapse; the measure judges a class from about 7 samples on."""
CHUNK = 256
"""Samples generated at once in that measurement."""
CLUSTERS = 20
"""Clusters that stand for the modes if there is no teacher to name the classes."""
MOST_CLUSTERED = 2000
"""Largest number of real images that are clustered."""


class CGAN(SampledRounds):
    """The conditional GAN of one set of real images.

    Args:
        settings: sizes, learning rates and weights of the terms.
        teacher: the frozen teacher, only read; None for a generator without rounds.
        seed: the run's seed.
        accelerator: device and precision; None: the teacher's device, full precision.
        train: real images to learn from; None for a generator that is restored and only sampled.
        holdout: real images against which mode collapse is measured; may be empty.
        spec: of the images; needed if there is neither a teacher nor real data.

    Raises:
        ConfigError: the networks cannot make images of this size or number of channels, teacher and data differ in
            their images, a student's term has a weight but there is no teacher, or nothing gives the image spec.
    """

    def __init__(
        self,
        settings: CGANSettings,
        teacher: nn.Module | None = None,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        train: RealData | None = None,
        holdout: RealData | None = None,
        spec: ImageSpec | None = None,
    ) -> None:
        accelerator = local_accelerator(accelerator, teacher)
        teacher = labelling_teacher(teacher, spec, train)
        super().__init__(settings.batch_size, teacher, seed, accelerator)
        self.settings = s = settings
        self.spec = agreed_spec("cgan", spec, teacher, train)
        self._train = train
        self._holdout = holdout
        weights = {"distillation": s.distillation, "semantic": s.semantic}
        self._student_terms: Objective[JointOutputs] | None = None
        if any(weights.values()):
            if teacher is None:
                raise ConfigError("generator.distillation and generator.semantic need a teacher; set both to 0")
            self._student_terms = Objective({name: STUDENT_TERMS[name] for name in weights}, weights)
        # initial weights depend on the seed alone and leave torch's global generator as it was
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "cgan/init"))
            network = in_proportion(
                lambda: ConditionalGenerator(self.spec, s.latent, s.embedding, s.width),
                f"generator, latent={s.latent}, embedding={s.embedding}, width={s.width} for {self.spec}",
            )
            critic = in_proportion(
                lambda: Critic(self.spec, s.critic_width, s.head, s.spectral_norm),
                f"generator, critic_width={s.critic_width} for {self.spec}",
            )
        self.network = network.to(self._device).to(memory_format=torch.channels_last)
        self.critic = critic.to(self._device).to(memory_format=torch.channels_last)
        self._averaged = AveragedNetwork(self.network, s.latent, s.lr, BETAS, s.ema)
        self._critic_optimizer = torch.optim.Adam(self.critic.parameters(), s.critic_lr, BETAS)
        # float16 would need a gradient scaler here; bfloat16 does not
        self._autocast = nullcontext if accelerator.mixed_precision == "fp16" else accelerator.autocast
        self._source: EpochSource | None = None
        if train is not None:
            order = derive(seed, "cgan")
            self._source = EpochSource(train.images, train.labels, s.batch_size, AugmentSettings(), order, self._device)

    def fit(self, index: int, difficulty: float, student: nn.Module | None = None) -> dict[str, float]:
        """Take the training steps of one round.

        Args:
            index: number of the round, which sets its batches and noise.
            difficulty: in [0, 1].
            student: compared with the teacher by the student's terms, unchanged; None leaves those terms out.

        Returns:
            The loss terms of the last step and the generator's total, named `generator/...`. Every `measure_every`-th
            round adds `generator/mode_collapse`, the share of classes (without a teacher: of clusters of the real
            images) that the samples miss, if the holdout suffices to tell.

        Raises:
            ConfigError: the generator was restored without real data.
            TrainingError: a loss is not finite.
        """
        s = self.settings
        source = require_real_data(self._source)
        difficulty = self._effective(difficulty)
        terms: dict[str, float] = {}
        self.network.train()
        self.critic.train()
        for step in range(index * s.steps, (index + 1) * s.steps):
            terms |= self._step(source, step, index, difficulty, student)
        if (index + 1) % s.measure_every == 0 and (rate := self._collapse_rate(index, difficulty)) is not None:
            terms["generator/mode_collapse"] = rate
        return terms

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images of the averaged weights, each a function of its label and row alone.

        Args:
            labels: int64 `[N]`.
            difficulty: in [0, 1], sets the length of the latent vectors; without `curriculum` it is 1.
            rng: random rows; image i uses row `rng.start + i`.

        Returns:
            float32 `[N, C, H, W]` in [0, 1].
        """
        return self._averaged.sample(labels, latent_length(self._effective(difficulty)), rng)

    def _effective(self, difficulty: float) -> float:
        return difficulty if self.settings.curriculum else 1.0

    def _step(
        self, source: EpochSource, step: int, index: int, difficulty: float, student: nn.Module | None
    ) -> dict[str, float]:
        """The critic's steps, then one step of the generator on the images of the critic's last step."""
        critic_steps = self.settings.critic_steps
        for number in range(step * critic_steps, (step + 1) * critic_steps):
            batch = source.batch(number)
            images = self._generate(batch.labels, number, difficulty)
            critic_loss = self._critic_loss(batch, images.detach(), number)
            descend(critic_loss, self._critic_optimizer, index)
        loss = self._generator_loss(images, batch.labels, step, difficulty, student)
        self._averaged.update(loss, index)
        terms = {"loss": loss.total, **critic_loss.terms, **loss.terms}
        return {f"generator/{name}": float(term.detach()) for name, term in terms.items()}

    def _generate(self, labels: Tensor, number: int, difficulty: float) -> Tensor:
        """Images with gradient for the labels of a real batch, so that both batches have the same class counts."""
        noise = stream(self._seed, "cgan/latent", number)
        shortest = latent_length(difficulty)
        lengths = shortest + (1.0 - shortest) * torch.rand(len(labels), 1, generator=noise)
        latent = torch.randn(len(labels), self.settings.latent, generator=noise) * lengths
        with self._autocast():
            images: Tensor = self.network(latent.to(self._device), labels)
        return images

    def _critic_loss(self, real: Batch, generated: Tensor, number: int) -> Loss:
        """Hinge loss, with the auxiliary head its cross-entropy on real images, at every fourth step R1."""
        s, count = self.settings, len(real)
        rng = stream(self._seed, "cgan/augment", number)
        images = augment_for_critic(torch.cat([real.images, generated]), s.augment, rng)
        penalised = s.r1 > 0 and number % R1_EVERY == 0
        if penalised:
            images.requires_grad_()
        with self._autocast():
            score, logits = self.critic(images, torch.cat([real.labels, real.labels]))
        terms = {"critic": critic_hinge(score[:count], score[count:])}
        total = terms["critic"]
        if logits is not None:
            terms["critic_class"] = F.cross_entropy(logits[:count], real.labels)
            total = total + terms["critic_class"]
        if penalised:
            terms["r1"] = gradient_penalty(score[:count], images)
            total = total + R1_EVERY * s.r1 * terms["r1"]
        return Loss(total, terms)

    def _generator_loss(
        self, images: Tensor, labels: Tensor, step: int, difficulty: float, student: nn.Module | None
    ) -> Loss:
        """`-D(G(z))`, with the auxiliary head its cross-entropy, and with a student the student's terms."""
        augmented = augment_for_critic(images, self.settings.augment, stream(self._seed, "cgan/augment made", step))
        # without this the backward pass would also compute gradients of the critic's weights, which nobody uses
        self.critic.requires_grad_(False)
        with self._autocast():
            score, logits = self.critic(augmented, labels)
        self.critic.requires_grad_(True)
        terms = {"fooling": -score.mean()}
        total = terms["fooling"]
        if logits is not None:
            terms["class"] = F.cross_entropy(logits, labels)
            total = total + terms["class"]
        if self._student_terms is not None and self._teacher is not None and student is not None:
            with joint_forward(self._teacher, student, self._autocast, self.settings.semantic > 0) as forward:
                loss = self._student_terms(forward(images, labels, difficulty), 0, 1)
            total, terms = total + loss.total, terms | dict(loss.terms)
        return Loss(total, terms)

    def _collapse_rate(self, index: int, difficulty: float) -> float | None:
        """Share of the holdout's modes that samples with the training labels miss; None if it cannot be measured."""
        train, holdout = self._train, self._holdout
        if train is None or holdout is None or len(holdout) == 0:
            return None
        rng = stream(self._seed, "cgan/collapse", index)
        # drawn from the training labels, so that samples have the class frequencies of the real images
        rows = torch.randint(len(train), (MEASURED * self.spec.classes,), generator=rng)
        chunks = [
            self.sample(labels, difficulty, Rows(self._seed, f"collapse/{index}", CHUNK * number))
            for number, labels in enumerate(train.labels[rows].split(CHUNK))
        ]
        if self._teacher is not None:
            logits = torch.cat([teacher_logits(self._teacher, images, self._autocast) for images in chunks])
            return mode_collapse(holdout.labels, logits.argmax(1)).rate
        real, reference = (_coarse_subset(data, rng) for data in (train, holdout))
        clusters = min(CLUSTERS, len(real))
        modes = cluster_modes(real, reference, _coarse(torch.cat(chunks)), clusters, self._seed)
        return mode_collapse(modes.holdout, modes.generated).rate

    def save(self, directory: Path) -> None:
        """Write the averaged weights, which suffice for sampling, to `generator.safetensors`."""
        self._averaged.save(directory)

    def restore(self, directory: Path) -> None:
        """Read what `save` wrote into a generator of the same settings and images.

        Raises:
            ModelError: the file is missing, damaged or of other settings.
        """
        self._averaged.restore(directory)

    def state_dict(self) -> dict[str, Any]:
        """State of both networks, both optimisers and the average.

        Raises:
            TrainingError: a weight is not finite.
        """
        return {
            **self._averaged.state_dict(),
            "critic": finite_state(self.critic, "generator: its critic"),
            "critic_optimizer": self._critic_optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._averaged.load_state_dict(state)
        self.critic.load_state_dict(state["critic"])
        self._critic_optimizer.load_state_dict(state["critic_optimizer"])


def _coarse_subset(data: RealData, rng: torch.Generator) -> Tensor:
    """Coarse pixels of at most MOST_CLUSTERED random images."""
    rows = torch.randperm(len(data), generator=rng)[:MOST_CLUSTERED]
    return _coarse(to_float(data.images[rows]))


def _coarse(images: Tensor) -> Tensor:
    """Pixels `[N, D]` of the images reduced to sides of at most 8, whose distances compare outlines and shades."""
    height, width = images.shape[-2:]
    return F.adaptive_avg_pool2d(images.cpu(), (min(8, height), min(8, width))).flatten(1)
