"""PNG files without their metadata. Pillow gives up a whole image for texts or profiles that it finds too large."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_XMP = b"XML:com.adobe.xmp\0\0"
"""An uncompressed XMP packet, which may hold the orientation."""
_MOST_XMP = 2**20


def without_metadata(data: bytes) -> bytes | None:
    """Return a PNG file without its texts and its colour profile; None if it is no PNG or has none of them.

    EXIF and a short XMP packet stay, because they hold the orientation. The format: W3C, Portable Network Graphics,
    section 5.
    """
    if not data.startswith(SIGNATURE):
        return None
    kept, position = [SIGNATURE], len(SIGNATURE)
    while position < len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        chunk = data[position : position + length + 12]  # length, kind, content, checksum
        is_short_xmp = chunk[8:].startswith(_XMP) and length <= _MOST_XMP
        if kind not in _METADATA or is_short_xmp:
            kept.append(chunk)
        position += length + 12
    lean = b"".join(kept)
    return lean if len(lean) < len(data) else None
