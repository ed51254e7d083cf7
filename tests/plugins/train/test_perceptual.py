from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffplugin.errors import MissingDependency, RequestError
from diffplugin.plugins.train import perceptual


def _need_pyiqa() -> None:
    try:
        perceptual.open_measure("psnr")
    except (MissingDependency, RequestError) as error:
        pytest.skip(str(error))


def test_where_pyiqa_is_not_there_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def lacking(name: str, *more: Any) -> Any:
        if name == "pyiqa":
            raise ModuleNotFoundError("No module named 'pyiqa'", name="pyiqa")
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(MissingDependency, match=r"^--measures niqe needs pyiqa: pip install 'diffplugin\[measures\]'$"):
        perceptual.open_measure("niqe")


def test_pyiqas_measures_that_need_no_weights() -> None:
    from diffplugin.export.measures import gmsd, psnr

    _need_pyiqa()
    rng = np.random.default_rng(0)
    clean = np.kron(rng.integers(0, 230, (16, 16, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    bad = np.clip(clean + rng.normal(0, 12, clean.shape), 0, 255).astype(np.uint8)
    assert perceptual.open_measure("psnr")(bad, clean) == pytest.approx(psnr(bad, clean), abs=0.01)
    theirs, ours = perceptual.open_measure("gmsd")(bad, clean), gmsd(bad, clean)
    assert theirs == pytest.approx(ours, abs=0.005), (theirs, ours)
    piqe = perceptual.open_measure("piqe")
    assert not piqe.needs_truth and piqe(bad, None) != piqe(clean, None)


def test_pyiqas_faults_are_one_line(tmp_path: Path) -> None:
    _need_pyiqa()
    with pytest.raises(RequestError, match="--measures nosuch: pyiqa has none of that name"):
        perceptual.open_measure("nosuch")
    with pytest.raises(RequestError, match="no such weights file"):
        perceptual.open_measure(f"niqe={tmp_path / 'none.mat'}")
    (tmp_path / "faulty.mat").write_bytes(b"nothing")
    with pytest.raises(RequestError, match=r"--measures niqe: pyiqa cannot make it \("):
        perceptual.open_measure(f"niqe={tmp_path / 'faulty.mat'}")
