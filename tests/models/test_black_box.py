"""Black boxes: ways of asking, the meaning of answers, the budget, the record."""

import http.server
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthkd.data.read.real import load_splits
from synthkd.errors import CheckpointError, ConfigError, ModelError
from synthkd.models import asking
from synthkd.models.asking import as_answers, asker
from synthkd.models.black_box import LEAST_PROBABILITY, BlackBox, black_box_model, black_box_of
from synthkd.models.folding import fold_batch_norm
from synthkd.settings import DigitsData, LabelsTeacher
from synthkd.settings.load import load_config
from synthkd.types import to_float


def settings(**changes: Any) -> LabelsTeacher:
    given = {"function": "operator:index", "queries": 10, "channels": 1, "size": 2, "classes": 3, "batch_size": 4}
    if "url" in changes or "file" in changes:
        del given["function"]
    return load_config(LabelsTeacher, {"kind": "labels", **given, **changes}, [])


def images(*brightness: int) -> torch.Tensor:
    """An image for each number, uint8 `[N, 1, 2, 2]`."""
    return torch.tensor(brightness, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


class Counting:
    """Answers an image of brightness b with class b mod 3, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, pixels: np.ndarray) -> object:
        assert pixels.dtype == np.uint8
        self.asked.append(pixels[:, 0, 0, 0].tolist())
        return [brightness % 3 for brightness in self.asked[-1]]


def test_an_image_that_was_asked_before_is_not_asked_again() -> None:
    ask = Counting()
    box = BlackBox(settings(), ask)
    assert box.logits(images(0, 1, 2, 1, 0)).argmax(1).tolist() == [0, 1, 2, 1, 0]
    assert box.logits(to_float(images(2, 3))).argmax(1).tolist() == [2, 0]  # float images are asked as uint8
    assert ask.asked == [[0, 1, 2], [3]]
    assert (box.used, box.left) == (4, 6)


def test_calls_are_of_batch_size_and_the_budget_is_never_exceeded() -> None:
    ask = Counting()
    box = BlackBox(settings(queries=6), ask)
    box.logits(images(*range(5)))
    assert [len(call) for call in ask.asked] == [4, 1]
    assert box.covers(images(0, 1, 9))
    assert not box.covers(images(8, 9))
    with pytest.raises(ModelError, match="2 images are to be asked, and 1 of 6 queries are left"):
        box.logits(images(8, 9))
    assert (box.used, sum(map(len, ask.asked))) == (5, 5)


def test_a_label_is_a_probability_of_one_and_probabilities_stay() -> None:
    box = BlackBox(settings(), Counting())
    # Of one-hot labels, whose zeros count as the least probability.
    total = 1 + 2 * LEAST_PROBABILITY
    expected = torch.tensor([[LEAST_PROBABILITY, 1.0, LEAST_PROBABILITY]]).div(total).log()
    torch.testing.assert_close(box.logits(images(1)), expected)
    rows = np.array([[0.5, 0.25, 0.25]])
    soft = BlackBox(settings(answers="probabilities"), lambda pixels: np.repeat(rows, len(pixels), axis=0))
    torch.testing.assert_close(soft.logits(images(1)).exp(), torch.from_numpy(rows).float())


@pytest.mark.parametrize("answers", ["labels", "probabilities"])
def test_a_record_survives_a_kill(tmp_path: Path, answers: str) -> None:
    """Of a run that was killed while it wrote an answer; the state is that of its last checkpoint."""

    def ask(pixels: np.ndarray) -> object:
        labels = counting(pixels)
        return labels if answers == "labels" else np.eye(3)[labels] * 0.7 + 0.1

    path, counting = tmp_path / "answers.bin", Counting()
    box = BlackBox(settings(answers=answers), ask)
    box.record(path)
    first = box.logits(images(0, 1))
    state = box.state_dict()
    later = box.logits(images(2, 3, 4))
    path.write_bytes(path.read_bytes()[:-3])  # the last answer is cut short
    again, counting = BlackBox(settings(answers=answers), ask), Counting()
    again.record(path)
    again.load_state_dict(state)
    assert (again.used, again.paid) == (2, 4)
    assert torch.equal(again.logits(images(2, 3, 4)), later)
    assert torch.equal(again.logits(images(0, 1)), first)
    assert counting.asked == [[4]], "only the answer that was lost is asked again"
    assert again.used == 5
    assert path.stat().st_size == len(again._head) + 5 * again._length


def test_a_kill_while_a_record_begins_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        BlackBox(settings(), Counting()).record(tmp_path / "answers.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.bin"
    box = BlackBox(settings(), Counting())
    box.record(path)
    box.logits(images(0, 1))
    data = path.read_bytes()
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    with pytest.raises(CheckpointError, match=r"damaged in answer 2; restore it from a copy, or choose another out="):
        BlackBox(settings(), Counting()).record(path)
    with pytest.raises(CheckpointError, match="of other answers"):
        BlackBox(settings(answers="probabilities"), Counting()).record(path)
    with pytest.raises(CheckpointError, match="has 0 answers and the checkpoint used 2"):
        BlackBox(settings(), Counting()).load_state_dict({"asked": 2})


REFUSED: list[tuple[object, dict[str, Any], str]] = [
    ([0, 3], {}, "answers labels from 0 to 3; they are whole numbers from 0 to 2"),
    ([0, -1], {}, "answers labels from -1 to 0"),
    ([0.5, 1], {}, "whole numbers"),
    ([0], {}, r"must answer 2 images with numbers \[2\] or \[2, 3\], got int64 \[1\]"),
    (["cat", "dog"], {}, "answer labels as numbers from 0"),
    ([[0.1, 0.9], [0.2]], {}, "rows of different lengths"),
    ([[0.1, float("nan"), 0.9]] * 2, {}, "not finite"),
    ([0, 1], {"answers": "probabilities"}, "answers labels, not probabilities; set teacher.answers to labels"),
    ([[1.0, 2.0, -1.0]] * 2, {"answers": "probabilities"}, "which are no probabilities; take a softmax"),
    ([[40.0, 30.0, 30.0]] * 2, {"answers": "probabilities"}, "sum to 100 to 100"),
]


@pytest.mark.parametrize(("raw", "changes", "message"), REFUSED)
def test_an_answer_that_cannot_be_meant_is_one_line(raw: object, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        as_answers(raw, 2, settings(**changes))
    assert "\n" not in str(caught.value)


def test_rows_of_scores_are_labels_and_rounded_probabilities_are_probabilities() -> None:
    assert as_answers([[0.1, 5.0, -3.0], [7, 0, 0]], 2, settings()).tolist() == [1, 0]
    assert as_answers([[1.0], [2.0]], 2, settings()).tolist() == [1, 2]
    rows = as_answers([[0.333, 0.333, 0.333]], 1, settings(answers="probabilities"))
    np.testing.assert_allclose(rows, 1 / 3, rtol=1e-6)


def test_the_copy_of_a_network_shares_budget_and_record() -> None:
    model = black_box_model(settings(function="tests.models.test_black_box:brightness_class"))
    box, copy = black_box_of(model), fold_batch_norm(model)
    assert box is not None
    assert black_box_of(copy) is box
    assert box.used == 0, "tracing a copy asks nothing"
    assert copy(to_float(images(1, 5))).argmax(1).tolist() == [1, 2]
    assert box.used == 2
    assert model.state_dict() == {}


def brightness_class(pixels: np.ndarray) -> object:
    if pixels.max() == 255:
        raise RuntimeError("too\nbright")
    return torch.from_numpy(pixels[:, 0, 0, 0].astype(int) % 3)


def test_a_function_that_fails_is_one_line() -> None:
    ask = asker(settings(function="tests.models.test_black_box:brightness_class"))
    with pytest.raises(ModelError, match=r"^teacher\.function: tests\..*:brightness_class failed: too$"):
        ask(images(255).numpy())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"function": None}, "set one of function, url and file, got none"),
        ({"url": "http://localhost:1", "function": "a:b"}, "set one of function, url and file, got function and url"),
        ({"url": "ftp://localhost"}, "url: expected text that matches"),
        ({"queries": 0}, "queries: expected a whole number >= 1 and <= 1000000000, got 0"),
    ],
)
def test_settings_that_name_none_or_two_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**changes)
    assert str(caught.value).startswith(line)


# --- over HTTP ------------------------------------------------------------------------------------------------------

Reply = Callable[[np.ndarray], tuple[int, bytes]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Reply], str]]:
    """A function that starts a server with a reply and returns its address."""
    servers: list[http.server.HTTPServer] = []
    pauses: list[float] = []
    monkeypatch.setattr(asking.time, "sleep", pauses.append)
    # An address outside would get the images if proxies of the environment were used.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    def start(reply: Reply) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = reply(np.load(io.BytesIO(body)))
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/answer"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_images_are_posted_as_npy_and_answers_are_json(serve: Callable[[Reply], str]) -> None:
    counting = Counting()
    box = BlackBox(settings(url=serve(lambda pixels: (200, json.dumps(counting(pixels)).encode()))))
    assert box.logits(images(0, 1, 2, 3, 4)).argmax(1).tolist() == [0, 1, 2, 0, 1]
    assert counting.asked == [[0, 1, 2, 3], [4]]


def test_an_address_that_is_busy_is_asked_again(serve: Callable[[Reply], str], monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(asking.time, "sleep", pauses.append)
    replies = iter([(503, b""), (429, b""), (200, b"[2]")])
    box = BlackBox(settings(url=serve(lambda _: next(replies))))
    assert box.logits(images(7)).argmax(1).tolist() == [2]
    assert pauses == [1.0, 2.0]
    assert box.used == 1


@pytest.mark.parametrize(
    ("status", "answer", "message", "calls"),
    [
        (500, b"", r"did not answer in 5 tries \(500 Internal Server Error\); start it, and run the same command", 5),
        (404, b"", r"answers 404 Not Found to a POST of 1 images", 1),
        (302, b"", r"answers 302 Found to a POST", 1),
        (200, b"<html>", "answers no JSON", 1),
    ],
)
def test_an_address_that_does_not_answer_is_one_line(
    serve: Callable[[Reply], str], status: int, answer: bytes, message: str, calls: int
) -> None:
    asked: list[int] = []

    def reply(pixels: np.ndarray) -> tuple[int, bytes]:
        asked.append(len(pixels))
        return status, answer

    box = BlackBox(settings(url=serve(reply) + "?key=secret"))
    with pytest.raises(ModelError, match=message) as caught:
        box.logits(images(1))
    assert len(asked) == calls
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert box.used == 0


@pytest.mark.usefixtures("serve")
def test_an_address_where_nobody_listens_is_one_line() -> None:
    box = BlackBox(settings(url="http://127.0.0.1:9/"))
    with pytest.raises(
        ModelError, match=r"^teacher\.url: http://127\.0\.0\.1:9/ did not answer in 5 tries \(.*refused"
    ):
        box.logits(images(1))


def test_the_server_of_the_docs_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text(encoding="utf-8")
    code = page[page.index("# serve.py") :].partition("```")[0]
    assert sum(map(bool, code.splitlines())) <= 15
    servers: list[http.server.HTTPServer] = []
    serve_forever = http.server.HTTPServer.serve_forever

    def start(server: http.server.HTTPServer) -> None:
        servers.append(server)
        threading.Thread(target=serve_forever, args=(server, 0.01), daemon=True).start()

    monkeypatch.setattr(http.server.HTTPServer, "serve_forever", start)
    exec(code.replace("8000", "0"), {})
    digits = load_splits(DigitsData(kind="digits")).test
    url = f"http://127.0.0.1:{servers[0].server_port}"
    box = BlackBox(settings(url=url, queries=50, size=8, classes=10, batch_size=30))
    try:
        labels = box.logits(digits.images[:50]).argmax(1)
    finally:
        servers[0].shutdown()
        servers[0].server_close()
    assert (labels == digits.labels[:50]).float().mean() > 0.9


# --- ONNX files -----------------------------------------------------------------------------------------------------


def onnx_file(path: Path, kind: str = "float") -> Path:
    """A file whose logits are 10 times the mean of an image, 0 and 1."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    weight = helper.make_tensor("w", types.FLOAT, [4, 3], [2.5, 0, 0] * 4)
    bias = helper.make_tensor("b", types.FLOAT, [3], [0.0, 0.0, 1.0])
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=types.FLOAT),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
    ]
    input_kind = types.FLOAT if kind == "float" else types.UINT8 if kind == "uint8" else types.INT64
    shapes = helper.make_tensor_value_info("x", input_kind, ["n", 1, 2, 2])
    graph = helper.make_graph(
        nodes, "g", [shapes], [helper.make_tensor_value_info("y", types.FLOAT, ["n", 3])], [weight, bias]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def test_an_onnx_file_answers_by_labels_or_probabilities(tmp_path: Path) -> None:
    path = str(onnx_file(tmp_path / "m.onnx"))
    labels = BlackBox(settings(file=path))
    # Its inputs are in [0, 1]: 51 is 0.2, of which the first logit is 2.
    assert labels.logits(images(0, 51)).argmax(1).tolist() == [2, 0]
    soft = BlackBox(settings(file=path, answers="probabilities"))
    expected = torch.tensor([[2.0, 0.0, 1.0]]).log_softmax(1)
    torch.testing.assert_close(soft.logits(images(51)), expected, rtol=1e-5, atol=1e-5)
    pixels = BlackBox(settings(file=str(onnx_file(tmp_path / "u.onnx", "uint8"))))
    assert pixels.logits(images(1)).argmax(1).tolist() == [0], "10 is above 1: the file gets levels"


def test_other_onnx_files_are_one_line(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"^teacher\.file: .*m\.onnx cannot take images \[1, 1, 3, 3\]: "):
        BlackBox(settings(file=str(path), size=3)).logits(torch.zeros(1, 1, 3, 3))
    with pytest.raises(ConfigError, match=r"must have one input of float or uint8 images, got tensor\(int64\)"):
        BlackBox(settings(file=str(onnx_file(tmp_path / "i.onnx", "int64"))))
    path.write_bytes(b"no such thing")
    with pytest.raises(ModelError, match=r"m\.onnx is no ONNX file that can be read"):
        BlackBox(settings(file=str(path)))


def test_a_record_of_another_black_box_is_refused_and_one_of_an_earlier_version_read(tmp_path: Path) -> None:
    path = tmp_path / "answers.bin"
    box = BlackBox(settings(), Counting())
    box.record(path)
    box.logits(images(0, 1))
    other = settings().model_copy(update={"function": "another:function"})
    with pytest.raises(CheckpointError, match="of other answers"):
        BlackBox(other, Counting()).record(path)
    head = json.dumps({key: value for key, value in json.loads(box._head).items() if key != "of"}).encode()
    path.write_bytes(head + b"\n" + path.read_bytes()[len(box._head) :])
    again = BlackBox(settings(), Counting())
    again.record(path)
    assert again.paid == 2
