"""Joules from the counters of the kernel, here files with their layout."""

from __future__ import annotations

from pathlib import Path

from memory_paths.evaluation.energy import EnergyMeter


def _zone(folder: Path, name: str, microjoules: int) -> Path:
    zone = folder / name
    zone.mkdir(exist_ok=True)
    (zone / "name").write_text("psys\n" if name == "intel-rapl:9" else f"package-{name[-1]}\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    (zone / "max_energy_range_uj").write_text("10000000\n")
    return zone


def test_packages_are_added_up_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1", "intel-rapl:9"):
        _zone(tmp_path, name, 1_000_000)
    (tmp_path / "intel-rapl").mkdir()
    meter = EnergyMeter(tmp_path)
    _zone(tmp_path, "intel-rapl:0", 3_500_000)
    _zone(tmp_path, "intel-rapl:0:0", 9_000_000)
    _zone(tmp_path, "intel-rapl:1", 1_500_000)
    _zone(tmp_path, "intel-rapl:9", 5_000_000)
    assert meter.joules() == 3.0
    assert meter.joules() == 0.0


def test_a_counter_that_begins_anew_goes_on_from_its_end(tmp_path: Path) -> None:
    _zone(tmp_path, "intel-rapl:0", 9_000_000)
    meter = EnergyMeter(tmp_path)
    _zone(tmp_path, "intel-rapl:0", 1_000_000)
    assert meter.joules() == 2.0


def test_where_nothing_is_counted_there_is_no_figure(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).joules() is None
    assert EnergyMeter(tmp_path / "missing").joules() is None
    (_zone(tmp_path, "intel-rapl:0", 1) / "energy_uj").write_text("denied")
    assert EnergyMeter(tmp_path).joules() is None
