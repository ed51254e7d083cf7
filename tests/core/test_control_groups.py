"""Limits of control groups, from copies of what the kernel shows in containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffplugin import control_groups
from diffplugin.control_groups import cpu_quota, spare_threads
from diffplugin.engines.threads import usable_cores


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /sys/fs/cgroup."""
    monkeypatch.setattr(control_groups, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "membership")
    return tmp_path


def show(kernel: Path, membership: str, **files: str) -> None:
    (kernel / "membership").write_text(membership)
    for name, content in files.items():
        path = kernel / "cgroup" / name.replace("__", "/").replace("_max", ".max").replace("_current", ".current")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_without_limits_there_is_none(kernel: Path) -> None:
    assert cpu_quota() is None and spare_threads() is None
    show(kernel, "0::/\n", cpu_max="max 100000\n", pids_max="max\n", pids_current="7\n")
    assert cpu_quota() is None and spare_threads() is None


@pytest.mark.parametrize(("content", "quota"), [("150000 100000\n", 1.5), ("20000 100000\n", 0.2), ("0 0\n", None)])
def test_version_2_in_a_container(kernel: Path, content: str, quota: float | None) -> None:
    show(kernel, "0::/\n", cpu_max=content)
    assert cpu_quota() == quota


def test_the_tightest_limit_of_all_groups_above_counts(kernel: Path) -> None:
    show(kernel, "0::/a/b\n", a__cpu_max="200000 100000\n", a__b__cpu_max="max 100000\n", cpu_max="400000 100000\n")
    assert cpu_quota() == 2
    show(kernel, "0::/a/b\n", a__pids_max="10\n", a__pids_current="4\n", a__b__pids_max="5\n", a__b__pids_current="3\n")
    assert spare_threads() == 2


@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
def test_version_1(kernel: Path, folder: str) -> None:
    (kernel / "membership").write_text("9:memory:/x\n4:cpu,cpuacct:/docker/1\n3:pids:/docker/1\n")
    place = kernel / "cgroup" / folder / "docker/1"
    place.mkdir(parents=True)
    for name, content in (("quota", "250000\n"), ("period", "100000\n")):
        (place / f"cpu.cfs_{name}_us").write_text(content)
    assert cpu_quota() == 2.5
    (place / "cpu.cfs_quota_us").write_text("-1\n")
    assert cpu_quota() is None
    pids = kernel / "cgroup/pids"  # the container sees its own group at the root
    pids.mkdir()
    (pids / "pids.max").write_text("32\n")
    (pids / "pids.current").write_text("30\n")
    assert spare_threads() == 2


def test_cores_follow_the_quota(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = usable_cores()
    for content, expected in (("40000 100000\n", 1), ("100000 100000\n", 1), ("110000 100000\n", min(2, cores))):
        show(kernel, "0::/\n", cpu_max=content)
        assert usable_cores() == expected, content
    show(kernel, "0::/\n", cpu_max="9900000 100000\n")
    assert usable_cores() == cores
