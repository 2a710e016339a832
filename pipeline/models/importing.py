"""Making a model file from weights that come from elsewhere. No code of theirs is run."""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.models.arguments import RESERVED
from pipeline.models.builders import build_network, resolve_builder
from pipeline.models.checkpoints import choose_set, fitting_sets, read_checkpoint
from pipeline.models.files import few, load_weights, save_model
from pipeline.models.hooks import adapt, on_outputs
from pipeline.models.merging import Members, arrange
from pipeline.models.segmenter import KEYS, ModelSpec, Segmenter, as_logits, build_model, default_output, maps_in
from pipeline.models.soundness import check_not_probabilities, warn_of_statistics
from pipeline.settings import ImportSettings
from storage.errors import ModelError, SettingsError
from storage.progress import Progress, Step, ignore

logger = logging.getLogger(__name__)
TRIALS = (8, 9)
"""Numbers of classes of two networks, of which those tensors differ that have one row for each class."""
Found = Mapping[str, Mapping[str, Tensor]]
"""The tensors of a file by the keys under which they lie."""


def import_weights(settings: ImportSettings, progress: Progress = ignore) -> ModelSpec:
    """Read weights, check that they fit the builder, try one image, and write the model file.

    What was chosen or left out is logged.

    Raises:
        ModelError: the weights cannot be read safely, or do not fit.
        SettingsError: the options contradict each other, or the file already exists.
    """
    out = Path(settings.out)
    if out.exists() and not settings.overwrite:
        raise SettingsError(f"{out} already exists; give --overwrite or another --out")
    source = _source(settings)
    found = read_checkpoint(source.weights)
    spec = _spec(settings, source, _classes(settings, source, found))
    model = build_model(spec)
    _load(model, settings, source, found)
    adapt(model, grey=settings.channels is None)
    _tell(model)
    warn_of_statistics(model.network, origin=settings.weights)
    save_model(model, out)
    progress(Step(done=1, total=1))
    return model.spec


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where the weights are, and the network that they are for."""

    weights: Path
    builder: str
    arguments: dict[str, Any]


def _source(settings: ImportSettings) -> Source:
    """The weights and the network in the settings, or in a folder that smp's save_pretrained wrote."""
    path = Path(settings.weights)
    described = path.is_dir() and (path / "config.json").is_file()
    told = _pretrained(path) if described else None
    if told is None and path.is_dir():
        raise ModelError(f"{path} is a folder without config.json; give a file of weights")
    if settings.builder is None and told is None:
        raise SettingsError(
            "builder is missing; name the network of the weights, for example --builder Unet/resnet18", field="builder"
        )
    builder = resolve_builder(settings.builder) if settings.builder else ""
    if told is None:
        return Source(path, builder, dict(settings.arguments))
    return Source(told.weights, builder or told.builder, {**told.arguments, **settings.arguments})


def _pretrained(folder: Path) -> Source:
    """What a folder of segmentation-models-pytorch says of its network."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        architecture, encoder = config.pop("_model_class"), config.pop("encoder_name")
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{folder / 'config.json'} is not that of segmentation-models-pytorch ({error}); give --builder and a file"
        ) from error
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not files:
        raise ModelError(f"{folder} holds no model.safetensors; give a file of weights")
    # An activation would make probabilities of the logits.
    left_out = RESERVED | {"activation", *(name for name, value in config.items() if value is None)}
    return Source(files[0], f"smp:{architecture}/{encoder}", {k: v for k, v in config.items() if k not in left_out})


def _classes(settings: ImportSettings, source: Source, found: Found) -> int:
    """The number of classes of the network: that of the settings, else that of the weights."""
    if settings.num_classes:
        return settings.num_classes
    if count := class_count(source, found):
        return count
    _refuse_misfit(source, found)
    if settings.class_names:
        return len(settings.class_names)
    raise SettingsError(
        "num_classes is missing, and the weights do not say it; give --num-classes or --class-names",
        field="num_classes",
    )


def class_count(source: Source, found: Found) -> int | None:
    """The number of classes that weights are for, or None if they do not say.

    Two networks are built that differ in nothing else. The tensors that differ in size have one row for each class.

    Raises:
        ModelError: the network cannot be built.
    """
    small, large = (build_network(source.builder, trial, source.arguments).state_dict() for trial in TRIALS)
    best = fitting_sets(found, set(small))
    counts: Counter[int] = Counter()
    for name, tensor in (best[0].weights if best else {}).items():
        if name not in small or name not in large or tensor.ndim != small[name].ndim:
            continue
        for size, one, other in zip(tensor.shape, small[name].shape, large[name].shape, strict=True):
            if (one, other) == TRIALS:
                counts[size] += 1
    return counts.most_common(1)[0][0] if counts else None


def _refuse_misfit(source: Source, found: Found) -> None:
    """Refuse weights that lack tensors of the network, whatever its number of classes."""
    network = build_network(source.builder, TRIALS[0], source.arguments)
    sets = fitting_sets(found, set(network.state_dict()))
    if not sets or sets[0].missing:
        load_weights(network, sets[0].weights if sets else {}, origin=str(source.weights))


def _spec(settings: ImportSettings, source: Source, count: int) -> ModelSpec:
    if max(settings.mean) > 1:
        raise SettingsError(
            f"mean is {settings.mean}, but pixels are in [0, 1]; divide mean and std by 255", field="mean"
        )
    if count == 1:
        if settings.merge or settings.drop_class:
            raise SettingsError("merge and drop_class need a network of several classes, not one", field="merge")
        names: tuple[str, ...] = settings.class_names or ("background", "foreground")
        members: Members = ()
    else:
        names, members = arrange(count, settings.class_names, settings.merge, settings.drop_class or ())
    return ModelSpec(
        builder=source.builder,
        arguments=source.arguments,
        num_classes=len(names),
        class_names=tuple(names),
        image_size=settings.image_size,
        mean=settings.mean,
        std=settings.std,
        channels=settings.channels or "rgb",
        factor=settings.factor,
        output=settings.output or "",
        network_classes=count if count != len(names) else 0,
        members=members,
    )


def _load(model: Segmenter, settings: ImportSettings, source: Source, found: Found) -> None:
    """Load the weights into the model; log which, and what was left out."""
    sets = fitting_sets(found, set(model.network.state_dict()))
    chosen = choose_set(sets, settings.key, origin=str(source.weights))
    try:
        foreign = load_weights(model.network, chosen.weights, origin=str(source.weights))
    except ModelError:
        _refuse_count(settings, source, found)
        raise
    if len(sets) > 1:
        names = " or ".join(one.name for one in sets if one is not chosen)
        logger.info("took the weights %s; --key %s takes others of the file", chosen.name or "at the top", names)
    others = frozenset[str]().union(*(one.taken for one in sets if one.where == chosen.where))
    left_out = [*foreign, *sorted(chosen.beside - others)]
    if left_out:
        logger.info("left out %s, which the network does not have", few(left_out))


def _refuse_count(settings: ImportSettings, source: Source, found: Found) -> None:
    count = None
    with suppress(ModelError):  # the error of the weights says more
        count = class_count(source, found)
    if settings.num_classes and count not in (None, settings.num_classes):
        raise SettingsError(
            f"num_classes is {settings.num_classes}, but the weights have {count}; leave it out", field="num_classes"
        )


def _tell(model: Segmenter) -> None:
    """Log what a test pass of a model shows that the user should know.

    Raises:
        ModelError: the network gives probabilities.
    """
    spec = model.spec
    height, width = spec.image_size
    outputs: list[Any] = []
    with on_outputs(model.network, outputs.append), torch.inference_mode():
        model.eval()(torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(model.device))
    check_not_probabilities(as_logits(outputs[0], spec.output), origin=spec.builder, bounded=True)
    maps = maps_in(outputs[0])
    taken = spec.output or default_output(outputs[0])
    if len(maps) > 1 and taken not in KEYS:
        listed = ", ".join(f"{name} {list(value.shape[1:])}" for name, value in maps.items())
        logger.info("took output %s of the network's, which are %s; --output takes another", taken, listed)
    if spec.built_classes == 1:
        names = " and ".join(spec.class_names)
        logger.info("the network has one logit z, for a sigmoid; the logits of %s are 0 and z", names)
    if spec.channels == "grey":
        logger.info("the network reads one channel, the luma of the image")
    if model.padded((height, width)) != (height, width):
        padded = "{}x{}".format(*model.padded((height, width)))
        logger.info("images are padded to %s, because the network needs multiples of %d", padded, spec.multiple)
