"spsa.ipynb killed in the middle and started again"

import time

import pandas as pd
from helpers import papermill, papermill_begun, small_project

PARAMS = dict(runs=['*-s0'], samples=[16], steps=8, budget=60, n_test=30, batch=5)
PARTS = 2 * 4 * 6  # two runs, four attacks with the clean images, six batches


def test_killed_and_started_again(tmp_path, give_tiny_runs):
    "Finished parts stay as they are, and the records end as those of an undisturbed run"
    project = small_project(tmp_path, 'spsa')
    for scale in 'killed', 'whole':
        give_tiny_runs(project, 'standard', 'at_pgd', scale=scale)
    folder = project / 'outputs' / 'killed' / 'records'
    process = papermill_begun(project, 'spsa', 'killed.ipynb', scale='killed', **PARAMS)
    while len(list(folder.glob('parts/*/*.parquet'))) < 12 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    kept = {f: f.stat().st_mtime_ns for f in folder.glob('parts/*/*.parquet')}
    assert 12 <= len(kept) < PARTS, (project / 'said.err').read_text()
    for scale, out in ('killed', 'again.ipynb'), ('whole', 'whole.ipynb'):
        done = papermill(project, 'spsa', out, scale=scale, **PARAMS)
        assert done.returncode == 0, done.stderr
    assert {f: f.stat().st_mtime_ns for f in kept} == kept
    assert len(list(folder.glob('parts/*/*.parquet'))) == PARTS
    files = list(folder.glob('spsa-*.parquet'))
    assert len(files) == 2
    for f in files:
        whole = project / 'outputs' / 'whole' / 'records' / f.name
        pd.testing.assert_frame_equal(pd.read_parquet(f), pd.read_parquet(whole))
