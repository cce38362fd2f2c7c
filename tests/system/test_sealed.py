"""Every change to a file with a checksum is noticed, and equal contents make equal files."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthkd.system.sealed import CHECKSUM, sealed, sealed_tensors, tensor_digest, unsealed, unsealed_tensors

VALUES = {"b": [1, 2.5, None], "a": {"\u00e4": True}}
ABOUT = {"kind": "test", "a": "1", "z": "2"}


def tensors() -> dict[str, torch.Tensor]:
    return {"x": torch.arange(6.0).view(2, 3), "half": torch.ones(3, dtype=torch.bfloat16), "none": torch.zeros(0, 4)}


def test_an_object_comes_back_and_is_plain_json() -> None:
    data = sealed(VALUES)
    assert unsealed(data) == VALUES
    plain = json.loads(data)
    assert len(plain.pop(CHECKSUM)) == 64
    assert plain == VALUES
    assert unsealed(sealed({"pair": (1, 2)})) == {"pair": [1, 2]}


def test_layout_and_order_of_keys_are_no_change() -> None:
    values = json.loads(sealed(VALUES))
    assert unsealed(json.dumps(values, sort_keys=True).encode()) == VALUES


@pytest.mark.parametrize("change", [{"b": [1, 2.5, 0]}, {"new": 1}, {CHECKSUM: "0" * 64}])
def test_a_changed_object_is_refused(change: dict[str, object]) -> None:
    values = json.loads(sealed(VALUES)) | change
    with pytest.raises(ValueError, match="damaged or changed"):
        unsealed(json.dumps(values).encode())


def test_objects_of_earlier_versions_have_no_checksum() -> None:
    assert unsealed(json.dumps(VALUES).encode()) == VALUES
    for other in (b"[1]", b"{", b""):
        with pytest.raises(ValueError, match=r"no JSON object|Expecting"):
            unsealed(other)


def test_a_reader_may_need_the_checksum() -> None:
    assert unsealed(sealed(VALUES), bare=False) == VALUES
    for missing in (VALUES, {**VALUES, CHECKSUM: None}):
        with pytest.raises(ValueError, match="damaged or changed"):
            unsealed(json.dumps(missing).encode(), bare=False)


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        sealed({"loss": math.nan})


def test_tensors_come_back_and_are_plain_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(sealed_tensors(tensors(), ABOUT))
    values, about = unsealed_tensors(path)
    assert about == ABOUT
    for loaded in (values, load_file(path)):
        assert set(loaded) == set(tensors())
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors().items())


def test_equal_tensors_make_equal_files() -> None:
    backwards = {name: ABOUT[name] for name in reversed(ABOUT)}
    assert len({sealed_tensors(tensors(), about) for about in (ABOUT, backwards) for _ in range(5)}) == 1


def test_changed_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    data = sealed_tensors(tensors(), ABOUT)
    for wrong in (data[:-1] + b"\x01", data.replace(b'"test"', b'"tEst"'), data[:-3], b""):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r".+"):
            unsealed_tensors(path)
    save_file({"x": torch.ones(2)}, path)  # no checksum: an earlier version
    assert torch.equal(unsealed_tensors(path)[0]["x"], torch.ones(2))
    with pytest.raises(ValueError, match="No such file"):
        unsealed_tensors(tmp_path / "absent")


def test_a_digest_depends_on_names_types_shapes_contents_and_text() -> None:
    x = torch.arange(6.0)
    digests = [
        tensor_digest("", {"x": x}),
        tensor_digest("a", {"x": x}),
        tensor_digest("", {"y": x}),
        tensor_digest("", {"x": x.view(2, 3)}),
        tensor_digest("", {"x": x.view(torch.int32)}),
        tensor_digest("", {"x": x + 1}),
    ]
    assert len(set(digests)) == len(digests)
    pair = {"a": x, "b": x.view(2, 3).T}
    backwards = {"b": x.view(2, 3).T.contiguous(), "a": x}
    assert tensor_digest("", pair) == tensor_digest("", backwards)
