"""Makes a pile with what a crawl has many of: bursts, near-duplicates of one photograph.

``python bursts.py --tars DATA/wild --shards 10 --share 0.03 --copies 30 --out bursts`` reads the first shards and
writes each of them again with bursts: of a share of the photographs, ``copies`` more pictures are made by a slight
crop, a change of light and another JPEG quality, like frames of a video or uploads of one picture. Which photographs
are repeated is drawn at random, whatever they show.
"""

import argparse
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from storage.files.publish import publish


def main() -> None:
    """Write the tars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tars", type=Path, required=True, help="folder of wild-{000000..}.tar")
    parser.add_argument("--shards", type=int, required=True, help="how many tars to read")
    parser.add_argument("--share", type=float, required=True, help="share of the photographs that are repeated")
    parser.add_argument("--copies", type=int, required=True, help="pictures that are made of each of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with publish(options.out) as folder:
        folder.mkdir()
        counts = [
            write_shard(
                options.tars / f"wild-{shard:06}.tar",
                folder / f"bursts-{shard:06}.tar",
                np.random.default_rng([options.seed, shard]),
                options.share,
                options.copies,
            )
            for shard in range(options.shards)
        ]
    print(f"{options.out}: {sum(counts)} photographs, {sum(counts) * options.copies} more were made of them")


def write_shard(source: Path, out: Path, rng: np.random.Generator, share: float, copies: int) -> int:
    """Write a tar with bursts; return how many photographs were repeated."""
    repeated = 0
    with tarfile.open(source) as tar, tarfile.open(out, "w") as written:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                continue
            data = file.read()
            add(written, member.name, data)
            if member.name.endswith(".jpg") and rng.random() < share:
                repeated += 1
                stem = member.name.removesuffix(".jpg")
                for copy in range(copies):
                    add(written, f"{stem}-{copy:03}.jpg", varied(Image.open(io.BytesIO(data)).convert("RGB"), rng))
    return repeated


def varied(image: Image.Image, rng: np.random.Generator) -> bytes:
    """A JPEG of nearly the same picture: at least 90 % of its sides, up to 10 % brighter or darker."""
    scale = rng.uniform(0.9, 1.0)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (int(rng.integers(whole - part + 1)) for whole, part in ((image.width, width), (image.height, height)))
    image = ImageEnhance.Brightness(image.crop((left, top, left + width, top + height))).enhance(rng.uniform(0.9, 1.1))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(60, 96)))
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member without times and owners, so that the same settings give the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()
