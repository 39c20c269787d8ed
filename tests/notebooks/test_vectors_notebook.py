"vectors as its users run it: it makes the committed files, finds one that was altered, and refuses a file for a folder"

import shutil

import pytest
from helpers import ROOT, papermill, small_project

from adt_repro.reference.cases import load_case, save_case

CASES = ROOT / 'vectors' / 'cases'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    root = small_project(tmp_path_factory.mktemp('project'), 'vectors')
    shutil.copytree(ROOT / 'vectors', root / 'vectors')
    return root


def test_the_committed_files_are_made(project):
    done = papermill(project, 'vectors', folder=str(project / 'made'))
    assert done.returncode == 0, done.stderr
    made = sorted((project / 'made').iterdir())
    assert [file.name for file in made] == sorted(file.name for file in CASES.iterdir())
    assert all(file.stat().st_size > 0 for file in made)


def test_a_file_that_was_altered_is_found(project):
    case = load_case(project / 'vectors' / 'cases' / 'pgd-conv.json')
    case.outputs['x_adv'][0, 0, 0, 0] += 1e-9
    save_case(case, project / 'vectors' / 'cases')
    done = papermill(project, 'vectors')
    assert done.returncode != 0
    assert 'pgd-conv: output.x_adv differs by 1.0e-09' in done.stdout + done.stderr


def test_a_file_is_no_folder(project):
    done = papermill(project, 'vectors', folder=str(project / 'settings.ini'))
    assert done.returncode != 0
    assert 'expected a folder' in done.stdout + done.stderr
