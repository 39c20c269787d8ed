"A file of a scale that asks for what cannot be done is refused in one line"

import pytest
import yaml
from helpers import MINI, ROOT, experiments

from adt_repro.base.files import code_digest
from adt_repro.base.parameters import ParameterError
from adt_repro.runs import scales
from adt_repro.runs.scales import plan_digest, read_scale


def test_the_scale_itself_can_be_read(tmp_path):
    (tmp_path / 'mini.yaml').write_text(yaml.safe_dump(MINI))
    assert read_scale(tmp_path / 'mini.yaml').name == 'mini'


def test_a_plan_is_of_a_scale_and_of_the_code(tmp_path, monkeypatch):
    "By the one digest of the package's code, which names the kept parts of records too"
    file = tmp_path / 'mini.yaml'
    file.write_text('scale: mini')
    first = plan_digest(file)
    file.write_text('scale: maxi')
    second = plan_digest(file)
    monkeypatch.setattr(scales, 'code_digest', lambda: '0' * 12, raising=False)
    assert len({first, second, plan_digest(file)}) == 3
    hashing = [f.name for f in (ROOT / 'adt_repro').rglob('*.py') if "rglob('*.py')" in f.read_text()]
    assert hashing == ['files.py'] and len(code_digest()) == 12


BAD_SCALES = [
    (dict(scale='other'), "scale='other': expected the name of the file, 'mini'"),
    (dict(arch=None), 'standard: arch is missing, expected a scale that names its dataset and arch'),
    (dict(experiments=dict(methods=['standard'], rate=1)), 'seeds=None: expected a list of at least 1'),
    (dict(experiments=dict(seeds=[0], rate=1)), 'methods=None: expected a list of at least 1'),
    (
        experiments(spsas={}),
        "spsas={}: there is no such parameter, did you mean 'spsa'? Expected methods, seeds",
    ),
    (experiments(more_seeds=dict(at_pdg=[2])), "more_seeds='at_pdg': expected standard, at_pgd"),
    (
        experiments(more_seeds=dict(at_pgd=2)),
        "more_seeds={'at_pgd': 2}: expected a table of methods, for each a list of seeds",
    ),
    (experiments(more_seeds=['at_pgd']), "more_seeds=['at_pgd']: expected a table of methods"),
    (experiments(more_seeds=dict(at_pgd=[-2])), "more_seeds={'at_pgd': [-2]}: expected a table of methods"),
    (experiments(spsa=dict(seeds=[7])), 'digits-small_cnn-at_pgd-s7, expected the runs of methods and seeds'),
    (experiments(methods=['at_pdg', 'at_pgd']), "method='at_pdg'"),
    (dict(epochs=0), 'epochs=0: expected'),
]


@pytest.mark.parametrize('change, line', BAD_SCALES)
def test_what_cannot_be_done_is_said_in_one_line(change, line, tmp_path):
    (tmp_path / 'mini.yaml').write_text(yaml.safe_dump(MINI | change))
    with pytest.raises(ParameterError) as e:
        read_scale(tmp_path / 'mini.yaml')
    said = str(e.value)
    assert said.startswith(f'{tmp_path}/mini.yaml: ') and line in said and '\n' not in said
