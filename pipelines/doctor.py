"""A report on this machine: versions, devices, and optional packages with the pip line for each."""

from __future__ import annotations

import os
import platform
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from synthkd import __version__


def examine() -> str:
    """The report as text. Missing packages are lines of it, not errors."""
    required, extras = _requirements()
    lines = [f"synthkd {__version__}, Python {platform.python_version()}, {platform.platform()}", "", "packages"]
    lines += [f"  {_package(requirement)}" for requirement in required]
    lines += ["", "devices", *(f"  {device}" for device in _devices()), "", "extras"]
    for extra, requirements in extras.items():
        missing = [requirement.name for requirement in requirements if not _satisfied(requirement)]
        state = f"missing {', '.join(missing)}: pip install 'synthkd[{extra}]'" if missing else "installed"
        lines.append(f"  {extra}: {state}")
    return "\n".join([*lines, "", _runs(Path("runs"))])


def _requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What synthkd requires, and what each extra adds, by the installed distribution or else the checkout."""
    try:
        distribution = metadata.distribution("synthkd")
    except metadata.PackageNotFoundError:
        with (Path(__file__).resolve().parents[1] / "pyproject.toml").open("rb") as file:
            project = tomllib.load(file)["project"]
        optional = project["optional-dependencies"]
        return (
            [Requirement(text) for text in project["dependencies"]],
            {extra: [Requirement(text) for text in texts] for extra, texts in optional.items()},
        )
    # The requirements of an extra have the marker `extra == "name"`; no other requirement of synthkd has a marker.
    everything = [Requirement(text) for text in distribution.requires or ()]
    required = [requirement for requirement in everything if requirement.marker is None]
    extras = {
        extra: [r for r in everything if r.marker is not None and r.marker.evaluate({"extra": extra})]
        for extra in distribution.metadata.get_all("Provides-Extra") or ()
    }
    return required, extras


def _version(requirement: Requirement) -> str | None:
    try:
        return metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None


def _satisfied(requirement: Requirement) -> bool:
    version = _version(requirement)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _package(requirement: Requirement) -> str:
    version = _version(requirement)
    remedy = "" if _satisfied(requirement) else f": pip install '{requirement.name}{requirement.specifier}'"
    return f"{requirement.name} {version or 'missing'}{remedy}"


def _devices() -> list[str]:
    import torch

    from synthkd.system.hardware import has_bfloat16_units

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    units = "bfloat16 units" if has_bfloat16_units(torch.device("cpu")) else "no bfloat16 units"
    devices = [f"cpu: {cores} cores, torch uses {torch.get_num_threads()} threads, {units}"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.1f} GiB")
    if len(devices) == 1:
        devices.append(f"cuda: none found (torch is built for {torch.version.cuda or 'CPU only'})")
    return devices


def _runs(directory: Path) -> str:
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if os.access(existing, os.W_OK):
        return f"runs are written to {directory.absolute()}"
    return f"{directory.absolute()} cannot be written: give every run an out=DIRECTORY that can"
