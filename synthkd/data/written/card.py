"""The card of a generated dataset: a README.md with front matter, from the content of its `dataset.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from synthkd.metrics.utility import extremes
from synthkd.system.text import one_line

_PATHS = {"folder": "train/**", "webdataset": "train-*.tar", "parquet": "data/train-*.parquet"}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_LAYOUTS = {
    "folder": "an image folder: `train/CLASS/NUMBER.png` and `train/metadata.jsonl`",
    "webdataset": "WebDataset shards: `NUMBER.png`, `NUMBER.cls` (the class), `NUMBER.json` (the rest)",
    "parquet": "parquet shards with an `image` column and a `label` column that knows the class names",
}


def card(about: Mapping[str, Any], recipe: str) -> str:
    """The text of a dataset's README.md.

    Args:
        about: the content of its `dataset.json`.
        recipe: the configuration of the dataset, as YAML.
    """
    front: dict[str, Any] = {
        "license": "unknown",
        "pretty_name": about["name"],
        "task_categories": ["image-classification"],
        "tags": ["synthetic", "synthkd"],
        "synthetic": True,
        "size_categories": [next((name for most, name in _SIZES if about["count"] < most), "n>10M")],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": _PATHS[about["format"]]}]},
        ],
    }
    if about["format"] == "folder":
        front["configs"][0]["features"] = _features(about["class_names"])
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    # The fence has one backtick more than the longest run in the recipe, so that no name in it can end the block.
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", recipe))])
    blocks = [
        f"---\n{header}---",
        f"# {about['name']}",
        f"{about['count']:,} synthetic images of {len(about['class_names']):,} classes, made by synthkd "
        f"{about['synthkd']}.",
        f"It is {_LAYOUTS[about['format']]}. Every image carries the `label` that was asked for, `logits` and "
        "`soft_labels` of the teacher (`softmax(logits)`; at temperature T it is `softmax(logits / T)`), `difficulty`, "
        "`number` and `synthetic: true`. Image number i of this recipe depends on the seed, on i and on the label "
        "asked for, and on nothing else. `dataset.json` says the same to programs.",
        "## Classes and scores\n\n" + _scores(about),
        "## Privacy\n\n" + _privacy(about),
        "## Licence\n\nNot chosen here. What the teacher's licence, and that of the data it and the generator learned "
        "from, allow decides; set `license` above before you publish.",
        f"## How it was made\n\nSeed {about['seed']}. Teacher: {_teacher(about['teacher'])}.",
        f"{fence}yaml\n{recipe}{fence}",
    ]
    return "\n\n".join(blocks) + "\n"


def _features(class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The columns of the image folder for Hugging Face datasets, which reads the names of the labels only here."""
    names = {str(number): one_line(name) for number, name in enumerate(class_names)}
    return [
        {"name": "image", "dtype": "image"},
        {"name": "number", "dtype": "int64"},
        {"name": "label", "dtype": {"class_label": {"names": names}}},
        {"name": "class_name", "dtype": "string"},
        {"name": "soft_labels", "list": "float32"},
        {"name": "logits", "list": "float32"},
        {"name": "difficulty", "dtype": "float64"},
        {"name": "synthetic", "dtype": "bool"},
    ]


def _teacher(teacher: Mapping[str, Any]) -> str:
    """The teacher's architecture, size, training data and checksum in one phrase."""
    trained = "" if teacher["trained_on"] is None else f", trained on {_text(teacher['trained_on'])}"
    return f"{_text(teacher['arch'])}, {teacher['parameters']:,} parameters{trained}, sha256 `{teacher['sha256']}`"


def _scores(about: Mapping[str, Any]) -> str:
    """The table of classes and the paragraph about all images."""
    scores = about["scores"]
    lines = ["| class | images | teacher sees the asked label |", "|---|---:|---:|"]
    names, counts, shares = about["class_names"], about["counts"], scores["agreement_per_class"]
    classes = extremes(shares)
    lines += [f"| {_text(names[label])} | {counts[label]:,} | {_percent(shares[label])} |" for label in classes]
    low, high = scores["agreement_interval"]
    part = (
        "" if len(classes) == len(names) else f"The classes with the lowest and the highest share of {len(names):,}. "
    )
    lines += [
        "",
        f"{part}Over all images the teacher sees the asked label in {_percent(scores['agreement'])} "
        f"({_percent(low)} to {_percent(high)}), with a mean probability of {scores['confidence']:.3f}. That says "
        "nothing about an image being right to anybody but this teacher.",
    ]
    if about["filters"]["confidence"] is not None:
        least = about["filters"]["confidence"]
        lines[-1] += f" Images below a probability of {least:g} were left out, which raises both."
    if scores["vendi"] is not None:
        lines[-1] += (
            f" Variety: Vendi score {scores['vendi']:.2f} of {scores['vendi_n']:,} images in the teacher's features."
        )
    lines[-1] += f" Images whose pixels equal those of an earlier one: {scores['exact_duplicates']:,}."
    if scores["rejected"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in scores["rejected"].items())
        lines.append(f"\nLeft out by filters, of {scores['tried']:,} images tried: {reasons}.")
    return "\n".join(lines)


def _privacy(about: Mapping[str, Any]) -> str:
    """What is known about the real images behind the dataset, and that nothing is guaranteed."""
    count = about["real_images_used"]
    if count is None:
        source = "The generator was made elsewhere; which real images it was trained on is not known here."
    elif count and about["generator"]["kind"] == "merf":
        source = (
            f"The generator learned from one noisy look at {count:,} real images, which bounds what it can tell about "
            "any of them. What the teacher tells is not in that bound: it labelled these images and may have chosen "
            "among them."
        )
    elif count:
        source = (
            f"The generator was trained on {count:,} real images. "
            "Its images may repeat what it saw, closely or in part."
        )
    else:
        source = (
            "The generator saw no real image. It learned from the teacher alone, which was trained on real images; "
            "what the teacher memorised of them can show in these."
        )
    copies = about["filters"]["copies"]
    if copies is None:
        filtered = "Nearness to real images was not checked."
    else:
        filtered = (
            f"No image here lies within {copies:g} (root mean square of pixel differences, pixels in [0, 1]) of any of "
            f"the {about['real_images_compared']:,} real images it was compared with; that finds copies of pixels, not "
            "shifted or altered ones."
        )
    return (
        f"{source} {filtered} **There is no privacy guarantee**: as a whole this is not differentially private, and "
        "that images are synthetic does not make them anonymous. The soft labels are answers of the teacher and can "
        "tell about its training data too."
    )


def _text(name: object) -> str:
    """A name with its Markdown and HTML characters escaped, since names come from files and must stay plain text."""
    return re.sub(r"[\\`*<>|~$&\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", one_line(str(name)))


def _percent(share: float | None) -> str:
    """A share in percent, or a dash if it is unknown."""
    return "-" if share is None else f"{share:.1%}"
