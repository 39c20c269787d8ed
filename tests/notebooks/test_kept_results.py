"A scale with a file: its own call makes its files, any other is refused or writes beside them under a label"

import json

import pandas as pd
import pytest
import yaml
from helpers import MINI, experiments, papermill, small_project

from adt_repro.paper.evidence import PARTS, attack_precision, read_evidence
from adt_repro.paper.inputs import compared_black_boxes
from adt_repro.paper.summaries import black_box_table, run_labels, sanity_table, table1_caption
from adt_repro.runs.scales import call_parameters, check_scale

ONE = 'digits-small_cnn-at_pgd-s0'
SETTINGS = dict(
    white_box=dict(n_test=20, n_targets=1, draws=2, n_sound=10),
    all_images=dict(n_test=10),
    spsa=dict(n_test=8, samples=[4], steps=2, budget=20),
    transfer=dict(n_test=10, attacks=['fgsm']),
    landscape=dict(grid=3, n_images=2, n_samples=4, n_curvature=2, curvature_steps=2, n_targets=1),
    diversity=dict(n_images=2, n_samples=8),
)
# What changes the results of each
OTHER = dict(
    white_box=dict(n_test=12),
    all_images=dict(n_test=5),
    spsa=dict(n_test=4),
    transfer=dict(n_test=5),
    landscape=dict(n_images=3),
    diversity=dict(n_images=3),
)


def files_of(folder):
    "Content by name of all files that are results"
    kinds = 'records', 'tables', 'frames', 'figures'
    files = [file for kind in kinds for file in (folder / kind).glob('*') if file.is_file()]
    return {f'{file.parent.name}/{file.name}': file.read_bytes() for file in files}


def read(folder):
    "What reports and evidence say of a scale"
    found = read_evidence(folder)
    labels = run_labels(found.runs)
    said = [attack_precision(folder), found.gains, table1_caption(found, folder, 'x')]
    for name in 'rows', 'all_images', 'transfer', 'spsa', 'alignment', 'curvature', 'diversity':
        said.append(getattr(found, name).to_csv())
    for name in 'transfer', 'spsa':
        said.append(black_box_table(folder, name, labels, PARTS)[0].to_csv())
        said += [frame.to_csv() for frame in compared_black_boxes(folder, name, list(labels.index))]
    return [*said, sanity_table(folder, labels, 'fp32', PARTS)[0].to_csv()]


@pytest.fixture(scope='module')
def project(tmp_path_factory, give_tiny_runs):
    "A scale of two runs, all of whose experiments were made by the calls of its plan"
    root = small_project(tmp_path_factory.mktemp('project'), *SETTINGS)
    give_tiny_runs(root, 'standard', 'at_pgd', scale='mini')
    pairs = dict(targets=['standard', 'at_pgd'], target_seeds=[0], source_seeds=[0])
    own = SETTINGS | dict(transfer=SETTINGS['transfer'] | pairs)
    file = root / 'nbs' / 'scales' / 'mini.yaml'
    file.parent.mkdir(parents=True)
    scale = check_scale(MINI | experiments(**own))
    file.write_text(yaml.safe_dump(scale.content))
    for name in SETTINGS:
        runs = (
            ['digits-small_cnn-standard-s0', ONE] if name in ('white_box', 'all_images', 'spsa') else [None]
        )
        for run in runs:
            given = json.loads(call_parameters(scale, name, run))
            done = papermill(root, name, **given)
            assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize('name', SETTINGS)
def test_other_parameters_are_refused_before_any_work(project, name):
    before = files_of(project / 'outputs' / 'mini')
    ((parameter, value),) = OTHER[name].items()
    for fresh in False, True:
        done = papermill(project, name, scale='mini', fresh=fresh, **SETTINGS[name] | OTHER[name])
        line = f'{parameter}={value}: expected {SETTINGS[name][parameter]}, as in nbs/scales/mini.yaml'
        assert done.returncode == 1 and line in done.stderr, done.stderr[-600:]
    assert before and files_of(project / 'outputs' / 'mini') == before


def test_other_runs_are_refused_where_a_file_is_of_all(project):
    before = files_of(project / 'outputs' / 'mini')
    done = papermill(project, 'landscape', scale='mini', runs=[ONE], **SETTINGS['landscape'])
    assert done.returncode == 1 and f"runs=['{ONE}']: expected those of nbs/scales/mini.yaml" in done.stderr
    assert files_of(project / 'outputs' / 'mini') == before


@pytest.mark.parametrize('name', SETTINGS)
def test_a_label_writes_beside_and_no_report_reads_it(project, name):
    folder = project / 'outputs' / 'mini'
    before, said = files_of(folder), read(folder)
    done = papermill(project, name, scale='mini', label='few', **SETTINGS[name] | OTHER[name])
    assert done.returncode == 0, done.stderr
    after = files_of(folder)
    assert {file: after[file] for file in before} == before
    new = set(after) - set(before)
    assert new and all('.few' in file for file in new)
    assert read(folder) == said


def test_a_call_of_the_scale_repeats_its_files(project):
    "A call by hand with the file's parameters, without a label: the same records"
    folder = project / 'outputs' / 'mini'
    before = files_of(folder)
    done = papermill(project, 'spsa', scale='mini', **SETTINGS['spsa'])
    assert done.returncode == 0, done.stderr
    after = files_of(folder)
    assert {file: after[file] for file in before} == before
    assert set(pd.read_csv(folder / 'tables' / 'spsa.csv').run) == {ONE, 'digits-small_cnn-standard-s0'}
