"""Exported files give the model's logits, hold nothing else, say what they take, and are refused when they are not."""

import copy
import json
import logging
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx.numpy_helper import to_array
from PIL import Image
from torch import Tensor, nn

from synthkd.compression import (
    OnnxModel,
    export_onnx,
    export_program,
    onnx_latency,
    parity,
    predict_files,
    quantize_int8,
    run_onnx,
)
from synthkd.data.read.named import read_digits
from synthkd.errors import DataError, MissingExtraError, ModelError
from synthkd.models import Classifier, build, files
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec, to_float

SPEC = ImageSpec(3, 12, 12, 5)
NAMES = ("naïve", "b", "c", "d", "e")


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def pixels(count: int, spec: ImageSpec = SPEC, seed: int = 0) -> Tensor:
    """Random uint8 images with their extremes in the first, so that their range is that of all images."""
    images = torch.randint(
        0, 256, (count, *spec.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 255
    return images


def lively(arch: str, spec: ImageSpec = SPEC, **options: int) -> Classifier:
    """A network whose BatchNorm layers have statistics and weights that matter."""
    model = build(ZooModel(arch=arch, **options), spec, (0.5,) * spec.channels, (0.2,) * spec.channels, NAMES)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for tensor in (m.running_mean, m.bias):
                tensor.data.uniform_(-1, 1)
            for tensor in (m.running_var, m.weight):
                tensor.data.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Classifier, Path]:
    torch.manual_seed(0)
    model, path = lively("convnet", width=6), tmp_path_factory.mktemp("export") / "made" / "model.onnx"
    model.train()
    export_onnx(model, path)
    return model, path


@pytest.fixture(scope="module")
def quantized(exported) -> Path:
    path = exported[1].with_name("int8.onnx")
    quantize_int8(exported[1], pixels(100), path)
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> tuple[Classifier, Path, Path, Tensor]:
    """A convnet that was trained for a second, its two files, and images it has not seen."""
    source = read_digits()
    images, labels = source.images, source.labels
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(ZooModel(arch="convnet", width=8), ImageSpec(1, 8, 8, 10), (0.3,), (0.4,), source.class_names)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(100):
            chosen = torch.randint(0, 1400, (64,))
            loss = F.cross_entropy(model(to_float(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    folder = tmp_path_factory.mktemp("digits")
    export_onnx(model.eval(), folder / "model.onnx")
    quantize_int8(folder / "model.onnx", images[:256], folder / "int8.onnx")
    return model, folder / "model.onnx", folder / "int8.onnx", images[1400:]


class TestOnnx:
    @pytest.mark.parametrize(
        ("arch", "options"),
        [
            ("resnet", {"width": 4, "depth": 8}),
            *(
                pytest.param(arch, options, marks=pytest.mark.slow)
                for arch, options in [
                    ("vit", {"width": 16, "depth": 2}),
                    ("slim", {"width": 8}),
                    ("wide_resnet", {"depth": 10}),
                    ("mlp", {"width": 16}),
                    ("lenet5", {"width": 3}),
                ]
            ),
        ],
    )
    def test_logits_are_those_of_the_model_at_any_batch_size(self, arch, options, tmp_path):
        model = lively(arch, **options)
        export_onnx(model, tmp_path / "model.onnx")
        for count in (1, 3, 70):
            result = parity(model, tmp_path / "model.onnx", pixels(count))
            assert result.max_abs_difference < 1e-4
            assert (result.agreement.value, result.agreement.n) == (1.0, count)

    def test_the_model_is_left_as_it_was_and_exported_in_eval_mode(self, exported):
        model, path = exported
        assert all(m.training for m in model.modules())
        assert all(p.requires_grad for p in model.parameters())
        assert parity(model, path, pixels(9)).max_abs_difference < 1e-4
        assert model.training

    def test_one_file_with_everything_inside(self, exported):
        _, path = exported
        assert [p.name for p in path.parent.iterdir() if p.suffix != ".onnx"] == []
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
        assert not any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in model.graph.initializer)
        (taken,), (given,) = model.graph.input, model.graph.output
        shape = taken.type.tensor_type.shape.dim
        assert (taken.name, given.name) == ("images", "logits")
        assert taken.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert [d.dim_value for d in shape] == [0, 3, 12, 12]
        assert shape[0].dim_param == "batch"
        assert "BatchNormalization" not in {node.op_type for node in model.graph.node}

    def test_it_holds_no_trace_of_the_machine_that_wrote_it(self, exported, quantized):
        for path in (exported[1], quantized):
            content = path.read_bytes()
            assert not any(word in content for word in (b".py", b"synthkd.models", str(Path.home()).encode(), b"body"))

    def test_it_says_what_it_takes(self, exported, quantized):
        for path, precision in ((exported[1], "float32"), (quantized, "int8")):
            description = OnnxModel(path).description
            assert (description.spec, description.class_names) == (SPEC, NAMES)
            assert description.precision == precision

    def test_what_cannot_be_exported_is_one_line_and_leaves_the_old_file(self, tmp_path):
        class Branching(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                x = x.flatten(1)[:, :5]
                return x if x.sum() > 0 else -x

        for export, name in ((export_onnx, "a.onnx"), (export_program, "a.pt2")):
            (tmp_path / name).write_bytes(b"old")
            with pytest.raises(ModelError, match=r"^the model cannot be exported with .*must not branch") as caught:
                export(Classifier(Branching(), SPEC), tmp_path / name)
            assert "\n" not in str(caught.value)
            assert (tmp_path / name).read_bytes() == b"old"

    @pytest.mark.parametrize("package", ["onnx", "onnxscript"])
    def test_a_missing_package_names_the_extra(self, package, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=rf"'{package}': pip install 'synthkd\[export\]'"):
            export_onnx(Classifier(nn.Flatten(), SPEC), tmp_path / "a.onnx")


class TestProgram:
    def test_logits_are_those_of_the_model_at_any_batch_size(self, tmp_path):
        model = lively("convnet", width=4)
        export_program(model, tmp_path / "made" / "model.pt2")
        extra = {"synthkd": ""}
        program = torch.export.load(tmp_path / "made" / "model.pt2", extra_files=extra).module()
        model.eval()
        for count in (1, 5):
            images = to_float(pixels(count))
            torch.testing.assert_close(program(images), model(images), atol=1e-4, rtol=1e-4)
        assert tuple(json.loads(extra["synthkd"])["class_names"]) == NAMES
        with zipfile.ZipFile(tmp_path / "made" / "model.pt2") as archive:
            assert not any(b".py" in archive.read(name) for name in archive.namelist())


class TestInt8:
    def test_a_linear_layer_by_hand(self, tmp_path):
        """Pixels lie on the grid of 255 steps as they are, weights on one of 64 steps to their channel's largest."""
        spec = ImageSpec(1, 3, 4, 3)
        layer = nn.Linear(12, 3)
        with torch.no_grad():
            layer.weight.mul_(torch.tensor([[0.01], [1.0], [30.0]]))
        images = pixels(50, spec)
        export_onnx(Classifier(nn.Sequential(nn.Flatten(), layer), spec), tmp_path / "model.onnx")
        quantize_int8(tmp_path / "model.onnx", images, tmp_path / "int8.onnx")
        weight, x = layer.weight.detach().double().numpy(), images.flatten(1).double().numpy() / 255
        step = np.abs(weight).max(axis=1, keepdims=True) / 64
        expected = x @ (np.round(weight / step) * step).T + layer.bias.detach().double().numpy()
        logits = run_onnx(tmp_path / "int8.onnx", images).numpy()
        assert np.abs(logits - expected).max(axis=0) == pytest.approx([0, 0, 0], abs=0.01 * float(step.max()))
        assert (np.abs(logits - expected).max(axis=0) < step[:, 0]).all()
        assert np.abs(logits - run_onnx(tmp_path / "model.onnx", images).numpy()).max() > 0.1 * float(step.max())

    def test_weights_are_int8_per_channel_and_what_gains_nothing_is_not(self, quantized):
        graph = onnx.load(quantized).graph
        constants = {weight.name: to_array(weight) for weight in graph.initializer}
        made_by = {name: node for node in graph.node for name in node.output}
        first, *rest = [node for node in graph.node if node.op_type == "Conv"]
        assert constants[first.input[1]].dtype == np.float32
        for node in (*rest, made_by["logits"]):
            weight, scales = (constants[name] for name in made_by[node.input[1]].input[:2])
            assert weight.dtype == np.int8
            assert int(np.abs(weight.astype(int)).max()) == 64
            assert scales.shape == (len(weight),)
        assert made_by["logits"].op_type == "Gemm"
        assert {constants[n.input[2]].dtype for n in graph.node if n.op_type == "QuantizeLinear"} == {
            np.dtype(np.uint8)
        }

    def test_digits_lose_next_to_nothing(self, digits):
        model, plain, int8, images = digits
        labels = read_digits().labels[1400:]
        right = [(run_onnx(path, images).argmax(dim=1) == labels).double().mean() for path in (plain, int8)]
        assert right[0] > 0.9
        assert right[1] > right[0] - 0.01
        assert parity(model, plain, images).max_abs_difference < 1e-4
        result = parity(model, int8, images)
        assert result.agreement.value > 0.98
        assert result.max_abs_difference > 1e-3

    def test_the_fashion_mnist_student_is_three_and_a_half_times_smaller(self, tmp_path):
        spec = ImageSpec(1, 28, 28, 10)
        names = (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        )
        model = build(ZooModel(arch="convnet", width=16), spec, (0.286,), (0.353,), names)
        export_onnx(model, tmp_path / "model.onnx")
        quantize_int8(tmp_path / "model.onnx", pixels(64, spec), tmp_path / "int8.onnx")
        sizes = [(tmp_path / name).stat().st_size for name in ("model.onnx", "int8.onnx")]
        assert sizes[0] >= 3.5 * sizes[1]

    def test_writing_again_gives_the_same_bytes_prints_nothing_and_leaves_logging_alone(
        self, exported, quantized, tmp_path, capfd
    ):
        handlers = list(logging.getLogger().handlers)
        export_onnx(exported[0], tmp_path / "model.onnx")
        quantize_int8(tmp_path / "model.onnx", pixels(100), tmp_path / "int8.onnx")
        assert capfd.readouterr() == ("", "")
        assert logging.getLogger().handlers == handlers
        assert logging.getLogger().manager.disable == 0
        assert (tmp_path / "model.onnx").read_bytes() == exported[1].read_bytes()
        assert (tmp_path / "int8.onnx").read_bytes() == quantized.read_bytes()

    @pytest.mark.parametrize(
        "images", [pixels(3).float(), pixels(3)[:, :1], pixels(3)[:, :, :5], pixels(3)[:0], pixels(3)[0]]
    )
    def test_calibration_images_must_be_the_models(self, images, exported, tmp_path):
        with pytest.raises(DataError, match=r"calibrated on uint8 images \[N, 3, 12, 12\], N > 0, got"):
            quantize_int8(exported[1], images, tmp_path / "int8.onnx")

    def test_an_int8_file_is_not_quantized_again(self, quantized, tmp_path):
        with pytest.raises(ModelError, match="is int8 already"):
            quantize_int8(quantized, pixels(3), tmp_path / "again.onnx")


class TestRunning:
    def test_bytes_and_floats_alike_and_whatever_the_batch(self, exported):
        images = pixels(7)
        logits = run_onnx(exported[1], images)
        assert logits.shape == (7, 5)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(run_onnx(exported[1], to_float(images), batch_size=3), logits)

    def test_parity_names_the_largest_difference_and_the_share_that_agrees(self, exported):
        model, path = exported
        images, step = pixels(40), F.one_hot(torch.tensor(2), 5)
        logits = run_onnx(path, images)
        shift = float((logits.max(dim=1).values - logits[:, 2]).median()) + 1e-3  # class 2 wins half of the images
        moved = Classifier(copy.deepcopy(model.body), SPEC, (0.5,) * 3, (0.2,) * 3)
        with torch.no_grad():
            moved.body.head.bias[2] += shift
        result = parity(moved, path, images)
        assert result.max_abs_difference == pytest.approx(shift, abs=1e-4)
        assert result.agreement.value == float(((logits + shift * step).argmax(1) == logits.argmax(1)).double().mean())
        assert 0.3 < result.agreement.value < 0.7

    def test_latency_is_noted_with_batch_and_threads(self, quantized):
        latency = onnx_latency(quantized, batch_size=3, threads=2, calls=4)
        assert (latency.batch_size, latency.threads, latency.calls, latency.device) == (3, 2, 4, "cpu")
        assert 0 < latency.low_ms <= latency.median_ms <= latency.high_ms

    @pytest.mark.parametrize("images", [pixels(2), to_float(pixels(2))[:, :1], to_float(pixels(2))[0]])
    def test_images_of_another_kind_are_refused(self, images, exported):
        with pytest.raises(ModelError, match=r"images must be float32 \[N, 3, 12, 12\]"):
            OnnxModel(exported[1])(images)

    def test_files_that_are_not_ours(self, exported, tmp_path):
        path = tmp_path / "a.onnx"
        with pytest.raises(ModelError, match=r"a\.onnx cannot be read \(No such file"):
            run_onnx(path, pixels(1))
        path.write_bytes(exported[1].read_bytes()[:2000])
        for use in (lambda: OnnxModel(path), lambda: quantize_int8(path, pixels(1), tmp_path / "b.onnx")):
            with pytest.raises(ModelError, match=r"a\.onnx is not an ONNX file, or a damaged one"):
                use()
        foreign = onnx.load(exported[1])
        del foreign.metadata_props[:]
        onnx.save(foreign, path)
        with pytest.raises(ModelError, match=r"synthkd did not export .*a\.onnx, which does not say what images"):
            OnnxModel(path)
        with pytest.raises(ModelError, match=rf"predict runs exported files.*model\.kind=load model\.model={path} "):
            next(predict_files(path, tmp_path))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"height": 0}, "describes itself wrongly: height"),
            ({"format": 3}, "describes itself wrongly: format"),
            ({"class_names": ["a"]}, "names 1 of its 5 classes"),
        ],
    )
    def test_damaged_descriptions(self, change, message, exported, tmp_path):
        model = onnx.load(exported[1])
        written = json.loads(model.metadata_props[0].value)
        model.metadata_props[0].value = json.dumps({**written, **change})
        onnx.save(model, tmp_path / "a.onnx")
        with pytest.raises(ModelError, match=message):
            OnnxModel(tmp_path / "a.onnx")

    def test_a_missing_runtime_names_the_extra(self, exported, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        for use in (lambda: run_onnx(exported[1], pixels(1)), lambda: list(predict_files(exported[1], "."))):
            with pytest.raises(MissingExtraError, match=r"'onnxruntime': pip install 'synthkd\[export\]'"):
                use()


def save(image: Tensor, path: Path) -> None:
    """uint8 `[C, H, W]` as a file without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = image.permute(1, 2, 0).numpy()
    Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values).save(path)


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        for index, name in enumerate(("b.png", "a/x.png", "c.bmp")):
            save(pixels(3)[index], tmp_path / name)
        (tmp_path / "notes.txt").write_text("no image")
        save(pixels(1)[0], tmp_path / ".hidden" / "h.png")
        return tmp_path

    def test_every_image_below_a_folder_by_name(self, folder, exported):
        found = list(predict_files(exported[1], folder))
        p = run_onnx(exported[1], pixels(3)[[1, 0, 2]]).double().softmax(dim=1)
        assert [prediction.file for prediction in found] == [folder / "a" / "x.png", folder / "b.png", folder / "c.bmp"]
        assert [prediction.class_name for prediction in found] == [NAMES[int(row.argmax())] for row in p]
        assert [prediction.probability for prediction in found] == pytest.approx(p.max(dim=1).values.tolist())

    def test_a_directory_of_a_model_predicts_as_its_exported_file(self, folder, exported, tmp_path):
        files.save(exported[0], tmp_path / "model")
        found = [list(predict_files(path, folder)) for path in (tmp_path / "model", exported[1])]
        assert [one.class_name for one in found[0]] == [one.class_name for one in found[1]]
        assert [one.probability for one in found[0]] == pytest.approx([one.probability for one in found[1]], abs=1e-5)

    def test_digits_are_read_from_single_files(self, digits, tmp_path):
        _, plain, int8, images = digits
        labels = read_digits().labels[1400:]
        for index in range(12):
            save(images[index], tmp_path / f"{index}.png")
        for path in (plain, int8):
            found = [next(iter(predict_files(path, tmp_path / f"{index}.png"))).class_name for index in range(12)]
            assert sum(name == str(int(label)) for name, label in zip(found, labels, strict=False)) >= 10

    def test_other_sizes_and_colours_are_brought_to_the_models(self, exported, tmp_path):
        wide = Image.fromarray(np.full((30, 50), 90, dtype=np.uint8))
        wide.paste(200, (0, 0, 6, 30))  # falls off with the sides of the largest centred square
        wide.save(tmp_path / "grey.png")
        (found,) = predict_files(exported[1], tmp_path / "grey.png")
        p = run_onnx(exported[1], torch.full((1, 3, 12, 12), 90, dtype=torch.uint8)).double().softmax(dim=1)
        assert found.probability == pytest.approx(float(p.max()), abs=1e-6)

    def test_unreadable_files_are_named_together_after_the_answers(self, folder, exported):
        (folder / "torn.png").write_bytes((folder / "b.png").read_bytes()[:60])
        (folder / "a" / "text.jpg").write_text("hello")
        stream = predict_files(exported[1], folder)
        assert [next(stream).file.name for _ in range(3)] == ["x.png", "b.png", "c.bmp"]
        with pytest.raises(
            DataError, match=r"2 of 5 files cannot be read.*a/text\.jpg \(not an image.*torn\.png"
        ) as caught:
            next(stream)
        assert "\n" not in str(caught.value)
        assert len(list(predict_files(exported[1], folder, skip_bad=2))) == 3

    def test_nothing_to_read(self, exported, tmp_path):
        (tmp_path / "notes.txt").write_text("no image")
        with pytest.raises(DataError, match="holds no images"):
            list(predict_files(exported[1], tmp_path))
        with pytest.raises(DataError, match="does not exist; check the path"):
            list(predict_files(exported[1], tmp_path / "none"))

    def test_arrays_and_the_images_of_a_run_are_predicted_too(self, exported, tmp_path):
        run = tmp_path / "run"
        (run / "samples").mkdir(parents=True)
        np.savez(run / "samples" / "bank.npz", images=pixels(2).numpy(), labels=np.zeros(2, np.int64))
        save(pixels(3)[0], run / "samples" / "step_000001.png")  # a grid, no image of the bank
        for name in ("config.yaml", "result.json"):
            (run / name).write_text("{}")
        np.save(tmp_path / "alone.npy", pixels(2).numpy())
        of_array = [one.probability for one in predict_files(exported[1], tmp_path / "alone.npy")]
        assert [one.probability for one in predict_files(exported[1], run)] == of_array
        assert len(of_array) == 2

    def test_several_paths_of_any_form_are_one_row_an_image(self, folder, exported, tmp_path):
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            archive.write(folder / "b.png", "class/b.png")
            archive.writestr("torn.png", b"no image")
        (tmp_path / "table.csv").write_text("file,label\nc.bmp,one\n")
        np.savez(tmp_path / "set.npz", images=pixels(3).permute(0, 2, 3, 1).numpy())
        paths = [tmp_path / name for name in ("b.png", "set.zip", "table.csv", "set.npz", "a")]
        stream = predict_files(exported[1], paths)
        found = [next(stream) for _ in range(7)]
        named = ["b.png", "set.zip/class/b.png", "table.csv/c.bmp", "set.npz/0", "set.npz/1", "set.npz/2", "a/x.png"]
        assert [one.file for one in found] == [tmp_path / name for name in named]
        p = run_onnx(exported[1], pixels(3)[[0, 0, 2, 0, 1, 2, 1]]).double().softmax(dim=1).max(dim=1).values
        assert [one.probability for one in found] == pytest.approx(p.tolist(), abs=1e-6)
        with pytest.raises(
            DataError, match=r"1 of 8 files cannot be read .*set\.zip: torn\.png \(not an image"
        ) as caught:
            next(stream)
        assert "\n" not in str(caught.value)
        assert len(list(predict_files(exported[1], paths, skip_bad=1))) == 7
        with pytest.raises(DataError, match="none does not exist"):
            next(predict_files(exported[1], [tmp_path / "b.png", tmp_path / "none"]))

    def test_models_of_oblong_images_crop_other_sizes_and_classes_without_names_are_numbers(self, tmp_path):
        spec = ImageSpec(1, 4, 6, 2)
        layer = nn.Linear(24, 2)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([0.0, 2.0]))
        export_onnx(Classifier(nn.Sequential(nn.Flatten(), layer), spec), tmp_path / "model.onnx")
        save(pixels(1, spec)[0], tmp_path / "right.png")
        (found,) = predict_files(tmp_path / "model.onnx", tmp_path / "right.png")
        assert found.class_name == "1"
        assert found.probability == pytest.approx(1 / (1 + np.exp(-2.0)))
        save(pixels(1, ImageSpec(1, 6, 4, 2))[0], tmp_path / "turned.png")
        (found,) = predict_files(tmp_path / "model.onnx", tmp_path / "turned.png")
        assert found.class_name == "1"
