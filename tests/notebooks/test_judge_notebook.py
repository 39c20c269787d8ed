"A judged model as its users see it: the default call, a second call, another question, a failed check, a refusal"

import json
import re

import nbformat
import numpy as np
import pytest
from helpers import papermill, small_project

from adt_repro.data import load_data
from adt_repro.evaluation.records import load_records
from adt_repro.judging.page import check_report

# A module of a user
NET = """
from pathlib import Path

import torch
from torch import nn

from adt_repro.models.trained import trained_network


class Net(nn.Module):
    def __init__(self, factor=1.0, noise=0.0):
        super().__init__()
        self.net = trained_network(Path(__file__).with_name('method').read_text())
        self.factor, self.noise = factor, noise

    def forward(self, x):
        return self.factor * self.net(x + self.noise * torch.randn_like(x))


def sound():
    return Net()


def steep():
    return Net(factor=50.0)


def noisy():
    return Net(noise=0.1)


def scripted():
    net = Net()
    net.net = torch.jit.script(net.net)
    return net


def no_network():
    return 'nothing'
"""
FEW = dict(data='test.npz', eps=0.15, attacks=['fgsm', 'pgd20', 'pgd100'], autoattack=False)
RESULTS = 'report.html', 'report.json', 'plan.json', 'images.csv', 'records/judge.parquet'


def put_user(folder):
    "A user's files: a module with networks, and images with labels"
    data = load_data('digits')
    (folder / 'method').write_text('at_pgd')
    (folder / 'net.py').write_text(NET)
    np.savez(folder / 'test.npz', x=data.x_test[:60].numpy(), y=data.y_test[:60].numpy())
    return folder


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    return put_user(small_project(tmp_path_factory.mktemp('project'), 'judge'))


def judged(root, **given):
    "Exit status, what the notebook has printed and displayed, and the line of its error"
    done = papermill(root, 'judge', **given)
    outputs = [out for cell in nbformat.read(root / 'out.ipynb', 4).cells for out in cell.get('outputs', [])]
    said = ''.join(out.text for out in outputs if out.get('name') == 'stdout')
    shown = '\n'.join(out.data.get('text/plain', '') for out in outputs if 'data' in out)
    errors = [f'{out.ename}: {out.evalue}' for out in outputs if out.output_type == 'error']
    return done.returncode, said, shown, errors[0] if errors else ''


def results(root, name):
    folder = root / 'outputs' / 'judged' / name
    return {file: (folder / file).read_bytes() for file in RESULTS}


def report_of(root, name):
    return json.loads((root / 'outputs' / 'judged' / name / 'report.json').read_text())


@pytest.fixture(scope='module')
def demo(project):
    "The call without parameters, on fewer images"
    return judged(project, n_test=60)


def test_without_parameters_a_small_network_is_judged(project, demo):
    status, said, shown, error = demo
    assert status == 0, error
    report = report_of(project, 'demo')
    check_report(report)
    assert report['answer']['status'] == 0, report['answer']
    assert report['data']['n'] == 60 and report['threat'] == dict(norm='linf', eps=0.15, eps_text='0.15')
    line, page = shown.splitlines()[-2:]
    assert line == report['answer']['line']
    assert page == 'page  outputs/judged/demo/report.html' and (project / page.split()[1]).is_file()
    assert report['command'] == 'adt judge --eps 0.15 -p n_test 60'
    rows = load_records(project / 'outputs' / 'judged' / 'demo' / 'records' / 'judge.parquet')
    natural = rows[rows.attack == 'natural']
    assert (natural.pred == natural.y).sum() == report['clean']['correct'] and len(natural) == 60


def test_the_same_call_gives_the_same_bytes(project, demo):
    before = results(project, 'demo')
    status, *_, error = judged(project, n_test=60)
    assert status == 0, error
    assert results(project, 'demo') == before


def test_another_question_is_refused_before_any_work(project, demo):
    before = results(project, 'demo')
    for name, value in dict(n_test=70, eps=0.1, minutes=5, seed=1, batch=7).items():
        status, said, _, error = judged(project, **dict(n_test=60) | {name: value})
        assert status != 0 and error.startswith('ParameterError: ') and '--fresh' in error, error
        assert 'outputs/judged/demo' in error
        assert f'{name}={value}' in error.replace('.0:', ':'), error
    assert results(project, 'demo') == before


def test_another_question_has_another_name_or_is_asked_afresh(project):
    first = FEW | dict(model='net.py:sound', name='twice')
    assert judged(project, **first)[0] == 0
    before = results(project, 'twice')
    assert judged(project, **first | dict(eps=0.1))[0] != 0
    assert judged(project, **first | dict(eps=0.1, name='another'))[0] == 0
    assert results(project, 'twice') == before
    assert judged(project, **first | dict(eps=0.1, fresh=True))[0] == 0
    after = results(project, 'twice')
    assert report_of(project, 'twice')['threat']['eps'] == 0.1
    assert after['records/judge.parquet'] != before['records/judge.parquet']


def test_changed_weights_are_another_question(project):
    call = FEW | dict(model='net.py:sound', name='changed')
    assert judged(project, **call)[0] == 0
    (project / 'method').write_text('standard')
    status, _, _, error = judged(project, **call)
    (project / 'method').write_text('at_pgd')
    assert status != 0 and 'weights_sha256' in error, error


def test_a_part_in_torchscript_is_judged_without_parts(project):
    "Its state cannot be told, so nothing is saved; the answer is that of the same network"
    status, _, _, error = judged(project, model='net.py:scripted', **FEW | dict(name='scripted'))
    assert status == 0, error
    assert not list((project / 'outputs' / 'judged' / 'scripted' / 'parts').rglob('*.parquet'))
    assert judged(project, model='net.py:sound', **FEW | dict(name='plain'))[0] == 0
    assert report_of(project, 'scripted')['robust'] == report_of(project, 'plain')['robust']


def test_a_failed_check_is_an_answer_and_no_error(project):
    status, _, shown, error = judged(project, model='net.py:steep', **FEW)
    assert status == 0, error
    report = report_of(project, re.search('outputs/judged/(.+)/report.html', shown)[1])
    assert report['answer']['status'] == 1 and report['answer']['word'] == 'overstated'
    failed = {check['name'] for check in report['checks'] if not check['passed']}
    assert {reason['check'] for reason in report['answer']['reasons']} == failed and failed


@pytest.mark.parametrize(
    'given, name, words',
    [
        (dict(model='net.py:noisy'), 'JudgeError', 'same'),
        (dict(model='net.py:no_network'), '', 'no_network'),
        (dict(model='net.py:absent'), '', 'absent'),
        (dict(model='nowhere.py:sound'), '', 'nowhere.py'),
        (dict(data='nowhere.npz', model='net.py:sound'), '', 'nowhere.npz'),
        (dict(data=None, model='net.py:sound'), 'ParameterError', 'data=None'),
        (dict(eps=None, model='net.py:sound'), 'ParameterError', 'eps=None'),
        (dict(eps=8, model='net.py:sound'), 'ParameterError', 'eps=8'),
        (dict(minutes=0, model='net.py:sound'), 'ParameterError', 'minutes='),
        (dict(n_test=20, model='net.py:sound'), '', '50'),
        (dict(model='net.py:sound', device='cuda:99'), 'ParameterError', 'cuda'),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else '',
)
def test_what_cannot_be_judged_is_one_line_and_leaves_no_report(project, given, name, words):
    status, _, _, error = judged(project, **FEW | given | dict(name='refused'))
    assert status != 0 and error.startswith(name) and words in error and '\n' not in error, error
    assert not (project / 'outputs' / 'judged' / 'refused' / 'report.json').exists()
