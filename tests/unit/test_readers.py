"No experiment and no module reads a file otherwise than through the readers, which check what they read"

import ast

from helpers import ROOT, cells_of

# Where the readers are
READERS = 'adt_repro/base/', 'adt_repro/models/weights.py', 'adt_repro/data.py'

# What reads a file or parses one: methods of a path or of pandas, and functions of libraries
METHODS = {'read_csv', 'read_table', 'read_parquet', 'read_json', 'read_text', 'read_bytes', 'open'}
FUNCTIONS = {'json.load', 'json.loads', 'yaml.load', 'yaml.safe_load', 'torch.load', 'np.load', 'np.loadtxt'}
FUNCTIONS |= {'open', 'load_file'}

# Files of this process and of the system, what was in memory already, and files that are only hashed
EXPECTED = {
    "adt_repro/paper/recompute.py: json.loads(call_parameters(scale, 'paper'))",
    "adt_repro/planning/benchmark.py: json.loads((Path(folder) / 'result.json').read_text())",
    "adt_repro/planning/benchmark.py: (Path(folder) / 'result.json').read_text()",
    "adt_repro/planning/benchmark.py: Path('/proc/cpuinfo').read_text()",
    "adt_repro/planning/timing.py: Path('/proc/self/status').read_text()",
    'adt_repro/runs/launch.py: json.loads(file.read_text())',
    'adt_repro/runs/launch.py: file.read_text()',
    "adt_repro/runs/launch.py: open(Path(folder) / 'printed', 'w+')",
    'adt_repro/runs/config.py: json.loads(v)',
    'adt_repro/analysis/plots.py: pd.read_csv(StringIO(written), dtype=dtype)',
    "adt_repro/paper/report.py: Image.open(BytesIO(content), formats=['PNG'])",
    'adt_repro/paper/report.py: Image.open(drawn)',
    "adt_repro/analysis/style.py: Pixels.open(BytesIO(_drawn(fig, 'png', dpi=dpi)))",
    'adt_repro/command/main.py: os.open(os.devnull, os.O_WRONLY)',
    'adt_repro/runs/overview.py: archive.open(entry)',
    "adt_repro/runs/scales.py: json.loads(call_parameters(scale, notebook, '' if notebook in _FOR_EACH_RUN else None))",
    'adt_repro/runs/scales.py: json.loads(json.dumps(check_table(values, rules_of(bearing))))',
    "adt_repro/runs/select.py: json.loads(call_parameters(scale, 'train', run))",
    'adt_repro/runs/lock.py: json.loads(content)',
    'adt_repro/runs/lock.py: json.loads(read_bytes(beginning_file(folder, run)))',
    "adt_repro/runs/made_from.py: json.loads(call_parameters(scale, 'paper'))",
    "adt_repro/runs/made_from.py: json.loads(call_parameters(scale, 'train', run))",
    'adt_repro/runs/made_from.py: json.loads(call_parameters(scale, notebook, run))',
    'adt_repro/runs/made_from.py: json.loads(json.dumps(check_table(values, rules_of(known))))',
    'adt_repro/evaluation/cache.py: file.read_bytes()',
    'adt_repro/runs/scales.py: Path(path).read_bytes()',
    'adt_repro/runs/scales.py: file.read_bytes()',
    "adt_repro/exchange/import_weights.py: path.open('rb')",
    'adt_repro/judging/model_files.py: json.loads(text)',
    "adt_repro/judging/user_data.py: archive.open(f'{name}.npy')",
    'adt_repro/judging/user_data.py: Image.open(file)',
    "adt_repro/reference/cases.py: json.loads(file.read_text(encoding='utf-8'))",
    "adt_repro/reference/cases.py: file.read_text(encoding='utf-8')",
    'adt_repro/reference/cases.py: load_file(tensors)',
}


def plain_reads(code):
    "Calls that read a file, or parse one, by themselves; the project's readers are called without a module"
    found = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        is_method = isinstance(node.func, ast.Attribute) and node.func.attr in METHODS
        if is_method or ast.unparse(node.func) in FUNCTIONS:
            found.append(ast.unparse(node))
    return found


def test_every_file_goes_through_a_reader():
    "The experiments, the pages of results, and the package outside the readers"
    notebooks = [*(ROOT / 'nbs').glob('*.ipynb'), *(ROOT / 'nbs' / 'results').glob('*.ipynb')]
    places = [place for notebook in notebooks for place in cells_of(notebook)]
    for module in (ROOT / 'adt_repro').rglob('*.py'):
        at = module.relative_to(ROOT).as_posix()
        if not at.startswith(READERS):
            places.append((at, module.read_text()))
    assert len(places) > 150
    plain = {f'{at}: {line}' for at, code in places for line in plain_reads(code)} - EXPECTED
    assert not plain, '\n'.join(sorted(plain))


def test_what_counts_as_a_plain_reader():
    code = (
        "pd.read_csv(file)\nread_table(file)\njson.loads(file.read_text())\nopen(file)\nread_yaml(file, 'x')"
    )
    lines = ['pd.read_csv(file)', 'json.loads(file.read_text())', 'open(file)', 'file.read_text()']
    assert sorted(plain_reads(code)) == sorted(lines)


def test_one_function_knows_which_runs_are_finished():
    "No other module looks for files called run.json"
    found = [
        str(module.relative_to(ROOT))
        for module in (ROOT / 'adt_repro').rglob('*.py')
        if "/run.json')" in module.read_text() and 'glob(' in module.read_text()
    ]
    assert found == ['adt_repro/runs/store.py']
