"""Fixtures: folders of small text encoders with random weights."""

import shutil

import pytest
import texts


@pytest.fixture(scope='session')
def clip_path(tmp_path_factory):
  return texts.clip_folder(tmp_path_factory.mktemp('sd'))


@pytest.fixture(scope='session')
def bert_path(tmp_path_factory):
  return texts.bert_folder(tmp_path_factory.mktemp('bert'))


@pytest.fixture
def clip_copy(clip_path, tmp_path):
  return shutil.copytree(clip_path, tmp_path / 'copy')
