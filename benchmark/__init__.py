"""rapbench: plant textual backdoors into classifiers, defend them, report how well and at what cost."""

if __name__ != "rapbench":
    raise ImportError(f"imported as {__name__!r}: this folder is the package 'rapbench'; pip install it and import rapbench")

from rapbench.api import Attack, Dataset, Defense, Detector, Filter, Labelled, Purifier, Repair, Task
from rapbench.errors import RapbenchError
from rapbench.hookspecs import hookimpl
from rapbench.interop import frame, to_dataset

__all__ = [
    "Attack",
    "Dataset",
    "Defense",
    "Detector",
    "Filter",
    "Labelled",
    "Purifier",
    "RapbenchError",
    "Repair",
    "Task",
    "frame",
    "hookimpl",
    "to_dataset",
]
__version__ = "0.1.0"
