"""Marks the contact sheets that gdistill writes, so that no reader takes them for data.

A contact sheet shows many pictures as tiles of one PNG file. The mark is a text in the PNG file,
with the width and height of the sheet; a picture that was cut out of a sheet has another size, so
it is data even if a program copied the text.
"""

import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable

GRID, SHEET = 'grid.png', 'sheet.png'  # names of the contact sheets of sample; of edit and others
REQUEST = 'request.json'  # file beside the results of edit, inpaint and transfer: their flags
_START = b'\x89PNG\r\n\x1a\n'
_END = 33  # number of bytes of a PNG's signature and first chunk, IHDR
_DRAWN = re.compile(r'(label|prompt)\d+_seed\d+\.png')  # a picture that `gdistill sample` wrote


def marked(png: bytes) -> bytes:
  """Returns the bytes of a PNG file with the mark of a contact sheet."""
  return png[:_END] + _mark(png) + png[_END:]


def is_marked(data: bytes) -> bool:
  """Returns whether `data`, the first 4,096 or more bytes of a file, has the mark of a sheet."""
  return data.startswith(_START) and _mark(data) in data[:4096]


def sheets(names: Iterable[str], head: Callable[[str], bytes]) -> set[str]:
  """Returns those of the paths `names` that are contact sheets.

  Only files called grid.png or sheet.png are looked at. `head(name)` returns the first 4,096 bytes
  of a file. Sheets without a mark, of earlier versions, are known by the files beside them.
  """
  names, beside = list(names), {}
  if not any(n.endswith((GRID, SHEET)) for n in names):
    return set()
  for name in names:
    folder, last = os.path.split(name)
    beside.setdefault(folder, []).append(last)
  asked = [(f, n) for f, found in beside.items() for n in (GRID, SHEET) if n in found]
  return {
    os.path.join(f, n) for f, n in asked
    if _is_old(n, beside[f]) or is_marked(head(os.path.join(f, n)))
  }  # fmt: skip


def _is_old(name: str, beside: list[str]) -> bool:
  return REQUEST in beside if name == SHEET else any(map(_DRAWN.fullmatch, beside))


def _mark(png: bytes) -> bytes:
  """Returns the chunk that marks a PNG file of the width and height in the first bytes `png`."""
  width, height = struct.unpack('>II', png[16:24].ljust(8, b'\0'))
  text = b'tEXt' + f'gdistill\0contact sheet {width} x {height}'.encode()
  return struct.pack('>I', len(text) - 4) + text + struct.pack('>I', zlib.crc32(text))
