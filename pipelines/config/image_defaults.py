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
NOISY_LABEL: Mapping[str, object] = {
    "mix": {"mixup": 0.0},
    "phases": [
        {"kind": "pregenerate", "rounds": 6},
        {"kind": "joint", "steps": 4000, "every": 25},
        {"kind": "refine", "steps": 500},
    ],
}
"""Defaults beside `noisy_label`: its images differ enough, so mixtures cost a point on CIFAR-10, and its rounds are
longer."""
HINTED: Section = {
    **WITHOUT_REAL_IMAGES["distill"],
    "hint": "auto",
    "optimizer": {**section(WITHOUT_REAL_IMAGES["distill"], "optimizer"), "clip": 5.0},
}
"""Defaults where no generator is named for small images in colour. Large hints need clipped gradients at this rate."""
SHIFTED_PART = 8
"""Of the shorter side, the part by which small images in colour are shifted where no generator is named. Most teachers
of such images have learned from shifted and mirrored ones, so their statistics are of such images."""
COLOURS, LARGEST = 3, 64
"""Channels of images in colour, and the longest side, in pixels, at which kind auto takes `noisy_label` for them: on
CIFAR-10 it gave better students than `inversion` after 20 minutes and two hours, on grey images no better ones. Larger
images were not compared."""


def of_labels_alone(recipe: Section) -> Mapping[str, object]:
    """The temperature where a black box answers by labels: at 1 the soft-label loss is the cross-entropy to the label.

    Args:
        recipe: of a distillation, as it was read; it may have mistakes.
    """
    teacher = section(recipe, "teacher")
    answers_by_labels = teacher.get("kind") == "labels" and teacher.get("answers", "labels") == "labels"
    if not answers_by_labels or _adapts_temperature(recipe):
        return {}
    return {"distill": {"temperature": 1.0}}


def without_real_images(recipe: Section) -> Mapping[str, object]:
    """The defaults of a recipe whose sources are drawn or come of the generators in `BY_BATCH_NORM`; none of any other.

    Args:
        recipe: of a distillation, as it was read; it may have mistakes.
    """
    sources = _sources(recipe)
    answers_alone = section(recipe, "teacher").get("kind") == "labels"
    if answers_alone or not sources or not all(_shows_nothing_real(source) for source in sources):
        return {}
    defaults: dict[str, object] = dict(WITHOUT_REAL_IMAGES)
    generators, teacher = {_generator(source) for source in sources}, section(recipe, "teacher")
    chosen = "auto" in generators and _is_small_and_in_colour(teacher)
    if chosen or "noisy_label" in generators:
        defaults |= NOISY_LABEL
    if chosen:
        shift = min(_sides(teacher)) // SHIFTED_PART
        defaults["mix"] = {**section(NOISY_LABEL, "mix"), "flip": True, "shift": shift}
        defaults["distill"] = HINTED
    if _adapts_temperature(recipe):
        defaults["distill"] = {
            key: value for key, value in section(defaults, "distill").items() if key != "temperature"
        }
    return defaults


def for_colour(recipe: Section) -> Mapping[str, object]:
    """The precision where no generator is named and images are small and in colour.

    With `noisy_label` on CIFAR-10 bf16 was worth three points in equal time, with `inversion` on grey images nothing.

    Args:
        recipe: of a distillation, as it was read; it may have mistakes.
    """
    is_auto = any(_generator(source) == "auto" for source in _sources(recipe))
    return {"precision": "auto"} if is_auto and _is_small_and_in_colour(section(recipe, "teacher")) else {}


def _sources(recipe: Section) -> list[object]:
    """The sources of a recipe's transfer set, as they were read."""
    transfer_set = recipe.get("transfer_set", {})
    return transfer_set if isinstance(transfer_set, list) else [transfer_set]


def _adapts_temperature(recipe: Section) -> bool:
    """Whether the temperature adapts, which has a start of its own."""
    return section(section(recipe, "distill"), "adapt").get("temperature") is not None


def _shows_nothing_real(source: object) -> bool:
    return isinstance(source, Mapping) and (source.get("kind") in DRAWN or _generator(source) in BY_BATCH_NORM)


def _generator(source: object) -> object:
    """The kind of a source's generator; None if it generates nothing.

    Without the section the teacher chooses; a section without a kind is one of inversion.
    """
    if not isinstance(source, Mapping) or source.get("kind", "generated") != "generated":
        return None
    return section(source, "generator").get("kind", "inversion") if "generator" in source else "auto"


def _is_small_and_in_colour(teacher: Section) -> bool:
    """Whether the teacher's images are, by its recipe, such that kind auto takes `noisy_label` if it has BatchNorm."""
    stated, sides = teacher.get("kind") in ("load", "given"), _sides(teacher)
    in_colour = teacher.get("channels", COLOURS) == COLOURS
    return stated and in_colour and bool(sides) and max(sides) <= LARGEST


def _sides(teacher: Section) -> list[int]:
    """The sides of the teacher's images, in pixels; none where the recipe does not say."""
    size = teacher.get("size")
    sides = size if isinstance(size, list) else [size]
    whole = [side for side in sides if isinstance(side, int)]
    return whole if len(whole) == len(sides) else []
