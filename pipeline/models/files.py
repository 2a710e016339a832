"""Model files: safetensors weights whose header says how to rebuild the network (docs/artifacts.md).

Teacher and student are the same kind of file. The header's metadata key ``dfss`` holds a ModelSpec as JSON.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.models.builders import Unused, outline, segmentation_names
from pipeline.models.checkpoints import COUNTERS
from pipeline.models.narrowing import narrow
from pipeline.models.official import official_weights
from pipeline.models.segmenter import METADATA_KEY, ModelSpec, Segmenter, build_model
from pipeline.models.soundness import check_kinds, check_tensors
from storage.errors import ModelError
from storage.files.publish import publish

IN_RUNS = ("student.safetensors", "model.safetensors")
"""The names of models in run folders."""
MOST_GROWTH, MOST_BESIDE = 4, 2**28
"""A network may be built with so many times the numbers of its file, and so many beside: 1 GiB of memory.

A cut network is built whole before it is reduced, and some stages of an encoder are in no file.
"""


def save_model(model: Segmenter, path: Path) -> None:
    """Write weights and description to one file, atomically. The same weights give the same bytes.

    Raises:
        ModelError: a weight is not finite, or a running variance is negative; nothing is written.
    """
    check_tensors(model.network.state_dict(), origin=f"{path} is not written")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.network.state_dict().items()}
    with publish(path) as partial:
        save_file(tensors, partial, metadata={METADATA_KEY: model.spec.to_json(_unused(model.network))})


def read_spec(path: Path) -> ModelSpec:
    """Read only a model file's description.

    Raises:
        ModelError: the file does not exist, is not safetensors, or holds no valid description.
    """
    metadata, _ = _header(path)
    if METADATA_KEY not in metadata:
        raise ModelError(
            f"{path} holds weights but no description; add it with dfss-import --builder NAME --weights {path}"
        )
    try:
        return ModelSpec.from_json(metadata[METADATA_KEY])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _header(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """The metadata of a safetensors file, and the shapes of its tensors. No tensor is read."""
    if not path.exists():
        raise ModelError(f"model file {path} does not exist; {_remedy(str(path))}")
    if not path.is_file():
        raise ModelError(f"{path} is not a regular file; give a model file")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (no dict)
            return dict(file.metadata() or {}), shapes
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a safetensors file ({error}); make one with dfss-import --builder NAME --weights {path}"
        ) from error


def _remedy(name: str) -> str:
    """What to give instead of a model file that does not exist."""
    builder = name.removeprefix("torchvision:")
    known = [*segmentation_names()]
    if builder in known:
        return f"for the official weights give torchvision:{builder}@DEFAULT"
    if guess := difflib.get_close_matches(builder, known, n=1, cutoff=0.85):
        return f"for official weights give torchvision:{guess[0]}@DEFAULT"
    return "make one with dfss-import or dfss-train"


def model_path(source: str | Path) -> Path:
    """The model file that is meant: the file itself, or the model in a run folder.

    Raises:
        ModelError: the folder holds no model.
    """
    path = Path(source)
    if not path.is_dir():
        return path
    for name in IN_RUNS:
        if (path / name).is_file() and (name == "student.safetensors" or not (path / "config.json").is_file()):
            return path / name
    if (path / "config.json").is_file():
        raise ModelError(f"{path} is a folder of save_pretrained; import it with dfss-import --weights {path}")
    raise ModelError(f"{path} is a folder that holds neither {' nor '.join(IN_RUNS)}; give a model file")


def load_model(source: str | Path, *, fetch: bool = True) -> Segmenter:
    """Load a model file, or official weights by name (``torchvision:deeplabv3_resnet50@DEFAULT``), in eval mode.

    Official weights come from torchvision's cache, and are fetched if ``fetch`` allows it.

    Raises:
        ModelError: the file is missing or damaged, its network is not trusted, or its weights do not fit.
    """
    if isinstance(source, str) and "@" in source and not Path(source).exists():
        return _load_official(source, fetch=fetch)
    path = model_path(source)
    spec = read_spec(path)
    _check_size(path, spec)
    model = build_model(spec)
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    load_weights(model.network, weights, origin=str(path))
    return model.eval()


def _check_size(path: Path, spec: ModelSpec) -> None:
    """Compare a file's tensors with the network that it describes before either takes memory.

    Raises:
        ModelError: names or shapes differ, or the network is much larger than the file.
    """
    network = outline(spec.builder, spec.built_classes, spec.arguments)
    if network is None:
        return
    whole = sum(tensor.numel() for tensor in network.state_dict().values())
    narrow(network, spec.kept)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    _, held = _header(path)
    # The outline has parts that never run, which no file holds. What else is missing is found with the weights.
    if shapes := _other_shapes(held, wanted):
        raise _misfit(str(path), [few(shapes)])
    numbers = sum(map(math.prod, held.values()))
    if whole > MOST_GROWTH * numbers + MOST_BESIDE:
        raise ModelError(
            f"{path} holds {numbers:,} numbers, but describes a network of {whole:,}; check builder and arguments"
        )


def _load_official(name: str, *, fetch: bool) -> Segmenter:
    builder, _, version = name.partition("@")
    official = official_weights(builder, version, fetch=fetch)
    spec = ModelSpec(
        builder=builder,
        num_classes=len(official.class_names),
        class_names=official.class_names,
        image_size=(official.resize, official.resize),
        mean=official.mean,
        std=official.std,
    )
    model = build_model(spec)
    load_weights(model.network, official.weights, origin=name)
    return model.eval()


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], *, origin: str) -> list[str]:
    """Load weights into a network; return the names of those that are not the network's and were left out.

    That are counters, stages that never run, and what belongs to none of the network's parts: an auxiliary head for
    training, a criterion.

    Raises:
        ModelError: names or shapes differ in any other way, a weight is not finite or not real, or
            a running variance is negative.
    """
    wanted = network.state_dict()
    parts = {name for name, _ in network.named_children()} | {name for name in wanted if "." not in name}
    unused = tuple(f"{name}." for name in _unused(network))
    foreign = sorted(weights.keys() - wanted.keys())
    unknown = [
        name
        for name in foreign
        if name.partition(".")[0] in parts and not name.startswith(unused) and not name.endswith(COUNTERS)
    ]
    # Old networks were saved without this counter, which inference does not use.
    missing = sorted(name for name in wanted.keys() - weights.keys() if not name.endswith(COUNTERS))
    shapes = _other_shapes(*({name: tuple(one.shape) for name, one in each.items()} for each in (weights, wanted)))
    problems = [f"missing {few(missing)}"] * bool(missing)
    problems += [f"unknown {few(unknown or foreign)}"] * bool(unknown or (missing and foreign))
    problems += [few(shapes)] * bool(shapes)
    if problems:
        raise _misfit(origin, problems)
    own = {name: tensor for name, tensor in weights.items() if name in wanted}
    check_kinds(own, wanted, origin=origin)
    check_tensors(own, origin=origin)
    network.load_state_dict(own, strict=False)
    return [name for name in foreign if not name.startswith(unused) and not name.endswith(COUNTERS)]


def _other_shapes(held: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [
        f"{name} is {held[name]}, not {wanted[name]}"
        for name in sorted(wanted.keys() & held.keys())
        if held[name] != wanted[name]
    ]


def _misfit(origin: str, problems: Sequence[str]) -> ModelError:
    return ModelError(f"{origin} does not fit the network: {'; '.join(problems)}; check builder, arguments and classes")


def _unused(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, Unused)]


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
