"""A slimmable network is an ordinary one at each width, and its coefficient has the gradient that it promises."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.errors import ConfigError, DataError
from synthkd.losses.objective import Loss
from synthkd.models import build, load, parameters, save
from synthkd.models.slimmable import Slimmable, slice_out
from synthkd.settings import OptimizerSettings, WidthSettings, ZooModel
from synthkd.settings.load import load_config
from synthkd.taps import observe
from synthkd.training.learner import Learner
from synthkd.types import ImageSpec, Stateful

SPEC = ImageSpec(3, 12, 10, 5)
CONVNET = ZooModel(arch="convnet", width=4)
RESNET = ZooModel(arch="resnet", width=3, depth=14)
EVERY = (
    CONVNET,
    RESNET,
    ZooModel(arch="convnet", width=4, activation="tanh"),
    ZooModel(arch="slim", width=4),
    ZooModel(arch="wide_resnet", width=2, depth=16),
    ZooModel(arch="lenet5", width=4),
    ZooModel(arch="mlp", width=8, depth=3),
)
"""Networks of each architecture that can be slimmed."""
every_student = pytest.mark.parametrize("student", EVERY, ids=lambda one: f"{one.arch} {one.activation}")


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def slimmable(student: ZooModel = CONVNET, **settings: float) -> Slimmable:
    """A network whose BatchNorm layers have statistics and weights that matter, in training mode."""
    model = Slimmable(WidthSettings(**settings), student, SPEC, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), tuple("abcde"))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for tensor in (m.running_mean, m.bias):
                tensor.data.uniform_(-1, 1)
            for tensor in (m.running_var, m.weight):
                tensor.data.uniform_(0.5, 2)
    return model.train()


def images(count: int = 6) -> Tensor:
    return torch.rand(count, *SPEC.shape, generator=torch.Generator().manual_seed(1))


class TestWidths:
    @every_student
    @pytest.mark.parametrize("training", [True, False])
    def test_at_each_width_it_is_the_zoo_network_of_that_width(self, student, training):
        """Logits, running statistics and gradients are those of a network with the first channels of every layer."""
        model = slimmable(student)
        least = 2 if student.arch == "wide_resnet" else 1
        for width in range(least, model.largest + 1):
            plain = build(student.model_copy(update={"width": width}), SPEC, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
            plain.load_state_dict(model.tensors(width))
            model.train(training).zero_grad()
            plain.train(training)
            logits, expected = model.logits(images(), width), plain(images())
            assert torch.allclose(logits, expected, atol=1e-6)
            for loss in (logits.square().sum(), expected.square().sum()):
                loss.backward()
            every, after = dict(model.network.named_parameters()), model.tensors(width)
            assert all(torch.equal(after[name], value) for name, value in plain.state_dict().items())
            for name, parameter in plain.named_parameters():
                whole, part = every[name].grad, tuple(map(slice, parameter.shape))
                assert torch.allclose(whole[part], parameter.grad, rtol=1e-4, atol=1e-6)
                whole[part] = 0.0
                assert not whole.any(), "what the width leaves out is not trained"

    def test_running_statistics_of_what_is_left_out_stay(self):
        model = slimmable()
        norm = model.network.get_submodule("body.stage2.1")
        before = norm.running_mean.clone()
        model.logits(images(), 5)
        assert not torch.isclose(norm.running_mean[:10], before[:10]).any()
        assert torch.equal(norm.running_mean[10:], before[10:])

    def test_the_width_is_the_whole_part_of_base_times_coefficient(self):
        model = slimmable(ZooModel(arch="convnet", width=5), start=1.0, most=1.4)
        widths = []
        for coefficient in (1.0, 1.19, 1.21, 1.39, 1.4):
            model.coefficient.data.fill_(coefficient)
            widths.append(model.width)
        assert (model.base, model.largest, widths) == (5, 7, [5, 5, 6, 6, 7])

    def test_a_width_that_is_not_given_is_that_of_the_zoo(self):
        model = Slimmable(WidthSettings(start=1.0, most=1.0), ZooModel(arch="convnet"), SPEC)
        assert (model.base, model.largest, model.width) == (32, 32, 32)

    def test_features_are_tapped_at_the_width_in_use(self):
        seen = observe(slimmable().eval(), images(), ["network.body.stage3", "network.body.head:input"])
        assert seen.features["network.body.stage3"].shape == (6, 4 * 6, 4, 4)
        assert seen.features["network.body.head:input"].shape == (6, 16 * 6)

    @pytest.mark.parametrize(
        ("student", "got"),
        [
            (ZooModel(arch="vit"), "got vit with norm batch"),
            (ZooModel(arch="convnet", norm="group"), "got convnet with norm group"),
        ],
    )
    def test_other_networks_are_refused(self, student, got):
        with pytest.raises(
            ConfigError, match=f"needs arch mlp or lenet5 or convnet or resnet or wide_resnet or slim with .*, {got}"
        ):
            Slimmable(WidthSettings(), student, SPEC)

    def test_a_width_at_which_the_layers_are_others_is_refused(self):
        wide = ZooModel(arch="wide_resnet", width=1, depth=10)
        with pytest.raises(ConfigError, match=r"of width 1 has other layers .*; set a student\.width above 1"):
            Slimmable(WidthSettings(), wide, SPEC)

    @pytest.mark.parametrize("width", [0, 9])
    def test_a_width_that_it_does_not_have_is_refused(self, width):
        with pytest.raises(ConfigError, match=f"width must be between 1 and 8, got {width}"):
            slimmable().logits(images(), width)

    def test_settings_are_checked(self):
        with pytest.raises(ConfigError, match="start must not be above most"):
            load_config(WidthSettings, {"start": 1.5, "most": 1.2}, [])


class TestCoefficient:
    @every_student
    @pytest.mark.parametrize("training", [True, False])
    def test_a_gate_of_0_takes_the_unit_out_and_one_of_1_changes_nothing(self, student, training):
        model = slimmable(student).train(training)
        same = copy.deepcopy(model)
        wide, narrow = model.base + 1, model.base
        assert torch.allclose(model.logits(images(), wide, torch.zeros(())), same.logits(images(), narrow), atol=1e-5)
        assert torch.equal(model.logits(images(), wide, torch.ones(())), same.logits(images(), wide))

    @pytest.mark.parametrize("seed", [0, 1], ids=["in", "out"])
    @every_student
    def test_its_gradient_is_that_of_the_gate_by_differences(self, student, seed):
        """float64, central differences on either side of the coin; base times, since a unit is 1/base of c.

        Smooth activations: with ReLU the differences are wrong wherever an activation crosses 0 within the step.
        """
        model = slimmable(student.model_copy(update={"activation": "tanh"})).double()
        x, step = images().double(), 1e-6
        torch.manual_seed(seed)
        coin = float(torch.rand(()) < 0.5)
        assert coin == 1.0 - seed
        torch.manual_seed(seed)
        model(x).square().sum().backward()
        with torch.no_grad():
            gates = torch.tensor([coin + step, coin - step], dtype=torch.float64)
            high, low = (model.logits(x, model.width + 1, gate).square().sum() for gate in gates)
        slope = float(high - low) / (2 * step)
        assert abs(slope) > 0.01
        assert float(model.coefficient.grad) == pytest.approx(model.base * slope, rel=1e-5)

    def test_over_both_sides_of_the_coin_it_is_what_the_unit_is_worth(self):
        """Exact where only the last layer has such a unit: its logits are linear in the gate, its loss a square."""
        model = slimmable()
        width = model.width + 1
        for stage, channels in (("stage2", width), ("stage3", 2 * width)):
            model.network.get_submodule(f"body.{stage}.0").weight.data[:, channels - channels // width : channels] = 0
        slopes = []
        while len(set(slopes)) < 2:
            model.zero_grad()
            model(images()).square().sum().backward()
            slopes.append(round(float(model.coefficient.grad), 3))
        worth = [float(model.logits(images(), k).detach().square().sum()) for k in (width, width - 1)]
        assert sum(set(slopes)) / 2 == pytest.approx(model.base * (worth[0] - worth[1]), rel=1e-4)

    def test_in_training_the_next_unit_is_there_in_half_of_the_passes(self):
        model = slimmable(start=1.3)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
        with torch.no_grad():
            narrow, wide = (model.logits(images(), width) for width in (5, 6))
            passes = [model(images()) for _ in range(100)]
        shares = [sum(torch.allclose(p, one, atol=1e-6) for p in passes) for one in (narrow, wide)]
        assert sum(shares) == 100
        assert 35 <= shares[0] <= 65, "within 3 standard deviations of a fair coin"

    def test_at_the_largest_width_the_last_unit_takes_its_place(self):
        model = slimmable(start=2.0)
        sums = set()
        with torch.no_grad():
            for _ in range(20):
                maps = observe(model, images(), ["network.body.stage1"]).features["network.body.stage1"]
                sums.add(float(maps[:, 7].sum()))
        assert model.width == 8
        assert len(sums) == 2
        assert 0.0 in sums

    def test_where_there_is_no_choice_nothing_is_left_out(self):
        model = slimmable(start=1.0, most=1.0)
        with torch.no_grad():
            passes = [model(images()) for _ in range(8)]
        assert all(torch.equal(one, passes[0]) for one in passes)

    def test_in_eval_mode_nothing_is_drawn(self):
        model, state = slimmable().eval(), torch.get_rng_state()
        assert torch.equal(model(images()), model.logits(images(), 6))
        assert torch.equal(torch.get_rng_state(), state)


class TestUpdate:
    @pytest.mark.parametrize(("value", "expected"), [(0.2, 1.0), (1.7, 1.7), (5.0, 2.0)])
    def test_the_coefficient_is_put_back_within_its_bounds(self, value, expected):
        model = slimmable()
        model.coefficient.data.fill_(value)
        logged = model.update(1.0, 0.5)
        assert float(model.coefficient.detach()) == pytest.approx(expected)
        assert logged["width/coefficient"] == pytest.approx(expected)
        assert logged["width/width"] == int(4 * expected + 1e-4)

    def test_the_demand_follows_its_formula(self):
        """Moving averages by hand, each from its first value on."""
        model = slimmable(alpha=2.0, beta=3.0, similarity=0.7)
        gradients, similarities = [4.0, 1.0, 9.0, 2.0], [0.1, 0.9, 0.4, 1.0]
        short = long = similar = None
        for gradient, similarity in zip(gradients, similarities, strict=True):
            demand = model.update(gradient, similarity)["width/demand"]
            short = gradient if short is None else 0.9 * short + 0.1 * gradient
            long = gradient if long is None else 0.99 * long + 0.01 * gradient
            similar = similarity if similar is None else 0.9 * similar + 0.1 * similarity
            expected = 1 / (1 + math.exp(-(2 * math.log(short / long) + 3 * (0.7 - similar))))
            assert demand == pytest.approx(expected, rel=1e-5)
            assert model.demand == demand

    def test_the_demand_does_not_know_the_scale_of_the_loss(self):
        one, other = slimmable(), slimmable()
        for gradient in (3.0, 1.0, 2.0):
            assert one.update(gradient, 0.5) == pytest.approx(other.update(1000 * gradient, 0.5))

    def test_a_student_like_its_teacher_and_a_falling_gradient_need_less_width(self):
        demands = {}
        for gradient in (0.5, 2.0):
            for similarity in (0.8, 1.0):
                model = slimmable()
                model.update(1.0, similarity)
                demands[gradient, similarity] = model.update(gradient, similarity)["width/demand"]
        assert demands[0.5, 1.0] < demands[2.0, 1.0] < 0.5 < demands[0.5, 0.8] < demands[2.0, 0.8]

    def test_no_gradient_at_all_is_no_error(self):
        assert slimmable(similarity=0.5).update(0.0, 0.5)["width/demand"] == 0.5

    @pytest.mark.parametrize(("gradient", "similarity"), [(-1.0, 0.5), (math.nan, 0.5), (math.inf, 0.5), (1.0, 1.5)])
    def test_other_signals_are_refused(self, gradient, similarity):
        with pytest.raises(DataError, match="update needs a gradient norm >= 0 and a similarity in"):
            slimmable().update(gradient, similarity)

    def test_the_penalty_pulls_to_the_base_width_as_far_as_there_is_no_demand(self):
        model = slimmable(gamma=3.0, start=1.5)
        assert model.penalty().item() == 0.0, "nothing is known yet"
        model.update(1.0, 1.0)
        rest = 3.0 * (1.0 - model.demand)
        model.penalty().backward()
        assert model.penalty().item() == pytest.approx(rest * 0.5)
        assert float(model.coefficient.grad) == pytest.approx(rest)
        model.coefficient.data.fill_(1.0)
        assert model.penalty().item() == 0.0


def train(model: Slimmable, learner: Learner, first: int, last: int) -> None:
    """Steps on images whose class is where they are bright, each a function of its number."""
    for step in range(first, last):
        torch.manual_seed(step)
        labels = torch.randint(0, 5, (32,))
        x = 0.3 * torch.rand(32, *SPEC.shape)
        x[torch.arange(32), :, 2 * labels + 1] += 0.5
        model.train()
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, labels)
        logged = learner.update(Loss(loss + model.penalty(), {"loss": loss}), step)
        right = float((logits.argmax(dim=1) == labels).float().mean())
        model.update(float(logged["student/gradient_norm"]), right)


def learner_of(model: Slimmable, lr: float = 0.02) -> Learner:
    return Learner("student", model, OptimizerSettings(lr=lr, schedule="constant"), 100, Accelerator(cpu=True))


class TestTraining:
    def test_four_steps_and_four_resumed_equal_eight(self):
        models = [slimmable() for _ in range(2)]
        start = copy.deepcopy(models[0].state_dict())
        for model in models:
            model.load_state_dict(start)
        straight, first = map(learner_of, models)
        train(models[0], straight, 0, 8)
        train(models[1], first, 0, 4)
        resumed = slimmable(start=1.1)
        second = learner_of(resumed)
        second.load_state_dict(first.state_dict())
        train(resumed, second, 4, 8)
        assert isinstance(resumed, Stateful)
        assert all(
            torch.equal(a, b)
            for a, b in zip(models[0].state_dict().values(), resumed.state_dict().values(), strict=True)
        )
        assert float(models[0].coefficient.detach()) != 1.5

    def test_a_strong_penalty_narrows_to_the_base_width_and_none_does_not(self):
        widths = {}
        for gamma in (0.0, 1000.0):
            torch.manual_seed(0)
            model = Slimmable(WidthSettings(gamma=gamma, similarity=0.0), ZooModel(arch="convnet", width=2), SPEC)
            train(model, learner_of(model), 0, 40)
            widths[gamma] = model.width
        assert widths[1000.0] == 2
        assert widths[0.0] >= 3


class TestSliceOut:
    @every_student
    def test_a_zoo_network_with_the_same_logits(self, student, tmp_path):
        model = slimmable(student, start=1.4)
        before = copy.deepcopy(model.state_dict())
        state = torch.get_rng_state()
        sliced = slice_out(model)
        assert torch.equal(torch.get_rng_state(), state)
        assert model.training
        assert not sliced.training
        assert parameters(sliced) == parameters(build(student.model_copy(update={"width": model.width}), SPEC))
        assert sliced.recipe["width"] == model.width == int(1.4 * model.base)
        assert sliced.class_names == tuple("abcde")
        with torch.no_grad():
            expected = model.eval()(images())
            assert torch.allclose(sliced(images()), expected, atol=1e-5)
            save(sliced, tmp_path)
            assert torch.allclose(load(tmp_path)(images()), expected, atol=1e-5)
            for value in sliced.parameters():
                value.zero_()
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()), "these were copies"
