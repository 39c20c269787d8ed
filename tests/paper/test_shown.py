"Library notebooks that show numbers of committed records: executed again, they show the same"

import nbformat
import pytest
from helpers import ROOT, papermill

SHOW_RECORDS = 'claims', 'evidence', 'inputs', 'pages', 'summaries'
TEXTS = (
    'text/html',
    'text/markdown',
    'text/plain',
)  # the first that there is: pandas' plain text has any width


def texts_of(notebook):
    "By cell, the texts that it shows, in order; what is printed in several pieces is one text"
    shown = {}
    for cell in notebook.cells:
        if cell.cell_type != 'code':
            continue
        printed, texts = '', []
        for output in cell.outputs:
            printed += output.get('text', '')
            found = [output['data'][kind] for kind in TEXTS if kind in output.get('data', {})]
            texts += [''.join(text) for text in found[:1]]
        shown[cell.id] = [text.strip() for text in [printed, *texts]]
    return shown


def stale_cells(committed, again):
    "The ids of the cells whose texts differ"
    before, now = texts_of(committed), texts_of(again)
    return [name for name in before if before[name] != now.get(name)]


@pytest.mark.parametrize('name', SHOW_RECORDS)
def test_what_a_notebook_shows_is_what_the_records_say(name, tmp_path):
    done = papermill(ROOT, f'library/paper/{name}', tmp_path / 'again.ipynb')
    assert done.returncode == 0, done.stderr[-2000:]
    committed = nbformat.read(ROOT / 'nbs' / 'library' / 'paper' / f'{name}.ipynb', 4)
    assert sum(any(texts) for texts in texts_of(committed).values()) > 2
    assert stale_cells(committed, nbformat.read(tmp_path / 'again.ipynb', 4)) == []


def test_a_stale_number_is_found():
    "The control: one digit of one output is another"
    file = ROOT / 'nbs' / 'library' / 'paper' / 'claims.ipynb'
    committed, altered = nbformat.read(file, 4), nbformat.read(file, 4)
    [cell] = [cell for cell in altered.cells if cell.id == 'committed']
    [output] = cell.outputs
    before = output.data['text/html']
    output.data['text/html'] = before.replace('<td>-', '<td>-1', 1)
    assert output.data['text/html'] != before
    assert stale_cells(committed, altered) == ['committed']


def test_the_notebooks_that_read_committed_records_are_listed():
    "Another one of this package whose tests read outputs/ must be listed, or named here with a reason"
    others = {
        'recompute',  # shows the number of its tables
        'report',  # shows the published table, and which scale is the latest
        'drawings',  # shows pictures
        'sources',  # of a toy
    }
    reads = set()
    for file in (ROOT / 'nbs' / 'library' / 'paper').glob('*.ipynb'):
        cells = nbformat.read(file, 4).cells
        code = '\n'.join(c.source for c in cells if c.cell_type == 'code' and '#| export' not in c.source)
        if "'outputs'" in code:
            reads.add(file.stem)
    assert reads == {*SHOW_RECORDS, *others}
