"""The command line: `synthkd VERB [CONFIG] [key=value ...]`. Only verbs that compute import torch."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthkd import __version__
from synthkd.errors import CheckpointError, ConfigError, SynthkdError
from synthkd.imports import allowing, own
from synthkd.pipelines.run.disk import resources
from synthkd.system.stopping import Stopped, stoppable
from synthkd.system.text import one_line, print_anything, printable


@dataclass(frozen=True)
class Verb:
    """A job as a command.

    Attributes:
        config: import string `module:name` of its configuration class.
        function: import string of its function.
        help: what it does.
        paths: key of the setting that takes the plain paths of the command line, if the job has one.
    """

    config: str
    function: str
    help: str
    paths: str | None = None


# The module, the function and the configuration class of a job are named after it.
VERBS = {
    name: Verb(
        f"synthkd.pipelines.config.{name}:{name.capitalize()}Config", f"synthkd.pipelines.{name}:{name}", help, paths
    )
    for name, help, paths in (
        ("audit", "attack finished models with lists of images that they were trained on and of others", None),
        ("compress", "make a small student to hand over: exported, priced, with a report of what it leaks", None),
        ("distill", "make a small student from a teacher without its training data, or with a little of it", None),
        (
            "evaluate",
            "score generated images against real ones, or say how good a network is (model=FILE data=...)",
            "generated",
        ),
        ("generate", "write a labelled synthetic dataset: image folder, WebDataset or parquet", None),
        ("teach", "train a teacher on real data", None),
    )
}

_PEER_EXITED = re.compile("closed by peer|reset by peer|broken pipe|remote process exited", re.IGNORECASE)
"""Messages of torch.distributed in the other processes after one has ended."""
_PEER_ADDRESS = re.compile(r"\[([\da-f.:]+)\]:\d+", re.IGNORECASE)
"""In such a message: the machine of the process that has ended."""
_commands: list[str] = []
"""The commands of this process so far, which are those of the other processes of torchrun too."""
LET_FIRST = 10.0
"""Seconds that a process waits for torchrun to end it, because another one has ended."""
INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for Ctrl-C
SETTINGS = "settings are written key=value or section.key=value"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 128 + n if signal n stopped it, or that of its `SynthkdError`.

    Args:
        argv: words after `synthkd`; None: those of this process.
    """
    print_anything()
    arguments, rest = _parser().parse_known_args(argv)
    _commands.append(arguments.command)
    try:
        with stoppable(), resources(arguments.command), _one_voice():
            code = _run(arguments, rest)
            sys.stdout.flush()  # here, so that a full disk or a closed pipe behind stdout is handled below
        return code
    except SynthkdError as error:
        if _tells():
            for line in str(error).splitlines():
                print(f"error: {printable(line)}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        if _is_first() and _tells():
            resumes = "; the same command resumes" if arguments.command in VERBS else ""
            print(f"{stopped}{resumes}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        if _tells():
            print("interrupted; the same command resumes", file=sys.stderr)
        return INTERRUPTED
    except RuntimeError as error:
        if "RANK" not in os.environ or not _PEER_EXITED.search(str(error)):
            raise
        if _speaks_for_its_machine() and _tells():  # else the other process has told why
            print(_ended_elsewhere(str(error)), file=sys.stderr)
        _let_the_cause_end_first()
        return CheckpointError.exit_code
    except BrokenPipeError:  # the reader has ended (`synthkd config schema distill | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="synthkd", description="Shrink an image classifier without its training data.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"synthkd {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        usage = f"synthkd {name} [CONFIG] {'PATH ... ' if verb.paths else ''}[key=value ...] [--dry-run]"
        # Of a job that takes paths any other first word is one (`_config`).
        forms = "a YAML file" if verb.paths else "a YAML file, a run directory or the name of a recipe"
        epilog = f"keys: synthkd config schema {name}; their values: synthkd config show {name} CONFIG"
        job = _add(commands, name, verb.help, usage, epilog if verb.paths else f"{epilog}; recipes: synthkd recipes")
        job.add_argument("settings", nargs="*", metavar="CONFIG, key=value", help=f"CONFIG is {forms}; {SETTINGS}")
        job.add_argument("--dry-run", action="store_true", help="build and check everything, print the plan")
        if verb.paths or name == "audit":
            text = "leave out at most N unreadable files of a set (skip_bad=N)"
            job.add_argument("--skip-bad", type=int, metavar="N", help=text)
    text = "classes of image files by a run or by an exported .onnx file, which needs nothing else of its run"
    usage = "synthkd predict MODEL PATH ... [trust=DIR] [--skip-bad N]"
    predict = _add(commands, "predict", text, usage)
    predict.add_argument("model", metavar="MODEL", help="a run, or an .onnx file that `synthkd compress` exported")
    text = "image files, folders, archives, tables, .npz; trust=DIR: a folder whose files may name code to run"
    predict.add_argument("images", nargs="+", metavar="PATH", help=text)
    predict.add_argument("--skip-bad", type=int, default=0, metavar="N", help="leave out at most N unreadable files")
    joining = _add(commands, "statistics", "join the features that evaluations on many machines saved, for one score")
    joining.add_argument("files", nargs="+", metavar="FILE", help="of save_features=, save_generated= or this command")
    joining.add_argument("-o", "--out", required=True, metavar="FILE", help="the joined file (.safetensors)")
    text = "features that stay, a uniform sample of all; 0: moments only (default: %(default)s)"
    joining.add_argument("--keep", type=int, default=10_000, metavar="N", help=text)
    config = _add(commands, "config", "show a job's resolved configuration, or the JSON schema of what it takes")
    kinds = config.add_subparsers(dest="what", metavar="show|schema", required=True)
    show = _add(kinds, "show", "print the resolved YAML", "synthkd config show VERB [CONFIG] [key=value ...]")
    show.add_argument("job", metavar="VERB", choices=VERBS, help=" or ".join(VERBS))
    show.add_argument("settings", nargs="*", metavar="CONFIG, key=value", help=f"CONFIG as of the job; {SETTINGS}")
    schema = _add(kinds, "schema", "print the JSON schema, with a description of every key")
    schema.add_argument("job", metavar="VERB", choices=VERBS, help=" or ".join(VERBS))
    _add(commands, "doctor", "versions, devices, optional packages and how to get them")
    _add(commands, "recipes", "list the configurations that ship with synthkd")
    return parser


def _add(
    commands: Any, name: str, text: str, usage: str | None = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """The parser of one more command."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, usage=usage, epilog=epilog, allow_abbrev=False
    )
    return command


def _run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    # argparse stops collecting settings at an option (`distill --dry-run seed=1`); the words after it are in `rest`.
    settings = [*getattr(arguments, "settings", ()), *(word for word in rest if not word.startswith("-"))]
    if arguments.command in VERBS and getattr(arguments, "skip_bad", None) is not None:
        settings.append(f"skip_bad={arguments.skip_bad}")
    if options := [word for word in rest if word.startswith("-")]:
        raise ConfigError(f"{options[0]}: unknown option; settings are written key=value, without dashes (see --help)")
    if rest and not hasattr(arguments, "settings"):
        raise ConfigError(f"{rest[0]}: unexpected argument (see --help)")
    if not _is_first() and arguments.command not in VERBS:
        return 0  # nothing to share
    match arguments.command:
        case "doctor":
            # Imports of verbs stand inside them: each is as fast to start as its own modules allow.
            from synthkd.pipelines.doctor import examine

            print(examine())
        case "recipes":
            from synthkd.pipelines.config.recipes import recipes

            for recipe in recipes():
                print(printable(f"{recipe.name:<24} {recipe.job:<8} {recipe.summary}"))
        case "predict":
            from synthkd.compression.predict import predict_files

            images, trusted = _images_and_trust(arguments.images)
            with allowing(folders=trusted):
                for line in predict_files(arguments.model, images, skip_bad=arguments.skip_bad):
                    print(f"{one_line(str(line.file))}\t{one_line(line.class_name)}\t{line.probability:.4f}")
        case "statistics":
            from synthkd.pipelines.scores.join import statistics

            print(printable(statistics(arguments.files, arguments.out, arguments.keep)))
        case "config" if arguments.what == "schema":
            print(json.dumps(own(VERBS[arguments.job].config).model_json_schema(), indent=2))
        case "config":
            from synthkd.settings.load import dump_config

            text = dump_config(_config(arguments.job, settings))
            # For a terminal control characters are escaped; a file or pipe gets the text unchanged, to be read again.
            print(printable(text) if sys.stdout.isatty() else text, end="")
        case job:
            config = _config(job, settings)
            result = own(VERBS[job].function)(config, dry_run=arguments.dry_run)
            if _is_first():
                print(printable(str(result)))
    return 0


def _is_first() -> bool:
    """Whether this process prints: of several under torchrun, which sets RANK, only the first does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _one_voice() -> Iterator[None]:
    """Context manager in which only the first of several processes warns: all of them meet the same."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        if not _is_first():
            logging.disable(logging.WARNING)
            warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def _tells() -> bool:
    """Whether this process tells what ended the command: of several under torchrun the first that meets anything."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from synthkd.pipelines.run.shared_work import first_to_tell

    return first_to_tell(f"end of command {len(_commands)}")


def _speaks_for_its_machine() -> bool:
    """Whether this process tells what it sees of the others: the first one on each machine does."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _ended_elsewhere(message: str) -> str:
    """The line of a process whose exchange with another process failed, since that one has ended."""
    address = _PEER_ADDRESS.search(message)
    where = f" (on {address[1]})" if address else ""
    return (
        f"error: another process of this run has ended{where}; its own last line or torchrun says why. The last "
        "checkpoint stays: torchrun goes on from it if --max-restarts allows that, and the same command resumes"
    )


def _let_the_cause_end_first() -> None:
    """Wait for torchrun to see which process of this machine has ended first, which it then names, and to end this one.

    Where no agent looks after the processes there is nothing to wait for.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(KeyboardInterrupt):
            time.sleep(LET_FIRST)


def _images_and_trust(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The paths among the words of `predict`, and the folders of `trust=DIR`, which stands there as in every job.

    Raises:
        ConfigError: no path is left.
    """
    trust = [word for word in words if word.startswith("trust=") and not os.path.exists(word)]
    images = [word for word in words if word not in trust]
    if not images:
        raise ConfigError(f"{trust[0]}: no image beside it; name image files, folders or archives (see --help)")
    return images, [word.removeprefix("trust=") for word in trust]


def _config(job: str, settings: Sequence[str]) -> Any:
    """The configuration of a job from the words of the command line."""
    from synthkd.pipelines.config.recipes import CONFIG, find_config
    from synthkd.settings.load import load_config
    from synthkd.settings.yaml_text import dump

    first = settings[0] if settings else "="
    key = VERBS[job].paths
    # A word may be longer than a path can be, which os.path takes for no file and pathlib for an error.
    # The first word may be a configuration; of a job that takes paths, which may be any word, only a YAML file is one.
    is_config = "=" not in first or any(map(os.path.isfile, (first, os.path.join(first, CONFIG))))
    named = first.endswith((".yaml", ".yml")) if key else is_config
    source = find_config(first, job) if named else None
    overrides = list(settings[named:])
    if source is not None and source.parent == Path(first):  # a run, whose configuration need not say where it lies
        overrides = [f"out={dump(first)}", *overrides]
    if key and (paths := [word for word in overrides if "=" not in word or os.path.exists(word)]):
        overrides = [word for word in overrides if word not in paths] + [f"{key}={dump(paths)}"]
    # Paths in a recipe that ships, and in what a run recorded, are relative to the working directory.
    recorded = source is not None and (source.parent / ".lock").exists()
    in_place = recorded or source != Path(first)
    return load_config(own(VERBS[job].config), source, overrides, in_place=in_place)
