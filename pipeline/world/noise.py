"""Tileable noise fields, made once per process and looked up by coordinate: the texture of everything in the world.

White noise is shaped in the Fourier domain. :func:`fractal` has the power spectrum ``1 / f**exponent`` (0 is white,
2 resembles stains, 3 resembles clouds); :func:`blotches` keeps the band around one wavelength (leaves, pebbles).
Fields do not depend on the settings' seed; a scene varies them by looking them up at a random offset.

Shapes: S texels per side of a field, H rows, W columns of a picture.
"""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.floating[Any]]
"""Real numbers; float32 wherever a whole picture is concerned."""
Mask = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.intp]

BITS = 9
SIDE = 1 << BITS


@cache
def fractal(exponent: float) -> Field:
    """Noise with power spectrum ``1 / f**exponent``, shape (S, S), mean 0 and standard deviation 1."""
    frequency = _frequency()
    return _shaped(frequency ** (-exponent / 2), seed=round(100 * exponent))


@cache
def blotches(wavelength: float) -> Field:
    """Noise of blobs about ``wavelength`` texels apart, shape (S, S), mean 0 and standard deviation 1."""
    octaves = np.log2(_frequency() * wavelength)
    return _shaped(np.exp(-2.0 * octaves**2), seed=10_000 + round(100 * wavelength))


def look_up(noise: Field, s: Field, t: Field) -> Field:
    """Values of a field at texel coordinates ``s`` (across) and ``t`` (down), which wrap around; shape of ``s + t``."""
    columns = s.astype(np.int32) & (SIDE - 1)
    rows = (t.astype(np.int32) & (SIDE - 1)) << BITS
    return noise.reshape(-1).take(rows | columns)


def _frequency() -> npt.NDArray[np.float64]:
    frequency: npt.NDArray[np.float64] = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None, :])
    frequency[0, 0] = 1.0  # the mean is removed afterwards; this only avoids a division by zero
    return frequency


def _shaped(amplitude: npt.NDArray[np.float64], *, seed: int) -> Field:
    white = np.random.default_rng(seed).standard_normal((SIDE, SIDE))
    spectrum = np.fft.rfft2(white) * amplitude
    spectrum[0, 0] = 0.0
    noise = np.fft.irfft2(spectrum, s=(SIDE, SIDE))
    field: Field = (noise / noise.std()).astype(np.float32)
    return field
