"""The page of a small made-up run, written once for the tests of this folder."""

import fake_run
import pytest

from gdistill.evaluation.report import page
from gdistill.workdir import storage


@pytest.fixture(scope='session')
def small_page(tmp_path_factory):
  folder = storage.path(tmp_path_factory.mktemp('run') / 'digits')
  fake_run.workdir(folder, fake_run.rows(ws=(0.0, 1.0, 4.0), steps=(2, 4)))
  return page.write(folder).read_text()
