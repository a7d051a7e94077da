"""Tokens that were added to a tokenizer are read as one token each, copied, and never guessed."""

import json

import jax
import numpy as np
import pytest
import texts

from gdistill import errors
from gdistill.convert import text

SIZE = len(texts.clip_vocabulary())
MASK = 'mask_token'
START, END = SIZE - 2, SIZE - 1
CAT, OF = (texts.clip_vocabulary()[word] for word in ('cat</w>', 'of</w>'))


def listed_in_map(folder, tokens):
  texts.put(folder / 'added_tokens.json', json.dumps(tokens))


def listed_in_config(folder, tokens):
  decoder = {str(i): {'content': token} for token, i in tokens.items()}
  texts.edit(folder / 'tokenizer_config.json', added_tokens_decoder=decoder)


def listed_in_whole(folder, tokens):
  tokenizer = text.read(str(folder.parent)).tokenizer.inner
  tokenizer.add_tokens(sorted(tokens, key=tokens.get))
  (folder / 'vocab.json').unlink()
  tokenizer.save(str(folder / 'tokenizer.json'))


PLACES = [listed_in_map, listed_in_config, listed_in_whole]


@pytest.fixture
def folder(clip_copy):
  return texts.grown(clip_copy, SIZE + 4)


def ids_of(folder, prompt):
  ids = text.read(str(folder)).tokens([prompt])[0][0].tolist()
  assert ids[0] == START
  return ids[1 : ids.index(END)]


@pytest.mark.parametrize('put', PLACES)
def test_an_added_token_is_one_token_wherever_it_is_listed(folder, put):
  before = ids_of(folder, '<toy>')
  assert len(before) > 1 and max(before) < SIZE
  put(folder / 'tokenizer', {'<toy>': SIZE, '<toys>': SIZE + 1})
  # The longest added token counts, in any case, and also within a word.
  assert ids_of(folder, 'cat <toys>of<TOY>') == [CAT, SIZE + 1, OF, SIZE]


def test_special_tokens_that_no_list_has_come_last_and_keep_their_case(folder):
  listed_in_map(folder / 'tokenizer', {'<toy>': SIZE})
  special = {'additional_special_tokens': ['<toy>', '<X>'], 'mask_token': '<m>'}
  texts.edit(folder / 'tokenizer' / 'special_tokens_map.json', **special)
  assert ids_of(folder, '<m><toy><X>') == [SIZE + 1, SIZE, SIZE + 2]
  assert SIZE + 2 not in ids_of(folder, '<x>')


def test_a_special_token_of_the_map_keeps_its_case(folder):
  listed_in_map(folder / 'tokenizer', {'<X>': SIZE, '<Y>': SIZE + 1})
  texts.edit(folder / 'tokenizer' / 'special_tokens_map.json', **{MASK: '<X>'})
  assert ids_of(folder, '<X><Y><y>') == [SIZE, SIZE + 1, SIZE + 1]
  assert SIZE not in ids_of(folder, '<x>')


def test_extra_special_tokens_of_both_files_are_joined(folder):
  for name, token in (('tokenizer_config.json', '<B>'), ('special_tokens_map.json', '<A>')):
    texts.edit(folder / 'tokenizer' / name, extra_special_tokens=[token])
  assert ids_of(folder, '<A><B>') == [SIZE + 1, SIZE]


def test_special_tokens_are_those_of_the_config_alone_if_it_lists_the_added_tokens(folder):
  listed_in_config(folder / 'tokenizer', {'<toy>': SIZE})
  texts.edit(folder / 'tokenizer' / 'special_tokens_map.json', **{MASK: '<m>'})
  assert ids_of(folder, '<toy>') == [SIZE] and SIZE + 1 not in ids_of(folder, '<m>')


def test_a_token_that_is_listed_and_special_keeps_its_switches(folder):
  texts.edit(
    folder / 'tokenizer' / 'tokenizer_config.json', **{MASK: 'toy'},
    added_tokens_decoder={
      str(SIZE): {'content': 'toy', 'single_word': True, 'lstrip': True, 'rstrip': True},
    },
  )  # fmt: skip
  [found] = (
    token
    for token in text.read(str(folder)).tokenizer.inner.get_added_tokens_decoder().values()
    if token.content == 'toy'
  )
  assert found.single_word and found.lstrip and found.rstrip


def test_the_switches_of_a_token_count(folder):
  texts.edit(
    folder / 'tokenizer' / 'tokenizer_config.json',
    added_tokens_decoder={
      str(SIZE): {'content': 'toy', 'single_word': True, 'normalized': False},
      str(SIZE + 1): {'content': 'at', 'single_word': False},
    },
  )
  assert ids_of(folder, 'toy') == [SIZE]
  assert SIZE not in ids_of(folder, 'toys') + ids_of(folder, 'TOY')
  assert ids_of(folder, 'of at') == [OF, SIZE + 1]


def test_a_token_of_several_vectors_means_all_of_them(folder):
  listed_in_map(folder / 'tokenizer', {'<t>': SIZE, '<t>_1': SIZE + 1, '<t>_2': SIZE + 2})
  three = [SIZE, SIZE + 1, SIZE + 2]
  assert ids_of(folder, 'cat <t> of <t>') == [CAT, *three, OF, *three]
  # Who writes the tokens one after the other means them once.
  assert ids_of(folder, '<t> <t>_1 <t>_2 of') == [*three, OF]
  ids, _, cut = text.read(str(folder), length=5).tokens(['cat of <t>'])
  assert ids[0].tolist() == [START, CAT, OF, SIZE, END]
  assert cut == [
    "prompt 0 has 5 tokens and the text encoder reads 3: 2 were dropped, from '<t>' on"
  ]


@pytest.mark.parametrize('put', PLACES)
def test_the_copy_has_the_same_tokens_and_states(folder, put, tmp_path):
  put(folder / 'tokenizer', {'<toy>': SIZE})
  encoder = text.read(str(folder), length=6)
  text.write(str(tmp_path / 'copy'), encoder)
  copy = text.read(str(tmp_path / 'copy'), length=6)
  assert copy.digest == encoder.digest
  ids, mask, _ = copy.tokens(['cat <toy>'])
  assert ids[0].tolist() == [START, CAT, SIZE, END, END, END]
  one, two = (jax.jit(e.encode)(e.params, ids, mask) for e in (copy, encoder))
  np.testing.assert_array_equal(one, two)


def test_the_digest_is_of_the_added_tokens_too(folder):
  plain = text.read(str(folder))
  listed_in_map(folder / 'tokenizer', {'<toy>': SIZE})
  one = text.read(str(folder))
  listed_in_map(folder / 'tokenizer', {'<boy>': SIZE})
  two = text.read(str(folder))
  assert len({plain.digest, one.digest, two.digest}) == 3
  assert plain.digest == plain.earlier_digest == one.earlier_digest == two.earlier_digest


@pytest.mark.parametrize('put', PLACES)
def test_a_token_without_a_row_in_the_table_is_refused(clip_copy, put):
  put(clip_copy / 'tokenizer', {'<toy>': SIZE})
  with pytest.raises(
    errors.ConfigError, match=r"'<toy>', a token with id 520, but .* has only 520"
  ):
    text.read(str(clip_copy))


@pytest.mark.parametrize('tokens, why', [
  ({'<toy>': SIZE + 1}, r"added_tokens.json: the token '<toy>' has the id 521 .* the id 520,"),
  ({'cat</w>': SIZE}, r"the token 'cat</w>' has the id 520 and transformers gives it the id 513,"),
  ({'<toy>': 'x'}, r"an added token with the id 'x' cannot be read: the id of '<toy>' must"),
  ({'<toy>': True}, 'an added token with the id True cannot be read'),
  ({'<toy>': SIZE, '<boy>': SIZE}, "id 520 cannot be read: '<toy>' has the same id as '<boy>'"),
])  # fmt: skip
def test_an_id_that_cannot_be_is_refused(folder, tokens, why):
  listed_in_map(folder / 'tokenizer', tokens)
  with pytest.raises(errors.DataError, match=why):
    text.read(str(folder))


@pytest.mark.parametrize('put', [listed_in_map, listed_in_whole])
def test_two_files_that_disagree_are_refused(folder, put):
  put(folder / 'tokenizer', {'<toy>': SIZE})
  listed_in_config(folder / 'tokenizer', {'<boy>': SIZE})
  with pytest.raises(
    errors.DataError, match=r"adds the token '<toy>' with the id 520, and added_t"
  ):
    text.read(str(folder))
  listed_in_config(folder / 'tokenizer', {'<toy>': SIZE})
  assert ids_of(folder, '<toy>') == [SIZE]


def test_two_files_that_exchange_two_ids_are_refused(folder):
  listed_in_map(folder / 'tokenizer', {'<toy>': SIZE, '<boy>': SIZE + 1})
  listed_in_config(folder / 'tokenizer', {'<boy>': SIZE, '<toy>': SIZE + 1})
  with pytest.raises(
    errors.DataError, match=r"adds the token '<toy>' with the id 520, and added_t"
  ):
    text.read(str(folder))


@pytest.mark.parametrize('decoder, why', [
  ({'520': '<toy>'}, 'its fields are <toy>, without a text "content"'),
  (['<toy>'], 'added_tokens_decoder must be an object'),
])  # fmt: skip
def test_a_damaged_list_is_refused(folder, decoder, why):
  texts.edit(folder / 'tokenizer' / 'tokenizer_config.json', added_tokens_decoder=decoder)
  with pytest.raises(errors.DataError, match=why):
    text.read(str(folder))


def test_a_padding_token_outside_the_vocabulary_needs_a_row_too(clip_copy):
  texts.clip_tokenizer(clip_copy / 'tokenizer', pad='[PAD]')
  with pytest.raises(errors.ConfigError, match=r"'\[PAD\]', a token with id 520, but .* only 520"):
    text.read(str(clip_copy))
  ids = text.read(str(texts.grown(clip_copy, SIZE + 1))).tokens(['cat'])[0][0]
  assert ids.tolist() == [START, CAT, END, *[SIZE] * 74]
