"""How busy the machine is, and what cells run in because of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from peftlab.bench import execute
from peftlab.machine import load

needs_stat = pytest.mark.skipif(not load.STAT.exists(), reason="no /proc/stat here")


@needs_stat
def test_another_process_is_seen() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert load.others_share(1.0) > 0.3
    finally:
        busy.kill()
        busy.wait()


def test_where_nothing_can_be_told_nobody_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "STAT", tmp_path / "none")
    assert load.others_share() == 0


@pytest.mark.parametrize(("share", "turns"), [(0.0, "20000"), (1.0, "5000")])
def test_threads_spin_long_on_an_idle_machine_only(
    share: float, turns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "others_share", lambda: share)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert execute.variables()["GOMP_SPINCOUNT"] == turns
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")  # whoever sets it keeps it
    assert execute.variables()["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert "GOMP_SPINCOUNT" not in execute.variables()
