"""Pixels as PNG files: one picture, or a sheet of many pictures with grey lines between them."""

import io
from typing import Any

import numpy as np

_GREY = 128


def sheet(tiles: np.ndarray, scale: int) -> np.ndarray:
  """Returns one picture of the tiles, uint8 [rows, columns, H, W, C].

  Grey lines surround each tile. Every pixel becomes `scale` x `scale` pixels.
  """
  gap = max(1, tiles.shape[2] // 16)
  padded = np.pad(tiles, [(0, 0), (0, 0), (gap, 0), (gap, 0), (0, 0)], constant_values=_GREY)
  rows, columns, height, width, channels = padded.shape
  out = padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
  out = np.pad(out, [(0, gap), (0, gap), (0, 0)], constant_values=_GREY)
  return out.repeat(scale, axis=0).repeat(scale, axis=1)


def picture(pixels: np.ndarray) -> Any:
  """Returns pixels, uint8 [H, W, C], as a PIL image, greyscale if C = 1."""
  from PIL import Image

  return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def png(pixels: np.ndarray) -> bytes:
  """Returns the bytes of a PNG file of pixels, uint8 [H, W, C]."""
  buffer = io.BytesIO()
  picture(pixels).save(buffer, 'PNG')
  return buffer.getvalue()
