"""The places that a store remembers: those of its corpus and of its teacher.

A relative path of the working folder is kept as a path from the folder that holds the store, and begins with ``./``.
So the store is understood from any folder, and can be moved together with what it names. An absolute path, a URL and
the name of official weights are kept as they are. So are the relative paths of stores from before this rule; they begin
at the working folder.

A store may come from anywhere, so an address in it is data: it is not asked before the user names it.
"""

import os
from pathlib import Path

from storage.errors import StoreError
from storage.files.places import is_url

FROM_THE_STORE = "./"
TRUSTED_PLACES = "DFSS_TRUSTED_PLACES"
"""Environment variable of the addresses, separated by commas, that a store may name: ``s3://bucket,https://host``."""
LOCAL_PROTOCOLS = ("file", "local")
_ARCHIVE = "zip://"


def kept(path: str, store: Path) -> str:
    """A path of the working folder, in the form in which a store keeps it."""
    if os.path.isabs(path) or path.startswith("~") or is_url(path) or not os.path.exists(path):  # noqa: PTH110, PTH117
        return path
    return FROM_THE_STORE + os.path.relpath(path, store.parent)


def found(path: str, store: Path) -> str:
    """The path of the working folder for a path that a store keeps."""
    if not path.startswith(FROM_THE_STORE):
        return path
    return os.path.normpath(store.parent / path)


def check_place(root: str, store: Path) -> None:
    """Refuse the place of a store's corpus if it is neither local nor in ``DFSS_TRUSTED_PLACES``.

    A chain of protocols, which could open one file by what another says, is only taken for a zip.

    Raises:
        StoreError: the store names an address that the user did not.
    """
    place = root
    if place.startswith(_ARCHIVE) and "::" in place:
        place = place.partition("::")[2]
    protocol, separator, rest = place.partition("://")
    if separator and protocol in LOCAL_PROTOCOLS:
        place = rest
    if not is_url(place) or (_is_plain(place) and any(_is_below(place, trusted) for trusted in _trusted())):
        return
    host = f"{protocol}://{rest.partition('/')[0]}" if _is_plain(place) and rest.partition("/")[0] else ""
    raise StoreError(
        f"{store} says that its images are in {root}, and nothing is fetched because a file says so; give their place "
        "with --root" + (f", or set {TRUSTED_PLACES}={host} if you trust it" if host else "")
    )


def _trusted() -> list[str]:
    return [one.strip().rstrip("/") for one in os.environ.get(TRUSTED_PLACES, "").split(",") if "://" in one]


def _is_plain(place: str) -> bool:
    """Whether it is one protocol with one path, which no dots lead out of."""
    return "::" not in place and place.count("://") == 1 and ".." not in place.split("/")


def _is_below(place: str, trusted: str) -> bool:
    # "s3:" is what is left of "s3://", which names no host.
    return is_url(trusted) and (place == trusted or place.startswith(f"{trusted}/"))
