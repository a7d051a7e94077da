"""Tokenizers give the tokens worked out by hand; a damaged or missing file is named."""

import sys

import numpy as np
import pytest
import texts

from gdistill import errors
from gdistill.convert import text

START, END = len(texts.clip_vocabulary()) - 2, len(texts.clip_vocabulary()) - 1


def ids_of(*tokens):
  return [texts.clip_vocabulary()[t] for t in tokens]


def test_clip_spells_what_it_cannot_merge_in_bytes(clip_path):
  found = text.read(str(clip_path)).tokens(['é'])[0][0]
  # The UTF-8 bytes of é are C3 A9; CLIP's vocabulary shows bytes as Latin-1 characters.
  assert found[:4].tolist() == [START, *ids_of('Ã', '©</w>'), END]


def test_the_second_stable_diffusion_pads_with_an_exclamation_mark(tmp_path):
  encoder = text.read(str(texts.clip_folder(tmp_path, pad='!')))
  assert encoder.tokens(['cat'])[0][0].tolist() == [START, *ids_of('cat</w>'), END, *[0] * 74]


def test_newer_settings_count_alone(clip_copy):
  newer = {'0': {'content': '!', 'special': True}}
  newer = {'pad_token': '!', 'added_tokens_decoder': newer}
  texts.clip_tokenizer(clip_copy / 'tokenizer', **newer)
  assert text.read(str(clip_copy)).tokens(['cat'])[0][0, 3:].tolist() == [0] * 74


def test_special_tokens_that_are_listed_again_keep_the_digest_of_earlier_versions(clip_copy):
  flags = dict(lstrip=False, normalized=True, rstrip=False, single_word=False, special=True)
  names = {'bos_token': '<|startoftext|>', 'eos_token': '<|endoftext|>'}
  special = zip((START, END), names.values(), strict=True)
  decoder = {str(n): {'content': c, **flags} for n, c in special}
  given = {**names, 'unk_token': '<|endoftext|>', 'added_tokens_decoder': decoder}
  texts.clip_tokenizer(clip_copy / 'tokenizer', **given)
  encoder = text.read(str(clip_copy))
  assert encoder.tokenizer.added == '' and encoder.digest == encoder.earlier_digest


def test_a_tokenizer_json_is_read_as_it_is_but_for_its_padding(clip_path, clip_copy):
  expected = text.read(str(clip_path)).tokens(['The cats of RE', ''])
  inner = text.read(str(clip_path)).tokenizer.inner
  inner.enable_padding(length=20)
  inner.enable_truncation(5)
  (clip_copy / 'tokenizer' / 'vocab.json').unlink()
  inner.save(str(clip_copy / 'tokenizer' / 'tokenizer.json'))
  found = text.read(str(clip_copy)).tokens(['The cats of RE', ''])
  np.testing.assert_array_equal(found[0], expected[0])


def test_without_the_library_the_extra_is_named(clip_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  with pytest.raises(errors.ConfigError, match=r"pip install -e '\.\[text\]'"):
    text.read(str(clip_path))


@pytest.mark.parametrize('name, content, why', [
  ('vocab.json', None, 'has neither tokenizer.json nor vocab.json; put the tokenizer'),
  ('merges.txt', None, 'has neither tokenizer.json nor merges.txt; put the tokenizer'),
  ('vocab.json', '{}', 'holds no readable tokenizer'),
  ('vocab.json', '{"a": 1', 'holds no readable tokenizer'),
  ('tokenizer.json', '{"a": 1}', 'holds no readable tokenizer'),
  ('special_tokens_map.json', '{"pad_token": 3}', 'holds no readable tokenizer'),
  ('tokenizer_config.json', '{"model_max_length": "x"}', "model_max_length='x' in its"),
])  # fmt: skip
def test_a_damaged_or_missing_file_is_named(clip_copy, name, content, why):
  (clip_copy / 'tokenizer' / name).unlink(missing_ok=True)
  if content is not None:
    texts.put(clip_copy / 'tokenizer' / name, content)
  with pytest.raises(errors.DataError, match=why):
    text.read(str(clip_copy))
