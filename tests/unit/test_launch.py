"What torchrun's processes report, and the command line that each of them begins with"

import io
import json
import os
import signal
import subprocess

import pytest
from helpers import ROOT, refusal

from adt_repro.runs.distributed import _LEFT_OUT, main
from adt_repro.runs.launch import _first_failure, torchrun


def test_the_best_reason(tmp_path):
    "A parameter that is refused before an unexpected error, the earlier before the later, and no stack"

    def write(rank, timestamp, message):
        file = tmp_path / str(rank) / 'error.json'
        file.parent.mkdir()
        about = dict(message=message, extraInfo=dict(timestamp=str(timestamp), py_callstack='a page'))
        file.write_text(json.dumps(dict(message=about)))

    def reason(printed=''):
        return repr(_first_failure(tmp_path, printed))

    assert reason() == "DistributedError('unexpected worker failure, without a message')"
    write(0, 3, 'RuntimeError: connection')
    write(1, 2, 'KeyError: x')
    assert reason() == "DistributedError('unexpected worker failure: KeyError: x')"
    page = 'Root Cause (first observed failure):\n  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 7)'
    assert 'process 1' in reason(page) and 'code -9' in reason(page)
    ended = 'Failures:\n  rank      : 0 (local_rank: 0)\n  exitcode  : -15 (pid: 6)\n'  # by torchrun itself
    assert 'process 1' in reason(ended + page) and 'process 0' in reason(ended)
    write(2, 9, 'TrainingError: the loss')
    assert reason(page) == "TrainingError('the loss')"


class Agent:
    "In the place of torchrun: a signal comes while it is waited for, and it ends with a given status"

    def __init__(self, status):
        self.status, self.to_send, self.stdin = status, [signal.SIGTERM], io.StringIO()

    def wait(self):
        while self.to_send:
            os.kill(os.getpid(), self.to_send.pop())
        return self.status

    def terminate(self):
        pass


@pytest.mark.parametrize(
    'status, said', [(0, 'gave None'), (1, 'DistributedError: the processes were ended by SIGTERM')]
)
def test_a_signal_whose_handler_returns(status, said, monkeypatch):
    "Where the processes have finished their work, nothing has failed"
    seen = []

    def note(number, frame):
        seen.append(number)

    before = signal.signal(signal.SIGTERM, note)
    monkeypatch.setattr(subprocess, 'Popen', lambda *call, **options: Agent(status))
    try:
        assert refusal(torchrun, 1, 'script.py') == said
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


@pytest.mark.parametrize(
    'args, words',
    [
        ('', 'processes=3: expected 1, the number of started processes'),
        ('-p processes 1 -p epoch 3', "epoch=3: there is no such parameter, did you mean 'epochs'?"),
        ('-p processes 1 -p lr [1', '-p lr: cannot be read (ParserError in line 1), expected YAML'),
    ],
)
def test_command_line(args, words, tmp_path, monkeypatch, capsys):
    (tmp_path / 'c.yaml').write_text('processes: 3')
    monkeypatch.setattr('adt_repro.runs.distributed.end_with_parent', lambda parent: None)
    assert main([str(tmp_path / 'c.yaml'), *args.split()]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count('\n') == 1


def test_left_out_is_what_the_notebook_has():
    "The command line has the defaults of train.ipynb's parameters, so that the notebook goes on with the same run"
    for cell in json.loads((ROOT / 'nbs' / 'train.ipynb').read_text())['cells']:
        if 'parameters' in cell['metadata'].get('tags', []):
            names = {}
            exec(''.join(cell['source']), names)
    defaults = {k: v for k, v in names.items() if k not in ('__builtins__', '__annotations__')}
    assert defaults == _LEFT_OUT
