"""Evaluation of model files: what ``dfss-eval`` does."""

from pathlib import Path

from distill.evaluation import Evaluation, evaluate
from distill.labelled import check_classes, open_labelled
from distill.runs import write_json
from distill.settings import EvalSettings
from pipeline.devices import pick_device
from pipeline.models import load_model


def judge(settings: EvalSettings) -> dict[str, Evaluation]:
    """Evaluate each model in turn: name (or the file as given) -> figures. Writes them as JSON too, where asked.

    One model's JSON is its figures; that of several maps each name to its figures.

    Raises:
        DataError: the data is malformed, or has other classes than a model.
        ModelError: a model cannot be loaded.
    """
    data = open_labelled(settings.data)
    device = pick_device(settings.device)
    results = {}
    for name, path in map(named, settings.model):
        model = load_model(path).to(device)
        check_classes(data, model.spec.num_classes, model=path)
        results[name] = evaluate(model, data, batch_size=settings.batch_size)
    if settings.json:
        figures = {name: result.to_json() for name, result in results.items()}
        write_json(Path(settings.json), figures if len(figures) > 1 else next(iter(figures.values())))
    return results


def named(model: str) -> tuple[str, str]:
    """``name=file`` -> (name, file); a file alone is its own name."""
    name, separator, path = model.partition("=")
    return (model, model) if not separator or Path(model).exists() else (name, path)
