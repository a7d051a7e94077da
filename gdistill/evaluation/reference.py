"""Reference statistics: one file of measurements of real pictures, to compare samples with."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.evaluation.features import extractors
from gdistill.evaluation.figures import measure
from gdistill.evaluation.figures import precision_recall
from gdistill.workdir import storage

FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
  """The measurements of a set of reference pictures, and how they were measured.

  `protocol` is {key: value}, with the feature extractor, the data set and the split. `upright` is
  False for statistics that an earlier version of gdistill, which ignored EXIF orientation, made.
  """

  measured: measure.Measured
  protocol: dict[str, Any]
  upright: bool = True

  @functools.cached_property
  def support(self) -> precision_recall.Support | None:
    """Balls around the features in the bank, for precision and recall; None for a small bank."""
    if len(self.measured.bank) <= measure.NEIGHBOURS:
      return None
    return precision_recall.Support.of(self.measured.ordered_bank, measure.NEIGHBOURS)

  def to_bytes(self) -> bytes:
    """Returns the bytes of an .npz file with the measured arrays and the protocol as JSON."""
    buffer = io.BytesIO()
    made = {'upright': True} if self.upright else {}
    text = json.dumps({'format': FORMAT, **made, **self.protocol}, sort_keys=True)
    np.savez(buffer, protocol=np.array(text), **self.measured.to_arrays())
    return buffer.getvalue()


def describe(
  extractor: extractors.Extractor,
  set_name: str,
  split: str,
  images: int | None,
  digest: str,
  bank: int | None,
  shape: tuple[int, ...] | None,
) -> dict[str, Any]:
  """Returns how reference statistics were measured, as {key: value} for the rows of metrics.

  `images` is the number of reference pictures, or None if unknown.
  `digest` is a hash of the reference pictures.
  `bank` is the number of features stored for precision, recall and KID, or None if unknown.
  `shape` is the shape [H, W, C] of every reference picture, or None if unknown.
  """
  return {
    'extractor': extractor.name,
    'extractor_digest': extractor.digest,
    **extractor.protocol,
    'reference_set': set_name,
    'reference_split': split,
    'reference_images': images,
    'reference_digest': digest,
    'reference_bank': bank,
    'reference_size': shape and f'{shape[0]} x {shape[1]}',
  }


def read(
  file: Any,
  extractor: extractors.Extractor,
  remedy: str = 'make the file again with gdistill statistics',
) -> Reference:
  """Returns the reference statistics in a file that `Reference.to_bytes` made.

  Raises ConfigError if the statistics were made by an extractor other than `extractor`. Raises
  CheckpointError if the file is damaged or its features do not have the size `extractor.size`.
  `remedy` is the advice with which an error line about a damaged file ends.
  """
  try:
    with np.load(io.BytesIO(storage.read_bytes(file)), allow_pickle=False) as stored:
      arrays = {name: stored[name] for name in stored.files}
    protocol = json.loads(str(arrays.pop('protocol')))
    if protocol.pop('format') != FORMAT:
      raise ValueError(f'format is not {FORMAT}')
    upright = bool(protocol.pop('upright', False))
    found = Reference(measure.Measured.from_arrays(arrays), protocol, upright)
  except errors.GdistillError:
    raise
  except Exception as e:  # a damaged file makes zipfile, zlib, json or numpy raise different errors
    raise errors.CheckpointError(
      f'{file} is not a readable file of reference statistics ({errors.brief(e)}); {remedy}'
    ) from e
  sizes = {found.measured.features.mean.shape, found.measured.features.scatter.shape[:1]}
  made = protocol.get('extractor'), protocol.get('extractor_digest')
  if made != (extractor.name, extractor.digest) or any(
    protocol.get(k) != v for k, v in extractor.protocol.items()
  ):
    raise errors.ConfigError(
      f'--reference={file} was made by {made[0]} {made[1]} with {protocol.get("resize")!r}, and '
      f'the pictures are measured by {extractor.name} {extractor.digest} with '
      f'{extractor.protocol["resize"]!r}; make the file again with gdistill statistics'
    )
  if sizes != {(extractor.size,)}:
    raise errors.CheckpointError(
      f'{file} holds features of size {sorted(sizes)}, and features of {extractor.name} have size '
      f'{extractor.size}; {remedy}'
    )
  return found
