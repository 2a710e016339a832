"""Making a model file from a state dict that comes from elsewhere. Nothing is unpickled."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.models.builders import resolve_builder
from pipeline.models.files import load_weights, save_model
from pipeline.models.hooks import probe
from pipeline.models.segmenter import ModelSpec, build_model
from pipeline.models.soundness import warn_of_statistics
from pipeline.settings import ImportSettings
from storage.errors import ModelError, SettingsError
from storage.progress import Progress, Step, ignore

# The keys under which training frameworks keep a state dict in a checkpoint, and the prefixes of its names.
NESTED_KEYS = ("state_dict", "model_state_dict", "model_state", "model")
PREFIXES = ("module.", "_orig_mod.", "model.", "network.")


def import_weights(settings: ImportSettings, progress: Progress = ignore) -> ModelSpec:
    """Read weights, check that they fit the builder, try one image, and write the model file.

    Raises:
        ModelError: the weights cannot be read safely, or do not fit.
        SettingsError: the options contradict each other, or the file already exists.
    """
    out = Path(settings.out)
    if out.exists() and not settings.overwrite:
        raise SettingsError(f"{out} already exists; give --overwrite or another --out")
    spec = _spec(settings)
    weights = read_state_dict(Path(settings.weights))
    model = build_model(spec)
    load_weights(model.network, strip_prefix(weights, set(model.network.state_dict())), origin=settings.weights)
    probe(model)
    warn_of_statistics(model.network, origin=settings.weights)
    save_model(model, out)
    progress(Step(done=1, total=1))
    return spec


def _spec(settings: ImportSettings) -> ModelSpec:
    if settings.class_names:
        names = settings.class_names
    elif settings.num_classes:
        names = tuple(f"class {index}" for index in range(settings.num_classes))
    else:
        raise SettingsError("num_classes is missing; give --num-classes or --class-names", field="num_classes")
    return ModelSpec(
        builder=resolve_builder(settings.builder),
        arguments=dict(settings.arguments),
        num_classes=settings.num_classes or len(names),
        class_names=names,
        image_size=settings.image_size,
        mean=settings.mean,
        std=settings.std,
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read tensors from .safetensors, or from a torch file with ``weights_only``.

    Raises:
        ModelError: the file does not exist, needs unpickling, or holds no state dict.
    """
    if not path.is_file():
        raise ModelError(f"weights file {path} does not exist; give another --weights")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors, and reading it would run code; save its state_dict() alone"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ModelError(
            f"{path} cannot be read as weights ({' '.join(str(error).split())[:200]}); save model.state_dict()"
        ) from error
    return _find_state_dict(content, path)


def _find_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for key in NESTED_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{path} holds a {type(content).__name__}, not a state dict; save model.state_dict()")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(
            f"{path} holds no tensors under {', '.join(map(str, list(content)[:3]))}; save model.state_dict()"
        )
    return tensors


def strip_prefix(weights: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Remove the prefix that DataParallel, torch.compile or a trainer put before every name, if the names then fit."""
    names = dict(weights)
    for _ in PREFIXES:
        for prefix in PREFIXES:
            if names and all(name.startswith(prefix) for name in names) and not names.keys() & wanted:
                names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names
