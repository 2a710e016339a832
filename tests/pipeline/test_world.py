import csv
import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.world import writing
from pipeline.world.camera import UP, Quad, aim
from pipeline.world.scenes import render_street
from pipeline.world.settings import WorldSettings
from pipeline.world.styles import CITY, CLASSES, ELSEWHERE
from pipeline.world.wild import OTHERS, STREET, plan_wild, render_wild, street
from pipeline.world.writing import make_world
from storage.errors import SettingsError

TINY = {"height": 40, "width": 56, "private": 2, "validation": 1, "wild": 13}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wild_images(world: Path) -> dict[str, Image.Image]:
    images = {}
    for path in sorted((world / "wild").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.name not in images
                content = tar.extractfile(member)
                assert content is not None
                images[member.name] = Image.open(io.BytesIO(content.read()))
    return images


def sources(world: Path) -> dict[str, str]:
    with (world / "wild-sources.csv").open(newline="") as table:
        return {row["key"]: row["source"] for row in csv.DictReader(table)}


def form(path: Path) -> tuple[tuple[int, int], str]:
    with Image.open(path) as image:
        return image.size, image.mode


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    """Twenty private scenes: picture and labels."""
    return [render_street(np.random.default_rng([0, 0, i]), style=CITY, height=96, width=128) for i in range(20)]


def test_the_same_settings_give_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        make_world(tmp_path / name, settings=WorldSettings(**TINY))
    assert files(tmp_path / "first") == files(tmp_path / "second")


def test_another_seed_gives_other_images(tmp_path):
    for seed in (1, 2):
        make_world(tmp_path / str(seed), settings=WorldSettings(**TINY, seed=seed))
    first, second = files(tmp_path / "1"), files(tmp_path / "2")
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first if not name.endswith("classes.txt"))


def test_an_image_does_not_depend_on_how_many_others_there_are(tmp_path):
    make_world(tmp_path / "few", settings=WorldSettings(**TINY))
    make_world(tmp_path / "many", settings=WorldSettings(**TINY | {"private": 4, "validation": 3}))
    few, many = files(tmp_path / "few"), files(tmp_path / "many")
    labelled = [name for name in few if name.startswith(("private/", "val/"))]
    assert len(labelled) == 2 * (3 + 1)
    assert all(few[name] == many[name] for name in labelled)


def test_a_world_holds_the_images_that_were_asked_for_in_the_size_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD", 5)
    make_world(tmp_path / "world", settings=WorldSettings(**TINY))
    world = tmp_path / "world"
    for split, count in (("private", 2), ("val", 1)):
        images = sorted((world / split / "images").glob("*.jpg"))
        labels = sorted((world / split / "labels").glob("*.png"))
        assert [path.stem for path in images] == [path.stem for path in labels] == [f"{i:06d}" for i in range(count)]
        assert {form(path) for path in images} == {((56, 40), "RGB")}
        assert {form(path) for path in labels} == {((56, 40), "L")}
    assert [path.name for path in sorted((world / "wild").iterdir())] == [f"wild-{i:06d}.tar" for i in range(3)]
    assert {(image.size, image.mode) for image in wild_images(world).values()} == {((56, 40), "RGB")}
    assert len(wild_images(world)) == 13


def test_classes_are_listed_by_id(tmp_path):
    make_world(tmp_path / "world", settings=WorldSettings(**TINY))
    lines = (tmp_path / "world" / "private" / "classes.txt").read_text().splitlines()
    assert lines == ["0 sky", "1 building", "2 road", "3 pavement", "4 tree", "5 car", "6 person", "7 pole"]


def test_labels_are_classes_or_void_and_every_class_shows_in_twenty_scenes(scenes):
    labels = np.stack([label for _, label in scenes])
    assert set(np.unique(labels)) - {255} == set(range(len(CLASSES)))
    assert (labels == 255).mean() < 0.02


def test_labels_lie_on_the_things_they_name(scenes):
    # Where the class changes the picture has edges: a shifted label finds fewer of them.
    def edges_under(shift: int) -> float:
        total = 0.0
        for picture, label in scenes:
            gradient = np.abs(np.diff(picture.astype(np.float64).mean(axis=2), axis=1))
            border = np.diff(label.astype(int), axis=1) != 0
            total += gradient[:, 8:-8][np.roll(border, shift, axis=1)[:, 8:-8]].mean()
        return total

    assert max(range(-6, 7), key=edges_under) == 0


def test_colour_alone_does_not_give_the_class(scenes):
    # The best guess from the colour, in bins of 32, is told by its own training pixels and still fails often.
    pictures, labels = (np.stack(part) for part in zip(*scenes, strict=True))
    colour = (pictures.astype(int) // 32 @ [64, 8, 1]).ravel()
    known = labels.ravel() != 255
    counts = np.zeros((512, len(CLASSES)))
    np.add.at(counts, (colour[known], labels.ravel()[known]), 1)
    right = counts[np.arange(512), counts.argmax(axis=1)].sum()
    assert right / known.sum() < 0.75


@pytest.mark.parametrize(("fraction", "streets"), [(0.0, 0), (0.15, 6), (0.5, 20), (1.0, 40)])
def test_the_share_of_streets_is_the_fraction_asked_for(fraction, streets):
    plan = plan_wild(WorldSettings(wild=40, like_fraction=fraction))
    assert sum(image.source == STREET for image in plan) == streets


def test_the_other_sources_share_the_rest_equally_and_in_random_order():
    plan = plan_wild(WorldSettings(wild=600))
    counts = Counter(image.source for image in plan if image.source != STREET)
    assert len(counts) >= 7
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({image.source for image in plan[:60]}) == len(counts) + 1


def test_each_wild_image_has_a_key_of_its_own_and_a_source(tmp_path):
    make_world(tmp_path / "world", settings=WorldSettings(**TINY))
    assert list(sources(tmp_path / "world")) == list(wild_images(tmp_path / "world"))
    assert set(sources(tmp_path / "world").values()) <= {STREET, *OTHERS}


def test_near_duplicates_look_like_their_originals_but_are_not_the_same():
    settings = WorldSettings(height=48, width=64, wild=300)
    plan = plan_wild(settings)
    copies = [image for image in plan if image.original != image.index]
    assert len(copies) == 6
    originals = [plan[image.original] for image in copies]
    made = {image.index: picture for image, picture, _ in render_wild(settings, copies + originals)}
    for copy, original in zip(copies, originals, strict=True):
        assert copy.source == original.source
        assert original.original == original.index
        ours, theirs = (made[image.index].astype(np.float64).ravel() for image in (copy, original))
        assert not np.array_equal(ours, theirs)
        assert np.corrcoef(ours, theirs)[0, 1] > 0.5


@pytest.mark.parametrize("size", [(32, 32), (45, 33)])
@pytest.mark.parametrize("make", [street, *OTHERS.values()], ids=[STREET, *OTHERS])
def test_every_source_fills_any_size_with_something_to_see(make, size):
    pictures = [make(np.random.default_rng(index), *size) for index in range(4)]
    assert all(picture.shape == (*size, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert all(picture.std() > 4 for picture in pictures)


@pytest.mark.parametrize("style", ELSEWHERE)
def test_streets_elsewhere_have_labels_of_the_same_classes(style):
    _, label = render_street(np.random.default_rng(3), style=style, height=48, width=64)
    assert set(np.unique(label)) <= {*range(len(CLASSES)), 255}


def test_a_surface_is_seen_where_its_points_project_to():
    camera = aim(90, 120, position=(0.4, 1.6, -0.5), field_of_view=70.0, angles=(14.0, -6.0, 2.0))
    quad = Quad(origin=(-1.0, 0.3, 6.0), a=(1.0, 0.0, 0.0), b=UP, width=3.0, height=2.0)
    patch = camera.patch(quad)
    assert patch is not None
    axes = np.array([camera.right, camera.up, camera.forward])
    assert axes @ axes.T == pytest.approx(np.eye(3), abs=1e-12)
    for s, t in ((0.2, 0.3), (1.5, 1.0), (2.8, 1.9)):
        x, y, z = axes @ (np.array([-1.0 + s, 0.3 + t, 6.0]) - camera.position)
        column, row = 60 + camera.focal * x / z, 45 - camera.focal * y / z
        at = int(row) - patch.crop[0].start, int(column) - patch.crop[1].start
        pixel = 1.5 * z / camera.focal
        assert (patch.s[at], patch.t[at]) == pytest.approx((s, t), abs=pixel)
        assert patch.depth[at] == pytest.approx(z, rel=0.02)
        assert patch.inside[at]


def test_a_surface_is_not_seen_from_behind_or_behind_the_camera():
    camera = aim(90, 120, position=(0.0, 1.6, 0.0), field_of_view=70.0, angles=(0.0, 0.0, 0.0))
    turned_away = Quad(origin=(1.0, 0.0, 6.0), a=(-1.0, 0.0, 0.0), b=UP, width=2.0, height=2.0)
    behind = Quad(origin=(-1.0, 0.0, -6.0), a=(1.0, 0.0, 0.0), b=UP, width=2.0, height=2.0)
    assert camera.patch(turned_away) is None
    assert camera.patch(behind) is None


def test_a_new_world_replaces_the_old_one_and_nothing_beside_it(tmp_path):
    world = tmp_path / "world"
    make_world(world, settings=WorldSettings(**TINY | {"private": 3}))
    (world / ".gitignore").write_text("/private\n")  # as DVC keeps it beside its outputs
    make_world(world, settings=WorldSettings(**TINY))
    assert len(list((world / "private" / "images").iterdir())) == 2
    assert (world / ".gitignore").read_text() == "/private\n"
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_the_parts_drawn_one_by_one_are_those_of_a_whole_world(tmp_path):
    make_world(tmp_path / "whole", settings=WorldSettings(**TINY))
    for part in ("wild", "private", "val"):
        make_world(tmp_path / "parts", settings=WorldSettings(**TINY, part=part))
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_what_is_not_a_world_is_left_alone(tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "thesis.tex").write_text("years of work")
    with pytest.raises(SettingsError, match="thesis.tex is not part of a world"):
        make_world(tmp_path, settings=WorldSettings(**TINY))
    (tmp_path / "val").write_text("more work")
    with pytest.raises(SettingsError, match="val is not part of a world"):
        make_world(tmp_path, settings=WorldSettings(**TINY, part="val"))
    assert files(tmp_path) == {"private/thesis.tex": b"years of work", "val": b"more work"}


def test_a_failure_leaves_the_old_part_and_nothing_else(tmp_path, monkeypatch):
    world = tmp_path / "world"
    make_world(world, settings=WorldSettings(**TINY))
    before = files(world)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(writing, "_add", fail)
    with pytest.raises(OSError, match="disk full"):
        make_world(world, settings=WorldSettings(**TINY, seed=5, part="wild"))
    assert files(world) == before
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seed": -1}, "seed is -1; set it to .* at least 0"),
        ({"height": 8}, "height is 8; set it to .* at least 32"),
        ({"width": 0}, "width is 0; set it to .* at least 32"),
        ({"private": 0}, "private is 0"),
        ({"validation": -3}, "validation is -3"),
        ({"wild": 0}, "wild is 0"),
        ({"like_fraction": 1.5}, "like_fraction is 1.5; set it to a share from 0 to 1"),
        ({"like_fraction": float("nan")}, "like_fraction is nan"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_with_what_to_do(wrong, words):
    with pytest.raises(SettingsError, match=words):
        WorldSettings(**wrong)
