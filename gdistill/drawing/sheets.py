"""Turns pixels into the bytes of PNG files, and arranges many pictures in a grid on one sheet."""

import io
from typing import Any

import numpy as np

_GREY = 128


def sheet(tiles: np.ndarray, scale: int) -> np.ndarray:
  """Returns one picture, in which `tiles`, uint8 [rows, columns, H, W, C], form a grid.

  Grey lines surround each tile. Every pixel is enlarged to `scale` x `scale` pixels.
  """
  gap = max(1, tiles.shape[2] // 16)
  padded = np.pad(tiles, [(0, 0), (0, 0), (gap, 0), (gap, 0), (0, 0)], constant_values=_GREY)
  rows, columns, height, width, channels = padded.shape
  out = padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
  out = np.pad(out, [(0, gap), (0, gap), (0, 0)], constant_values=_GREY)
  return out.repeat(scale, axis=0).repeat(scale, axis=1)


def picture(pixels: np.ndarray) -> Any:
  """Returns a PIL image of `pixels`, uint8 [H, W, C]: greyscale if C = 1, else in colour."""
  from PIL import Image

  return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def png(pixels: np.ndarray) -> bytes:
  """Returns the bytes of a PNG file that shows `pixels`, uint8 [H, W, C]."""
  buffer = io.BytesIO()
  picture(pixels).save(buffer, 'PNG')
  return buffer.getvalue()
