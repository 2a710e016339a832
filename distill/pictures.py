"""The pictures that a student sees: views of the selected images, and mixtures of two (mixup).

A picture is drawn by a random generator. It is either new in every step, or one of a fixed number of each image, of
which the teacher's answers are kept (distill.answers). A fixed picture is a pure function of the image's place among
the training images and of its number, whatever the seed of the run, so that runs share the answers.

Shapes: H x W pixels.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.views import PLAIN, View, ViewSettings, crop_image, draw_light, draw_view

FIXED_PICTURES = 20260417
"""Begins the seed of a fixed picture."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A view of an image, or a mixture of two views (mixup, Zhang et al., arXiv 1710.09412)."""

    place: int
    """The place of the image among the training images."""
    view: View
    partner: "Picture | None" = None
    share: float = 1.0
    """The share of the first view in the mixture."""

    def weight(self, weights_N: NDArray[np.float64]) -> float:
        """The loss weight of the picture, from the weights of the training images."""
        own = float(weights_N[self.place])
        return own if self.partner is None else self.share * own + (1 - self.share) * self.partner.weight(weights_N)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """Draws and makes the pictures of the training images."""

    images: Any
    """The selected images by their place in the selection, RGB."""
    training_places: list[int]
    """The places of the training images in the selection."""
    views: ViewSettings
    mixup: float
    """Share of the pictures that are mixtures."""
    fixed: int
    """Number of fixed pictures of each image; 0 if every picture is new."""

    def draw(self, rng: np.random.Generator, place: int) -> Picture:
        """Draw a picture of the training image at ``place``, and with it a partner if it is a mixture."""
        view = self._view(rng, place)
        if not self.mixup or rng.random() >= self.mixup:
            return Picture(place=place, view=view)
        partner = int(rng.integers(len(self.training_places)))
        other = Picture(place=partner, view=self._view(rng, partner))
        return Picture(place=place, view=view, partner=other, share=float(rng.uniform(0.5, 1)))

    def draw_fixed(self, place: int, number: int) -> Picture:
        """The fixed picture of this number, in the light of the photographs: a step changes it (:meth:`lit`)."""
        picture = self.draw(np.random.default_rng([FIXED_PICTURES, place, number]), place)
        return dataclasses.replace(picture, view=dataclasses.replace(picture.view, light=PLAIN))

    def lit(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """A fixed picture as a step shows it, in a random light."""
        view = dataclasses.replace(picture.view, light=draw_light(rng, self.views))
        return dataclasses.replace(picture, view=view)

    def pixels(self, picture: Picture) -> NDArray[np.uint8]:
        """The picture without its change of light, uint8 [H, W, 3]."""
        pixels = crop_image(self._image(picture.place), picture.view, self.views)
        if picture.partner is None:
            return pixels
        mixed = picture.share * pixels + (1 - picture.share) * self.pixels(picture.partner)
        return np.rint(mixed).astype(np.uint8)

    def _view(self, rng: np.random.Generator, place: int) -> View:
        return draw_view(rng, self._image(place).size, self.views)

    def _image(self, place: int) -> Any:
        return self.images[self.training_places[place]]
