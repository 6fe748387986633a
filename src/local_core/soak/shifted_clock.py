"""A Python environment whose wall clock can be moved while a process runs in it; the component is unmodified."""

from __future__ import annotations

import struct
import sys
import sysconfig
from pathlib import Path

_FORMAT = "d"
_PATCH = (
    "import mmap, os, struct, time;"
    " time.time = time.time if time.time.__name__ == '<lambda>' else lambda"
    " shift=mmap.mmap(os.open({file!r}, os.O_RDONLY), 8, prot=mmap.PROT_READ),"
    " now=time.time, read=struct.unpack: now() + read('d', shift[:8])[0]"
)
"""What the environment does as it starts, once or twice: a `.pth` runs a line that begins with `import`."""


class ShiftedClock:
    """Makes the environment, with the packages of this Python's, and moves its clock.

    Args:
        folder: where the environment goes.
    """

    def __init__(self, folder: Path) -> None:
        self.environment = folder
        self._file = folder / "shift"
        packages = folder / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
        packages.mkdir(parents=True)
        (folder / "bin").mkdir()
        base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}"
        (folder / "bin" / "python").symlink_to(base)
        (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
        self.shift(0.0)
        (packages / "shift.pth").write_text(f"{sysconfig.get_path('purelib')}\n{_PATCH.format(file=str(self._file))}\n")

    def shift(self, seconds: float) -> None:
        """Let the wall clock of all processes in the environment be so far from the true one."""
        # In place: they have the file mapped.
        with self._file.open("r+b" if self._file.exists() else "w+b") as file:
            file.write(struct.pack(_FORMAT, seconds))
