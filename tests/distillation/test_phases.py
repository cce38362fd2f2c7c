"""The three phases as stages of the loop."""

from synthkd.distillation import phases
from synthkd.settings import Joint, Pregenerate, Refine
from synthkd.training.loop import Action

PHASES = (
    Pregenerate(kind="pregenerate", rounds=3, discard=1),
    Joint(kind="joint", steps=5, every=2),
    Refine(kind="refine", steps=2),
    Pregenerate(kind="pregenerate", rounds=1),
    Joint(kind="joint", steps=2, every=2),
)


def test_rounds_and_steps_are_numbered_through_the_run() -> None:
    seen: list[object] = []

    def note(name: str):  # type: ignore[no-untyped-def]
        return lambda *arguments: seen.append((name, *arguments)) or {}

    stages = phases.build(
        PHASES,
        note("alone"),
        note("beside"),
        note("learn"),
        note("look"),
        3,
        [Action("watch", note("watch"), every=10, after=True)],
        [Action("draw", note("draw"), every=2, after=True)],
    )
    step = 0
    for stage in stages:
        for local in range(stage.steps):
            for action in stage.actions:
                if action.due(local, stage.steps):
                    action.run(step)
            step += 1
    assert [x for x in seen if x[0] == "alone"] == [  # type: ignore[index]
        ("alone", 0, False), ("alone", 1, True), ("alone", 2, True), ("alone", 6, True),
    ]  # fmt: skip
    assert [x for x in seen if x[0] == "beside"] == [("beside", r) for r in (3, 4, 5, 7)]  # type: ignore[index]
    assert [x for x in seen if x[0] == "learn"] == [("learn", s) for s in range(9)]  # type: ignore[index]
    assert [x for x in seen if x[0] == "look"] == [("look", *s) for s in ((0, 3), (3, 6), (5, 8), (7, 11))]  # type: ignore[index]
    assert seen.index(("look", 3, 6)) < seen.index(("learn", 3)), "what a look finds is for the step that follows"
    assert [x for x in seen if x[0] == "watch"] == [("watch", s) for s in (7, 9, 12)]  # type: ignore[index]
    # three rounds alone: after the second and the last; three beside five steps: after step 4 (two rounds) and the last
    assert [x for x in seen if x[0] == "draw"] == [("draw", s) for s in (1, 2, 6, 7, 10, 12)]  # type: ignore[index]
    assert seen.index(("beside", 3)) < seen.index(("learn", 0)), "a round comes before the steps that use it"
    assert step == sum(stage.steps for stage in stages) == 13


def test_totals() -> None:
    assert phases.student_steps(PHASES) == 9
    assert phases.generator_rounds(PHASES) == 8


def test_no_steps_no_stage_work() -> None:
    empty = (Pregenerate(kind="pregenerate", rounds=0), Refine(kind="refine", steps=0))
    nothing = [lambda *_: {}] * 4
    stages = phases.build(empty, *nothing, 1, [Action("watch", nothing[0])], [Action("draw", nothing[0])])  # type: ignore[arg-type]
    assert [stage.steps for stage in stages] == [0, 0]
