"""The sets of weights in a file that some trainer wrote, read without running the file's code.

A checkpoint is searched for mappings of names to tensors, whatever they are called and however deep they lie. A set
fits a network by the prefix under which most of the network's names are found.
"""

import argparse
import collections
import dataclasses
import datetime
import pathlib
import pickle
import re
import types
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from storage.errors import ModelError, SettingsError

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Segments that torch.compile and others put into the middle of a name."""
COUNTERS = ("num_batches_tracked", "total_ops", "total_params")
"""Last segments of tensors that inference does not use: BatchNorm's counter and those that profilers leave behind."""
DEEPEST = 6
"""How deep mappings may lie in a checkpoint."""
FOREIGN = {
    ".onnx": "an ONNX model",
    ".pb": "a TensorFlow model",
    ".tflite": "a TensorFlow Lite model",
    ".h5": "a Keras model",
    ".keras": "a Keras model",
    ".engine": "a TensorRT engine",
    ".pdparams": "a PaddlePaddle model",
}
BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer and not the weights; run git lfs pull where it comes from",
    b"<!doctype html": "a web page and not the weights; download the file itself",
    b"<html": "a web page and not the weights; download the file itself",
}


@dataclasses.dataclass(frozen=True, slots=True)
class WeightSet:
    """One set of weights in a file, as far as it fits a network."""

    where: str
    """The keys of the mapping in which it lies; empty: the outermost one."""
    prefix: str
    """What stands before the names of its tensors."""
    weights: Mapping[str, Tensor]
    """The tensors by the network's names."""
    taken: frozenset[str]
    """Their names in the file."""
    beside: frozenset[str]
    """The names of the other tensors in the same mapping."""
    missing: int
    """How many of the network's tensors it lacks."""

    @property
    def name(self) -> str:
        """What it is called: keys and prefix."""
        return ".".join(part for part in (self.where, self.prefix.rstrip(".")) if part)

    @property
    def averaged(self) -> bool:
        """Whether its name says that the weights are averages over training steps."""
        return re.search(r"ema|averag|shadow|swa", self.name.lower()) is not None


def read_checkpoint(path: Path) -> dict[str, dict[str, Tensor]]:
    """All mappings of names to tensors in a file, by their keys in it; the outermost one has the empty name.

    Raises:
        ModelError: the file does not exist, is of another kind, holds no tensors, or would have to run code to be read.
    """
    if not path.is_file():
        raise ModelError(f"weights file {path} does not exist; give another --weights")
    try:
        _refuse_foreign(path)
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise _blocked(path, error) from error
    except Exception as error:  # foreign bytes may raise anything
        raise ModelError(
            f"{path} cannot be read as weights ({' '.join(str(error).split())[:200] or type(error).__name__}); "
            "if it is cut off, fetch it again, else save model.state_dict()"
        ) from error
    found = dict(_mappings(content, "", DEEPEST))
    if not found:
        keys = f" under {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) and content else ""
        raise ModelError(f"{path} holds no tensors{keys} ({type(content).__name__}); save model.state_dict()")
    return found


def _refuse_foreign(path: Path) -> None:
    with path.open("rb") as file:
        begun = file.read(64).lower()
    for beginning, other in BEGINNINGS.items():
        if begun.lstrip().startswith(beginning):
            raise ModelError(f"{path} is {other}")
    if kind := FOREIGN.get(path.suffix.lower()):
        raise ModelError(f"{path} is {kind}, which DFSS does not read; save the state_dict() of the PyTorch model")
    if begun.startswith(b"pk") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
        if "constants.pkl" in names:
            raise ModelError(
                f"{path} is a TorchScript archive, whose network is code that DFSS does not run; save its weights: "
                + _line(f"torch.save(torch.jit.load('{path}', map_location='cpu').state_dict(), 'weights.pth')")
            )
        if "archive_format" in names or "data.pkl" not in names:
            raise ModelError(f"{path} is not a file of torch.save; save the state_dict() of the PyTorch model")


def _line(code: str) -> str:
    return f'python -c "import torch; {code}"'


def _harmless() -> list[Any]:
    """What trainers store beside weights and what runs no code of the file's: plain containers of values."""
    numbers = [type(np.dtype(kind)) for kind in (*"?bBhHiIlLqQefdgUSO", "M8[s]")]
    made = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}
    named = [(item, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, item in made.items()]
    paths = [
        (pathlib.PurePosixPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ]
    times = [datetime.datetime, datetime.timedelta, datetime.date, datetime.timezone]
    return [
        *(argparse.Namespace, types.SimpleNamespace, collections.deque),
        *(np.dtype, np.ndarray, np.str_, *numbers, *named, *paths, *times),
    ]  # fmt: skip


def _unpickled(path: Path) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _blocked(path: Path, error: pickle.UnpicklingError) -> ModelError:
    """The error for a file that would have to run code: what, and the line with which its owner converts it."""
    try:
        with torch.serialization.safe_globals(_harmless()):
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the function knows no other format than torch.save's own
        names = re.findall(r"GLOBAL (\S+)", str(error))
    own = [name for name in names if not name.startswith(("torch.", "collections.", "builtins."))] or names
    culprits = ", ".join(own[:3]) + (f" and {len(own) - 3} more" if len(own) > 3 else "")
    if any(name.startswith("torch.nn.modules.") for name in names):
        what, weights = "a whole model, not its weights: ", f"torch.load('{path}', weights_only=False).state_dict()"
    else:
        what, weights = "", f"torch.load('{path}', weights_only=False)[KEY]"
    key = ", with KEY as the name of the weights in it, such as 'model'" if "[KEY]" in weights else ""
    line = _line(f"torch.save({weights}, 'weights.pth')")
    return ModelError(
        f"{path} holds {what}{culprits or 'more than tensors'}, and reading it would run code; if you trust it, save "
        f"its state_dict() alone where that code is{key}: {line}"
    )


def _mappings(content: Any, name: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping) or not depth:
        return
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield name, tensors
    for key, value in content.items():
        yield from _mappings(value, f"{name}.{key}" if name else str(key), depth - 1)


def fitting_sets(found: Mapping[str, Mapping[str, Tensor]], wanted: set[str]) -> list[WeightSet]:
    """The sets of weights in a file that lack the fewest of the names ``wanted``, best first.

    Averaged weights come after raw ones; else the first in the file is first.
    """
    needed = {one for one in wanted if not one.endswith(COUNTERS)}
    sets = [fitted for name, tensors in found.items() for fitted in _fitted(name, tensors, needed)]
    return sorted(_best(sets), key=lambda one: one.averaged)


def _best(sets: list[WeightSet]) -> list[WeightSet]:
    least = min((one.missing for one in sets), default=0)
    return [one for one in sets if one.missing == least]


def _fitted(name: str, tensors: Mapping[str, Tensor], needed: set[str]) -> list[WeightSet]:
    sets: list[WeightSet] = []
    for segments in (WRAPPERS, (*WRAPPERS, "module")):  # a network may have a part that is called module
        spelled = _without(tensors, segments)
        for prefix in _prefixes(spelled, needed):
            own = {mine.removeprefix(prefix): theirs for mine, theirs in spelled.items() if mine.startswith(prefix)}
            sets.append(
                WeightSet(
                    where=name,
                    prefix=prefix,
                    weights={mine: tensors[theirs] for mine, theirs in own.items()},
                    taken=frozenset(own.values()),
                    beside=frozenset(tensors) - set(own.values()),
                    missing=len(needed - own.keys()),
                )
            )
        if any(not one.missing for one in sets):
            break
    return _best(sets)


def _without(tensors: Mapping[str, Tensor], segments: tuple[str, ...]) -> dict[str, str]:
    """The names without some segments, and the names in the file."""
    return {".".join(part for part in name.split(".") if part not in segments): name for name in tensors}


def _prefixes(names: Mapping[str, str], needed: set[str]) -> list[str]:
    """The prefixes under which most of a network's names are found; the empty one if there are none."""
    counts: collections.Counter[str] = collections.Counter()
    for name in names:
        parts = name.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in needed:
                counts[".".join([*parts[:cut], ""]) if cut else ""] += 1
    most = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.items() if count == most] or [""]


def choose_set(sets: list[WeightSet], key: str | None, *, origin: str) -> WeightSet:
    """The set that ``key`` names, by all of its name or by the end or beginning of it; without a key the first.

    Raises:
        SettingsError: no set has such a name.
    """
    if key is None:
        return sets[0]
    for one in sets:
        if key == one.name or one.name.startswith(f"{key}.") or one.name.endswith(f".{key}"):
            return one
    names = ", ".join(repr(one.name) for one in sets)
    raise SettingsError(f"key {key!r} names no weights of the network in {origin}; it has {names}", field="key")
