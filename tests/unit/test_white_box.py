"What cannot be judged: images outside [0, 1], logits that are not finite, runs whose files are damaged"

import shutil

import pytest
import torch
from helpers import without_digests
from safetensors.torch import load_file, save_file

from adt_repro.base.parameters import ParameterError
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import evaluate
from adt_repro.models.classifiers import build_model
from adt_repro.runs.store import load_run


def test_damaged_runs(tiny_run_of, tmp_path):
    "One line each"
    run = shutil.copytree(tiny_run_of('standard'), tmp_path / 'run')
    without_digests(run)
    w = load_file(run / 'weights.safetensors')
    save_file({k: v for k, v in w.items() if k != 'fc.bias'}, run / 'weights.safetensors')
    missing = "weights='weights.safetensors': of another architecture, fc.bias is missing$"
    with pytest.raises(ParameterError, match=missing):
        load_run(run)
    save_file(w | {'fc.weight': w['fc.weight'][:5].contiguous()}, run / 'weights.safetensors')
    with pytest.raises(ParameterError, match=r'fc.weight is \(5, 64\), not \(10, 64\)'):
        load_run(run)
    (run / 'weights.safetensors').unlink()
    with pytest.raises(ParameterError, match='cannot be read as weights'):
        load_run(run)
    (run / 'run.json').unlink()
    with pytest.raises(ParameterError, match='not a finished run'):
        load_run(run)


def test_what_cannot_be_judged():
    data, net = load_data('digits').head(10, 10), build_model('small_cnn', in_ch=1)
    with pytest.raises(ParameterError, match=r'x: expected pixels in \[0, 1\], these go from 0 to 255'):
        evaluate(net, 255 * data.x_test, data.y_test)
    with pytest.raises(ParameterError, match='expected finite pixels in .*, 640 of 640 are NaN'):
        evaluate(net, data.x_test * float('nan'), data.y_test)
    torch.nn.init.constant_(net.fc.weight, float('nan'))
    with pytest.raises(
        ValueError, match='the network gave logits that are not finite, on images of the clean set'
    ):
        evaluate(net, data.x_test, data.y_test)
