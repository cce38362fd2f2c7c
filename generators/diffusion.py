"""A class-conditional diffusion model that learns from real images and is sampled in a few steps.

The network is a small `UNet2DModel` of diffusers, trained to predict velocities. A share of the labels is dropped in
training, which makes classifier-free guidance possible (Ho and Salimans 2022). Samples use the average of its weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.epochs import EpochSource
from synthkd.data.read.splits import RealData
from synthkd.errors import ModelError
from synthkd.generators import denoising
from synthkd.generators.guidance import climb, guidance_scale, teacher_score
from synthkd.generators.local import local_accelerator
from synthkd.generators.noise_levels import curriculum_times, level_weights, stratified_times
from synthkd.generators.rounds import SampledRounds, agreed_spec, labelling_teacher, require_real_data
from synthkd.generators.settings import DiffusionSettings
from synthkd.generators.teacher_student import STUDENT_TERMS, JointForward, JointOutputs, joint_forward
from synthkd.losses.objective import Objective
from synthkd.models.classifier import Classifier
from synthkd.models.fitting import load_strictly
from synthkd.models.size import in_proportion
from synthkd.passes import in_chunks, sample_in_chunks
from synthkd.processes import ONE_PROCESS, Processes
from synthkd.rng import Rows, derive, stream
from synthkd.taps import evaluating
from synthkd.training.learner import Learner
from synthkd.types import Batch, ImageSpec, Outputs, to_float

CLEAR = 0.5
"""Least share of signal, `alpha_bar`, at which a predicted image is given to teacher and student. With more noise it is
a blur of many images, on which their logits mean little."""
MEASURED = 256
"""Largest number of holdout images on which the loss is measured."""


@dataclass(frozen=True)
class DenoisingOutputs:
    """Outputs of one training step, from which its loss terms are computed.

    Attributes:
        prediction: the network's velocity, float32 `[N, ...]`.
        target: the true velocity, likewise.
        weights: float32 `[N]` of the noise levels.
        joint: outputs of teacher and student for the predicted images with little noise; None if there is no such
            image, or no term that needs them.
    """

    prediction: Tensor
    target: Tensor
    weights: Tensor
    joint: JointOutputs | None


def _denoise(outputs: DenoisingOutputs) -> Tensor:
    # A mean for each image first, since the weight of its noise level is that of the whole image.
    errors = F.mse_loss(outputs.prediction, outputs.target, reduction="none").flatten(1).mean(1)
    return (outputs.weights * errors).mean()


def _student_term(name: str) -> Callable[[DenoisingOutputs], Tensor]:
    def term(outputs: DenoisingOutputs) -> Tensor:
        # 0 and not left out, so that the log has the same terms at every step.
        return outputs.prediction.new_zeros(()) if outputs.joint is None else STUDENT_TERMS[name](outputs.joint)

    return term


class Diffusion(SampledRounds):
    """The diffusion model of one set of real images.

    Args:
        settings: network, training, sampler, guidance.
        teacher: the frozen teacher, only read; any network from images to logits.
        seed: the run's seed.
        accelerator: device and precision; None: the teacher's device, full precision.
        train: real images to learn from; None for a generator that is restored and only sampled.
        holdout: real images on which the loss is measured, or None.
        spec: images and classes of a teacher that is no `Classifier`; None: those of `train`.

    Raises:
        ConfigError: teacher and data differ in their images, or the network is too large.
    """

    _teacher: Classifier  # never None here

    def __init__(
        self,
        settings: DiffusionSettings,
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
        self.spec = agreed_spec("diffusion", classifier, train)
        self._autocast = accelerator.autocast
        # Initial weights are a function of the seed, and torch's global generator stays as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "diffusion/init"))
            unet = in_proportion(
                lambda: denoising.build_unet(s, self.spec),
                f"generator, channels={list(s.channels)}, layers={s.layers}, unshuffle={s.unshuffle} for {self.spec}",
            )
        self._learner = Learner(
            "generator", unet, s.optimizer, s.horizon, accelerator, processes=self._processes.dividing(s.real_batch)
        )
        self._schedule = denoising.noise_schedule()
        names = None if train is None else list(train.class_names)
        self._pipeline = denoising.ClassConditionalPipeline(
            self._learner.evaluated, self._schedule, self.spec.height, self.spec.width, s.unshuffle, names
        )
        self._alphas = self._schedule.alphas_cumprod
        self._weights = level_weights(self._alphas, s.min_snr)
        student_weights = {"distillation": s.distillation, "semantic": s.semantic}
        self._objective: Objective[DenoisingOutputs] = Objective(
            terms={"denoise": _denoise, **{name: _student_term(name) for name in student_weights}},
            weights={"denoise": 1.0, **student_weights},
        )
        self._source: EpochSource | None = None
        if train is not None:
            where = (s.real_batch, s.augment, derive(seed, "diffusion"), self._device)
            self._source = EpochSource(train.images, train.labels, *where, self._learner.processes)
        self._holdout: Batch | None = None
        if holdout is not None and len(holdout) > 0:
            self._holdout = Batch(to_float(holdout.images[:MEASURED]), holdout.labels[:MEASURED]).to(self._device)

    def fit(self, index: int, difficulty: float, student: nn.Module | None = None) -> dict[str, float]:
        """Take the training steps of one round.

        Args:
            index: number of the round, which sets its batches and noise.
            difficulty: in [0, 1], scales the term `distillation`.
            student: compared with the teacher by the student's terms, unchanged; None leaves those terms out.

        Returns:
            Means of the terms over the steps and, every `measure_every`-th round, the loss on holdout images.

        Raises:
            ConfigError: the generator was restored without real data.
            TrainingError: a loss or gradient is not finite.
        """
        s = self.settings
        source = require_real_data(self._source)
        means: dict[str, float] = defaultdict(float)
        with ExitStack() as context:
            forward: JointForward | None = None
            if student is not None and (s.distillation or s.semantic):
                forward = context.enter_context(
                    joint_forward(
                        self._teacher, student, self._autocast, s.semantic > 0, processes=self._learner.processes
                    )
                )
            self._learner.model.train()
            for step in range(index * s.steps, (index + 1) * s.steps):
                rng = stream(self._seed, "diffusion/noise/0", step)
                outputs = self._denoising(
                    self._learner.model, source.batch(step), rng, step, forward, difficulty, self._learner.processes
                )
                # The learner takes the optimiser step and then updates the average of the weights.
                for name, value in self._learner.update(self._objective(outputs, 0, 1), step).items():
                    means[name] += float(value) / s.steps
        if self._holdout is not None and index % s.measure_every == 0:
            means["generator/holdout"] = self._holdout_loss(self._holdout)
        return dict(means)

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images of the averaged weights, each a function of its label and row alone.

        Args:
            labels: int64 `[N]`.
            difficulty: in [0, 1]; see `synthkd.generators.guidance`.
            rng: random rows; image i uses row `rng.start + i`.

        Returns:
            float32 `[N, C, H, W]` in [0, 1].
        """
        return sample_in_chunks(
            lambda part, rows: self._round_images(part, difficulty, rows, None),
            self.settings.batch_size,
            labels.to(self._device),
            rng,
        )

    def _round_images(self, labels: Tensor, difficulty: float, rng: Rows, student: nn.Module | None) -> Tensor:
        """Samples; with a student, teacher guidance also moves them towards images on which it disagrees."""
        s = self.settings
        scale = guidance_scale(difficulty, s.guidance, s.hard_guidance)
        with ExitStack() as context:
            steer: denoising.Steer | None = None
            if s.teacher_guidance > 0:
                forward = context.enter_context(joint_forward(self._teacher, student, self._autocast))
                steer = self._teacher_guidance(forward, labels, difficulty)
            context.enter_context(evaluating(self._learner.evaluated))
            context.enter_context(self._autocast())
            return self._pipeline.draw(labels, rng, scale, s.sample_steps, s.sampler, steer)

    def _teacher_guidance(self, forward: JointForward, labels: Tensor, difficulty: float) -> denoising.Steer:
        """A function that moves predicted images along the gradient of `teacher_score`."""

        def steer(images: Tensor, sigma: float) -> Tensor:
            # The sampler runs without gradients; this one is of the two classifiers alone, not of the denoiser.
            with torch.enable_grad():
                leaf = images.detach().requires_grad_()
                outputs = forward(denoising.to_unit_range(leaf), labels, difficulty)
                student = None if outputs.student is None else outputs.student.logits
                score = teacher_score(outputs.teacher.logits, student, labels, difficulty)
                (gradient,) = torch.autograd.grad(score.sum(), leaf)
            # In proportion to the noise: the last steps, in which details settle, hardly move an image.
            return climb(images, gradient, self.settings.teacher_guidance * sigma)

        return steer

    def _denoising(
        self,
        model: nn.Module,
        batch: Batch,
        rng: torch.Generator,
        step: int,
        forward: JointForward | None = None,
        difficulty: float = 0.0,
        processes: Processes = ONE_PROCESS,
    ) -> DenoisingOutputs:
        """Add noise to real images and predict their velocities; the processes share the pass of the model."""
        s, count = self.settings, len(batch)
        clean = denoising.fold(batch.images, self._pipeline.unet, s.unshuffle)
        # All random numbers are drawn on the CPU, in this order, so that every device gets the same ones.
        unlabelled = torch.rand(count, generator=rng) < s.label_drop
        times = stratified_times(count, len(self._alphas), rng)
        if s.curriculum > 0:
            times = curriculum_times(self._alphas, times, min(1.0, step / (s.curriculum * s.horizon)))
        noise = torch.randn(clean.shape, generator=rng).to(self._device)
        alphas, weights = self._alphas[times].to(self._device), self._weights[times].to(self._device)
        times = times.to(self._device)
        noisy = self._schedule.add_noise(clean, noise, times)
        labels = torch.where(unlabelled.to(self._device), self.spec.classes, batch.labels)  # row K is the null class

        def predict(noisy: Tensor, times: Tensor, labels: Tensor) -> Tensor:
            velocity: Tensor = model(noisy, times, class_labels=labels).sample
            return velocity.float()

        def predict_rows(rows: Tensor) -> Outputs:
            return Outputs(in_chunks(predict, s.real_batch, noisy[rows], times[rows], labels[rows]))

        with self._autocast():
            # A training batch is one chunk; the holdout images may be more.
            prediction = processes.outputs(predict_rows, torch.arange(count, device=self._device)).logits
        joint = None
        clear = alphas >= CLEAR
        if forward is not None and bool(clear.any()):
            a = alphas[clear].view(-1, 1, 1, 1)
            # The image that a velocity implies: x = sqrt(a) x_t - sqrt(1 - a) v (Salimans and Ho 2022). Its gradient
            # reaches the network through the prediction.
            images = a.sqrt() * noisy[clear] - (1.0 - a).sqrt() * prediction[clear]
            images = denoising.unfold(images, self.spec.height, self.spec.width, s.unshuffle)
            joint = forward(denoising.to_unit_range(images), batch.labels[clear], difficulty)
        return DenoisingOutputs(prediction, self._schedule.get_velocity(clean, noise, times), weights, joint)

    @torch.no_grad()
    def _holdout_loss(self, holdout: Batch) -> float:
        """Loss of the averaged weights on holdout images."""
        network = self._learner.evaluated
        with evaluating(network):
            # The same noise every time, and the step at which the curriculum is over: values of all rounds compare.
            rng = stream(self._seed, "diffusion/holdout")
            return float(_denoise(self._denoising(network, holdout, rng, self.settings.horizon)))

    def save(self, directory: Path) -> None:
        """Write the averaged network and the noise schedule as a diffusers folder, each file atomically."""
        denoising.save_pipeline(self._pipeline, directory)

    def restore(self, directory: Path) -> None:
        """Read back what `save` wrote.

        Raises:
            ModelError: missing or damaged files, or another network than that of the settings.
        """
        saved = denoising.load_pipeline(directory)
        if (
            not isinstance(saved, denoising.ClassConditionalPipeline)
            or saved.config.unshuffle != self.settings.unshuffle
        ):
            raise ModelError(f"{directory} holds another diffusion model than its settings say; copy it again")
        # A set: without an average of the weights the two are one network.
        for network in {self._learner.module, self._learner.evaluated}:
            load_strictly(network, saved.unet.state_dict(), str(directory))
        self._pipeline.register_to_config(class_names=saved.config.class_names)

    def state_dict(self) -> dict[str, Any]:
        """State of the network, its average and its optimiser, see `Learner.state_dict`."""
        return self._learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._learner.load_state_dict(state)
