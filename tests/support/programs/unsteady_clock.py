"""Imported, it puts `time.time` of its process an hour ahead and an hour behind, in turns."""

import itertools
import time

_time = time.time
_offsets = itertools.cycle((3600, -3600))


def _jumping() -> float:
    return _time() + next(_offsets)


time.time = _jumping
