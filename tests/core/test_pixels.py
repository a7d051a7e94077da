"""Tests of the conversion between pixels and images: inverse of each other, rounded, clipped."""

import numpy as np

from gdistill.core import pixels


def test_every_pixel_comes_back():
  every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  images = pixels.to_images(every)
  assert images.min() == -1.0 and images.max() == 1.0
  np.testing.assert_array_equal(pixels.from_images(images), every)


def test_what_lies_between_goes_to_the_nearest_and_what_lies_beyond_to_the_ends():
  # The first three x have 127.5 (x + 1) = 0.6, 0.4, 254.6; the last two are outside [-1, 1].
  x = np.array([0.6 / 127.5 - 1, 0.4 / 127.5 - 1, 254.6 / 127.5 - 1, -3.0, 7.0], np.float32)
  found = pixels.from_images(x.reshape(5, 1, 1, 1)).reshape(5)
  np.testing.assert_array_equal(found, [1, 0, 255, 0, 255])


def test_a_picture_is_finite_if_all_its_values_are_in_every_array():
  images, latents = np.zeros((4, 2, 2, 3), np.float32), np.ones((4, 1, 1, 4), np.float32)
  images[1, 0, 1, 2], images[2, 1, 1, 0], latents[3, 0, 0, 3] = np.nan, -np.inf, np.inf
  np.testing.assert_array_equal(pixels.finite(images, latents), [True, False, False, False])
  np.testing.assert_array_equal(pixels.finite(images), [True, False, False, True])
