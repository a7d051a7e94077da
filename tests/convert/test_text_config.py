"""Settings of text encoders: an unsupported field is refused by name."""

import pytest
import texts

from gdistill import errors
from gdistill.convert import text
from gdistill.convert import text_config
from gdistill.published import source_files


def test_positions_that_are_not_absolute_are_refused(tmp_path):
  with pytest.raises(errors.ConfigError, match=r"position_embedding_type='relative_key'"):
    text.read(str(texts.bert_folder(tmp_path, position_embedding_type='relative_key')))


@pytest.mark.parametrize('changes, error, why', [
  ({'hidden_act': 'relu'}, errors.ConfigError, "hidden_act='relu' must be one of quick_gelu,"),
  ({'hidden_size': None}, errors.DataError, 'hidden_size=None in its settings must be a positive'),
  ({'num_attention_heads': 5}, errors.DataError, 'hidden_size=32 must be a multiple of .*heads=5'),
])  # fmt: skip
def test_a_field_that_no_network_can_have_is_refused(tmp_path, changes, error, why):
  with pytest.raises(error, match=why):
    text.read(str(texts.clip_folder(tmp_path, **changes)))


@pytest.mark.parametrize('content, why', [
  ('{', 'config.json cannot be read .*download the file again'),
  ('[1]', r'config.json must hold a JSON object and holds \[1\]'),
])  # fmt: skip
def test_a_damaged_file_is_named(clip_copy, content, why):
  texts.put(clip_copy / 'text_encoder' / 'config.json', content)
  with pytest.raises(errors.DataError, match=why):
    text.read(str(clip_copy))


def test_a_file_that_an_editor_saved_with_a_byte_order_mark_is_read(tmp_path):
  (tmp_path / 'a.json').write_text('{"a": "é"}', 'utf-8-sig')
  assert text_config.read(tmp_path / 'a.json') == {'a': 'é'}
  assert source_files.read_json(tmp_path / 'a.json') == {'a': 'é'}
