"""Model files: safetensors weights whose header says how to rebuild the network (docs/artifacts.md).

Teacher and student are the same kind of file. The header's metadata key ``dfss`` holds a ModelSpec as JSON.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.models.builders import Unused
from pipeline.models.official import official_weights
from pipeline.models.segmenter import METADATA_KEY, ModelSpec, Segmenter, build_model
from pipeline.models.soundness import check_tensors
from storage.errors import ModelError
from storage.files.publish import publish


def save_model(model: Segmenter, path: Path) -> None:
    """Write weights and description to one file, atomically. The same weights give the same bytes.

    Raises:
        ModelError: a weight is not finite, or a running variance is negative; nothing is written.
    """
    check_tensors(model.network.state_dict(), origin=f"{path} is not written")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.network.state_dict().items()}
    with publish(path) as partial:
        save_file(tensors, partial, metadata={METADATA_KEY: model.spec.to_json()})


def read_spec(path: Path) -> ModelSpec:
    """Read only a model file's description.

    Raises:
        ModelError: the file does not exist, is not safetensors, or holds no valid description.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise ModelError(f"model file {path} does not exist; make one with dfss-import or dfss-train") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a safetensors file ({error}); make one with dfss-import") from error
    if METADATA_KEY not in metadata:
        raise ModelError(f"{path} holds weights but no description; run dfss-import --weights {path} to add it")
    try:
        return ModelSpec.from_json(metadata[METADATA_KEY])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def load_model(source: str | Path) -> Segmenter:
    """Load a model file, or official weights by name (``torchvision:deeplabv3_resnet50@DEFAULT``), in eval mode.

    Raises:
        ModelError: the file is missing or damaged, its network is not trusted, or its weights do not fit.
    """
    if isinstance(source, str) and "@" in source and not Path(source).exists():
        return _load_official(source)
    path = Path(source)
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


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], *, origin: str) -> None:
    """Load weights into a network. An auxiliary head for training and stages that never run are left out.

    Raises:
        ModelError: names or shapes differ in any other way, a weight is not finite, or a running variance is negative.
    """
    wanted = network.state_dict()
    left_out = [
        "aux_classifier.",
        *(f"{name}." for name, module in network.named_modules() if isinstance(module, Unused)),
    ]
    unused = {name for name in weights if name.startswith(tuple(left_out)) and name not in wanted}
    weights = {name: tensor for name, tensor in weights.items() if name not in unused}
    # Old networks were saved without this counter, which inference does not use.
    missing = sorted(name for name in wanted.keys() - weights.keys() if not name.endswith("num_batches_tracked"))
    unknown = sorted(weights.keys() - wanted.keys())
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    problems = [f"missing {_few(missing)}"] * bool(missing) + [f"unknown {_few(unknown)}"] * bool(unknown)
    problems += [_few(shapes)] * bool(shapes)
    if problems:
        raise ModelError(
            f"{origin} does not fit the network: {'; '.join(problems)}; check builder, arguments and classes"
        )
    check_tensors(weights, origin=origin)
    network.load_state_dict(weights, strict=False)


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
