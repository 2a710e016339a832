"""The GPU's decoder. torchvision decodes on a CPU by the same calls, so that only nvJPEG itself goes untested there."""

import io

import numpy as np
import pytest
import torch
from conftest import draw_image
from PIL import Image

from pipeline.decoding.nvjpeg import GpuDecoder
from pipeline.decoding.pillow import Decoder
from storage.errors import ImageError, RejectedImageError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    ),
]
PILLOW = Decoder(height=24, width=32, min_side=16)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(24, 32), (240, 320), (200, 150), (90, 300), (480, 400)])
def test_pixels_are_those_of_pillow_but_for_rounding(size: tuple[int, int], device: str) -> None:
    data = encoded(draw_image(3, *size), quality=95)
    pixels = GpuDecoder(PILLOW, torch.device(device))(data)
    assert (pixels.shape, pixels.dtype, pixels.device.type) == ((24, 32, 3), torch.uint8, device)
    difference = np.abs(pixels.cpu().numpy().astype(int) - PILLOW(data))
    assert difference.mean() < 2.5


@pytest.mark.parametrize(
    "data",
    [
        encoded(draw_image(0), "PNG"),
        encoded(draw_image(1).convert("CMYK")),
        encoded(
            draw_image(2),
            exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00",
        ),
    ],
    ids=["png", "cmyk", "turned"],
)
def test_what_is_no_plain_jpeg_is_left_to_pillow(data: bytes) -> None:
    np.testing.assert_array_equal(GpuDecoder(PILLOW, torch.device("cpu"))(data).numpy(), PILLOW(data))


def test_faults_are_told_as_pillow_tells_them() -> None:
    whole = encoded(draw_image(4), quality=95)
    decoder = GpuDecoder(PILLOW, torch.device("cpu"))
    with pytest.raises(ImageError, match="truncated"):
        decoder(whole[: len(whole) // 2])
    with pytest.raises(RejectedImageError, match="8x8 is smaller than 16 pixels"):
        decoder(encoded(Image.new("RGB", (8, 8))))
    with pytest.raises(ImageError, match="no known image format"):
        decoder(b"text\xff\xd9")


def test_a_file_that_the_gpu_refuses_is_decoded_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("nvjpegDecode failed: 2")

    monkeypatch.setattr("torchvision.io.decode_jpeg", refuse)
    data = encoded(draw_image(5))
    np.testing.assert_array_equal(GpuDecoder(PILLOW, torch.device("cpu"))(data).numpy(), PILLOW(data))
