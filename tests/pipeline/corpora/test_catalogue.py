import re
from pathlib import Path

import pytest

from pipeline.corpora.catalogue import catalogue, close_names, find_known
from pipeline.corpora.patterns import expand_braces, match, split_pattern
from storage.errors import CorpusError
from storage.files.places import open_files


@pytest.fixture(autouse=True)
def _no_roots(monkeypatch, tmp_path):
    for known in catalogue():
        for variable in known.variables:
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("DFSS_DATA_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)


def touch(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).touch()


@pytest.mark.parametrize("known", catalogue(), ids=lambda known: known.name)
def test_every_layout_of_every_entry_is_found_where_it_is(known, tmp_path):
    for number, layout in enumerate(known.layouts):
        root = tmp_path / str(number)
        name = re.sub(r"\*", "0", layout)
        touch(str(root / (name if name.endswith((".tar", ".parquet", ".jpg")) else name + ".jpg")))
        folder, pattern = known.find(str(root))
        container = layout.endswith((".tar", ".parquet"))
        assert Path(folder).is_relative_to(root)
        assert bool(pattern) == container
        assert (Path(folder) / pattern.replace("*", "0")).exists()


def test_entries_say_what_a_user_needs_and_names_are_unique():
    names = [known.name for known in catalogue()]
    assert len(set(names)) == len(names)
    assert {"imagenet", "imagenet-val", "coco", "places365", "ade20k", "openimages", "voc"} <= set(names)
    for known in catalogue():
        assert re.fullmatch(r"[a-z0-9-]+", known.name)
        assert re.match(r"https?://\S+ \(.+\)$", known.obtain)
        assert known.images > 1000
        assert known.variables[0] == f"DFSS_{known.name.upper().replace('-', '_')}_ROOT"


def test_roots_are_asked_in_order(monkeypatch, tmp_path):
    imagenet = find_known("imagenet")
    for place in ("given", "variable", "parent/imagenet", "data/imagenet"):
        touch(f"{place}/train/n01440764/a.JPEG")
    assert imagenet.find() == ("data/imagenet/train", "")
    monkeypatch.setenv("DFSS_DATA_ROOT", str(tmp_path / "parent"))
    assert imagenet.find() == (str(tmp_path / "parent/imagenet/train"), "")
    monkeypatch.setenv("DFSS_IMAGENET_ROOT", "variable")
    assert imagenet.find() == ("variable/train", "")
    assert imagenet.find("given") == ("given/train", "")


def test_a_root_that_was_named_is_never_replaced_by_another(monkeypatch):
    touch("data/coco/train2017/1.jpg")
    monkeypatch.setenv("DFSS_COCO_ROOT", "elsewhere")
    with pytest.raises(CorpusError, match="in elsewhere: there is no elsewhere;"):
        find_known("coco").find()


def test_parts_of_one_download_share_its_folder():
    touch("data/imagenet/train/n01440764/a.JPEG")
    touch("data/imagenet/val/ILSVRC2012_val_00000001.JPEG")
    assert find_known("imagenet-val").find() == ("data/imagenet/val", "")
    assert find_known("imagenet").find() == ("data/imagenet/train", "")


def test_the_validation_images_are_not_taken_for_the_training_images():
    touch("data/imagenet/val/n01440764/a.JPEG")
    with pytest.raises(CorpusError):
        find_known("imagenet").find()


def test_a_missing_corpus_is_explained_in_one_line():
    with pytest.raises(CorpusError) as caught:
        find_known("imagenet").find()
    text = str(caught.value)
    assert "\n" not in text
    for part in ("train/n*/*", "data/imagenet", "image-net.org", "--root", "DFSS_IMAGENET_ROOT"):
        assert part in text


def test_what_lies_in_the_root_is_told_and_that_any_folder_will_do():
    for name in ("train.X1/n01440764/a.JPEG", "train.X2/n01440764/b.JPEG", "Labels.json", ".git/x"):
        touch(f"kaggle/{name}")
    with pytest.raises(CorpusError) as caught:
        find_known("imagenet").find("kaggle")
    assert "in kaggle: kaggle holds Labels.json, train.X1/, train.X2/; expected" in str(caught.value)
    assert str(caught.value).endswith("any folder of images as --corpus DIR, such as --corpus kaggle")
    for place, text in (("absent", "there is no absent"), ("kaggle/Labels.json", "Labels.json is a file")):
        with pytest.raises(CorpusError, match=text):
            find_known("imagenet").find(place)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("Data/CLS-LOC/train/n01440764/a.JPEG", "Data/CLS-LOC/train"),
        ("imagenet-object-localization-challenge/ILSVRC/Data/CLS-LOC/train/n01440764/a.JPEG", "CLS-LOC/train"),
        ("ILSVRC2012_img_train/n01440764/a.JPEG", "ILSVRC2012_img_train"),
        ("train/n01440764_1.JPEG", "train"),
        ("train-00000-of-00002.parquet", ""),
        ("datasets--x--imagenet/snapshots/abc/data/train-00000-of-00002.parquet", ""),
    ],
)
def test_imagenet_is_found_as_people_have_it(name, place):
    touch(f"root/{name}")
    folder, pattern = find_known("imagenet").find("root")
    assert folder.endswith(place)
    assert pattern.endswith(".parquet") == name.endswith(".parquet")


def test_misspelled_names_are_recognised():
    assert close_names("imagnet")[0] == "imagenet"
    assert close_names("Places-365")[0] == "places365"
    assert close_names("zzzz") == []
    assert find_known("imagnet") is None


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("s-{8..11}.tar", ["s-8.tar", "s-9.tar", "s-10.tar", "s-11.tar"]),
        ("s-{008..011}.tar", ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{train,val}-*.tar", ["train-*.tar", "val-*.tar"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern, expected):
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize(
    "pattern", ["s-{5..3}.tar", "s-{}.tar", "s-{abc}.tar", "s-{0..9999999999}.tar", "{0..9999}{0..9999}"]
)
def test_braces_that_make_no_sense_are_errors(pattern):
    with pytest.raises(CorpusError, match="cannot expand"):
        expand_braces(pattern)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("x.tar", ("", "x.tar")),
        ("/x.tar", ("/", "x.tar")),
        ("a/b/x-{0..1}.tar", ("a/b", "x-{0..1}.tar")),
        ("a/*/x.tar", ("a", "*/x.tar")),
        ("s3://bucket/a/*.tar", ("s3://bucket/a", "*.tar")),
        ("memory://x.tar", ("memory://", "x.tar")),
    ],
)
def test_patterns_split_at_the_first_wildcard(path, expected):
    assert split_pattern(path) == expected


@pytest.mark.parametrize(
    "pattern", ["*.tar", "**/*.tar", "a/*.tar", "*/*.tar", "a/?.tar", "a/[xy].tar", "**/a/*", "b/**"]
)
def test_globs_match_as_the_standard_library_does(pattern, tmp_path):
    for name in ("0.tar", "a/x.tar", "a/y.tar", "a/a/z.tar", "b/c/x.tar", "b/x.txt", ".h/x.tar", "a/._x.tar"):
        touch(name)
    expected = {str(path) for path in Path().glob(pattern if not pattern.endswith("**") else f"{pattern}/*")}
    hidden = {path for path in expected if "/." in f"/{path}"}
    found = list(match(open_files("."), pattern))
    assert sorted(found) == sorted(path for path in expected - hidden if Path(path).is_file())
