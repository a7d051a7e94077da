"""Reference statistics: what pictures are measured against, in one file with its protocol."""

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
  """What was measured of a set of pictures, and how: `protocol` says extractor, set and split."""

  measured: measure.Measured
  protocol: dict[str, Any]

  @functools.cached_property
  def support(self) -> precision_recall.Support | None:
    """Of the bank's features; None where there are too few."""
    if len(self.measured.bank) <= measure.NEIGHBOURS:
      return None
    return precision_recall.Support.of(self.measured.ordered_bank, measure.NEIGHBOURS)

  def to_bytes(self) -> bytes:
    """An .npz file of the arrays and the protocol."""
    buffer = io.BytesIO()
    text = json.dumps({'format': FORMAT, **self.protocol}, sort_keys=True)
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
  """The protocol of a reference: `digest` is the pictures'; None is what nobody knows."""
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
  file: Any, extractor: extractors.Extractor, remedy: str = 'make it by gdistill statistics'
) -> Reference:
  """The reference in a file that `Reference.to_bytes` made.

  ConfigError where another extractor made it or its features have another size, CheckpointError
  where it is damaged.
  """
  try:
    with np.load(io.BytesIO(storage.read_bytes(file)), allow_pickle=False) as stored:
      arrays = {name: stored[name] for name in stored.files}
    protocol = json.loads(str(arrays.pop('protocol')))
    if protocol.pop('format') != FORMAT:
      raise ValueError(f'format is not {FORMAT}')
    found = Reference(measure.Measured.from_arrays(arrays), protocol)
  except errors.GdistillError:
    raise
  except Exception as e:  # zipfile, zlib, json and numpy each have their own
    raise errors.CheckpointError(
      f'{file} is no readable file of reference statistics ({errors.brief(e)}); {remedy}'
    ) from e
  sizes = {found.measured.features.mean.shape, found.measured.features.scatter.shape[:1]}
  made = protocol.get('extractor'), protocol.get('extractor_digest')
  if made != (extractor.name, extractor.digest) or any(
    protocol.get(k) != v for k, v in extractor.protocol.items()
  ):
    raise errors.ConfigError(
      f'--reference={file} was made by {made[0]} {made[1]} with {protocol.get("resize")!r}, and '
      f'the pictures are measured by {extractor.name} {extractor.digest} with '
      f'{extractor.protocol["resize"]!r}; make it anew by gdistill statistics'
    )
  if sizes != {(extractor.size,)}:
    raise errors.CheckpointError(
      f'{file} has features of {sorted(sizes)}, and {extractor.name} has {extractor.size}; {remedy}'
    )
  return found
