"""What a distillation prints: its plan in a dry run, and its summary at the end."""

from __future__ import annotations

from synthkd.data.bank import bank_bytes, checkpoint_bytes
from synthkd.data.read.splits import RealData
from synthkd.distillation import phases
from synthkd.distillation.terms.auxiliary import AuxiliaryLayers
from synthkd.models import has_weights, parameters
from synthkd.pipelines.config import DistillConfig, Planned
from synthkd.pipelines.run.device import mixed_precision
from synthkd.pipelines.run.directory import REPORT
from synthkd.pipelines.run.job import Job, disk_line, generator_bytes, training_bytes
from synthkd.pipelines.scores.running import scores_in_words
from synthkd.pipelines.student.assembly import Assembly
from synthkd.pipelines.student.baseline import baseline_steps
from synthkd.pipelines.student.networks import finished
from synthkd.reports.files import RunFiles
from synthkd.reports.headline import headline
from synthkd.reports.page import SPACE
from synthkd.reports.results import AccuracyEstimate, Baseline, BudgetResult, DistillResult, ModelResult
from synthkd.schedules import ever
from synthkd.settings import LoadedModel, Schedule, TrainedTeacher


def plan(assembly: Assembly, test: RealData | None, used: int = 0) -> tuple[str, ...]:
    """What the run would do, in lines for --dry-run.

    Args:
        assembly: the parts of the run, as a dry run builds them.
        test: real test data, or None.
        used: queries of a black box that the run has used before this extension.
    """
    config, spec, student = assembly.config, assembly.subject.spec, parameters(assembly.learner.module)
    every_phase = config.phases_and_extensions
    rounds = phases.generator_rounds(every_phase)
    generated, batch = assembly.transfer_set.generated, None
    lines: list[str] = []
    state_bytes = sum(training_bytes(parameters(one.learner.module)) for one in assembly.students)
    if generated is not None and config.generated is not None:
        batch = generated.rounds.images
        images = "" if batch is None else f", {rounds * batch:,} images"
        if config.black_box is not None and batch is not None:
            which = "the queries that are left" if used else "the queries"
            images += f"; {which} cover {(config.black_box.queries - used) // batch:,}"
        lines = [f"  generator rounds: {rounds:,}{images}"]
        state_bytes += generator_bytes(generated.generator)
    peers = [f"{parameters(finished(peer)):,} parameters" for peer in assembly.students[1:]]
    new = phases.rounds_within(every_phase, config.checkpoint_every) * (batch or 0)
    banks = [config.generated.bank] if config.generated else [bank.settings for bank in assembly.transfer_set.banks]
    shared = sum(checkpoint_bytes(spec, bank, config.keep_checkpoints, new) for bank in banks)
    on_disk = sum(bank_bytes(spec, bank) for bank in banks if bank.storage == "disk")
    contract = assembly.contract
    if assembly.black_box is not None:
        left = f", {assembly.black_box.settings.queries - used:,} of them left" if used else ""
        taught, share = assembly.black_box.words + left, ""
    elif contract is None:
        taught, share = assembly.transfer_set.sources[0].without_teacher, ""
    else:
        trained = ", trained first" if isinstance(config.teacher, TrainedTeacher) else ""
        taught = f"{contract.parameters:,} parameters, {contract.batch_norm_layers} BatchNorm layers{trained}"
        share = f" ({student / contract.parameters:.1%} of the teacher's)" if contract.parameters else ""
    uses = assembly.transfer_set.uses()
    note = f" ({assembly.batch.note})" if assembly.batch.note else ""
    real = f"{config.real_images}, {' and '.join(uses)}" if uses and config.real_images else "none"
    return (
        f"distill {config.name}: {spec}",
        f"  teacher: {taught}",
        *([f"  as read: {', '.join(notes)}"] if (notes := _notes(assembly)) else []),
        *(f"  warning: {warning}" for warning in assembly.warnings),
        *_team_lines(assembly),
        f"  student: {student:,} parameters{share}, {assembly.start.words}",
        *_normalisation(assembly),
        *(f"  peer {number}: {words}" for number, words in enumerate(peers, start=1)),
        f"  real images: {real}",
        *(f"  {words}" for words in assembly.transfer_set.collages),
        *([f"  unlabelled images: {labelled}"] if (labelled := assembly.transfer_set.labelled_by_teacher) else []),
        f"  test images: {'none' if test is None else test.counted}",
        *_recipe(assembly),
        *_precision(config),
        *([] if config.seeds is None else [f"  seeds: {config.seeds} such runs, from seed {config.seed} on"]),
        *([] if config.planned is None else [_planned(config.planned, config.black_box is not None)]),
        f"  phases: {', '.join(phases.describe(phase) for phase in config.phases)}",
        *(f"  extension: {steps:,} steps more" for steps in config.extended),
        f"  student steps: {assembly.learner.steps:,} of {assembly.batch.images} images{note}",
        *([f"  baseline: {count:,} steps on drawn pictures alone"] if (count := baseline_steps(config)) else []),
        *(f"  {words}" for words in assembly.chosen),
        *lines,
        f"{disk_line(config, state_bytes, shared, on_disk)}; the last checkpoint stays, to extend the run",
    )


def _normalisation(assembly: Assembly) -> list[str]:
    """The line of a student from elsewhere that may normalise images itself, and gets the normalisation of the run."""
    student, subject = assembly.config.student, assembly.subject
    if not isinstance(student, LoadedModel) or student.mean is not None or has_weights(student):
        return []
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (subject.mean, subject.std))
    return [
        f"  normalisation: the student gets mean [{mean}] and std [{std}]; write student.mean and student.std of 0 and "
        "1 if it normalises images itself"
    ]


def _precision(config: DistillConfig) -> list[str]:
    """The line of a mixed precision, and of what `auto` comes to on this machine."""
    precision = mixed_precision(config)
    if config.precision == "auto":
        return [f"  precision: {'full' if precision == 'no' else precision}, by what the device has units for"]
    return [] if precision == "no" else [f"  precision: {precision}"]


def _notes(assembly: Assembly) -> tuple[str, ...]:
    """How the first teacher was read, where something was chosen, turned or undone."""
    if assembly.team is None or assembly.contract is None:
        return ()
    place = assembly.contract.logits_from
    return (*assembly.team.model.notes, *([f"logits from {place}"] if place else []))


def _team_lines(assembly: Assembly) -> list[str]:
    """The lines of the teachers after the first, and of how all of them label."""
    if assembly.team is None or len(assembly.team.models) == 1:
        return []
    config = assembly.config
    lines = [
        f"  teacher {number}: {parameters(model):,} parameters"
        + (", trained first" if isinstance(settings, TrainedTeacher) else "")
        for number, (settings, model) in enumerate(zip(config.teachers, assembly.team.models[1:], strict=True), start=2)
    ]
    given = "" if config.team.weights is None else " " + ", ".join(f"{weight:g}" for weight in config.team.weights)
    return [*lines, f"  team: {len(assembly.team.models)} teachers, weighting {config.team.weighting}{given}"]


def _recipe(assembly: Assembly) -> list[str]:
    """The lines of the loss terms with their weights and places, of who teaches, and of what adapts."""
    config = assembly.config
    distill, online, student = config.distill, config.online, assembly.students[0]
    adapt = distill.adapt
    details = {} if student.auxiliary is None else _places(student.auxiliary)
    details["soft"] = f"temperature {_scheduled(distill.temperature)}"
    if adapt.temperature is not None:
        details["soft"] = f"temperature {_scheduled(adapt.temperature.start)} at first"
    details["soft"] += ", standardised" if distill.standardise else ""
    if online is not None:
        answers = "answers by the others' averages" if online.averaged else "the others' answers"
        details["mutual"] = f"{answers}, temperature {_scheduled(online.temperature)}"
    lines = [
        f"  term {name}: weight {_scheduled(weight)}{', ' + details[name] if name in details else ''}"
        for name, weight in student.terms.objective.weights.items()
        if ever(weight)
    ]
    if online is not None and (swap := online.swap) is not None:
        lines.append(
            f"  swap: peer 1 teaches at first, another from above {swap.above:.0%} of its accuracy, armed again below "
            f"{swap.again_below:.0%}"
        )
    moved = [name for name in ("temperature", "weights", "strength") if getattr(adapt, name) is not None]
    moved += ["who teaches"] if config.team.weighting == "selected" or (online is not None and online.swap) else []
    moved += [] if config.width is None else ["width"]
    return [*lines, f"  adapts: {', '.join(moved)}; evaluated every {adapt.every:,} steps"] if moved else lines


def _places(layers: AuxiliaryLayers) -> dict[str, str]:
    """Name of a term that compares features -> its module paths, the teacher's first."""
    places: dict[str, str] = {}
    if layers.transfer is not None:
        for name, pairs in layers.transfer.pairs.items():
            places[name] = ", ".join(f"{pair.teacher} -> {pair.student}" for pair in pairs)
    if layers.contrast is not None:
        pair = f"{layers.contrast.teacher_places[0]} -> {layers.contrast.student_places[0]}"
        places |= dict.fromkeys(layers.contrast.terms, pair)
    if layers.exits is not None:
        places["exits"] = "at " + ", ".join(layers.exits.places)
    return places


def _scheduled(value: Schedule) -> str:
    return f"{value:g}" if isinstance(value, float | int) else f"{value.start:g} to {value.end:g} ({value.kind})"


def summary(job: Job, result: DistillResult, already: bool = False) -> tuple[str, ...]:
    """The lines at the end of a run: the headline of the report, each network, alarms, and where the files are.

    Args:
        job: the run.
        result: of the run.
        already: whether the run was complete before this command.
    """
    student, teacher, teachers = result.student, result.teacher, result.teachers or ()
    run = RunFiles(job.directory, None, job.config.model_dump(mode="json"), (), result, ())
    # The report is typeset; a terminal may know ASCII only.
    opening = headline(run).replace(f"{SPACE}%", "%").replace(SPACE, " ")
    opening = opening.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    rows = [("student", f"{_tested(student)}, saved in {job.directory / 'student'}")]
    who = "the soft labels" if teacher is None else "its teachers" if teachers else "its teacher"
    if student.agreement is not None:
        on = "test images" if student.agreement_on == "test" else student.agreement_on
        rows.append(("", f"agrees with {who} on {student.agreement:.2%} of {student.agreement_n:,} {on}"))
    if student.start is not None:
        rows.append(("", f"as it started: {_compared(student.start, who)}"))
    if student.drawn is not None:
        steps = f"{student.drawn.steps:,} steps on drawn pictures alone"
        rows.append(("baseline", f"{_compared(student.drawn, who)} after {steps}"))
    rows += [] if result.estimate is None else [("estimate", _estimated(result.estimate))]
    for earlier in result.before or ():
        steps = "" if earlier.steps is None else f" after {earlier.steps:,} steps"
        rows.append(("before", f"{_tested(earlier.student)}{steps}, saved in {job.directory / earlier.folder}"))
    for number, peer in enumerate(result.peers or (), start=1):
        rows.append((f"peer {number}", f"{_tested(peer)}, saved in {job.directory / 'peers' / str(number)}"))
    if teacher is not None and not teachers:
        rows.append(("teacher", _tested(teacher)))
    elif teacher is not None and teacher.accuracy is not None:
        rows.append(("teachers", f"{_right(teacher)}, together"))
    rows += [(str(one.name), _tested(one)) for one in teachers]
    if result.queries is not None:
        rows.append(("queries", f"{result.queries.used:,} of {result.queries.budget:,} used"))
    if result.budget is not None:
        rows.append(("budget", _against(result.budget)))
    if result.scores is not None:
        rows.append(("scores", scores_in_words(result.scores)))
    rows += [("alarm", f"{alarm.name}: {alarm.message}") for alarm in result.alarms or ()]
    rows += [("advice", one) for one in result.advice or ()]
    rows.append(("report", str(job.directory / REPORT)))
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name + ':' if name else '':<{width}}{text}" for name, text in rows]
    return (*([f"{job.directory} was complete already; nothing was run"] if already else ()), opening, *lines)


def _planned(plan: Planned, unasked: bool) -> str:
    """What a budget came to in a dry run, which leaves a black box unasked."""
    line = f"  budget: {plan.budget}, planned {_precise(plan.seconds)}, {_precise(plan.measuring)} of them measuring"
    return f"{line}; a run asks the black box first and takes fewer steps for that time" if unasked else line


def _against(budget: BudgetResult) -> str:
    """What became of a budget: "10m, planned 9.9 min, took 10.4 min"."""
    return f"{budget.budget}, planned {_precise(budget.planned)}, took {_precise(budget.seconds)}"


def _precise(seconds: float) -> str:
    """A duration with three digits: two of `about` hide what a budget is missed by."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _estimated(estimate: AccuracyEstimate) -> str:
    """The estimate with its interval, and how often such intervals held."""
    low, high = estimate.interval
    held = f"which held in {estimate.covered} of {estimate.runs} runs"
    return f"{estimate.what} without test data about {estimate.value:.0%} (interval {low:.0%} to {high:.0%}, {held})"


def _tested(model: ModelResult) -> str:
    """Its accuracy and size. A black box has no known size, and is tested only if the budget covers the test data."""
    if model.parameters is None:
        return f"{'not asked about test images' if model.accuracy is None else _right(model)}, {model.arch}"
    return f"{_right(model)}, {model.parameters:,} parameters"


def _compared(one: Baseline, who: str) -> str:
    """What a student knew that the finished one is compared with."""
    if one.accuracy is not None:
        return f"{one.accuracy:.2%} of {one.n:,} test images right"
    return f"agrees with {who} on {one.agreement:.2%} of {one.agreement_n:,} {one.agreement_on}"


def _right(model: ModelResult) -> str:
    if model.accuracy is None or model.accuracy_interval is None:
        return "no real test data"
    low, high = model.accuracy_interval
    return f"{model.accuracy:.2%} of {model.n:,} test images right (95% interval {low:.1%} to {high:.1%})"
