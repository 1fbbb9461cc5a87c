"""Joules, where the machine counts them: Linux shows the counters of Intel's and AMD's processors as files (RAPL).

The counters are of the whole machine: what else runs on it is counted too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

COUNTERS = Path("/sys/class/powercap")


class EnergyMeter:
    """Adds up what the processor packages spend.

    Args:
        folder: Where the counters are.
    """

    def __init__(self, folder: Path = COUNTERS) -> None:
        zones: Sequence[Path] = sorted(folder.glob("*rapl:[0-9]*")) if folder.is_dir() else []
        self._zones = [zone for zone in zones if _is_package(zone) and _read(zone / "energy_uj") is not None]
        self._before = self._values()

    def joules(self) -> float | None:
        """What was spent since the last call, or since the meter was made; None where nothing is counted."""
        now = self._values()
        spent = 0
        for zone in self._zones:
            difference = now[zone] - self._before[zone]
            if difference < 0:  # the counter has begun anew
                difference += _read(zone / "max_energy_range_uj") or 0
            spent += difference
        self._before = now
        return spent / 1e6 if self._zones else None

    def _values(self) -> dict[Path, int]:
        return {zone: _read(zone / "energy_uj") or 0 for zone in self._zones}


def _is_package(zone: Path) -> bool:
    """Not a part of one, such as intel-rapl:0:1, nor all of the platform, which laptops count too."""
    try:
        return zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package")
    except OSError:
        return False


def _read(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # only root may read them on many machines
        return None
