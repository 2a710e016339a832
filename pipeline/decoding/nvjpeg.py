"""Decoding JPEG files on a GPU (nvJPEG, through torchvision), for machines whose CPUs cannot keep up with the GPU."""

import io
from dataclasses import dataclass

import torch
import torchvision.io
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipeline.decoding.limits import check_work
from pipeline.decoding.pillow import Decoder, orientation_of, silence_pillow

END_OF_IMAGE = b"\xff\xd9"
AVAILABLE = hasattr(torchvision.io, "decode_jpeg")
"""torchvision 0.29 announced that a later release will have no decoders."""
RGB = torchvision.io.ImageReadMode.RGB if AVAILABLE else None


@dataclass(frozen=True, slots=True)
class GpuDecoder:
    """Decodes JPEG files on a GPU, and all other files by a :class:`~pipeline.decoding.pillow.Decoder`.

    JPEG files that are complete, upright and grey or YCbCr are decoded there at full size, and resized with
    antialiasing. Every other file, and one that nvJPEG refuses, is decoded by Pillow, which also says what is wrong
    with it. The pixels stay on the device. They differ a little from Pillow's, so scores name their decoder.
    """

    decoder: Decoder
    device: torch.device

    def __call__(self, data: bytes) -> Tensor:
        """Return the pixels, uint8 [H, W, 3] RGB.

        Raises:
            ImageError: when the bytes cannot be decoded.
            RejectedImageError: when the image is too small, or its pixels have no known range.
        """
        if _is_plain_jpeg(data, self.decoder):
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            try:
                return self._cover(torchvision.io.decode_jpeg(encoded, mode=RGB, device=self.device))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # Pillow decides about whatever nvJPEG refuses
                pass
        return torch.from_numpy(self.decoder(data)).to(self.device)

    def _cover(self, image_3HW: Tensor) -> Tensor:
        """Crop to the centre at the aspect of the size, by whole pixels, and scale; uint8 [H, W, 3]."""
        height, width = self.decoder.height, self.decoder.width
        scale = max(height / image_3HW.shape[1], width / image_3HW.shape[2])
        rows, columns = max(1, round(height / scale)), max(1, round(width / scale))
        top, left = (image_3HW.shape[1] - rows) // 2, (image_3HW.shape[2] - columns) // 2
        centre = image_3HW[None, :, top : top + rows, left : left + columns].float()
        scaled = F.interpolate(centre, size=(height, width), mode="bilinear", antialias=True)[0]
        return scaled.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)


def _is_plain_jpeg(data: bytes, decoder: Decoder) -> bool:
    if not data.rstrip(b"\0").endswith(END_OF_IMAGE):
        return False
    silence_pillow()
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            check_work(image, data)
            upright = orientation_of(image) == 1
            ycbcr = image.mode == "RGB" and image.info.get("adobe_transform", 1) != 0
            is_small = decoder.max_pixels is None or image.width * image.height <= decoder.max_pixels
            return upright and is_small and min(image.size) >= decoder.min_side and (ycbcr or image.mode == "L")
    except Exception:  # Pillow's decoder meets the error again, and explains it
        return False
