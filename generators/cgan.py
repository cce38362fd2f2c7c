"""A class-conditional GAN that learns from real images under the difficulty scheduler.

The critic is trained with the hinge loss and regularised by a penalty on its gradient (R1) or by spectral
normalisation. The generator has class-conditional BatchNorm and is sampled from an exponential average of its weights.
With a student, the generator's objective becomes `L_adv + lambda * L_distill`, in which it opposes the student (see
`synthkd.generators.teacher_student`).

The difficulty d sets the length of latent vectors: samples start from normal vectors times `0.85 + 0.15 d`. Training
draws lengths uniformly from `0.85 + 0.15 d` to 1, so it covers the lengths of samples at this difficulty and above.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.augment import augment_for_critic
from synthkd.data.epochs import EpochSource
from synthkd.data.read.splits import RealData
from synthkd.generators.gan_networks import ConditionalGenerator, Critic, critic_hinge, gradient_penalty
from synthkd.generators.latent import AveragedNetwork, descend, latent_length
from synthkd.generators.local import autocast_of, local_accelerator
from synthkd.generators.rounds import SampledRounds, agreed_spec, labelling_teacher, require_real_data
from synthkd.generators.settings import CGANSettings
from synthkd.generators.teacher_student import STUDENT_TERMS, TEACHER_TERMS, Term, joint_forward, teacher_logits
from synthkd.losses.objective import Loss, Objective
from synthkd.metrics.diversity import mode_collapse
from synthkd.models.classifier import Classifier
from synthkd.models.size import in_proportion
from synthkd.models.weights import finite_state
from synthkd.passes import sample_in_chunks
from synthkd.rng import Rows, derive, stream
from synthkd.settings import AugmentSettings
from synthkd.types import Batch, ImageSpec

TERMS = ("one_hot", "distillation", "semantic")
"""Loss terms of teacher and student that the generator may have beside the critic's score."""
BETAS = (0.0, 0.9)
"""Of both Adam optimisers; without momentum, since the opponent changes at every step."""
R1_EVERY = 4
"""The R1 penalty is computed at every fourth step of the critic, with four times the weight (Karras et al. 2020)."""
MEASURED = 50
"""Samples per class in a measurement of mode collapse; the measure judges a class from about 7 samples on."""


class CGAN(SampledRounds):
    """The conditional GAN of one set of real images.

    Args:
        settings: sizes, learning rates and weights of the terms.
        teacher: the frozen teacher, only read; any network from images to logits.
        seed: the run's seed.
        accelerator: device and precision; None: the teacher's device, full precision.
        train: real images to learn from; None for a generator that is restored and only sampled.
        holdout: real images against which mode collapse is measured; may be empty.
        spec: images and classes of a teacher that is no `Classifier`; None: those of `train`.

    Raises:
        ConfigError: the networks cannot make images of this size or number of channels, or teacher and data differ in
            their images.
    """

    _teacher: Classifier  # never None here

    def __init__(
        self,
        settings: CGANSettings,
        teacher: nn.Module,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        train: RealData | None = None,
        holdout: RealData | None = None,
        spec: ImageSpec | None = None,
    ) -> None:
        accelerator = local_accelerator(accelerator, teacher)
        classifier = labelling_teacher(teacher, spec, train)
        super().__init__(settings.batch_size, classifier, seed, accelerator)
        self.settings = s = settings
        self.spec = agreed_spec("cgan", classifier, train)
        self._train = train
        self._holdout = holdout
        weights = {name: getattr(s, name) for name in TERMS}
        terms: Mapping[str, Term] = {**TEACHER_TERMS, **STUDENT_TERMS}
        self._network_terms = Objective({name: terms[name] for name in TERMS}, weights)
        # Initial weights are a function of the seed, and torch's global generator stays as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "cgan/init"))
            network = in_proportion(
                lambda: ConditionalGenerator(self.spec, s.latent, s.embedding, s.width, s.spectral_norm == "both"),
                f"generator, latent={s.latent}, embedding={s.embedding}, width={s.width} for {self.spec}",
            )
            critic = in_proportion(
                lambda: Critic(self.spec, s.critic_width, s.head, bool(s.spectral_norm)),
                f"generator, critic_width={s.critic_width} for {self.spec}",
            )
        self.network = network.to(self._device).to(memory_format=torch.channels_last)
        self.critic = critic.to(self._device).to(memory_format=torch.channels_last)
        self._averaged = AveragedNetwork(self.network, s.latent, s.lr, BETAS, s.ema)
        self._critic_optimizer = torch.optim.Adam(self.critic.parameters(), s.critic_lr, BETAS)
        # float16 would need a gradient scaler, which these optimisers do not have; bfloat16 needs none.
        self._autocast = autocast_of(accelerator)
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
            round adds `generator/mode_collapse`, the share of classes that the samples miss, if there are enough
            holdout images to tell.

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
        length = latent_length(self._effective(difficulty))
        return sample_in_chunks(
            lambda part, rows: self._averaged.sample(part, length, rows), self.settings.batch_size, labels, rng
        )

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
            # Detached: this loss rises as the images become better, so it must not reach the generator.
            critic_loss = self._critic_loss(batch, images.detach(), number)
            descend(critic_loss, self._critic_optimizer, index)
        # The critic goes first, so the generator follows its newest scores. The images of the critic's last step still
        # have their graph, so no second forward pass of the generator is needed.
        loss = self._generator_loss(images, batch.labels, step, difficulty, student)
        self._averaged.update(loss, index)
        terms = {"loss": loss.total, **critic_loss.terms, **loss.terms}
        return {f"generator/{name}": float(term.detach()) for name, term in terms.items()}

    def _generate(self, labels: Tensor, number: int, difficulty: float) -> Tensor:
        """Images with gradient for the labels of a real batch, so that both batches have the same class counts."""
        noise = stream(self._seed, "cgan/latent", number)
        # Each image has a length of its own, so samples at this or a higher difficulty have lengths that were trained.
        shortest = latent_length(difficulty)
        lengths = shortest + (1.0 - shortest) * torch.rand(len(labels), 1, generator=noise)
        latent = torch.randn(len(labels), self.settings.latent, generator=noise) * lengths
        with self._autocast():
            images: Tensor = self.network(latent.to(self._device), labels)
        return images

    def _critic_loss(self, real: Batch, generated: Tensor, number: int) -> Loss:
        """Hinge loss; with the auxiliary head also cross-entropy on real images, at every fourth step also R1."""
        s, count = self.settings, len(real)
        rng = stream(self._seed, "cgan/augment", number)
        # One pass for both halves: the critic has no BatchNorm, so they do not affect each other.
        images = augment_for_critic(torch.cat([real.images, generated]), s.augment, rng)
        with_r1 = s.r1 > 0 and number % R1_EVERY == 0
        if with_r1:
            images.requires_grad_()
        with self._autocast():
            score, logits = self.critic(images, torch.cat([real.labels, real.labels]))
        terms = {"critic": critic_hinge(score[:count], score[count:])}
        total = terms["critic"]
        if logits is not None:
            # On real images alone, which are sure to show their labels.
            terms["critic_class"] = F.cross_entropy(logits[:count], real.labels)
            total = total + terms["critic_class"]
        if with_r1:
            terms["r1"] = gradient_penalty(score[:count], images)
            # The factor makes up for the steps without the penalty: its mean weight is r1.
            total = total + R1_EVERY * s.r1 * terms["r1"]
        return Loss(total, terms)

    def _generator_loss(
        self, images: Tensor, labels: Tensor, step: int, difficulty: float, student: nn.Module | None
    ) -> Loss:
        """`-mean D(G(z))`; with the auxiliary head also its cross-entropy, with a student also the student's terms."""
        # Augmented here too, since the critic has learned to score augmented images only.
        augmented = augment_for_critic(images, self.settings.augment, stream(self._seed, "cgan/augment made", step))
        # Frozen for this pass, which saves the gradients of the critic's weights.
        self.critic.requires_grad_(False)
        with self._autocast():
            score, logits = self.critic(augmented, labels)
        self.critic.requires_grad_(True)
        terms = {"fooling": -score.mean()}
        total = terms["fooling"]
        if logits is not None:
            terms["class"] = F.cross_entropy(logits, labels)
            total = total + terms["class"]
        s = self.settings
        if s.one_hot or (student is not None and (s.distillation or s.semantic)):
            # Teacher and student get the images without the critic's augmentation.
            with joint_forward(self._teacher, student, self._autocast, s.semantic > 0) as forward:
                loss = self._network_terms(forward(images, labels, difficulty), 0, 1)
            total, terms = total + loss.total, terms | dict(loss.terms)
        return Loss(total, terms)

    def _collapse_rate(self, index: int, difficulty: float) -> float | None:
        """Share of the holdout's classes that samples miss, by the teacher's predictions; None if it cannot be told."""
        train, holdout = self._train, self._holdout
        if train is None or holdout is None or len(holdout) == 0:
            return None
        rng = stream(self._seed, "cgan/collapse", index)
        # Labels come from the training labels, so that samples have the class frequencies of the real images.
        rows = torch.randint(len(train), (MEASURED * self.spec.classes,), generator=rng)
        predictions = []
        size = self.settings.batch_size
        for number, labels in enumerate(train.labels[rows].split(size)):
            images = self.sample(labels, difficulty, Rows(self._seed, f"collapse/{index}", size * number))
            predictions.append(teacher_logits(self._teacher, images, self._autocast).argmax(1))
        return mode_collapse(holdout.labels, torch.cat(predictions)).rate

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
