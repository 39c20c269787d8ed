"The test vectors: this package passes all, the authors' loops deviate where they should, and faults are caught"

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT
from vector_faults import (
    FAULTS,
    HARMLESS,
    PLAIN,
    adapter_of,
    code_with,
    declared,
    fault_table,
    found,
    results_of,
    run,
    vectors,
)

from adt_repro.reference import networks

# Where the authors' loops deviate, and which of a vector's known deviations it is
RELEASED = {
    'pgd-linear-zero-gradient': 'start_not_clipped',
    'pgd-relu-clipped-start': 'start_not_clipped',
    'mim-relu-decay-half': 'start_not_clipped',
    'cw-conv': 'start_not_clipped',
    'trades_attack-relu': 'start_not_clipped',
    'feature_attack-conv': 'last_left_out',
    'feature_attack-relu': 'last_left_out',
    'feature_scatter-conv-few-rounds': None,
    'feature_scatter-linear-sharp-plan': 'small_number_inside',
    'feature_scatter-relu-settled': None,
    'feature_scatter-relu-small-eps': None,
    'adt_exp-relu-momentum-zero': 'gradients_kept',
}


def results_by(name):
    "The results of one of vectors/adapters, with the adapter"
    adapter = run.find_adapter(name, vectors())
    return adapter, run.run_cases(adapter, vectors())


def test_this_package_passes_all_vectors():
    adapter, results = results_by('adt_repro')
    assert {result['result'] for result in results} == {'passed'}, run.table_text(adapter, results)
    assert {result['function'] for result in results} == set(run.FUNCTIONS)
    assert adapter.precision == 'float64' and set(adapter.versions) == {'adt_repro', 'torch'}


def test_this_package_gives_every_output():
    "What is not given is not compared; the package's FeaAttack shows nobody its cosines"
    adapter, missing = run.find_adapter('adt_repro', vectors()), set()
    for case in vectors():
        absent = set(case.outputs) - set(adapter.answer(case))
        missing |= {f'{case.function} {name}' for name in absent}
    assert missing == {'feature_attack losses', 'feature_attack signs'}


def test_the_density_of_this_package_has_the_two_small_numbers_of_the_authors():
    "The vectors' density has none: at most 1e-6 apart, which is the tolerance, and more than rounding"
    adapter = run.find_adapter('adt_repro', vectors())
    for case in vectors():
        if case.function == 'tanh_gaussian':
            answer = adapter.answer(case)
            for name in 'log_density', 'entropy':
                gap = run.largest_difference(answer[name], case.expected[name])
                assert 1e-8 < gap < 1e-6 == case.tolerance(name, 'float64'), (case.name, name)


def test_the_authors_loops_deviate_where_they_differ():
    adapter, results = results_by('released')
    assert {r['case']: r['deviation'] for r in results if r['result'] == 'deviates'} == RELEASED
    assert not any(r['result'] == 'error' for r in results)
    assert {r['function'] for r in results if r['result'] == 'not offered'} == {'square'}
    assert all(r['explained'] for r in results if r['result'] == 'deviates')
    explained = {r['function'] for r in results if r['result'] == 'deviates'}
    assert explained == set(adapter.explained), 'an explanation of what does not deviate'


@pytest.mark.parametrize('name', ['adt_repro', 'released'])
def test_the_committed_record_is_what_comes_out(name):
    "All but the numbers, which may round, and the versions"
    adapter, results = results_by(name)
    committed = json.loads((ROOT / 'outputs' / 'vectors' / f'{name}.json').read_text(encoding='utf-8'))
    assert (committed['adapter'], committed['precision']) == (name, adapter.precision)
    assert committed['versions'].keys() == adapter.versions.keys()

    def said(rows):
        keys = 'case function result images first_iterate deviation reason explained'.split()
        return [[row[key] for key in keys] for row in rows]

    assert said(committed['results']) == said(results)


def test_the_specification_in_plain_pytorch_passes():
    "Otherwise a fault would be caught for another reason"
    results = run.run_cases(adapter_of(PLAIN.read_text(encoding='utf-8')), vectors())
    assert {result['result'] for result in results} == {'passed'}


def test_single_precision_passes_by_its_own_tolerances():
    "No vector is so near a tie that rounding to float32 decides"
    code = PLAIN.read_text(encoding='utf-8').replace("PRECISION = 'float64'", "PRECISION = 'float32'")
    adapter = adapter_of(code)
    assert {result['result'] for result in run.run_cases(adapter, vectors())} == {'passed'}
    exact = run.run_cases(replace(adapter, precision='float64'), vectors())
    assert sum(result['result'] == 'deviates' for result in exact) > len(exact) / 2


@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_is_caught_by_these_vectors_and_no_other(name):
    fault = FAULTS[name]
    assert found(results_of(fault)) == declared(fault)


def test_each_fault_is_caught_and_each_vector_catches_one():
    caught = [declared(fault) for fault in FAULTS.values()]
    assert all(caught) and len(caught) >= 20
    assert set().union(*caught) == {case.name for case in vectors()}


@pytest.mark.parametrize('name', HARMLESS)
def test_what_changes_no_result_is_not_caught(name):
    assert found(results_of(HARMLESS[name])) == {}


def test_a_fault_that_is_not_there_is_an_error():
    missing = next(iter(FAULTS.values()))._replace(right='no such text')
    with pytest.raises(AssertionError, match='stands 0 times'):
        code_with(missing)


def test_the_committed_table_of_faults_is_what_comes_out(tmp_path):
    committed = ROOT / 'outputs' / 'vectors' / 'faults.csv'
    fault_table().to_csv(tmp_path / 'faults.csv', index=False)
    assert (tmp_path / 'faults.csv').read_text() == committed.read_text()
    table = pd.read_csv(committed)
    assert table.fault.is_unique and (table.vectors >= 1).all() and (table.named <= table.vectors).all()


def test_a_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = [ROOT / 'vectors', ROOT / 'tests', tmp_path]

    def state():
        files = [file for place in places for file in place.rglob('*') if '__pycache__' not in file.parts]
        return {file: file.stat().st_mtime_ns for file in files}

    before = state()
    results_of.__wrapped__(next(iter(FAULTS.values())))  # not from the cache
    results_by('adt_repro')
    assert state() == before


# The networks for adapters


def cases_of(network):
    "A vector of `forward` with this network"
    return next(case for case in vectors() if case.function == 'forward' and case.network == network)


@pytest.mark.parametrize('network', ['linear', 'relu', 'conv'])
def test_networks_agree_with_numpy(network):
    from torch_networks import build

    case = cases_of(network)
    model, x = build(case), torch.as_tensor(case.inputs['x'])
    assert not any(module.training for module in model.modules())
    features = networks.features(network, case.weights, case.inputs['x'])
    assert np.abs(model.features(x).detach().numpy() - features).max() < 1e-12
    logits = networks.logits(network, case.weights, case.inputs['x'])
    assert np.abs(model(x).detach().numpy() - logits).max() < 1e-12
    single = build(case, torch.float32)
    assert single(x.float()).dtype == torch.float32
    assert np.abs(single(x.float()).detach().numpy() - logits).max() < 1e-4


def test_only_calls_for_a_gradient_are_recorded():
    from torch_networks import build, recorded

    case = cases_of('relu')
    model, x = build(case), torch.as_tensor(case.inputs['x'])
    with recorded(model) as calls:
        model(x)
        at = x.clone().requires_grad_()
        with torch.no_grad():
            model(at)
        model(at)
        model.features(2 * at)
        at.data.add_(1)
    model(at)
    assert [call.tolist() for call in calls] == [x.tolist(), (2 * x).tolist()]


def test_gradients_by_the_weights_have_the_vectors_names():
    from torch_networks import build, weight_gradients

    for network, fixed in dict(linear=(), relu=(), conv=('mean', 'variance')).items():
        case = cases_of(network)
        model = build(case)
        model(torch.as_tensor(case.inputs['x'])).sum().backward()
        shapes = {name: value.shape for name, value in weight_gradients(model).items()}
        assert shapes == {name: a.shape for name, a in case.weights.items() if name not in fixed}
