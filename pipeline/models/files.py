"""Model files: safetensors weights whose header says how to rebuild the network (docs/artifacts.md).

Teacher and student are the same kind of file. The header's metadata key ``dfss`` holds a ModelSpec as JSON.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.models.builders import Unused, segmentation_names
from pipeline.models.checkpoints import COUNTERS
from pipeline.models.official import official_weights
from pipeline.models.segmenter import METADATA_KEY, ModelSpec, Segmenter, build_model
from pipeline.models.soundness import check_tensors
from storage.errors import ModelError
from storage.files.publish import publish

IN_RUNS = ("student.safetensors", "model.safetensors")
"""The names of models in run folders."""


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
    if not path.exists():
        raise ModelError(f"model file {path} does not exist; {_remedy(str(path))}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a safetensors file ({error}); make one with dfss-import --builder NAME --weights {path}"
        ) from error
    if METADATA_KEY not in metadata:
        raise ModelError(
            f"{path} holds weights but no description; add it with dfss-import --builder NAME --weights {path}"
        )
    try:
        return ModelSpec.from_json(metadata[METADATA_KEY])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


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


def load_model(source: str | Path) -> Segmenter:
    """Load a model file, or official weights by name (``torchvision:deeplabv3_resnet50@DEFAULT``), in eval mode.

    Raises:
        ModelError: the file is missing or damaged, its network is not trusted, or its weights do not fit.
    """
    if isinstance(source, str) and "@" in source and not Path(source).exists():
        return _load_official(source)
    path = model_path(source)
    model = build_model(read_spec(path))
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    load_weights(model.network, weights, origin=str(path))
    return model.eval()


def _load_official(name: str) -> Segmenter:
    builder, _, version = name.partition("@")
    official = official_weights(builder, version)
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
        ModelError: names or shapes differ in any other way, a weight is not finite, or a running variance is negative.
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
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    problems = [f"missing {few(missing)}"] * bool(missing)
    problems += [f"unknown {few(unknown or foreign)}"] * bool(unknown or (missing and foreign))
    problems += [few(shapes)] * bool(shapes)
    if problems:
        raise ModelError(
            f"{origin} does not fit the network: {'; '.join(problems)}; check builder, arguments and classes"
        )
    own = {name: tensor for name, tensor in weights.items() if name in wanted}
    check_tensors(own, origin=origin)
    network.load_state_dict(own, strict=False)
    return [name for name in foreign if not name.startswith(unused) and not name.endswith(COUNTERS)]


def _unused(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, Unused)]


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
