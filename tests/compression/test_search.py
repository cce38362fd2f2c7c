"""The search on problems in closed form; hypervolumes against exact oracles; a kill in the middle changes nothing."""

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import sqlite3
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.compression.pareto import Candidate, Front, Scores, crowded_order, draw, hypervolume
from synthkd.compression.proxy import proxy_evaluator
from synthkd.compression.search import search
from synthkd.compression.space import Range, Space, space_of
from synthkd.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from synthkd.models import Classifier, build, parameters
from synthkd.rng import stream
from synthkd.settings import DistillSettings, Family, OptimizerSettings, SearchSettings, ZooModel
from synthkd.settings.load import load_config
from synthkd.types import Batch, ImageSpec, to_uint8

SPEC = ImageSpec(1, 8, 8, 3)
SPACE = Space(
    (Range("mlp", 1, 8, 100), Range("mlp", 2, 8, 60), Range("convnet", None, 4, 24), Range("slim", None, 4, 24))
)


def closed_form(model: ZooModel) -> Scores:
    """Wider is better and dearer; convnets are the best for their time, slim ones worse than others in everything."""
    assert model.width is not None
    quality, speed = {"mlp": (0.6, 1.0), "convnet": (0.8, 2.0), "slim": (0.5, 6.0)}[model.arch]
    depth, size = model.depth or 1, model.width / {"mlp": 100, "convnet": 24, "slim": 24}[model.arch]
    return Scores(quality * (1.0 - math.exp(-4.0 * size)), speed * depth * (0.1 + size), 1000 * model.width * depth)


class Counted:
    """An evaluation that notes what it is asked for, and does something at one of its calls."""

    def __init__(self, at: int = 0, then=lambda: None) -> None:
        self.asked: list[ZooModel] = []
        self.at = at
        self.then = then

    def __call__(self, model: ZooModel) -> Scores:
        self.asked.append(model)
        if len(self.asked) == self.at:
            self.then()
        return closed_form(model)


def inclusion_exclusion(points: np.ndarray, reference: np.ndarray) -> float:
    """The union of boxes by the definition: of every subset of them, the box that all of it share."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, size):
            corner = np.max(chosen, axis=0)
            total -= (-1) ** size * float(np.prod(np.clip(reference - corner, 0.0, None)))
    return total / float(np.prod(reference))


class TestHypervolume:
    def test_two_objectives_by_hand(self):
        """Two strips of 2 x 1 in a box of 3 x 3 that share a square of 1; the third point is behind both."""
        points = np.array([[1.0, 2.0], [2.0, 1.0], [2.5, 2.5]])
        assert hypervolume(points, (3.0, 3.0)) == pytest.approx(3 / 9, rel=1e-12)

    def test_three_objectives_by_hand(self):
        """Boxes of 4 x 1 x 1 and 1 x 2 x 3 in one of 5 x 4 x 4 that share 1 x 1 x 1; the order of axes matters."""
        points = np.array([[1.0, 3.0, 3.0], [4.0, 2.0, 1.0]])
        assert hypervolume(points, (5.0, 4.0, 4.0)) == pytest.approx((4 + 6 - 1) / 80, rel=1e-12)

    @pytest.mark.parametrize("objectives", [1, 2, 3, 4])
    def test_against_inclusion_and_exclusion(self, objectives):
        rng, reference = np.random.default_rng(objectives), np.array([0.9, 2.0, 0.5, 7.0])[:objectives]
        for count in (1, 3, 7):
            points = rng.random((count, objectives)) * reference * 1.1
            points[-1, 0] = points[0, 0]  # a tie
            expected = inclusion_exclusion(points, reference)
            assert hypervolume(points, reference) == pytest.approx(expected, rel=1e-9, abs=1e-12)

    def test_against_random_points_of_the_box(self):
        rng = np.random.default_rng(0)
        points = rng.random((60, 3))
        points /= np.linalg.norm(points, axis=1, keepdims=True)  # none dominates another
        drawn = rng.random((200_000, 3))
        hit = np.zeros(len(drawn), dtype=bool)
        for point in points:
            hit |= (point <= drawn).all(axis=1)
        error = 4 * math.sqrt(hit.mean() * (1 - hit.mean()) / len(drawn))
        assert 0.1 < hit.mean() < 0.9
        assert hypervolume(points, (1.0, 1.0, 1.0)) == pytest.approx(hit.mean(), abs=error)

    def test_order_repetition_units_and_the_dominated_do_not_matter(self):
        points = np.random.default_rng(1).random((9, 3))
        plain = hypervolume(points, (1.0, 1.0, 1.0))
        more = np.concatenate([points[::-1], points[:3], points[:2] + 0.1])
        assert hypervolume(more, (1.0, 1.0, 1.0)) == pytest.approx(plain, rel=1e-12)
        assert hypervolume(points * (2, 50, 0.1), (2.0, 50.0, 0.1)) == pytest.approx(plain, rel=1e-12)
        assert hypervolume(points[:, [2, 0, 1]], (1.0, 1.0, 1.0)) == pytest.approx(plain, rel=1e-12)

    def test_ends(self):
        nothing = np.empty((0, 2))
        assert hypervolume(nothing, (1.0, 1.0)) == 0.0
        assert hypervolume(np.array([[0.0, 0.0]]), (4.0, 5.0)) == 1.0
        assert hypervolume(np.array([[4.0, 0.0], [9.0, 0.0]]), (4.0, 5.0)) == 0.0, "at the edge and beyond"

    @pytest.mark.parametrize(
        ("points", "reference"),
        [
            ([[1.0, 1.0]], (1.0,)),
            ([[1.0, 1.0]], (1.0, 0.0)),
            ([[-1.0, 1.0]], (1.0, 1.0)),
            ([[math.nan, 1.0]], (1.0, 1.0)),
        ],
    )
    def test_what_is_no_box_is_refused(self, points, reference):
        with pytest.raises(DataError, match="hypervolume needs points"):
            hypervolume(np.array(points), reference)


class TestCrowdedOrder:
    def test_by_hand(self):
        """A front of four, its ends first and then the lonelier one; behind it a front of one, and one behind that."""
        points = np.array([[5.0, 5.0], [0.0, 4.0], [1.0, 3.0], [2.5, 1.5], [4.0, 0.0], [6.0, 6.0]])
        order = crowded_order(points)
        assert set(order[:2]) == {1, 4}
        assert order[2:] == [3, 2, 0, 5], "3/4 + 3/4 around the fourth, 2.5/4 + 2.5/4 around the third"

    def test_fronts_come_one_after_the_other(self):
        """Against the definition: how many fronts to take off, point by point."""
        points = np.random.default_rng(0).integers(0, 6, (40, 3)).astype(float)
        rank, left = {}, set(range(40))
        while left:
            good = {
                i
                for i in left
                if not any((points[j] <= points[i]).all() and (points[j] < points[i]).any() for j in left)
            }
            rank |= dict.fromkeys(good, len(set(rank.values())))
            left -= good
        order = crowded_order(points)
        assert sorted(order) == list(range(40))
        assert [rank[i] for i in order] == sorted(rank.values())
        assert len(set(rank.values())) > 3

    def test_equal_points_and_none(self):
        assert crowded_order(np.empty((0, 2))) == []
        assert sorted(crowded_order(np.ones((3, 2)))) == [0, 1, 2]


def front(*rows: tuple[float, float, int]) -> Front:
    candidates = tuple(
        Candidate(ZooModel(arch="mlp", width=i + 1, depth=2 if i else None), Scores(*row)) for i, row in enumerate(rows)
    )
    return Front(candidates, ("error", "latency", "bytes"), (1.0, 10.0, 20_000))


class TestFront:
    def test_best_are_those_that_none_dominates(self):
        """The third is worse than the first in all; the fourth equals the second, and neither is better."""
        found = front((0.9, 2.0, 5000), (0.8, 1.0, 9000), (0.85, 3.0, 6000), (0.8, 1.0, 9000), (0.2, 9.0, 100))
        assert [c.model.width for c in found.best] == [1, 2, 4, 5]

    def test_as_fast_and_smaller_is_better(self):
        assert [c.model.width for c in front((0.9, 2.0, 5000), (0.9, 2.0, 4999)).best] == [2]

    def test_hypervolume_is_that_of_its_points_and_reference(self):
        found = front((0.9, 2.0, 5000), (0.8, 1.0, 9000))
        expected = inclusion_exclusion(np.array([[0.1, 2.0, 5000], [0.2, 1.0, 9000]]), np.array(found.reference))
        assert found.hypervolume == pytest.approx(expected, rel=1e-12)
        assert replace(found, reference=(0.5, 10.0, 20_000)).hypervolume < found.hypervolume

    def test_drawing_has_every_candidate_in_the_colours_of_the_page(self):
        found = front((0.9, 2.0, 5000), (0.8, 1.0, 9000), (0.7, 3.0, 20_000))
        picture = draw(found)
        parsed = ElementTree.fromstring(picture)
        discs = parsed.findall("circle")
        assert [disc.get("fill") for disc in discs] == ["var(--muted)", "var(--student)", "var(--student)"]
        assert "#" not in picture
        accurate, quick = discs[1:]
        assert float(accurate.get("cx")) > float(quick.get("cx")), "slower is further right"
        assert float(accurate.get("cy")) < float(quick.get("cy")), "better is further up"
        assert float(accurate.get("r")) < float(quick.get("r")) < float(discs[0].get("r")), "more bytes, a larger disc"
        words = [text.text for text in parsed.findall("text")]
        assert words[-2:] == ["1", "2"]
        assert "ms for an image" in words
        for disc in discs:
            assert 52 <= float(disc.get("cx")) <= 370
            assert 12 <= float(disc.get("cy")) <= 222

    @pytest.mark.parametrize("row", [(0.0, 1.0, 100), (1.0, 1.0, 100), (0.5, 1.0, 100)])
    def test_a_single_candidate_can_be_drawn(self, row):
        assert "nan" not in draw(front(row))

    @pytest.mark.parametrize(
        "wrong", [(1.1, 1.0, 1), (math.nan, 1.0, 1), (0.5, 0.0, 1), (0.5, math.inf, 1), (0.5, 1.0, 0)]
    )
    def test_scores_that_cannot_be_are_refused(self, wrong):
        with pytest.raises(DataError, match=r"scores need an accuracy in \[0, 1\] and costs that are positive"):
            Scores(*wrong)

    def test_values_are_those_asked_for_in_their_order(self):
        scores = Scores(0.75, 2.0, 300, 0.5)
        assert scores.values(("energy", "error", "bytes")) == (0.5, 0.25, 300.0)
        assert scores.values(("latency", "energy")) == (2.0, 0.5)


class TestSpace:
    def test_every_width_up_to_the_limit_and_none_beyond(self):
        settings = SearchSettings(
            families=(Family(arch="resnet", width=(2, 40), depth=(14, 8)), Family(arch="convnet", width=(3, 5)))
        )
        space = space_of(settings, SPEC, 20_000)
        assert [(r.arch, r.depth, r.low) for r in space.ranges] == [
            ("resnet", 8, 2),
            ("resnet", 14, 2),
            ("convnet", None, 3),
        ]
        for r in space.ranges[:2]:
            at, beyond = (ZooModel(arch=r.arch, width=w, depth=r.depth) for w in (r.high, r.high + 1))
            assert parameters(build(at, SPEC)) <= 20_000 < parameters(build(beyond, SPEC))
        assert space.ranges[2].high == 5, "all of it fits"
        assert len(space) == sum(r.high - r.low + 1 for r in space.ranges)

    def test_the_settings_limit_comes_first_and_none_is_none(self):
        settings = SearchSettings(families=(Family(arch="mlp", width=(4, 900)),), max_parameters=2000)
        assert space_of(settings, SPEC, 10**9) == space_of(settings, SPEC)
        assert space_of(settings.model_copy(update={"max_parameters": None}), SPEC).ranges == (
            Range("mlp", None, 4, 900),
        )

    def test_making_it_draws_nothing(self):
        state = torch.get_rng_state()
        space_of(SearchSettings(families=(Family(arch="vit", width=(8, 16)),)), SPEC, 30_000)
        assert torch.equal(torch.get_rng_state(), state)

    def test_what_does_not_fit_is_left_out_and_nothing_left_is_an_error(self):
        families = (Family(arch="mlp", width=(8, 9)), Family(arch="resnet", width=(16, 20)))
        assert [r.arch for r in space_of(SearchSettings(families=families), SPEC, 5000).ranges] == ["mlp"]
        with pytest.raises(
            ConfigError, match="search: no family has a student of at most 100 parameters; give smaller"
        ):
            space_of(SearchSettings(families=families), SPEC, 100)

    def test_a_depth_that_an_architecture_has_not_is_refused(self):
        with pytest.raises(ConfigError, match=r"6n \+ 2 layers, got depth=9"):
            space_of(SearchSettings(families=(Family(arch="resnet", width=(2, 3), depth=(9,)),)), SPEC)

    def test_genes_reach_every_student_from_the_smallest_to_the_largest(self):
        places = np.linspace(0.0, 1.0, 2001)
        models = {
            SPACE.decode({"arch": a, "depth": d, "width": w})
            for a in SPACE.archs
            for d in (0.0, 0.7, 1.0)
            for w in places
        }
        assert len(models) == len(SPACE)
        assert SPACE.decode({"arch": "mlp", "depth": 0.49, "width": 0.0}) == ZooModel(arch="mlp", width=8, depth=1)
        assert SPACE.decode({"arch": "mlp", "depth": 0.5, "width": 1.0}) == ZooModel(arch="mlp", width=60, depth=2)
        assert SPACE.decode({"arch": "slim", "depth": 1.0, "width": 0.5}) == ZooModel(arch="slim", width=10), "sqrt(96)"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"families": [{"arch": "mlp", "width": [9, 8]}]}, "the smallest width must not be above the largest"),
            ({"families": [{"arch": "mlp", "width": [1, 2]}] * 2}, "families: each may stand only once, got mlp, mlp"),
            ({"objectives": ["error", "error"]}, "objectives: each may stand only once"),
            ({"objectives": ["error"]}, "objectives"),
        ],
    )
    def test_settings_are_checked(self, change, message):
        with pytest.raises(ConfigError, match=message):
            load_config(SearchSettings, change, [])


class TestSearch:
    def test_so_many_different_candidates_and_their_scores(self, tmp_path):
        evaluate = Counted()
        found = search(SPACE, evaluate, tmp_path / "new", 0, 11, population=5)
        assert [c.model for c in found.candidates] == evaluate.asked
        assert len(set(evaluate.asked)) == 11
        assert all(c.scores == closed_form(c.model) for c in found.candidates)
        assert found.reference == tuple(found.points.max(axis=0))
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["search.db"], "one file"
        again = search(SPACE, Counted(1, pytest.fail), tmp_path / "new", 0, 11, population=5)
        assert again == found

    def test_a_kill_in_the_middle_changes_nothing(self, tmp_path):
        """What was being scored is scored again, nothing else is, and the rest is as it would have been."""
        whole = search(SPACE, closed_form, tmp_path / "whole", 3, 11, population=4)
        for at in (3, 7):
            evaluate = Counted(at, lambda: os.kill(os.getpid(), signal.SIGKILL))
            arguments = (SPACE, evaluate, tmp_path / "part", 3, 11)
            process = multiprocessing.get_context("fork").Process(
                target=search, args=arguments, kwargs={"population": 4}
            )
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL
        evaluate = Counted()
        assert search(SPACE, evaluate, tmp_path / "part", 3, 11, population=4) == whole
        assert evaluate.asked == [c.model for c in whole.candidates[8:]], "two, and then six, had their scores"

    def test_an_error_ends_it_and_the_candidate_is_tried_again(self, tmp_path):
        def fails() -> None:
            raise DataError("no such images")

        first = Counted(3, fails)
        with pytest.raises(DataError, match="no such images"):
            search(SPACE, first, tmp_path, 0, 5)
        second = Counted()
        found = search(SPACE, second, tmp_path, 0, 5)
        assert second.asked[0] == first.asked[2]
        assert len(found.candidates) == 5
        assert len(second.asked) == 3

    def test_more_candidates_go_on_from_those_there_are(self, tmp_path):
        few = search(SPACE, closed_form, tmp_path, 1, 4)
        evaluate = Counted()
        more = search(SPACE, evaluate, tmp_path, 1, 7)
        assert more.candidates[:4] == few.candidates
        assert len(evaluate.asked) == 3

    def test_a_small_space_is_searched_to_its_end(self, tmp_path):
        space = Space((Range("mlp", 1, 30, 32), Range("convnet", None, 4, 4)))
        evaluate = Counted()
        found = search(space, evaluate, tmp_path, 0, 60, population=2)
        assert {(m.arch, m.width) for m in evaluate.asked} == {("mlp", 30), ("mlp", 31), ("mlp", 32), ("convnet", 4)}
        assert len(evaluate.asked) == len(found.candidates) == len(space) == 4

    def test_a_space_of_one_architecture_and_depth(self, tmp_path):
        """Whose gene has a single value, and which is all children then."""
        space = Space((Range("convnet", None, 4, 24),))
        found = search(space, closed_form, tmp_path, 0, 4, population=2)
        assert len({c.model.width for c in found.candidates}) == 4

    def test_the_seed_decides(self, tmp_path):
        one, two, other = (
            search(SPACE, closed_form, tmp_path / name, seed, 3, population=None)
            for name, seed in (("a", 0), ("b", 0), ("c", 1))
        )
        assert one == two
        assert [c.model for c in one.candidates] != [c.model for c in other.candidates]

    def test_paths_are_taken_as_they_are(self, tmp_path):
        """Which as an address of a database would have options, escapes and fields to fill in."""
        folder = tmp_path / "a?b=c%20{x} #d"
        search(SPACE, closed_form, folder, 0, 1, population=None)
        assert [path.name for path in folder.iterdir()] == ["random.db"]

    def test_other_arguments_are_refused_by_name(self, tmp_path):
        arguments = {"seed": 0, "population": 4, "objectives": ("error", "bytes"), "candidates": 1}
        search(SPACE, closed_form, tmp_path, **arguments)
        changes = {"seed": 1, "population": 3, "objectives": ("error", "latency")}
        for name, value in changes.items():
            with pytest.raises(CheckpointError, match=f"search.db was begun with another {name}; take the same again"):
                search(SPACE, closed_form, tmp_path, **{**arguments, name: value})
        with pytest.raises(CheckpointError, match="begun with another space, seed; take"):
            search(Space(SPACE.ranges[:2]), closed_form, tmp_path, **{**arguments, "seed": 1})

    def test_scores_that_were_made_otherwise_are_refused_by_name(self, tmp_path):
        scoring = {"steps": 60, "teacher": "ab"}
        search(SPACE, closed_form, tmp_path / "new", 0, 1, scoring=scoring)
        for name, value in {"steps": 300, "teacher": "cd"}.items():
            with pytest.raises(CheckpointError, match=f"search.db was begun with another {name}; take the same again"):
                search(SPACE, closed_form, tmp_path / "new", 0, 2, scoring={**scoring, name: value})
        assert len(search(SPACE, closed_form, tmp_path / "new", 0, 2, scoring=scoring).candidates) == 2
        search(SPACE, closed_form, tmp_path / "old", 0, 1)  # its file does not say how it scored
        assert len(search(SPACE, closed_form, tmp_path / "old", 0, 2, scoring=scoring).candidates) == 2

    def test_a_file_that_is_no_search_is_refused_and_left_alone(self, tmp_path):
        path = tmp_path / "search.db"
        path.write_bytes(b"not a database at all" * 100)
        with pytest.raises(
            CheckpointError, match=r"search.db cannot be used as a search \(.*\); give another directory"
        ):
            search(SPACE, closed_form, tmp_path, 0, 1)
        assert path.read_bytes() == b"not a database at all" * 100

    def test_optunas_log_is_silent_and_has_its_voice_again(self, tmp_path, capfd):
        before = optuna.logging.get_verbosity()
        search(SPACE, closed_form, tmp_path, 0, 1, population=None)
        assert capfd.readouterr() == ("", "")
        assert optuna.logging.get_verbosity() == before

    def test_without_optuna_one_line_names_the_extra(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "optuna", None)
        with pytest.raises(
            MissingExtraError, match=r"the search of a student needs .*: pip install 'synthkd\[search\]'"
        ):
            search(SPACE, closed_form, tmp_path, 0, 1)
        assert list(tmp_path.iterdir()) == []

    def test_energy_that_was_not_measured_is_no_objective(self, tmp_path):
        with pytest.raises(
            ConfigError, match="energy is an objective and was not measured here; put bytes in its place"
        ):
            search(SPACE, closed_form, tmp_path, 0, 1, objectives=("error", "energy"))

    def test_no_candidates_are_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="candidates must be at least 1, got 0"):
            search(SPACE, closed_form, tmp_path, 0, 0)

    def test_it_begins_at_the_ends_of_every_range(self, tmp_path):
        evaluate = Counted()
        search(SPACE, evaluate, tmp_path, 0, 8)
        ends = {(r.arch, r.depth, width) for r in SPACE.ranges for width in (r.low, r.high)}
        assert {(m.arch, m.depth, m.width) for m in evaluate.asked} == ends

    def test_children_of_a_generation_do_not_know_each_other_whoever_scores_them_and_when(self, tmp_path):
        """Scored from the last to the first, or one by one after kills, they are the same."""
        asked: list[int] = []

        def backwards(evaluate, models):
            asked.append(len(models))
            return reversed([evaluate(model) for model in reversed(models)])

        arguments = {"seed": 3, "candidates": 15, "population": 9, "generation": 4}
        plain = search(SPACE, closed_form, tmp_path / "plain", **arguments)
        shared = search(SPACE, closed_form, tmp_path / "shared", **arguments, mapped=backwards)
        assert shared == plain
        assert asked[0] == 9, "the first parents depend on no score"
        assert 1 < max(asked[1:]) <= 4
        stopped = Counted()
        for candidates in (5, 10, 11, 13):  # a call that ends in the middle of a generation is continued
            search(SPACE, stopped, tmp_path / "parts", **{**arguments, "candidates": candidates})
        assert search(SPACE, stopped, tmp_path / "parts", **arguments) == plain
        assert len(stopped.asked) == 15
        with pytest.raises(CheckpointError, match=r"search\.db was begun with another generation; take"):
            search(SPACE, closed_form, tmp_path / "parts", **{**arguments, "generation": 1})
        one = search(SPACE, closed_form, tmp_path / "one", **{**arguments, "generation": 1})
        assert one.candidates[:9] == plain.candidates[:9]
        assert one != plain, "each child knew all before it"

    def test_a_kill_in_the_middle_of_a_generation_changes_nothing(self, tmp_path):
        arguments = {"seed": 3, "candidates": 13, "population": 4, "generation": 4}
        whole = search(SPACE, closed_form, tmp_path / "whole", **arguments)
        for at in (3, 8):  # among the ends of the ranges, and in a generation

            def stop() -> None:
                raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                search(SPACE, Counted(at, stop), tmp_path / "part", **arguments)
        evaluate = Counted()
        assert search(SPACE, evaluate, tmp_path / "part", **arguments) == whole
        assert evaluate.asked == [c.model for c in whole.candidates[9:]]

    def test_random_candidates_are_proposed_together(self, tmp_path):
        asked: list[int] = []

        def noting(evaluate, models):
            asked.append(len(models))
            return map(evaluate, models)

        search(SPACE, closed_form, tmp_path, 0, 7, population=None, mapped=noting)
        assert asked == [7]

    def test_a_search_of_before_generations_goes_on(self, tmp_path):
        """Its file does not say that its generations have one child."""
        few = search(SPACE, closed_form, tmp_path, 1, 9, population=4)
        with contextlib.closing(sqlite3.connect(tmp_path / "search.db")) as file:
            ((made,),) = file.execute("SELECT value_json FROM study_user_attributes WHERE key = 'made'")
            values = json.loads(made)
            assert values.pop("generation") == 1
            file.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = 'made'", (json.dumps(values),))
            file.execute("DELETE FROM trial_user_attributes WHERE key = 'basis'")
            file.commit()
        more = search(SPACE, closed_form, tmp_path, 1, 11, population=4)
        assert more.candidates[:9] == few.candidates
        assert more == search(SPACE, closed_form, tmp_path / "whole", 1, 11, population=4)

    @pytest.mark.slow
    def test_it_finds_more_than_chance(self, tmp_path):
        """Hypervolumes of error and latency to a common reference."""
        goals, gained = ("error", "latency"), []
        for seed in range(4):
            ours = search(SPACE, closed_form, tmp_path / str(seed), seed, 40, goals)
            chance = search(SPACE, closed_form, tmp_path / str(seed), seed, 40, goals, population=None)
            common = tuple(np.maximum(ours.reference, chance.reference))
            gained.append(replace(ours, reference=common).hypervolume - replace(chance, reference=common).hypervolume)
        assert np.mean(gained) > 0.002
        assert sum(gain > 0 for gain in gained) >= 3


class Bright:
    """Images with one bright row, whose number the teacher is sure of."""

    def __init__(self, classes: int = 3) -> None:
        self.classes = classes

    def draw(self, step: int) -> Batch:
        rng = stream(0, "bright", step)
        labels = torch.randint(0, self.classes, (32,), generator=rng)
        images = 0.3 * torch.rand(32, *SPEC.shape, generator=rng)
        images[torch.arange(32), :, 2 * labels] += 0.6
        return Batch(images, labels, 6.0 * torch.eye(3)[labels])

    def label(self, batch: Batch) -> Batch:
        return batch


def builder(model: ZooModel) -> Classifier:
    return build(model, SPEC, (0.2,), (0.3,))


class TestProxyEvaluator:
    held: Batch = Bright().draw(10**6)

    def evaluator(self, steps: int, images: Tensor | None = None, optimizer: OptimizerSettings | None = None):
        settings = DistillSettings(optimizer=optimizer or OptimizerSettings(lr=0.01))
        logits = self.held.teacher_logits
        assert logits is not None
        given = self.held.images if images is None else images
        return proxy_evaluator(Bright(), given, logits, builder, steps, 0, Accelerator(cpu=True), settings)

    def test_agreement_after_training_and_the_measured_cost(self):
        model = ZooModel(arch="mlp", width=16, depth=1)
        scores = self.evaluator(25)(model)
        assert scores.accuracy > 0.9
        assert scores.bytes == 4 * (64 * 16 + 16 + 16 * 3 + 3)
        assert 0.0 < scores.latency_ms < 1000.0
        assert self.evaluator(0)(model).accuracy < 0.8

    def test_it_is_repeatable_and_leaves_the_random_state_alone(self):
        model = ZooModel(arch="mlp", width=8, depth=2)
        state, evaluate = torch.get_rng_state(), self.evaluator(4)
        first = evaluate(model).accuracy
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(7)
        assert evaluate(model).accuracy == first
        assert self.evaluator(4, to_uint8(self.held.images))(model).accuracy == first

    def test_one_that_diverges_agrees_on_nothing(self):
        steep = OptimizerSettings(kind="sgd", lr=1e9)
        scores = self.evaluator(8, optimizer=steep)(ZooModel(arch="mlp", width=4, depth=1))
        assert scores.accuracy == 0.0
        assert scores.bytes > 0

    def test_nothing_of_the_candidates_is_kept(self):
        accelerator = Accelerator(cpu=True)
        assert self.held.teacher_logits is not None
        evaluate = proxy_evaluator(Bright(), self.held.images, self.held.teacher_logits, builder, 1, 0, accelerator)
        evaluate(ZooModel(arch="mlp", width=4, depth=1))
        assert accelerator._models == []
        assert accelerator._optimizers == []
