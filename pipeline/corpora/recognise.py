"""Which files are images: told by their names and, where a name does not say, by their first bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from pipeline.corpora.leftout import LeftOut
from pipeline.corpora.patterns import expand_braces
from pipeline.decoding.formats import IMAGE_EXTENSIONS, looks_like_image
from storage.errors import CorpusError
from storage.files.places import Entry, is_hidden

FOREIGN_EXTENSIONS = (
    *(".svg", ".svgz", ".psd", ".xcf", ".ai", ".eps", ".jxl", ".ico", ".tga", ".exr", ".hdr", ".dcm", ".dds", ".jxr"),
    *(".pcx", ".dib", ".sgi", ".icns", ".im", ".xbm", ".xpm", ".qoi", ".x3f", ".crw", ".3fr", ".dcr", ".kdc", ".mrw"),
    *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"),
)
"""Images of formats that are not decoded. They are left out and counted."""

_OTHER_EXTENSIONS = frozenset(
    (
        *(".txt", ".json", ".jsonl", ".cls", ".csv", ".tsv", ".md", ".rst", ".xml", ".yaml", ".yml", ".html"),
        *(".htm", ".css", ".js", ".php", ".py", ".ipynb", ".sh", ".log", ".pdf", ".npy", ".npz", ".pkl"),
        *(".pickle", ".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".mat", ".h5", ".hdf5", ".db", ".sqlite"),
        *(".lmdb", ".arrow", ".feather", ".idx", ".index", ".tar", ".parquet", ".zip", ".gz", ".tgz"),
        *(".bz2", ".xz", ".zst", ".7z", ".rar", ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mp3", ".wav"),
        *(".flac", ".ogg", ".lst", ".ini", ".cfg", ".toml", ".lock", ".md5", ".sha256", ".crc", ".torrent"),
        *(".aae", ".xmp", ".url"),
    )
)
"""Files with these extensions are not images. Their first bytes are not read, which would take a request each."""

ARCHIVE_EXTENSIONS = (
    ".tar",
    ".parquet",
    ".gz",
    ".tgz",
    ".bz2",
    ".tbz2",
    ".xz",
    ".txz",
    ".zst",
    ".tzst",
    ".zip",
    ".7z",
    ".rar",
    ".tfrecord",
)
"""Files with these extensions may hold images; each kind is a corpus of its own, or can be unpacked to one."""

FOREIGN = "images of formats that are not decoded"
HIDDEN_FILES, HIDDEN_FOLDERS = "hidden images", "hidden folders, or those of a system"
ARCHIVES = "archives or Parquet files beside the images (to read such instead: --corpus 'DIR/*.tar')"
EXCLUDED = "images that --include leaves out"
CLOSED_FILES = "files that cannot be opened"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recogniser:
    """Decides which files are images, and counts those that might be but have no row."""

    left_out: LeftOut
    include: str = ""
    """A glob, in which ``*`` matches slashes too; images whose path or name it does not match are left out."""

    def is_image(self, path: str, head: Callable[[], bytes]) -> bool:
        """Tell whether a file is an image; ``head`` reads its first bytes, if its name does not say."""
        included = not self.include or matches(path, self.include)
        known = by_name(path)
        if known is False and included and (reason := _reason_of(path)):
            self.left_out.add(reason, path)
            return False
        if not known and included and (known is None or self.include):
            try:
                known = looks_like_image(head())
            except OSError:  # whatever its errno, it is the fault of this file
                self.left_out.add(CLOSED_FILES, path)
        if known and not included:
            self.left_out.add(EXCLUDED, path, wished=True)
        return bool(known) and included

    def skips(self, path: str, entry: Entry) -> bool:
        """Tell whether an entry is hidden, and count it if it may be an image of the user's."""
        name = entry.name
        if not is_hidden(name):
            return False
        if entry.is_folder:
            self.left_out.add(HIDDEN_FOLDERS, path)
        elif by_name(path) and not name.startswith("._"):  # those are a system's notes on other files
            self.left_out.add(HIDDEN_FILES, path)
        return True

    def skips_member(self, name: str) -> bool:
        """Tell whether any part of a tar member's name is hidden, and count it if it is an image of the user's."""
        parts = name.split("/")
        if not any(map(is_hidden, parts)):
            return False
        if by_name(name) and not parts[-1].startswith("._"):
            self.left_out.add(HIDDEN_FILES, name)
        return True

    def cannot_read(self, reason: str, path: str) -> None:
        """Count what may be an image or hold some, but is neither a file nor a folder."""
        if by_name(path) is not False:
            self.left_out.add(reason, path)


def by_name(path: str) -> bool | None:
    """Tell by its extension whether a file is an image; None where it says nothing.

    What follows a question mark is no part of a name: ``x.jpg?width=640``.
    """
    stem, dot, extension = path.partition("?")[0].lower().rpartition(".")
    suffix = dot + extension if stem and not stem.endswith("/") else ""
    if suffix in IMAGE_EXTENSIONS:
        return True
    if suffix in FOREIGN_EXTENSIONS or (suffix in _OTHER_EXTENSIONS and "?" not in path):
        return False
    return None


def _reason_of(path: str) -> str:
    """Why a file that is no image may still be missed; empty if it cannot be."""
    name = path.partition("?")[0].lower()
    return ARCHIVES if name.endswith(ARCHIVE_EXTENSIONS) else FOREIGN if name.endswith(FOREIGN_EXTENSIONS) else ""


def is_image(path: str) -> bool:
    """Tell whether a relative posix path is that of an image: it has a known extension and no hidden part."""
    return bool(by_name(path)) and not any(map(is_hidden, path.split("/")))


def matches(path: str, glob: str) -> bool:
    """Tell whether a path, or its last part alone, matches a glob with braces, in which ``*`` matches slashes too."""
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path, choice) or fnmatchcase(name, choice) for choice in _choices(glob))


def no_image(place: str, left_out: LeftOut) -> CorpusError:
    """The error for a place without images, which says what was left out there."""
    looked = f"looked for {' '.join(IMAGE_EXTENSIONS)} in all places"
    return CorpusError(
        "; ".join([f"found no image in {place}: {looked}", *map("left out {}".format, left_out.lines())])
    )


@lru_cache(maxsize=8)
def _choices(glob: str) -> tuple[str, ...]:
    return tuple(expand_braces(glob))
