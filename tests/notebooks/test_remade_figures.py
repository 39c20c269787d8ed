"What an earlier call has measured and is still true is read; only what is stale is made again"

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import (
    MINI,
    ROOT,
    experiments,
    outputs_of,
    papermill,
    papermill_command,
    run,
    small_project,
    without_digests,
)

from adt_repro.base.tables import file_digest, note_files
from adt_repro.evaluation.records import save_records
from adt_repro.runs.scales import call_parameters, check_scale

SETTINGS = dict(
    landscape=dict(grid=3, n_images=2, n_samples=4, n_curvature=3, curvature_steps=4, n_targets=1),
    diversity=dict(n_images=2, n_samples=8),
)


def results_of(folder):
    "By name, the content and the time of each frame, table and figure; a figure as SVG is always written"
    files = [file for kind in ('frames/*', 'tables/*', 'figures/*.png') for file in folder.glob(kind)]
    return {f'{file.parent.name}/{file.name}': (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def made_again(before, folder):
    "Names of the files that were written since, and of those that have another content"
    after = results_of(folder)
    assert set(after) == set(before)
    written = {name for name in after if after[name][1] != before[name][1]}
    return written, {name for name in after if after[name][0] != before[name][0]}


def parts_of(folder):
    "What was written by a measurement of alignment, curvature or spread"
    return [*folder.glob('records/parts/*/*.parquet')]


def edit(file, old, new):
    "Another text in a file, where it stands once"
    text = file.read_text()
    assert text.count(old) == 1, (file, old, text.count(old))
    file.write_text(text.replace(old, new))


def plant(folder, name, column, value):
    "Another value in a table, as if it had been made so: its digests are noted too"
    file = folder / name
    rows = pd.read_csv(file, dtype=dict(seeds=str))
    rows.loc[0, column] = value
    rows.to_csv(file, index=False, float_format='%.6g')
    note_files(folder)
    lock = json.loads((folder / 'lock.json').read_text())
    (entry,) = [entry for entry in lock['units'].values() if name in entry['files']]
    entry['files'][name] = file_digest(file)[:16]
    (folder / 'lock.json').write_text(json.dumps(lock))
    note_files(folder)


def call(project, notebook, out='out.ipynb', **params):
    "Run a notebook of a project with the tests' own code, which reads the project's notebooks"
    done = papermill(project, notebook, out, **params)
    assert done.returncode == 0, done.stderr[-2000:]
    return outputs_of(project / out)


def call_own_code(project, notebook, **params):
    "Run a notebook with the project's own copy of the code"
    environment = os.environ | dict(PYTHONPATH=str(project))
    done = run(*papermill_command(notebook, **params), cwd=project, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def planned(tmp_path, give_tiny_runs):
    "A function of a notebook: a clone whose scale plans it for two runs, and the parameters of its call"

    def plan(notebook):
        root = small_project(tmp_path, notebook)
        shutil.copytree(ROOT / 'adt_repro', root / 'adt_repro', ignore=shutil.ignore_patterns('__pycache__'))
        give_tiny_runs(root, 'standard', 'at_pgd', scale='mini')
        scale = check_scale(MINI | experiments(**SETTINGS))
        (root / 'nbs' / 'scales').mkdir()
        (root / 'nbs' / 'scales' / 'mini.yaml').write_text(yaml.safe_dump(scale.content))
        return root, root / 'outputs' / 'mini', json.loads(call_parameters(scale, notebook))

    return plan


def test_an_edited_plot_costs_no_measurement(planned):
    project, mini, given = planned('landscape')
    seen = call(project, 'landscape', **given)
    first = results_of(mini)
    assert len(first) == 5 + 4
    assert parts_of(mini)
    shutil.rmtree(mini / 'records' / 'parts')

    assert call(project, 'landscape', **given) == seen
    assert made_again(first, mini) == (set(), set()) and not parts_of(mini)

    plots = project / 'adt_repro' / 'analysis' / 'plots.py'
    edit(plots, "ylabel='share of images, %'", "ylabel='images, %'")
    edit(plots, "label='loss, nats', format=", "label='nats', format=")
    (mini / 'figures' / 'landscape_plane.svg').unlink()
    call_own_code(project, 'landscape', **given)
    drawn = {'figures/curvature.png', 'figures/landscape.png'}
    assert made_again(first, mini) == (drawn, drawn) and not parts_of(mini)
    assert (mini / 'figures' / 'landscape_plane.svg').exists()  # which a clone lacks

    before = results_of(mini)
    file = project / 'adt_repro' / 'evaluation' / 'measures.py'
    edit(file, 'found.residual <= 1.001e-3', 'found.residual <= -1')
    call_own_code(project, 'landscape', **given)
    ours = {'frames/curvature.csv', 'figures/curvature.png'}
    assert made_again(before, mini) == (ours, ours)
    assert not pd.read_csv(mini / 'frames' / 'curvature.csv').converged.any()
    assert len(parts_of(mini)) == 2  # a part for each run: nothing else was measured

    call(project, 'landscape', fresh=True, **given)  # with the code as it was
    assert made_again(first, mini) == (set(first), set())


def test_a_frame_that_is_true_is_what_is_shown(planned):
    "A value that no measurement gives stays until its code, its parameters or its networks change"
    project, mini, given = planned('landscape')
    call(project, 'landscape', **given)
    first = results_of(mini)
    places = dict(
        landscape=('loss', 9.75),
        landscape_along=('median', 9.75),
        landscape_plane=('a', 0.0125),
        alignment=('cosine', 0.99875),
        curvature=('eigenvalue', 12345.0),
    )
    for name, (column, value) in places.items():
        plant(mini, f'frames/{name}.csv', column, value)
    planted = results_of(mini)
    notebook = project / 'nbs' / 'landscape.ipynb'
    text = notebook.read_text()
    call(project, 'landscape', **given)
    frames = {name for name in planted if name.startswith('frames/')}
    written, changed = made_again(planted, mini)
    assert not written & frames and written == changed
    assert changed == {f'figures/{name}.png' for name in places if name != 'landscape_along'}

    # a cell that measures is edited: what it makes, and no more
    edit(notebook, 'near = np.linspace(-1.4, 1.4, 31)', 'near = np.linspace(-1.5, 1.5, 31)')
    edit(notebook, 'medians.append(pd.DataFrame(columns))', 'medians += [pd.DataFrame(columns)]')
    before = results_of(mini)
    call(project, 'landscape', **given)
    written, _ = made_again(before, mini)
    along, plane = 'frames/landscape_along.csv', 'figures/landscape_plane.png'
    assert written == {along, plane, 'figures/landscape.png'}
    assert results_of(mini)[along][0] == first[along][0]
    notebook.write_text(text)

    # a file that was changed behind the lock's back
    file = mini / 'frames' / 'alignment.csv'
    file.write_bytes(file.read_bytes().replace(b'0.99875', b'0.99876'))
    note_files(mini)
    call(project, 'landscape', **given)
    assert results_of(mini)['frames/alignment.csv'][0] == first['frames/alignment.csv'][0]

    # other weights: everything
    runs = mini / 'runs'
    one, other = (runs / f'digits-small_cnn-{method}-s0' for method in ('at_pgd', 'standard'))
    shutil.copy(other / 'weights.safetensors', one / 'weights.safetensors')
    without_digests(one)
    note_files(mini)
    before = results_of(mini)
    call(project, 'landscape', **given)
    assert made_again(before, mini)[0] == set(first)


def test_diversity_reads_what_is_true(planned):
    project, mini, given = planned('diversity')
    seen = call(project, 'diversity', **given)
    first = results_of(mini)
    assert len(first) == 6
    assert parts_of(mini)
    shutil.rmtree(mini / 'records' / 'parts')
    assert call(project, 'diversity', **given) == seen
    assert made_again(first, mini) == (set(), set()) and not parts_of(mini)

    notebook = project / 'nbs' / 'diversity.ipynb'
    edit(notebook, 'samples each', 'of each kind')
    call(project, 'diversity', **given)
    drawn = {'figures/diversity_measures.png'}
    assert made_again(first, mini) == (drawn, drawn) and not parts_of(mini)

    plant(mini, 'frames/diversity_measures.csv', 'cosine', 0.99875)
    plant(mini, 'frames/diversity_map.csv', 'first', 0.0125)
    before = results_of(mini)
    edit(notebook, 'pca = PCA(2, random_state=0)', 'pca = PCA(2, random_state=1)')
    call(project, 'diversity', **given)
    written, _ = made_again(before, mini)
    assert written == {
        'figures/diversity_measures.png',
        'frames/diversity_map.csv',
        'figures/diversity_map.png',
    }
    assert results_of(mini)['frames/diversity_map.csv'][0] == first['frames/diversity_map.csv'][0]
    call(project, 'diversity', fresh=True, **given)
    now = results_of(mini)
    assert all(now[name][1] != before[name][1] for name in now)
    assert now['frames/diversity_measures.csv'][0] == first['frames/diversity_measures.csv'][0]


SWEEP = dict(
    train=True,
    scale='quick',
    lbd=[],
    n_mc=[],
    inner_steps=[1, 2],
    inner_momentum=[],
    rho=[],
    u_max=[],
    seeds=2,
    epochs=1,
    n_train=100,
    n_test=20,
    draws=2,
)


def test_a_true_ablation_trains_nothing(tmp_path):
    project = small_project(tmp_path, 'ablation')
    quick = project / 'outputs' / 'quick'
    call(project, 'ablation', **SWEEP)
    first = results_of(quick)
    record = (quick / 'records' / 'ablation.parquet').read_bytes()
    runs = quick / 'ablation' / 'runs'
    assert len([*runs.glob('*/run.json')]) == 4
    shutil.rmtree(runs)

    seen = call(project, 'ablation', **SWEEP)
    _, changed = made_again(first, quick)
    assert not changed and not runs.exists()
    assert call(project, 'ablation', **SWEEP | dict(train=False)) == seen

    notebook = project / 'nbs' / 'ablation.ipynb'
    edit(notebook, 'figure = draw_options(shown, said)', 'figure = draw_options(shown, said.upper())')
    call(project, 'ablation', **SWEEP)
    assert made_again(first, quick)[1] == {'figures/ablation_options.png'} and not runs.exists()

    call(project, 'ablation', **SWEEP | dict(draws=3))
    assert len([*runs.glob('*/run.json')]) == 4
    assert 'frames/ablation.csv' in made_again(first, quick)[1]
    call(project, 'ablation', **SWEEP)
    assert made_again(first, quick)[1] == {'figures/ablation_options.png'}
    assert (quick / 'records' / 'ablation.parquet').read_bytes() == record


def test_results_that_were_only_drawn_are_not_noted(tmp_path):
    "With train=false nobody knows what has made them"
    project = small_project(tmp_path, 'ablation')
    quick = project / 'outputs' / 'quick'
    call(project, 'ablation', **SWEEP)
    (quick / 'lock.json').unlink()
    call(project, 'ablation', **SWEEP | dict(train=False))
    assert {*json.loads((quick / 'lock.json').read_text())['units']} == {'ablation/options-figure'}


def save_rows(folder, row, seed, n):
    "Made-up records of one network under PGD-20"
    rng = np.random.default_rng([len(row), seed])
    right = rng.random((2, n)) < 0.6
    run = f'mine-net-{row}-s{seed}'
    rows = [
        dict(run=run, attack=attack, i=range(n), y=0, pred=np.where(right[k], 0, 1), source=run)
        for k, attack in enumerate(('natural', 'pgd20'))
    ]
    rows = pd.concat([pd.DataFrame(of_attack) for of_attack in rows], ignore_index=True)
    more = dict(margin=0.1, loss=1.0, linf=0.0, queries=-1, seed=0, attacked=True, eps=0.03, test_set='abc')
    save_records(rows.assign(**more), folder / f'white_box-{run}.parquet')


POWER = dict(scale='mine', rows=['ours', 'baseline'], effect=4, repeats=20, seeds=[2, 4], images=[100])


def test_power_reads_its_table(tmp_path):
    project = small_project(tmp_path, 'power')
    mine = project / 'outputs' / 'mine'
    for row, seed in ('ours', 0), ('ours', 1), ('baseline', 0), ('baseline', 1):
        save_rows(mine / 'records', row, seed, 40)
    seen = call(project, 'power', **POWER)
    first = results_of(mine)
    assert set(first) == {'tables/power.csv', 'frames/power.csv', 'figures/power.png'}
    assert call(project, 'power', **POWER) == seen
    assert made_again(first, mine) == (set(), set())

    plant(mine, 'tables/power.csv', 'detectable_hi', 12345)
    plant(mine, 'frames/power.csv', 'power', 0.012345)
    before = results_of(mine)
    assert '1.23e+04' in call(project, 'power', **POWER)
    assert made_again(before, mine)[0] == {'figures/power.png'}

    call(project, 'power', **POWER | dict(seeds=[2, 3]))  # a parameter of the curves alone
    written, _ = made_again(before, mine)
    assert written == {'frames/power.csv', 'figures/power.png'}
    save_rows(mine / 'records', 'ours', 2, 40)
    call(project, 'power', **POWER)
    assert pd.read_csv(mine / 'tables' / 'power.csv').seeds.tolist() == ['3, 2']
