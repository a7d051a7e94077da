"""Tokens that were added to a tokenizer have the ids that transformers and diffusers give them."""

import itertools
import json
import shutil

import numpy as np
import pytest
import texts

from gdistill.convert import text

transformers = pytest.importorskip('transformers', reason='bash launch/test.sh parity installs it')
pytestmark = pytest.mark.parity
SIZES = {'clip': len(texts.clip_vocabulary()), 'bert': len(texts.BERT_WORDS)}
CLASSES = {'clip': 'CLIPTokenizer', 'bert': 'BertTokenizer'}
TOKENS = [
  '<toy>',
  '<Toy>s',
  'cat',
  'E',
  '*',
  ' spaced out ',
  'été',
  '<|cat|>',
  '##',
  'of the',
  '名',
]
WORDS = [
  *TOKENS, '<TOY>', '<toy>s', 'CAT', 'cats', ' ', '  ', '\n', 'the', 'of', 'É', '<|endoftext|>',
  '<|ENDOFTEXT|>', '[SEP]', '[sep]', '.', 'e', '<extra>', '<EXTRA>', '<mask>', '\u0301',
]  # fmt: skip


def plain(kind, path):
  folder = texts.clip_folder(path) if kind == 'clip' else texts.bert_folder(path)
  if kind == 'clip':
    texts.grown(folder, SIZES[kind] + 20)
  else:
    state = texts.bert_state()
    name = 'embeddings.word_embeddings.weight'
    state[name] = np.zeros((SIZES[kind] + 20, texts.WIDTH), np.float32)
    folder = texts.bert_folder(path, state, vocab_size=SIZES[kind] + 20)
  return folder, folder / 'tokenizer' if kind == 'clip' else folder


def numbers(kind, tokens):
  """Returns {token: id}: the id in the vocabulary, or the next id after the vocabulary."""
  known = (
    texts.clip_vocabulary() if kind == 'clip' else {w: i for i, w in enumerate(texts.BERT_WORDS)}
  )
  new = [token for token in tokens if token not in known]
  return {
    token: known.get(token, len(known) + (token in new and new.index(token))) for token in tokens
  }


def drawn(rng, tokens):
  """Returns {id as text: fields of a token} with random switches, as added_tokens_decoder has."""
  switches = ('lstrip', 'rstrip', 'single_word', 'normalized', 'special')
  return {i: {'content': t, **{s: bool(rng.integers(2)) for s in switches}} for t, i in tokens}


def write(rng, kind, where, tokens):
  chosen = rng.permutation(TOKENS)[: rng.integers(1, 7)].tolist()
  numbered = numbers(kind, chosen)
  special = where / 'special_tokens_map.json'
  if rng.integers(2):
    fields = {'additional_special_tokens': ['<extra>', *chosen[:1]]}
    texts.edit(special if rng.integers(2) else where / 'tokenizer_config.json', **fields)
  if rng.integers(2):
    texts.edit(special, extra_special_tokens=[*chosen[-1:], '<extra>'])
  if rng.integers(2):
    mask = {'mask_token': '<mask>'}
    texts.edit(special if rng.integers(2) else where / 'tokenizer_config.json', **mask)
  if tokens == 'map':
    texts.put(where / 'added_tokens.json', json.dumps(numbered))
  if tokens == 'config':
    decoder = {str(i): of for i, of in drawn(rng, numbered.items()).items()}
    texts.edit(where / 'tokenizer_config.json', added_tokens_decoder=decoder)
  if tokens == 'saved':  # the installed transformers writes a single tokenizer.json
    theirs = getattr(transformers, CLASSES[kind]).from_pretrained(where)
    theirs.add_tokens(
      [transformers.AddedToken(**of) for of in drawn(rng, numbered.items()).values()]
    )
    for name in ('vocab.json', 'merges.txt', 'vocab.txt', 'tokenizer_config.json'):
      (where / name).unlink(missing_ok=True)
    special.unlink(missing_ok=True)
    theirs.save_pretrained(where)


def prompts(rng):
  return [''.join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(40)] + WORDS


def same(encoder, where, kind, given):
  theirs = getattr(transformers, CLASSES[kind]).from_pretrained(where)
  expected = theirs(
    given, padding='max_length', truncation=True, max_length=encoder.length, return_tensors='np'
  )['input_ids']
  found = encoder.tokens(given)[0]
  for prompt, one, two in zip(given, found, expected, strict=True):
    assert one.tolist() == two.tolist(), repr(prompt)


@pytest.mark.parametrize('kind', ['clip', 'bert'])
@pytest.mark.parametrize('tokens', ['map', 'config', 'saved'])
@pytest.mark.parametrize('seed', range(12))
def test_added_tokens_have_the_ids_of_transformers(kind, tokens, seed, tmp_path):
  rng = np.random.default_rng([seed, len(tokens), len(kind)])
  folder, where = plain(kind, tmp_path / 'given')
  write(rng, kind, where, tokens)
  encoder, given = text.read(str(folder)), prompts(rng)
  same(encoder, where, kind, given)
  text.write(str(tmp_path / 'copy'), encoder)
  shutil.rmtree(folder)
  copy = text.read(str(tmp_path / 'copy'))
  assert copy.digest == encoder.digest
  same(copy, tmp_path / 'copy' / 'tokenizer', kind, given)


def test_a_token_of_several_vectors_is_read_as_by_diffusers(tmp_path):
  loaders = pytest.importorskip(
    'diffusers.loaders', reason='bash launch/test.sh parity installs it'
  )
  folder, where = plain('clip', tmp_path)
  names = ['<t>', '<t>_1', '<t>_2', 'w', 'w_1', 'lone', 'far_1']
  texts.put(where / 'added_tokens.json', json.dumps(numbers('clip', names)))
  theirs = transformers.CLIPTokenizer.from_pretrained(where)
  mixin = loaders.TextualInversionLoaderMixin()
  words = ['<t>', ' w ', 'lone', 'far', 'cat', ' ']
  given = [''.join(parts) for n in (1, 2, 3) for parts in itertools.product(words, repeat=n)]
  expected = theirs(
    [mixin.maybe_convert_prompt(prompt, theirs) for prompt in given],
    padding='max_length', truncation=True, max_length=77, return_tensors='np',
  )['input_ids']  # fmt: skip
  found = text.read(str(folder)).tokens(given)[0]
  for prompt, one, two in zip(given, found, expected, strict=True):
    assert one.tolist() == two.tolist(), repr(prompt)
