"""Builds CLIP's and BERT's tokenizers from the files that the library transformers writes."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gdistill import errors
from gdistill.convert import added_tokens
from gdistill.convert import text_config

_TOKENIZER = 'tokenizer.json'
_SETTINGS = ('tokenizer_config.json', 'special_tokens_map.json')
# Names of all files that a tokenizer may have; each tokenizer has only some of these files.
FILES = (_TOKENIZER, 'vocab.json', 'merges.txt', 'vocab.txt', added_tokens.FILE, *_SETTINGS)
# Default special tokens, for a tokenizer whose settings leave a special token out.
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
# Pattern of the pieces into which CLIP splits a text: special tokens, contractions, runs of
# letters, single digits, runs of other characters. Source: Radford et al., arXiv 2103.00020.
_CLIP_PIECES = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """Holds `inner`, a tokenizer of the package tokenizers, and the ids of three special tokens.

  A row of token ids consists of `start`, the ids of the text, `end`, and `pad` repeated up to the
  length of the row. `groups` maps the id of a token of several embeddings to the ids of all of
  them, see added_tokens.groups. `added` is '' unless the tokenizer has tokens that earlier versions
  of gdistill read otherwise, and then describes all added tokens.
  """

  inner: Any
  start: int
  end: int
  pad: int
  groups: Mapping[int, Sequence[int]]
  added: str


def settings(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the fields of tokenizer_config.json and special_tokens_map.json as one dict.

  An entry of special_tokens_map.json replaces that of tokenizer_config.json, because
  special_tokens_map.json has the padding token that Stable Diffusion 2 was trained with. If
  tokenizer_config.json has the field 'added_tokens_decoder', which newer versions of transformers
  write, then special_tokens_map.json is ignored.
  """
  config, special = (
    text_config.read(folder / name) if (folder / name).is_file() else {} for name in _SETTINGS
  )
  return added_tokens.settings(config, special)


def read(folder: pathlib.Path, kind: str, settings: Mapping[str, Any]) -> Tokenizer:
  """Returns the tokenizer of the files in `folder`; `kind` is 'clip' or 'bert'.

  The tokenizer is built from tokenizer.json if that file exists, and otherwise from vocab.json and
  merges.txt (CLIP) or vocab.txt (BERT). Raises ConfigError if the Python package tokenizers is not
  installed. Raises DataError if a file in `folder` is missing or unreadable.
  """
  try:
    import tokenizers
  except ImportError:
    raise errors.ConfigError(
      "prompts need the package tokenizers: pip install -e '.[text]'"
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
    # Special tokens that tokenizer.json already describes are not added a second time. Special
    # tokens outside the vocabulary are not added, because the network has no embedding for them.
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    new = [n for n, t in names.items() if t not in known and inner.token_to_id(t) is not None]
    inner.add_special_tokens([_added(tokenizers, special[n]) for n in new])
    before = _described(inner)
    added_tokens.add(inner, folder, settings)
    after = _described(inner)
  except errors.GdistillError:
    raise
  except Exception as e:  # the package tokenizers raises plain Exception, not a subclass
    reason = errors.brief(e)
    raise errors.DataError(
      f'{folder} holds no readable tokenizer: {reason}; download the tokenizer files again'
    ) from e
  around = {name: inner.token_to_id(names[name]) for name in (*_AROUND[kind], 'pad_token')}
  for name, number in around.items():
    if number is None:
      raise errors.DataError(
        f"{folder}: {name}={names[name]!r} is not in the tokenizer's vocabulary; download the "
        'tokenizer files again'
      )
  groups = added_tokens.groups(inner) if kind == 'clip' else {}
  # Adding a known special token again may change its flag `normalized`, which matters only for a
  # prompt that spells the token in capital letters.
  known = {token[:-1] for token in before}
  added = f'{after} {groups}' if groups or any(t[:-1] not in known for t in after) else ''
  return Tokenizer(inner, *around.values(), groups, added)


def _described(inner: Any) -> list[tuple]:
  """Returns (id, content, flags) of every added token of `inner`; the flags change what is read."""
  return [
    (i, t.content, t.single_word, t.lstrip, t.rstrip, t.normalized)
    for i, t in sorted(inner.get_added_tokens_decoder().items())
  ]


def _added(tokenizers: Any, token: str | Mapping[str, Any]) -> Any:
  """Returns the tokenizers.AddedToken that transformers would make of the special token `token`.

  If `token` is a plain string, the token is searched in the text before the text is lower-cased.
  """
  if isinstance(token, str):
    return tokenizers.AddedToken(token, special=True)
  flags = {k: v for k, v in token.items() if k in ('single_word', 'lstrip', 'rstrip', 'normalized')}
  return tokenizers.AddedToken(token['content'], special=True, **flags)


def _clip_tokenizer(folder: pathlib.Path, unknown: str) -> Any:
  """Returns CLIP's byte-pair tokenizer from vocab.json and merges.txt in `folder`.

  The tokenizer lower-cases the text; the last piece of a word ends in '</w>'. `unknown` is the
  token that stands for a piece outside the vocabulary.
  """
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
  """Returns BERT's WordPiece tokenizer with the vocabulary in `folder`/vocab.txt.

  `unknown` is the token that stands for a word outside the vocabulary.
  """
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
  """Raises DataError if one of the tokenizer's files `names` is missing in `folder`."""
  missing = [name for name in names if not (folder / name).is_file()]
  if missing:
    raise errors.DataError(
      f'{folder} has neither {_TOKENIZER} nor {" and ".join(missing)}; put the tokenizer that '
      'comes with the weights there, or name the parent folder if it has a subfolder tokenizer/'
    )
