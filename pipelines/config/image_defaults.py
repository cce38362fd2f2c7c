"""Defaults of a distillation that depend on the images that its recipe names."""

from __future__ import annotations

from collections.abc import Mapping

from synthkd.pipelines.config.old_form import Section, section

WITHOUT_REAL_IMAGES: Mapping[str, Section] = {
    "mix": {"mixup": 0.8},
    "distill": {
        "temperature": 20.0,
        "optimizer": {"kind": "sgd", "lr": 0.3, "weight_decay": 1e-4, "schedule": "one_cycle", "warmup": 0.2},
    },
}
"""Defaults where no image is real. The classes of such images are uncertain, so the student learns from how the teacher
doubts, which mixtures and a high temperature show."""
DRAWN = ("procedural", "pictures")
"""Kinds of sources whose images show nothing of the task."""
BY_BATCH_NORM = ("auto", "inversion", "noisy_label")
"""Kinds of generators whose images come of the teacher's BatchNorm statistics, if it has any. So
recipes of published methods with these kinds write temperature, mixtures and optimiser in full."""


def without_real_images(recipe: Section) -> Mapping[str, Section]:
    """The defaults of a recipe whose sources are drawn or come of the generators in `BY_BATCH_NORM`; none of any other.

    Args:
        recipe: of a distillation, as it was read; it may have mistakes.
    """
    transfer_set = recipe.get("transfer_set", {})
    sources = transfer_set if isinstance(transfer_set, list) else [transfer_set]
    answers_alone = section(recipe, "teacher").get("kind") == "labels"
    if answers_alone or not sources or not all(_shows_nothing_real(source) for source in sources):
        return {}
    defaults = dict(WITHOUT_REAL_IMAGES)
    if any(_generator(source) == "noisy_label" for source in sources):
        defaults["mix"] = {"mixup": 0.0}  # its images differ enough: mixtures cost a point on CIFAR-10
    if section(section(recipe, "distill"), "adapt").get("temperature") is not None:
        # The temperature has a start of its own there.
        defaults["distill"] = {key: value for key, value in defaults["distill"].items() if key != "temperature"}
    return defaults


def _shows_nothing_real(source: object) -> bool:
    return isinstance(source, Mapping) and (source.get("kind") in DRAWN or _generator(source) in BY_BATCH_NORM)


def _generator(source: object) -> object:
    """The kind of a source's generator; None if it generates nothing."""
    if not isinstance(source, Mapping) or source.get("kind", "generated") != "generated":
        return None
    return section(source, "generator").get("kind", "inversion")
