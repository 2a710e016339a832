"""The small world: what it writes, and that its labels lie on what they name."""

import csv
import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import load_recipe
from PIL import Image

from storage.errors import SettingsError

world = load_recipe("world", "world")
others = load_recipe("world", "others")
streets = load_recipe("world", "streets")
styles = load_recipe("world", "styles")
view = load_recipe("world", "view")

TINY = {"height": 32, "width": 48, "private": 2, "validation": 1, "wild": 13}


def draw(out: Path, **settings: object) -> Path:
    world.make_world(world.World(out=str(out), **{**TINY, **settings}))
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("drawn") / "world")


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    """Twelve private scenes: picture and labels."""
    return [
        streets.render_street(np.random.default_rng([0, 0, index]), style=styles.CITY, height=96, width=128)
        for index in range(12)
    ]


def test_the_same_settings_give_the_same_bytes_whole_or_part_by_part(drawn: Path, tmp_path: Path) -> None:
    for part in ("wild", "private", "val"):
        draw(tmp_path / "parts", part=part)
    assert files(tmp_path / "parts") == files(drawn)


def test_another_seed_gives_other_images(drawn: Path, tmp_path: Path) -> None:
    first, second = files(drawn), files(draw(tmp_path / "other", seed=1))
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first if not name.endswith("classes.txt"))


def test_a_world_holds_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "SHARD", 5)
    out = draw(tmp_path / "world")
    lines = "0 sky\n1 building\n2 road\n3 pavement\n4 tree\n5 car\n6 person\n7 pole\n"
    for split, count in (("private", 2), ("val", 1)):
        assert (out / split / "classes.txt").read_text() == lines
        for part, ending, mode in (("images", "jpg", "RGB"), ("labels", "png", "L")):
            pictures = {path.name: Image.open(io.BytesIO(path.read_bytes())) for path in (out / split / part).iterdir()}
            assert sorted(pictures) == [f"{index:06d}.{ending}" for index in range(count)]
            assert {(picture.size, picture.mode) for picture in pictures.values()} == {((48, 32), mode)}
    wild: dict[str, Image.Image] = {}
    for shard in range(3):
        with tarfile.open(out / "wild" / f"wild-{shard:06d}.tar") as tar:
            wild |= {member.name: Image.open(io.BytesIO(tar.extractfile(member).read())) for member in tar}
    assert {(picture.size, picture.mode) for picture in wild.values()} == {((48, 32), "RGB")}
    with (out / "wild-sources.csv").open(newline="") as table:
        sources = {row["key"]: row["source"] for row in csv.DictReader(table)}
    assert list(sources) == list(wild) == [f"{index:06d}.jpg" for index in range(13)]
    assert set(sources.values()) == {"street", *others.OTHERS}


def test_labels_are_classes_or_void_and_every_class_shows(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    labels = np.stack([label for _, label in scenes])
    assert set(np.unique(labels)) - {255} == set(range(8))
    assert (labels == 255).mean() < 0.02


def test_labels_lie_on_the_things_they_name(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    # Where the class changes the picture has edges: a shifted label finds fewer of them.
    def edges_under(shift: int) -> float:
        total = 0.0
        for picture, label in scenes:
            gradient = np.abs(np.diff(picture.astype(np.float64).mean(axis=2), axis=1))
            border = np.diff(label.astype(int), axis=1) != 0
            total += gradient[:, 8:-8][np.roll(border, shift, axis=1)[:, 8:-8]].mean()
        return total

    assert max(range(-6, 7), key=edges_under) == 0


def test_a_point_of_the_ground_is_drawn_where_a_pinhole_camera_sees_it() -> None:
    seen = view.View(np.random.default_rng(4), styles.CITY, 96, 128, 0.3)
    square = np.array([(-0.4, 8.0), (0.4, 8.0), (0.4, 8.8), (-0.4, 8.8)])
    seen.ground(square, (9, 9, 9), view.ROAD)
    rows, columns = np.nonzero(np.asarray(seen.label) == view.ROAD)
    right, up, forward = seen.axes @ (np.array([0.0, 0.0, 8.4]) - seen.position)
    assert seen.axes @ seen.axes.T == pytest.approx(np.eye(3), abs=1e-12)
    assert columns.mean() == pytest.approx(128 + seen.focal * right / forward, abs=2.0)
    assert rows.mean() == pytest.approx(96 - seen.focal * up / forward, abs=2.0)


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.15, 90), (1.0, 600)])
def test_streets_are_the_share_asked_for_and_the_others_share_the_rest_in_random_order(
    fraction: float, count: int
) -> None:
    sources = [plan.source for plan in world.plan_wild(world.World(wild=600, like_fraction=fraction))]
    counts = Counter(source for source in sources if source != "street")
    assert sources.count("street") == count
    assert not counts or (len(counts) == 10 and max(counts.values()) - min(counts.values()) <= 1)
    assert sources != sorted(sources) or len(set(sources)) == 1


def test_near_duplicates_look_like_their_originals_but_are_not_the_same() -> None:
    settings = world.World(height=48, width=64, wild=300)
    plans = world.plan_wild(settings)
    copies = [plan for plan in plans if plan.original != plan.number]
    assert len(copies) == 6
    for copy in copies:
        original = plans[copy.original]
        assert (original.source, original.original) == (copy.source, original.number)
        ours, theirs = (world.render_wild(settings, plan)[0].astype(np.float64).ravel() for plan in (copy, original))
        assert not np.array_equal(ours, theirs)
        assert np.corrcoef(ours, theirs)[0, 1] > 0.5


@pytest.mark.parametrize("source", others.OTHERS)
def test_every_kind_of_picture_fills_any_size_with_something_to_see(source: str) -> None:
    for seed, size in enumerate([(32, 32), (45, 33)]):
        picture = others.render_other(np.random.default_rng(seed), source, *size)
        assert (picture.shape, picture.dtype) == ((*size, 3), np.uint8)
        assert picture.std() > 4


@pytest.mark.parametrize("style", styles.ELSEWHERE)
def test_streets_elsewhere_have_labels_of_the_same_classes(style: object) -> None:
    picture, label = streets.render_street(np.random.default_rng(3), style=style, height=48, width=64)
    assert picture.std() > 4
    assert len(set(np.unique(label)) & set(range(8))) > 3
    assert set(np.unique(label)) <= {*range(8), 255}


def test_a_new_part_replaces_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    out = draw(tmp_path / "world", part="val", validation=2)
    (out / ".gitignore").write_text("/val\n")  # as DVC keeps it beside its outputs
    draw(out, part="val")
    assert [path.name for path in (out / "val" / "images").iterdir()] == ["000000.jpg"]
    assert {path.name for path in out.iterdir()} == {"val", ".gitignore"}


def test_what_is_not_a_world_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "thesis.tex").write_text("years of work")
    (tmp_path / "val").write_text("more work")
    for part, name in (("all", "thesis.tex"), ("val", "val")):
        with pytest.raises(SettingsError, match=f"{name} is not part of a world"):
            draw(tmp_path, part=part)
    assert files(tmp_path) == {"private/thesis.tex": b"years of work", "val": b"more work"}


def test_a_failure_leaves_the_old_part_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = draw(tmp_path / "world", part="wild")
    before = files(out)
    monkeypatch.setattr(world, "_jpeg", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw(out, part="wild", seed=5)
    assert files(out) == before


def test_the_command_line_wins_over_params_yaml_and_that_over_the_defaults() -> None:
    Path("params.yaml").write_text("dfss:\n  world: {wild: 7, seed: 3}\n")
    settings = world.read_settings(["--seed", "4", "--like-fraction", "0.5"])
    assert (settings.wild, settings.seed, settings.like_fraction, settings.private) == (7, 4, 0.5, 160)


def test_the_script_says_in_one_line_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").write_text("dfss:\n  world: {wilde: 7}\n")
    assert world.main([]) == 2
    assert capsys.readouterr().err.startswith("world.py: error: params.yaml: dfss.world.wilde is not a setting")
    Path("params.yaml").unlink()
    Path("file").write_text("")
    assert world.main(["--out", "file/world", "--part", "val"]) == 1
    assert capsys.readouterr().err.startswith("world.py: error: ")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seed": -1}, "seed is -1; set it to .* at least 0"),
        ({"height": 8}, "height is 8; set it to .* at least 32"),
        ({"wild": 1.5}, "wild is 1.5"),
        ({"part": "test"}, "part is 'test'; set it to one of all, private, val, wild"),
        ({"like_fraction": 1.5}, "like_fraction is 1.5; set it to a share from 0 to 1"),
        ({"like_fraction": float("nan")}, "like_fraction is nan"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_with_what_to_do(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        world.World(**wrong)
