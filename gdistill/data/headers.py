"""Looks at picture files without decoding them: hashes samples of their bytes, reads their size.

A look costs one open and a few short reads of a file, so that a folder of a million pictures can be
looked at before every start. Only an AVIF file whose header is unusually long is read whole.
"""

import concurrent.futures
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gdistill.data import pictures

SAMPLE = 4096  # number of bytes that are hashed at the start and at the end of a file
# First bytes of BMP, TIFF and PPM files. They may store pixels without compression, so that a
# change in the middle changes no byte near the end: they are also sampled at places in between.
_PLAIN = (b'BM', b'II*\0', b'MM\0*', b'P5', b'P6')
_PLACES, _PART = 64, 256  # number of such places, and number of bytes that are hashed at each
_THREADS, _CHUNK = 8, 512  # threads that look at files, and number of files in one of their tasks
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))  # JPEG markers that no length follows
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that begin a frame

Read = Callable[[int, int], bytes]  # read(offset, count) returns bytes of a file


class Look(NamedTuple):
  """What was found: a hash of sampled bytes, [16] bytes; width and height, 0 if not readable."""

  stamp: bytes
  width: int
  height: int


UNREADABLE = Look(bytes(16), 0, 0)  # what is found in a file that cannot be read


def look(size: int, read: Read) -> Look:
  """Looks at a file of `size` bytes through `read(offset, count)`."""
  head = read(0, min(size, 3 * SAMPLE))
  h = hashlib.sha256(size.to_bytes(8, 'little'))
  if size <= 3 * SAMPLE:
    h.update(head)
  else:
    h.update(head[:SAMPLE])
    for k in range(_PLACES if head.startswith(_PLAIN) else 0):
      h.update(read(size * k // _PLACES, _PART))
    h.update(read(size - SAMPLE, SAMPLE))
  try:
    width, height = _dimensions(head, size, read)
  except Exception:  # a damaged header raises errors of Pillow, struct and others
    width, height = 0, 0
  return Look(h.digest()[:16], width, height)


def of_bytes(data: bytes) -> Look:
  """Looks at the file whose bytes are `data`."""
  return look(len(data), lambda offset, count: data[offset : offset + count])


def of_file(file: str, first: int = 0, size: int = -1) -> Look:
  """Looks at a file, or at its part of `size` bytes from byte `first`.

  A file that cannot be read gives UNREADABLE: as with a damaged picture, only reading it raises.
  """
  try:
    with open(file, 'rb', buffering=0) as f:
      return of_part(f, first, os.fstat(f.fileno()).st_size if size < 0 else size)
  except OSError:
    return UNREADABLE


def of_part(f: BinaryIO, first: int, size: int) -> Look:
  """Looks at a file that is the part of `size` bytes from byte `first` of the open file `f`."""

  def read(offset, count):
    f.seek(first + offset)
    return f.read(max(0, min(count, size - offset)))  # a damaged header leads behind the end

  return look(size, read)


def of_all(
  one: Callable[..., Look], items: Sequence, poll: Callable[[], None] = lambda: None
) -> list[Look]:
  """Returns [one(item)] of all items, made by several threads because storage answers slowly.

  `poll()` is called now and then, and may raise to stop.
  """
  chunks = [items[k : k + _CHUNK] for k in range(0, len(items), _CHUNK)]
  found = []
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    try:
      for part in pool.map(lambda chunk: [one(item) for item in chunk], chunks):
        poll()
        found += part
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise
  return found


def sifted(
  names: Sequence[str], looks: Sequence[Look], size: int
) -> tuple[list[str], list[str], list[bytes]]:
  """Returns the names of pictures that are large enough, those too small, and hashes of the first.

  A picture is too small if `large_enough` returns False.
  """
  large = large_enough(looks, size)
  kept, small = ([n for n, ok in zip(names, large, strict=True) if ok == w] for w in (1, 0))
  return kept, small, [found.stamp for found, ok in zip(looks, large, strict=True) if ok]


def large_enough(looks: Sequence[Look], size: int) -> np.ndarray:
  """Returns [n] bool: False where a picture would be enlarged more than allowed to `size`.

  A picture whose width and height are not readable gives True: reading the picture will raise.
  """
  return np.array([
    not (w and h and pictures.too_small(w, h, size)) for _, w, h in looks
  ], bool)  # fmt: skip


def _dimensions(head: bytes, size: int, read: Read) -> tuple[int, int]:
  """Returns (width, height) as the header says, before any turn."""
  little = int.from_bytes
  if head.startswith(b'\x89PNG\r\n\x1a\n') and len(head) >= 24:
    return little(head[16:20], 'big'), little(head[20:24], 'big')
  if head.startswith(b'\xff\xd8'):
    return _jpeg(head, read)
  if head[:4] == b'RIFF' and head[8:16] == b'WEBPVP8 ' and head[23:26] == b'\x9d\x01\x2a':
    return little(head[26:28], 'little') & 0x3FFF, little(head[28:30], 'little') & 0x3FFF
  if head[:4] == b'RIFF' and head[8:16] == b'WEBPVP8X':
    return little(head[24:27], 'little') + 1, little(head[27:30], 'little') + 1
  if head[:4] == b'RIFF' and head[8:16] == b'WEBPVP8L' and head[20:21] == b'\x2f':
    bits = little(head[21:25], 'little')
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
  if head[4:8] == b'ftyp':  # AVIF: Pillow wants all bytes, but looks only at the first ones
    try:
      return _opened(io.BytesIO(head.ljust(size, b'\0')))
    except Exception:  # the header goes on behind `head`
      return _opened(io.BytesIO(read(0, size)))
  return _opened(io.BufferedReader(_Part(head, size, read)))


def _opened(file: BinaryIO) -> tuple[int, int]:
  """Returns (width, height) as Pillow finds them."""
  from PIL import Image  # imported inside the function, because Pillow loads slowly

  with Image.open(file, formats=pictures.formats()) as picture:
    return picture.size


class _Part(io.RawIOBase):
  """A file for Pillow: of its bytes, only those that Pillow asks for behind `head` are read."""

  def __init__(self, head: bytes, size: int, read: Read):
    self._head, self._size, self._read, self._at = head, size, read, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    self._at = max(0, offset + (0, self._at, self._size)[whence])
    return self._at

  def readinto(self, buffer: Any) -> int:
    end = min(self._at + len(buffer), self._size)
    inside = end <= len(self._head)
    data = self._head[self._at : end] if inside else self._read(self._at, end - self._at)
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)


def _jpeg(head: bytes, read: Read) -> tuple[int, int]:
  """Returns (width, height) of a JPEG file: walks over the segments to the first frame."""
  place = 2
  while True:
    part = head[place : place + 16] if place + 16 <= len(head) else read(place, 16)
    if len(part) < 4 or part[0] != 0xFF:
      return 0, 0
    marker = part[1]
    if marker == 0xFF:  # a fill byte
      place += 1
    elif marker in _WITHOUT_LENGTH:
      place += 2
    elif marker in _FRAMES:
      return int.from_bytes(part[7:9], 'big'), int.from_bytes(part[5:7], 'big')
    else:
      place += 2 + int.from_bytes(part[2:4], 'big')
