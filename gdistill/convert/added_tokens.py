"""Tokens that were added to a tokenizer after its vocabulary was made, by textual inversion."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from gdistill import errors
from gdistill.convert import text_config

FILE = 'added_tokens.json'
_CONFIG = 'tokenizer_config.json'
_TOKENIZER = 'tokenizer.json'
_DECODER = 'added_tokens_decoder'
_FLAGS = ('special', 'single_word', 'lstrip', 'rstrip', 'normalized')
# Names of special tokens, in the order in which transformers gives ids to new special tokens.
_NAMED = tuple(f'{name}_token' for name in ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask'))
_EXTRA, _OLD_EXTRA = 'extra_special_tokens', 'additional_special_tokens'


def settings(config: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of tokenizer_config.json and special_tokens_map.json as one dict.

  `config` has the fields of tokenizer_config.json and `special` those of special_tokens_map.json,
  which replace fields of the same name, but the two lists of extra special tokens are joined. With
  the field added_tokens_decoder in `config`, transformers ignores special_tokens_map.json.
  """
  config = dict(config)
  if not config.get(_EXTRA) and isinstance(config.get(_OLD_EXTRA), list):
    config[_EXTRA] = config.pop(_OLD_EXTRA)
  if _DECODER in config:
    return config
  lists = [of[_EXTRA] for of in (config, special) if isinstance(of.get(_EXTRA), list)]
  joined = {_EXTRA: [token for tokens in lists for token in tokens]} if lists else {}
  return {**config, **special, **joined}


def add(inner: Any, folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """Adds to `inner`, a tokenizer of the package tokenizers, the tokens that the files list.

  As in transformers, the tokens are those of added_tokens_decoder in tokenizer_config.json, or, if
  this field is absent, of added_tokens.json and tokenizer.json. Special tokens that `settings`
  names and no list has come last. Raises DataError if the files contradict each other, or if
  transformers would give a token another id than its file does.
  """
  import tokenizers

  listed = _listed(inner, folder, settings)
  fields = [fields for _, (_, fields) in sorted(listed.items())]
  known = {token.content for token in inner.get_added_tokens_decoder().values()}
  known.update(of['content'] for of in fields)
  fields += [of for of in _special(settings) if of['content'] not in known]
  inner.add_tokens(
    [
      tokenizers.AddedToken(of['content'], **{flag: of[flag] for flag in _FLAGS if flag in of})
      for of in fields
    ]
  )
  for number, (name, of) in sorted(listed.items()):
    found = inner.token_to_id(of['content'])
    if found != number:
      raise errors.DataError(
        f'{folder / name}: the token {of["content"]!r} has the id {number:,} and transformers '
        f'gives it the id {found:,}, because new ids follow the vocabulary without a gap; correct '
        'the id, and move the row of the token embedding in the text encoder there'
      )


def groups(inner: Any) -> dict[int, list[int]]:
  """Returns {id of '<x>': ids of '<x>', '<x>_1', '<x>_2', ...} for added tokens with such others.

  Textual inversion with several vectors adds these tokens. The pipelines of diffusers read '<x>' in
  a prompt as all of them.
  """
  ids = {token.content: i for i, token in inner.get_added_tokens_decoder().items()}
  out = {}
  for content, first in ids.items():
    group = [first]
    while (following := ids.get(f'{content}_{len(group)}')) is not None:
      group.append(following)
    if len(group) > 1:
      out[first] = group
  return out


def _listed(
  inner: Any, folder: pathlib.Path, settings: Mapping[str, Any]
) -> dict[int, tuple[str, dict[str, Any]]]:
  """Returns {id: (name of the file, fields of tokenizers.AddedToken)} of the tokens in the files.

  Raises DataError if a list is damaged, or if tokenizer_config.json lacks a token of another file.
  """
  # transformers asks only these fields whether a token of added_tokens.json is special.
  asked = {name: found for name, found in settings.items() if name in (*_NAMED, _EXTRA)}
  special = {of['content'] for of in _special(asked)}
  map_file, whole = (
    text_config.read(folder / name) if (folder / name).is_file() else {}
    for name in (FILE, _TOKENIZER)
  )
  of_map = (
    (i, {'content': c, 'special': c in special, 'normalized': c not in special})
    for c, i in map_file.items()
  )
  of_json = ((of['id'], of) for of in whole.get('added_tokens', []))
  found = _checked(folder, FILE, of_map) | _checked(folder, _TOKENIZER, of_json)
  if _DECODER not in settings:
    return found
  if not isinstance(settings[_DECODER], dict):
    raise errors.DataError(
      f'{folder / _CONFIG}: {_DECODER} must be an object with the fields of each token by '
      f'its id, and is {str(settings[_DECODER])[:40]}; download the file again'
    )
  listed = _checked(folder, _CONFIG, settings[_DECODER].items())
  base = inner.get_vocab(with_added_tokens=False)
  for i, (name, of) in found.items():
    content = of['content']
    if content not in base and listed.get(i, ('', {}))[1].get('content') != content:
      raise errors.DataError(
        f'{folder / name} adds the token {content!r} with the id {i:,}, and {_DECODER} in '
        f'{_CONFIG}, which transformers reads instead, does not; list the same tokens in both'
      )
  return listed


def _checked(
  folder: pathlib.Path, name: str, tokens: Iterable[tuple[Any, Any]]
) -> dict[int, tuple[str, dict[str, Any]]]:
  """Returns {id: (name, fields)} of the pairs (id, fields) in the file `name`.

  An id may be written as text, as in tokenizer_config.json. Raises DataError if an id is not a
  whole number, or if the fields have no content.
  """
  out = {}
  for number, fields in tokens:
    text = str(number)
    if not (isinstance(fields, dict) and isinstance(fields.get('content'), str)):
      problem = f'its fields are {str(fields)[:40]}, without a text "content"'
    elif isinstance(number, bool) or not (text.isascii() and text.isdecimal()):
      problem = f'the id of {fields["content"]!r} must be a whole number'
    elif int(text) in out:
      problem = f'{out[int(text)][1]["content"]!r} has the same id as {fields["content"]!r}'
    else:
      out[int(text)] = name, fields
      continue
    raise errors.DataError(
      f'{folder / name}: an added token with the id {number!r} cannot be read: {problem}; correct '
      'the file, or download it again'
    )
  return out


def _special(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the fields of tokenizers.AddedToken of the special tokens that `settings` names.

  The order is that in which transformers gives ids to new tokens: named tokens, extra tokens.
  """
  names = [*_NAMED, *(n for n in settings if n.endswith('_token') and n not in _NAMED)]
  extra = [settings.get(name) for name in (_EXTRA, _OLD_EXTRA)]
  tokens = [settings.get(name) for name in names]
  for found in extra:
    tokens += list(found.values()) if isinstance(found, dict) else (found or [])
  fields = [{'content': token} if isinstance(token, str) else token for token in tokens if token]
  # Switches such as add_bos_token end in '_token' too; their value is true or false.
  return [{**of, 'special': True} for of in fields if isinstance(of, dict) and of.get('content')]
