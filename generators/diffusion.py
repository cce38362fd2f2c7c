"""A class-conditional diffusion model that learns from real images and samples in a few steps.

It is a small `UNet2DModel` of diffusers trained on velocities with the label left out now and then, which gives
classifier-free guidance (Ho and Salimans 2022); its averaged weights are what is sampled. Times are stratified over a
batch (Kingma et al. 2021, appendix I.1), which takes variance out of the gradient at no cost.
"""

from __future__ import annotations

import copy
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.epochs import EpochSource
from synthkd.data.read.splits import RealData
from synthkd.errors import ConfigError, ModelError
from synthkd.generators.denoising import (
    ClassConditionalPipeline,
    Steer,
    build_unet,
    fold,
    load_pipeline,
    noise_schedule,
    unfold,
)
from synthkd.generators.guidance import climb, guidance_scale, teacher_score
from synthkd.generators.objective import STUDENT_TERMS, GeneratedView, judging
from synthkd.generators.rounds import agreed_spec, sampled_round
from synthkd.generators.settings import DiffusionSettings
from synthkd.losses.objective import Objective
from synthkd.models.classifier import Classifier
from synthkd.models.size import in_proportion
from synthkd.models.weights import finite_state, load_strictly
from synthkd.rng import Rows, derive, stream
from synthkd.system.files import naming, write_atomically
from synthkd.taps import evaluating
from synthkd.training.learner import Learner
from synthkd.types import Batch, ImageSpec, Round, to_float

GENTLEST = 0.1
"""Power of the noise schedule with which the curriculum begins."""
CLEAR = 0.5
"""Least share of signal, `alpha_bar`, at which a predicted image is shown to teacher and student."""
MEASURED = 256
"""Most holdout images that are measured."""

Look = Callable[[Tensor, Tensor, float], GeneratedView]


@dataclass(frozen=True)
class DenoisingView:
    """What a training step is judged on.

    Attributes:
        predicted: velocity `[N, ...]`.
        wanted: the true velocity, likewise.
        weights: float32 `[N]` of the noise levels.
        generated: what teacher and student say of the clearer predicted images; None where nobody asks.
    """

    predicted: Tensor
    wanted: Tensor
    weights: Tensor
    generated: GeneratedView | None


def _denoise(view: DenoisingView) -> Tensor:
    errors = F.mse_loss(view.predicted, view.wanted, reduction="none").flatten(1).mean(1)
    return (view.weights * errors).mean()


def _of_student(name: str) -> Any:
    def term(view: DenoisingView) -> Tensor:
        return view.predicted.new_zeros(()) if view.generated is None else STUDENT_TERMS[name](view.generated)

    return term


def level_weights(alphas: Tensor, limit: float) -> Tensor:
    """Weight of each noise level in the loss on velocities: min-SNR (Hang et al. 2023, section 3.4).

    `min(snr, limit) / (snr + 1)` with `snr = a / (1 - a)`, divided by its mean over the levels so that the learning
    rate keeps its meaning; all ones for a limit of 0.

    Args:
        alphas: `alpha_bar` of every level, float32 `[T]` in (0, 1).
        limit: largest signal-to-noise ratio that counts in full.
    """
    if limit == 0.0:
        return torch.ones_like(alphas)
    snr = alphas / (1.0 - alphas)
    weights = snr.clamp_max(limit) / (snr + 1.0)
    return weights / weights.mean()


def gentler(alphas: Tensor, times: Tensor, progress: float) -> Tensor:
    """The curriculum of noise ("progressive diffusion"): times moved to where the noise is gentler, early in training.

    At progress p in [0, 1] the chain adds noise with `alpha_t(p) = alpha_t^g`, so `alpha_bar_t(p) = alpha_bar_t^g`,
    with `g = 0.1^(1 - p)`: gentle first, the full schedule at the end.

    The article prints `q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, (1 - alpha_t) I)` with `alpha_t = 0.9^(T - t)` for
    t <= T/2 and `0.99^(T - t)` after. There alpha_1 is almost 0: the first step destroys the image, and nothing moves
    while training goes on. Kept of it is its purpose, noise that grows, and the power of what remains, here of
    training. The network is told the noise level as it is, not t: a level has one time from first to last, the time at
    which the full schedule has it, so nothing has to be unlearned. Samples drawn before the end of the curriculum start
    from noise that the network has not seen yet.

    Args:
        alphas: `alpha_bar` of the full schedule, float32 `[T]`, falling.
        times: int64 `[N]` in `[0, T)`.
        progress: p.

    Returns:
        int64 `[N]`, each at most `times`: the first time of the full schedule with as much noise as alpha_bar_t(p).
    """
    depth = -alphas.double().log()
    return torch.searchsorted(depth, GENTLEST ** (1.0 - progress) * depth[times]).clamp_max(len(alphas) - 1)


class Diffusion:
    """The diffusion model of one dataset.

    Args:
        settings: network, training, sampler, guidance.
        teacher: the frozen teacher, only read; None where nothing asks for it.
        seed: the run's seed.
        accelerator: device and precision.
        train: what it learns from; None for a generator that is restored, which can only be sampled.
        holdout: images on which the loss is measured, or None.
        spec: of the images, where neither teacher nor real data tell.

    Raises:
        ConfigError: teacher and data disagree about the images, or a term needs a teacher that is not there.
    """

    def __init__(
        self,
        settings: DiffusionSettings,
        teacher: Classifier | None,
        seed: int,
        accelerator: Accelerator,
        train: RealData | None = None,
        holdout: RealData | None = None,
        spec: ImageSpec | None = None,
    ) -> None:
        self.settings = s = settings
        self.spec = agreed_spec("diffusion", spec, teacher, train)
        if teacher is None and (s.teacher_guidance or s.distillation or s.semantic):
            raise ConfigError("generator: teacher_guidance, distillation and semantic need a teacher; set them to 0")
        self._teacher = teacher
        self._seed = seed
        self._device = accelerator.device
        self._accelerator = accelerator
        self._autocast = accelerator.autocast
        self._rank = accelerator.process_index
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "diffusion/init"))
            unet = in_proportion(
                lambda: build_unet(s, self.spec),
                f"generator, channels={list(s.channels)}, layers={s.layers}, unshuffle={s.unshuffle} for {self.spec}",
            )
        self._learner = Learner("generator", unet, s.optimizer, s.horizon, accelerator)
        self._schedule = noise_schedule()
        names = None if train is None else list(train.class_names)
        self._pipeline = ClassConditionalPipeline(
            self._learner.evaluated, self._schedule, self.spec.height, self.spec.width, s.unshuffle, names
        )
        self._alphas = self._schedule.alphas_cumprod
        self._weights = level_weights(self._alphas, s.min_snr)
        self._objective: Objective[DenoisingView] = Objective(
            terms={"denoise": _denoise, **{name: _of_student(name) for name in ("distillation", "semantic")}},
            weights={"denoise": 1.0, "distillation": s.distillation, "semantic": s.semantic},
        )
        self._source: EpochSource | None = None
        if train is not None:
            where = (s.real_batch, s.augment, derive(seed, "diffusion"), self._device)
            world = accelerator.num_processes
            self._source = EpochSource(train.images, train.labels, *where, rank=self._rank, world=world)
        self._holdout = None
        if holdout is not None and len(holdout) > 0:
            self._holdout = Batch(to_float(holdout.images[:MEASURED]), holdout.labels[:MEASURED]).to(self._device)

    def fit(self, index: int, difficulty: float, student: nn.Module | None = None) -> dict[str, float]:
        """The training steps of round `index`: batches are a function of (seed, index * steps + k).

        Args:
            index: number of the round.
            difficulty: in [0, 1], scales the term `distillation`.
            student: takes part in the terms that need one, unchanged; None leaves them out.

        Returns:
            The terms' means over the steps, and the loss on holdout images now and then, for the log.

        Raises:
            ConfigError: the generator was saved and restored, and has no real data.
            TrainingError: a loss or gradient is not finite.
        """
        s = self.settings
        if self._source is None:
            raise ConfigError(
                "this generator was saved to be sampled from and has no real data to learn from; train one anew"
            )
        sums: dict[str, float] = defaultdict(float)
        with ExitStack() as context:
            look: Look | None = None
            if self._teacher is not None and student is not None and (s.distillation or s.semantic):
                look = context.enter_context(judging(self._teacher, student, self._autocast, s.semantic > 0))
            self._learner.model.train()
            for step in range(index * s.steps, (index + 1) * s.steps):
                rng = stream(self._seed, f"diffusion/noise/{self._rank}", step)
                view = self._view(self._learner.model, self._source.batch(step), rng, step, look, difficulty)
                logged = self._learner.update(self._objective(view, 0, 1), step)
                for name, value in logged.items():
                    sums[name] += float(value) / s.steps
        if self._holdout is not None and index % s.measure_every == 0:
            sums["generator/holdout"] = self._on_holdout(self._holdout)
        return dict(sums)

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """One round: `fit`, then `batch_size` images with balanced labels.

        Args and errors are those of `fit`; a ConfigError also says when there is no teacher to label the images.
        """
        terms = self.fit(index, difficulty, student)
        sample = partial(self._draw, student=student)
        count = self.settings.batch_size
        return sampled_round(sample, difficulty, self._teacher, self._seed, index, count, self._accelerator, terms)

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images of the asked labels from the averaged weights, each a function of its label and row.

        Args:
            labels: int64 `[N]`.
            difficulty: in [0, 1]; see `synthkd.generators.guidance`.
            rng: random rows; image i is made from row `rng.start + i`.

        Returns:
            float32 `[N, C, H, W]` in [0, 1].
        """
        return self._draw(labels.to(self._device), difficulty, rng, None)

    def _draw(self, labels: Tensor, difficulty: float, rng: Rows, student: nn.Module | None) -> Tensor:
        s = self.settings
        scale = guidance_scale(difficulty, s.guidance, s.hard_guidance)
        with ExitStack() as context:
            steer: Steer | None = None
            if s.teacher_guidance > 0 and self._teacher is not None:
                look = context.enter_context(judging(self._teacher, student, self._autocast))
                steer = self._steering(look, labels, difficulty)
            context.enter_context(evaluating(self._learner.evaluated))
            context.enter_context(self._autocast())
            return self._pipeline.draw(labels, rng, scale, s.sample_steps, s.sampler, steer)

    def _steering(self, look: Look, labels: Tensor, difficulty: float) -> Steer:
        """Predicted images climb the teacher's score, the less the clearer they are."""

        def steer(images: Tensor, sigma: float) -> Tensor:
            with torch.enable_grad():
                leaf = images.detach().requires_grad_()
                view = look(((leaf + 1.0) / 2.0).clamp(0.0, 1.0), labels, difficulty)
                student = None if view.student is None else view.student.logits
                score = teacher_score(view.teacher.logits, student, labels, difficulty)
                (gradient,) = torch.autograd.grad(score.sum(), leaf)
            return climb(images, gradient, self.settings.teacher_guidance * sigma)

        return steer

    def _view(
        self,
        model: nn.Module,
        batch: Batch,
        rng: torch.Generator,
        step: int,
        look: Look | None = None,
        difficulty: float = 0.0,
    ) -> DenoisingView:
        """Real images, noised, and what the network makes of them; all randomness is drawn on the CPU."""
        s, count = self.settings, len(batch)
        clean = fold(batch.images, self._pipeline.unet, s.unshuffle)
        dropped = torch.rand(count, generator=rng) < s.label_drop
        times = ((torch.rand((), generator=rng) + torch.arange(count)) * (len(self._alphas) / count)).long()
        times = times.clamp_max(len(self._alphas) - 1)
        if s.curriculum > 0:
            times = gentler(self._alphas, times, min(1.0, step / (s.curriculum * s.horizon)))
        noise = torch.randn(clean.shape, generator=rng).to(self._device)
        alphas, weights = self._alphas[times].to(self._device), self._weights[times].to(self._device)
        times = times.to(self._device)
        noisy = self._schedule.add_noise(clean, noise, times)
        labels = torch.where(dropped.to(self._device), self.spec.classes, batch.labels)
        with self._autocast():
            predicted = model(noisy, times, class_labels=labels).sample.float()
        generated = None
        clear = alphas >= CLEAR
        if look is not None and bool(clear.any()):
            a = alphas[clear].view(-1, 1, 1, 1)
            images = unfold(
                a.sqrt() * noisy[clear] - (1.0 - a).sqrt() * predicted[clear], *self.spec.shape[1:], s.unshuffle
            )
            generated = look(((images + 1.0) / 2.0).clamp(0.0, 1.0), batch.labels[clear], difficulty)
        return DenoisingView(predicted, self._schedule.get_velocity(clean, noise, times), weights, generated)

    @torch.no_grad()
    def _on_holdout(self, holdout: Batch) -> float:
        """Loss of the averaged weights, at noise that is the same each time and full."""
        network = self._learner.evaluated
        with evaluating(network):
            view = self._view(network, holdout, stream(self._seed, "diffusion/holdout"), self.settings.horizon)
        return float(_denoise(view))

    def save(self, directory: Path) -> None:
        """Write the averaged network and the noise schedule as a diffusers folder, each file atomically."""
        with tempfile.TemporaryDirectory() as scratch, naming(Path(scratch)):
            unet = copy.deepcopy(self._pipeline.unet).to("cpu", memory_format=torch.contiguous_format)
            finite_state(unet, str(directory))
            c = self._pipeline.config
            saved = ClassConditionalPipeline(unet, self._schedule, c.height, c.width, c.unshuffle, c.class_names)
            saved.save_pretrained(scratch)
            files = sorted(p for p in Path(scratch).rglob("*") if p.is_file())
            for file in sorted(files, key=lambda p: p.name == "model_index.json"):  # that one last: a torn save is none
                write_atomically(directory / file.relative_to(scratch), file.read_bytes())

    def restore(self, directory: Path) -> None:
        """Read back what `save` wrote.

        Raises:
            ModelError: missing or damaged files, or another network than that of the settings.
        """
        saved = load_pipeline(directory)
        if not isinstance(saved, ClassConditionalPipeline) or saved.config.unshuffle != self.settings.unshuffle:
            raise ModelError(f"{directory} holds another diffusion model than its settings say; copy it again")
        for network in {self._learner.module, self._learner.evaluated}:
            load_strictly(network, saved.unet.state_dict(), str(directory))
        self._pipeline.register_to_config(class_names=saved.config.class_names)

    def state_dict(self) -> dict[str, Any]:
        return self._learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._learner.load_state_dict(state)
