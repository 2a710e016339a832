"""ADS (Approximate Distribution Sampling) and its baselines: total orders, nested budgets, near-duplicates last."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pandas as pd
import pytest
import zarr
from numpy.typing import NDArray
from stages import score_folder, select_images

from pipeline.models.builders import TRUSTED_BUILDERS
from pipeline.scoring.run import score
from pipeline.selection.images import SelectedImages
from pipeline.selection.select import check_selection, default_path, first, make_selection, select
from pipeline.selection.strategies import ads_order
from pipeline.selection.weights import distance_weights
from pipeline.settings import ScoreSettings, SelectSettings
from storage.errors import SelectionError, SettingsError, StoreError
from storage.progress import Step
from storage.scores.equality import warn_of_equal_distances
from storage.scores.store import ScoreStore, open_complete, open_store
from storage.selection import read_selection


@pytest.fixture(scope="module")
def scored(scored_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores with entropy of 23 images, of which one cannot be read."""
    folder = tmp_path_factory.mktemp("selecting")
    shutil.copytree(scored_once / "images", folder / "images")
    (folder / "images" / "011.png").write_bytes(b"broken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRUSTED_BUILDERS, "tiny_models")
        out = str(folder / "scores.zarr")
        score_folder(folder / "images", scored_once / "teacher.safetensors", out=out, shard_size=8, entropy=True)
    return folder / "scores.zarr"


@pytest.fixture
def store(scored: Path, tmp_path: Path) -> ScoreStore:
    return open_complete(Path(shutil.copytree(scored, tmp_path / "scores.zarr")))


@pytest.mark.parametrize("strategy", ["ads", "nearest", "random", "confidence"])
def test_the_selection_for_a_budget_is_the_beginning_of_that_for_a_larger_one(strategy: str, store: ScoreStore) -> None:
    settings = SelectSettings(strategy=strategy)  # type: ignore[arg-type]
    everything = make_selection(store, dataclasses.replace(settings, budget=1.0)).table
    assert sorted(everything["row"]) == [row for row in range(23) if row != 11]
    for budget in (1, 7, 0.5):
        smaller = make_selection(store, dataclasses.replace(settings, budget=budget)).table
        columns = ["row", "key", "rank", "distance", "cell"]
        pd.testing.assert_frame_equal(smaller[columns], everything[columns].head(len(smaller)))


def test_nearest_and_confidence_sort_by_distance_and_entropy(store: ScoreStore) -> None:
    nearest = make_selection(store, SelectSettings(strategy="nearest", budget=1.0)).table
    assert nearest["distance"].is_monotonic_increasing
    confident = make_selection(store, SelectSettings(strategy="confidence", budget=1.0)).table
    assert (np.diff(store.column("entropy")[confident["row"]]) >= 0).all()


def test_all_takes_everything_whatever_the_budget(store: ScoreStore) -> None:
    assert len(make_selection(store, SelectSettings(strategy="all", budget=3))) == 22


def test_random_depends_on_the_seed_alone(store: ScoreStore) -> None:
    rows = [
        list(make_selection(store, SelectSettings(strategy="random", seed=seed)).table["row"]) for seed in (0, 0, 1)
    ]
    assert rows[0] == rows[1] != rows[2]


def test_the_file_names_rows_by_key_and_carries_the_papers_weight(store: ScoreStore) -> None:
    path = select(SelectSettings(budget=10)).path
    table = read_selection(path).table
    assert list(table["key"]) == [f"{row:03}.png" for row in table["row"]]
    near, far = table["distance"].min(), table["distance"].max()
    np.testing.assert_allclose(table["weight"], (far - table["distance"]) / (far - near), rtol=1e-5, atol=1e-7)


def test_without_entropy_confidence_says_how_to_get_it(store: ScoreStore) -> None:
    del zarr.open_group(store.path, mode="r+")["entropy"]
    with pytest.raises(StoreError, match="no 'entropy'"):
        make_selection(open_complete(store.path), SelectSettings(strategy="confidence"))


def test_a_budget_above_what_was_scored_is_refused(store: ScoreStore) -> None:
    with pytest.raises(SettingsError, match="budget 23 is more than the 22 images"):
        make_selection(store, SelectSettings(budget=23))


def test_a_store_in_which_nothing_could_be_scored_has_nothing_to_select(teacher_file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no")
    settings = ScoreSettings(corpus=str(tmp_path / "bad"), teacher=str(teacher_file), device="cpu")
    score(settings)
    with pytest.raises(SelectionError, match="no image"):
        make_selection(open_complete(Path(settings.out)), SelectSettings())


def test_a_part_of_a_selection_is_the_selection_for_that_budget(store: ScoreStore) -> None:
    whole = make_selection(store, SelectSettings(budget=1.0))
    part = first(whole, 7)
    pd.testing.assert_frame_equal(part.table, make_selection(store, SelectSettings(budget=7)).table, check_dtype=False)
    assert part.about["budget"] == 7


def clusters() -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float16]]:
    """40 images in a near, crowded cell; 20 a little farther in four others."""
    rng = np.random.default_rng(0)
    cell = np.repeat([0, 1, 2, 3, 4], [40, 5, 5, 5, 5]).astype(np.int32)
    distance = np.where(cell == 0, rng.uniform(0.5, 0.6, 60), rng.uniform(0.6, 0.7, 60)).astype(np.float32)
    vectors = rng.standard_normal((60, 32))
    return distance, cell, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def test_diversity_takes_from_more_cells_than_closeness_alone() -> None:
    distance, cell, embedding = clusters()
    assert len(set(cell[ads_order(distance, cell, embedding, diversity=0, duplicate=1.0)[:30]])) == 1
    assert len(set(cell[ads_order(distance, cell, embedding, diversity=0.5, duplicate=1.0)[:30]])) == 5


def test_within_a_cell_closer_images_come_first() -> None:
    distance, cell, embedding = clusters()
    order = ads_order(distance, cell, embedding, diversity=0.5, duplicate=1.0)
    for one in range(5):
        members = order[cell[order] == one]
        assert (np.diff(distance[members]) >= 0).all()


def test_the_cost_is_the_documented_formula() -> None:
    distance, cell, embedding = clusters()
    spread = np.quantile(distance, 0.5) - np.quantile(distance, 0.05)
    cost = [
        distance[i] + 0.3 * spread * np.log2(1 + ((cell == cell[i]) & (distance < distance[i])).sum())
        for i in range(60)
    ]
    order = ads_order(distance, cell, embedding, diversity=0.3, duplicate=1.0)
    np.testing.assert_array_equal(order, np.argsort(cost, kind="stable"))


def test_near_duplicates_fall_behind_everything_else() -> None:
    distance, cell, embedding = clusters()
    embedding[3] = embedding[int(np.argmin(distance[:40]))]  # a copy of the closest image
    order = ads_order(distance, cell, embedding, diversity=0.1, duplicate=0.99)
    copies = {3, int(np.argmin(distance[:40]))}
    first, last = (int(i) for i in order if int(i) in copies)
    assert order[0] == first
    assert order[-1] == last
    assert sorted(order) == list(range(60))


@pytest.mark.parametrize("normalization", ["minmax", "robust"])
def test_weights_fall_from_1_to_0_with_distance(normalization: str) -> None:
    distance = np.random.default_rng(0).gamma(3, 1, 200).astype(np.float32)
    weights = distance_weights(distance, normalization)  # type: ignore[arg-type]
    assert weights[distance.argmin()] == 1
    assert weights[distance.argmax()] == 0
    assert (np.diff(weights[np.argsort(distance)]) <= 0).all()


def test_robust_weights_do_not_flatten_for_one_extreme_image() -> None:
    distance = np.append(np.linspace(1, 2, 99), 1000).astype(np.float32)
    assert distance_weights(distance, "minmax")[:99].std() < 0.001
    assert distance_weights(distance, "robust")[:99].std() > 0.2


def test_equal_distances_weigh_the_same() -> None:
    for normalization in ("minmax", "robust"):
        np.testing.assert_array_equal(distance_weights(np.full(5, 2, np.float32), normalization), 1)  # type: ignore[arg-type]


def brute_force_order(
    distance: NDArray[Any], cell: NDArray[Any], embedding: NDArray[Any], diversity: float, duplicate: float
) -> list[int]:
    """ADS one image after the other, in double precision."""
    distance, embedding = distance.astype(np.float64), embedding.astype(np.float64)
    nearest = sorted(range(len(distance)), key=lambda i: (distance[i], i))
    kept: list[int] = []
    ordered = np.sort(distance)
    grid = np.arange(len(ordered))
    low, middle = (np.interp(share * (len(ordered) - 1), grid, ordered) for share in (0.05, 0.5))
    cost = distance.copy()
    for i in nearest:
        of_its_cell = [j for j in kept if cell[j] == cell[i]]
        if any(embedding[i] @ embedding[j] >= duplicate for j in of_its_cell):
            continue
        cost[i] = distance[i] + diversity * (middle - low) * math.log(1 + len(of_its_cell), 2)
        kept.append(i)
    return sorted(range(len(distance)), key=lambda i: (i not in kept, cost[i], i))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("diversity", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("duplicate", [0.7, 0.9, 1.0])
def test_ads_is_the_order_of_a_brute_force_search(seed: int, diversity: float, duplicate: float) -> None:
    rng = np.random.default_rng(seed)
    cell = rng.integers(0, 6, 150).astype(np.int32)
    distance = (0.5 + rng.gamma(2, 0.2, 150)).astype(np.float32)
    vectors = rng.standard_normal((6, 12))[cell] + rng.normal(0, 0.5, (150, 12))  # A like B like C, A not like C
    embedding = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    expected = brute_force_order(distance, cell, embedding, diversity, duplicate)
    if duplicate < 1:
        plain = brute_force_order(distance, cell, embedding, diversity, 2.0)
        assert plain != expected
    found = ads_order(distance, cell, embedding, diversity=diversity, duplicate=duplicate)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("diversity", "duplicate"), [(0.1, 0.995), (3.0, 0.995), (0.1, 0.3), (0.0, 0.6)])
def test_a_selection_of_a_store_is_ads_with_the_settings_given(
    diversity: float, duplicate: float, store: ScoreStore
) -> None:
    cells = np.arange(23, dtype=np.int32) // 6  # so few images are all in one cell, where diversity changes nothing
    zarr.open_group(store.path, mode="r+")["diversity/cell"][:] = cells  # type: ignore[index]
    store = open_complete(store.path)
    rows = np.array([row for row in range(23) if row != 11])
    distance, cell, embedding = (store.column(name)[rows] for name in ("distance", "diversity/cell", "embedding"))
    expected = rows[brute_force_order(distance, cell, embedding, diversity, duplicate)]
    default = rows[brute_force_order(distance, cell, embedding, 0.1, 0.995)]
    assert (list(expected) == list(default)) is ((diversity, duplicate) == (0.1, 0.995))
    table = select_images(store, budget=1.0, diversity=diversity, duplicate=duplicate).table
    assert list(table["row"]) == list(expected)
    assert list(table["distance"]) == list(store.column("distance")[expected])
    assert list(table["cell"]) == list(store.column("diversity/cell")[expected])


@pytest.mark.parametrize("strategy", ["nearest", "confidence", "random"])
def test_a_baseline_is_what_its_name_says_row_by_row(strategy: str, store: ScoreStore) -> None:
    rows = [row for row in range(23) if row != 11]
    table = select_images(store, budget=1.0, strategy=strategy, seed=4).table
    if strategy == "random":
        assert sorted(table["row"]) == rows
        assert abs(np.corrcoef(np.arange(22), table["row"])[0, 1]) < 0.5
        assert list(table["row"]) != list(select_images(store, budget=1.0, strategy=strategy, seed=5).table["row"])
        return
    measured = store.column("distance" if strategy == "nearest" else "entropy")
    assert list(table["row"]) == sorted(rows, key=lambda row: measured[row])


@pytest.mark.parametrize(
    ("budget", "count"), [(0.12, 3), (0.1, 2), (0.34, 7), (0.98, 22), (0.001, 1), (1.0, 22), (1, 1), (22, 22)]
)
def test_a_fraction_is_the_nearest_number_of_images_and_at_least_one(
    budget: float, count: int, store: ScoreStore
) -> None:
    assert len(select_images(store, budget=budget)) == count  # of 22: 2.64, 2.2, 7.48, 21.56, 0.022


@pytest.mark.parametrize("strategy", ["ads", "random"])
def test_weights_are_over_the_selection_alone(strategy: str, store: ScoreStore) -> None:
    table = select_images(store, budget=9, strategy=strategy).table
    weights = oracles.start_weights(table["distance"].to_numpy(np.float32), "minmax")
    np.testing.assert_allclose(table["weight"], weights, atol=1e-6)
    assert (weights.min(), weights.max()) == (0, 1)


@pytest.mark.parametrize("normalization", ["minmax", "robust"])
@pytest.mark.parametrize("count", [7, 40, 333])
def test_weights_are_numpys(normalization: Any, count: int) -> None:
    distance = np.random.default_rng(count).gamma(2, 1, count).astype(np.float32)
    expected = oracles.start_weights(distance, normalization)
    found = distance_weights(distance, normalization)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert found.min() == 0
    assert found.max() == 1


def changed(store: ScoreStore, out: Path, *, distance: bool = False, **attributes: Any) -> ScoreStore:
    """A copy of a store that differs from it."""
    shutil.copytree(store.path, out)
    group = zarr.open_group(out, mode="r+")
    if distance:
        values = np.asarray(group["distance"])
        values[5] = np.nextafter(values[5], np.float32(9))
        group["distance"][:] = values  # type: ignore[index]
    group.attrs.update(attributes)
    return open_complete(out)


def test_a_selection_is_of_the_distances_that_it_was_made_from(store: ScoreStore) -> None:
    selection = select_images(store, budget=5)
    check_selection(store, selection)
    other = changed(store, Path("other.zarr"), distance=True)
    with pytest.raises(SelectionError, match=r"made from other scores than those in other.zarr"):
        check_selection(other, selection)


def other_than(name: str, value: Any) -> Any:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case dict():
            return {**value, "root": "elsewhere"}
        case list():
            return [*value, "x"]
    return 5 if name == "limit" else "x"


def test_a_selection_is_of_every_setting_of_its_scores_and_not_of_where_things_lie(store: ScoreStore) -> None:
    selection = select_images(store, budget=5)
    places = {"corpus", "sources", "teacher_path", "complete"}
    assert places < set(store.attributes)
    for number, name in enumerate(sorted(set(store.attributes) - {"complete", "schema_version", "manifest"})):
        copy = changed(store, Path(f"{number}.zarr"), **{name: other_than(name, store.attributes[name])})
        if name in places:
            check_selection(copy, selection)
        else:
            with pytest.raises(SelectionError, match="made from other scores"):
                check_selection(copy, selection)


@pytest.mark.parametrize(
    ("shards", "expected"), [("scores.zarr", "scores.zarr"), ("deep/a.zarr", "deep/a.zarr"), ("a", "a")]
)
def test_a_store_has_a_selection_of_its_own_beside_it(shards: str, expected: str) -> None:
    assert default_path(Path(shards)) == Path(f"{expected}.selection.parquet")


def test_the_store_may_be_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zarr" / "c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a.zarr")
    assert default_path(Path()) == tmp_path / "a.zarr.selection.parquet"
    monkeypatch.chdir("c")
    assert default_path(Path("..")) == tmp_path / "a.zarr.selection.parquet"


def test_making_a_selection_reports_its_images(store: ScoreStore) -> None:
    steps: list[Step] = []
    select(SelectSettings(budget=10), steps.append)
    assert steps == [Step(done=10, total=10)]


def test_a_selection_is_of_its_scores_in_whatever_order_settings_are_kept_and_while_more_is_done(
    store: ScoreStore,
) -> None:
    selection = select_images(store, budget=5)
    held = json.loads((store.path / "zarr.json").read_text())
    turned = dict(reversed(held["attributes"].items()))
    assert list(turned) != list(held["attributes"])
    (store.path / "zarr.json").write_text(json.dumps(held | {"attributes": turned}))
    check_selection(open_complete(store.path), selection)
    open_store(store.path, writable=True).set_complete(False)  # as a retry of unreadable images does
    check_selection(open_store(store.path), selection)


@pytest.mark.parametrize(("distances", "said"), [([5.0, 5.0, 5.004], True), ([5.0, 5.0, 5.02], False), ([5.0], False)])
def test_distances_that_are_all_but_equal_are_said(
    distances: list[float], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_equal_distances(np.array(distances, dtype=np.float32), where="s.zarr")
    assert [message.partition(",")[0] for message in caplog.messages] == (
        ["the distances of all 3 images in s.zarr are equal (5.004)"] if said else []
    )


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("row", -1, "row -1, but"),
        ("row", 23, "row 23, but"),
        ("row", 11, "image without a score"),
        ("key", "other", "another key than"),
        ("distance", 0.5, "another distance than"),
    ],
)
def test_a_selection_that_contradicts_its_store_is_refused(
    column: str, value: Any, message: str, store: ScoreStore
) -> None:
    selection = select_images(store, budget=5)
    selection.table.loc[2, column] = value
    with pytest.raises(SelectionError, match=message):
        check_selection(store, selection)


@pytest.mark.parametrize("root", ["http://127.0.0.1:9/x", "reference://::scores.zarr/refs.json", "memory://x"])
def test_the_images_of_a_store_are_not_fetched_from_an_address_in_it(
    root: str, store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda *_, **__: pytest.fail("an address was opened"))
    selection = select_images(store, budget=5)
    other = changed(store, Path("sent.zarr"), corpus={**store.attributes["corpus"], "root": root})
    with pytest.raises(StoreError, match="give their place with --root"):
        SelectedImages(other, selection, decode=len)
