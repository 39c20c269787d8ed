"An evaluation that keeps rows of an earlier record gives what an undisturbed one gives, and does no more"

import warnings
from functools import cache, partial
from itertools import product

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import nn

import adt_repro.evaluation.suite as suite
from adt_repro.attacks.feature import fea_attack
from adt_repro.attacks.gradient import fgsm, mim, pgd
from adt_repro.attacks.suite import TABLE1_ATTACKS
from adt_repro.base.parameters import ParameterError
from adt_repro.data import fingerprint, load_data
from adt_repro.evaluation.evaluate import EvaluationWarning
from adt_repro.evaluation.records import SCHEMA, save_records
from adt_repro.evaluation.suite import KeptWarning, kept_rows, run_suite, run_transfer
from adt_repro.models.trained import trained_network

DATA = load_data('digits')
N, EPS = 40, 0.15
X, Y = DATA.x_test[:N].double(), DATA.y_test[:N]
NET, OTHER, THIRD = (trained_network(name).double() for name in ('at_pgd', 'adt_exp', 'standard'))
POOL = DATA.x_test[N:].double(), DATA.y_test[N:]
ATTACKS = TABLE1_ATTACKS | dict(feature=partial(fea_attack, pool=POOL, n_targets=2, steps=20))
SHORT = dict(pgd100=partial(pgd, steps=25), feature=partial(ATTACKS['feature'], steps=5))
LIGHT = ATTACKS | SHORT  # the same names
FEW = dict(fgsm=fgsm, pgd20=pgd, mim=mim)
VALUES = ['margin', 'loss', 'linf']
SAME = [column for column in SCHEMA if column not in VALUES]
KEY = ['run', 'attack', 'i']

evaluate_suite = partial(run_suite, NET, X, Y, eps=EPS, run='a')


def forbidden(model, x, y, *, eps):
    raise AssertionError('an attack whose rows are all kept')


class Counted(nn.Module):
    "A network that notes how many images it sees"

    def __init__(self, net=NET):
        super().__init__()
        self.net = net
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        return self.net(x)


# Calls that need different rows of the same images
CALLS = dict(
    whole=dict(attacks=LIGHT),
    cascade=dict(attacks=LIGHT, cascade=True),
    late=dict(attacks=LIGHT, cascade=['pgd100', 'feature']),
    reverse=dict(attacks=dict(reversed(LIGHT.items())), cascade=True),
    limits=dict(attacks=LIGHT, limits=dict(feature=11, mim=29)),
    both=dict(attacks=LIGHT, cascade=['mim', 'cw', 'feature'], limits=dict(natural=37, cw=13, feature=60)),
)


@cache
def undisturbed(name):
    "Rows of a call, computed once"
    return evaluate_suite(**CALLS[name])


@cache
def table1():
    "Rows of the attacks of Table 1, computed once"
    return evaluate_suite(ATTACKS)


@cache
def few():
    "Rows of three attacks, computed once"
    return evaluate_suite(FEW)


def is_in(rows, kept):
    "For each row: is there one that was attacked, of the same run, attack and image, among the kept ones?"
    key = pd.MultiIndex.from_frame(kept.loc[kept.attacked, KEY])
    return pd.MultiIndex.from_frame(rows[KEY]).isin(key)


def assert_as_undisturbed(rows, expected, kept):
    "The same rows; in every bit if they were kept, else but for the rounding of another batch"
    pd.testing.assert_frame_equal(rows[SAME], expected[SAME])
    pd.testing.assert_frame_equal(rows[VALUES], expected[VALUES], check_exact=False, rtol=0, atol=1e-9)
    old = is_in(rows, kept) & rows.attacked
    given = kept.set_index(KEY).loc[pd.MultiIndex.from_frame(rows.loc[old, KEY]), VALUES]
    assert (given.values == rows.loc[old, VALUES].values).all()


@pytest.mark.parametrize('name', ['natural', *ATTACKS])
def test_one_attack_is_missing(name):
    "All its rows, or every third: the others are not attacked, and the result is as if nothing were kept"
    whole = table1()
    of_it = whole.attack == name
    attacks = dict.fromkeys(ATTACKS, forbidden) | {k: v for k, v in ATTACKS.items() if k == name}
    met = {}
    how = dict(attacks=attacks, on_attack=met.__setitem__)
    rows = evaluate_suite(kept=whole[~of_it], **how)
    pd.testing.assert_frame_equal(rows, whole, check_exact=True)
    assert met == dict.fromkeys(['natural', *ATTACKS], 0) | {name: N}

    kept = whole[~of_it | (whole.i % 3 > 0)]
    rows = evaluate_suite(kept=kept.sample(frac=1, random_state=0), batch=5, **how)
    assert_as_undisturbed(rows, whole, kept)
    assert met == dict.fromkeys(['natural', *ATTACKS], 0) | {name: 14}


@pytest.mark.parametrize('made, asked', [*product(CALLS, CALLS)])
def test_another_cascade_and_other_limits(made, asked):
    "The images that are needed are those of an undisturbed call, and only those without a row are attacked"
    kept, expected = undisturbed(made), undisturbed(asked)
    met = {}
    rows = evaluate_suite(kept=kept, on_attack=met.__setitem__, **CALLS[asked])
    assert_as_undisturbed(rows, expected, kept)
    to_do = expected[expected.attacked & ~is_in(expected, kept)].groupby('attack').size()
    assert {name: n for name, n in met.items() if n} == to_do.to_dict()
    if made == asked or made == 'whole':
        assert to_do.empty


def test_the_calls_differ():
    "Some images withstand and some do not, so that cascades and limits leave out rows"
    attacked = {name: undisturbed(name).attacked.sum() for name in CALLS}
    assert attacked['whole'] == (1 + len(ATTACKS)) * N
    assert len(set(attacked.values())) == len(CALLS)


@pytest.mark.parametrize('cascade', [False, True])
def test_nothing_is_done_if_all_rows_are_kept(cascade):
    "No attack and no pass of a network; a single missing row needs both"
    whole = few()
    net = Counted()
    none = dict.fromkeys(FEW, forbidden)
    rows = run_suite(net, X, Y, none, eps=EPS, run='a', kept=whole, cascade=cascade)
    assert net.seen == []
    pd.testing.assert_frame_equal(rows, evaluate_suite(FEW, cascade=cascade), check_exact=False, atol=1e-9)

    lacks = (whole.attack == 'mim') & (whole.i == int(rows.i[rows.attack.eq('mim') & rows.attacked].iloc[0]))
    with pytest.raises(AssertionError, match='rows are all kept'):
        run_suite(net, X, Y, none, eps=EPS, run='a', kept=whole[~lacks], cascade=cascade)
    assert sum(net.seen) > 0


def test_an_attack_costs_no_more_than_alone():
    "With all other rows kept, the network sees the images of a call for this attack, without the clean ones"
    alone, beside = Counted(), Counted()
    run_suite(alone, X, Y, dict(fgsm=fgsm), eps=EPS, run='a')
    whole = few()
    run_suite(beside, X, Y, FEW, eps=EPS, run='a', kept=whole[whole.attack != 'fgsm'])
    assert sum(beside.seen) == sum(alone.seen) - N


@pytest.mark.parametrize(
    'change',
    [
        dict(run='b'),
        dict(source='b'),
        dict(attack='pgd'),
        dict(seed=1),
        dict(eps=0.1500001),
        dict(test_set='0123456789ab'),
        dict(y=(Y + 1).tolist() * 4),
        dict(attacked=False, pred=-1),
        dict(i=[i + N for i in range(N)] * 4),
    ],
    ids=lambda change: next(iter(change)),
)
def test_rows_of_another_call_are_ignored(change):
    "Also with wrong predictions in them; the positive control is the same rows without the change"
    whole = few()
    wrong = whole.assign(pred=(whole.y + 5) % 10, linf=0.01)
    met = {}
    rows = evaluate_suite(FEW, kept=wrong.assign(**change), on_attack=met.__setitem__)
    pd.testing.assert_frame_equal(rows, whole, check_exact=True)
    assert met == dict.fromkeys(['natural', *FEW], N)
    rows = evaluate_suite(FEW, kept=wrong)
    pd.testing.assert_frame_equal(rows, wrong, check_exact=True)


def test_another_number_of_images():
    "Rows name the images of their call, so those of another number do not count, unless the caller says so"
    first = X[:30], Y[:30]
    fewer = run_suite(NET, *first, FEW, eps=EPS, run='a')
    whole, met = few(), {}
    pd.testing.assert_frame_equal(evaluate_suite(FEW, kept=fewer, on_attack=met.__setitem__), whole)
    assert met == dict.fromkeys(['natural', *FEW], N)

    rows = evaluate_suite(FEW, kept=fewer.assign(test_set=fingerprint(X, Y)), on_attack=met.__setitem__)
    assert_as_undisturbed(rows, whole, fewer)
    assert met == dict.fromkeys(['natural', *FEW], N - 30)

    none, declared = dict.fromkeys(FEW, forbidden), whole.assign(test_set=fingerprint(*first))
    rows = run_suite(NET, *first, none, eps=EPS, run='a', kept=declared)
    assert_as_undisturbed(rows, fewer, whole)


def test_kept_rows_come_through_as_they_are():
    "Values that no attack would give, beside images that are attacked; a cascade follows them"
    whole = few()
    odd = whole[whole.i % 4 == 1].assign(margin=12.25, loss=7.5, linf=0.03125, queries=77)
    odd['pred'] = (odd.y + odd.attack.eq('natural')) % 10
    rows = evaluate_suite(FEW, kept=odd)
    is_odd = rows.i % 4 == 1
    pd.testing.assert_frame_equal(rows[is_odd], odd, check_exact=True)
    pd.testing.assert_frame_equal(rows[~is_odd], whole[~is_odd], check_exact=False, rtol=0, atol=1e-9)

    chain = evaluate_suite(FEW, kept=odd, cascade=True)
    later = chain[chain.attack != 'natural']
    assert not later.attacked[later.i % 4 == 1].any()
    assert later.attacked[later.i % 4 != 1].any()


@pytest.mark.parametrize('seed', [3, 2**53 + 1, 2**63 - 1])
def test_seeds_are_compared_as_whole_numbers(seed):
    "Also those that a float cannot hold"
    whole = evaluate_suite(dict(pgd20=pgd), seed=seed)
    assert set(whole.seed) == {seed}
    rows = evaluate_suite(dict(pgd20=forbidden), seed=seed, kept=whole)
    pd.testing.assert_frame_equal(rows, whole, check_exact=True)


EMPTY = [
    None,
    pd.DataFrame(),
    pd.DataFrame(columns=list(SCHEMA)),
    pd.DataFrame(columns=list(SCHEMA)).astype(SCHEMA),
]


@pytest.mark.parametrize('kept', EMPTY, ids=['none', 'no columns', 'no types', 'no rows'])
def test_nothing_kept(kept):
    "The same bits, for a suite and for a transfer"
    pd.testing.assert_frame_equal(evaluate_suite(FEW, kept=kept), few(), check_exact=True)
    targets = dict(a=NET, b=OTHER)
    transfer = partial(run_transfer, 'a', NET, targets, X, Y, dict(fgsm=fgsm), eps=EPS)
    pd.testing.assert_frame_equal(transfer(kept=kept), transfer(), check_exact=True)


ROW = dict(run='a', attack='fgsm', i=0, y=int(Y[0]), pred=1, margin=0.5, loss=0.1, linf=0.1, queries=-1)
ROW |= dict(seed=0, attacked=True, source='a', eps=EPS, test_set=fingerprint(X, Y))
REFUSED = {
    'kept=.*: expected a frame with the columns of a record, or None': [ROW],
    r"kept=\['loss'\]: expected a frame with the columns run, .*; these are missing": pd.DataFrame(
        [ROW]
    ).drop(columns='loss'),
    r"kept=\['mine'\]: expected a frame with the columns run, .*; these are missing": pd.DataFrame(
        [ROW | dict(mine=1)]
    ),
    'kept: an image has two rows for the same attack': pd.DataFrame([ROW, ROW | dict(pred=2)]),
    'kept: a margin, loss or distance is not a number': pd.DataFrame([ROW | dict(margin=float('nan'))]),
    'kept: pred must be a class': pd.DataFrame([ROW | dict(pred=-1)]),
    'kept: pred is of type float64, expected int64': pd.DataFrame([ROW | dict(pred=1.5)]),
    'kept: an image was moved by more than its ε': pd.DataFrame([ROW | dict(linf=0.2)]),
}


@pytest.mark.parametrize('message', REFUSED)
def test_what_cannot_be_kept(message):
    "One line, before any attack and any pass"
    net = Counted()
    calls = (
        partial(run_suite, net, X, Y, dict(fgsm=forbidden), run='a'),
        partial(run_transfer, 'a', net, dict(a=net, b=net), X, Y, dict(fgsm=forbidden)),
    )
    for call in calls:
        with pytest.raises(ParameterError, match=f'^{message}') as error:
            call(eps=EPS, kept=REFUSED[message])
        assert '\n' not in str(error.value)
    assert net.seen == []


def test_parts_of_the_missing_images(tmp_path, monkeypatch):
    "They are saved and found again; a call without kept rows has parts of its own"
    whole = few()
    how = dict(kept=whole[whole.i % 3 > 0], parts=tmp_path, batch=5)
    rows = evaluate_suite(FEW, **how)
    assert len(list(tmp_path.glob('*.parquet'))) == (1 + len(FEW)) * 3  # 14 images in batches of 5
    assert_as_undisturbed(rows, whole, how['kept'])
    with monkeypatch.context() as patch:
        patch.setattr(suite, 'attack_and_judge', forbidden)
        pd.testing.assert_frame_equal(evaluate_suite(FEW, **how), rows, check_exact=True)
        with pytest.raises(TypeError):
            evaluate_suite(FEW, parts=tmp_path, batch=5)


class Steep(nn.Module):
    "Logits so far apart that float32 has no gradient"

    def __init__(self, factor):
        super().__init__()
        self.net, self.factor = trained_network('standard'), factor

    def forward(self, x):
        return self.factor * self.net(x)


def lines_of(function, *args, **options):
    "The lines of the warnings of a call"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        function(*args, **options)
    return [str(w.message) for w in caught if issubclass(w.category, EvaluationWarning)]


def test_gradients_of_newly_attacked_images_alone():
    "A warning names the number of these, and there is none for attacks whose rows are all kept"
    x, net, attacks = X.float(), Steep(1e4), dict(one=fgsm, two=mim)
    evaluate = partial(run_suite, net, x, Y, attacks, eps=EPS, run='a')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', EvaluationWarning)
        whole = evaluate()
        both = run_transfer('a', net, dict(a=net, b=OTHER.float()), x, Y, attacks, eps=EPS)
    OTHER.double()
    transfer = partial(run_transfer, 'a', net, dict(a=net), x, Y, attacks, eps=EPS)
    both = both[both.run == 'a']
    for call, rows in (evaluate, whole), (transfer, both):
        assert [line.split(',')[0] for line in lines_of(call)] == [
            f'attack={k}: on {N} images' for k in attacks
        ]
        lacks = (rows.attack == 'two') & (rows.i < 9)
        assert [line.split(',')[0] for line in lines_of(call, kept=rows[~lacks])] == [
            'attack=two: on 9 images'
        ]
        assert lines_of(call, kept=rows) == []


TARGETS = dict(a=NET, b=OTHER, c=THIRD)
make_transfer = partial(run_transfer, 'a', NET, TARGETS, X, Y, eps=EPS, batch=16)


@cache
def transferred():
    return make_transfer(FEW)


LACKING = dict(
    an_attack=lambda r: r.attack == 'mim',
    a_target=lambda r: r.run == 'b',
    an_attack_on_a_target=lambda r: (r.attack == 'mim') & (r.run == 'c'),
    images=lambda r: r.i % 5 == 2,
    images_of_a_target=lambda r: (r.run == 'b') & (r.i < 7),
    other_images_of_each=lambda r: (r.i % 3 == r.run.map(dict(a=0, b=1, c=2))) & (r.attack != 'fgsm'),
    all_but_one=lambda r: (r.i != 3) | (r.run != 'a') | (r.attack != 'mim'),
)


@pytest.mark.parametrize('lacks', LACKING)
def test_transfer_to_several_targets(lacks, monkeypatch):
    "Only images that lack a row are attacked, and only targets that lack one judge them"
    whole = transferred()
    missing = LACKING[lacks](whole)
    kept, judged = whole[~missing], {}

    def noted(targets, source, x, y, attack, *, ids, **options):
        name = next(name for name, known in FEW.items() if known is attack)
        judged.setdefault(name, (set(targets), set()))[1].update(ids.tolist())
        return original(targets, source, x, y, attack, ids=ids, **options)

    original = suite.attack_and_judge
    monkeypatch.setattr(suite, 'attack_and_judge', noted)
    rows = make_transfer(FEW, kept=kept.sample(frac=1, random_state=1))
    assert_as_undisturbed(rows, whole, kept)
    groups = whole[missing].groupby('attack')
    assert judged == {name: (set(group.run), set(group.i)) for name, group in groups}
    if lacks == 'an_attack':
        pd.testing.assert_frame_equal(rows, whole, check_exact=True)


def test_a_transfer_of_kept_rows_does_nothing():
    "No attack, no pass of any network, and rows of another source are ignored"
    whole, nets = transferred(), {name: Counted(net) for name, net in TARGETS.items()}
    none = dict.fromkeys(FEW, forbidden)
    transfer = partial(run_transfer, 'a', nets['a'], nets, X, Y, none, eps=EPS, batch=16)
    pd.testing.assert_frame_equal(transfer(kept=whole), whole, check_exact=True)
    assert [net.seen for net in nets.values()] == [[], [], []]
    with pytest.raises(AssertionError, match='rows are all kept'):
        transfer(kept=whole.assign(source='b'))


@pytest.mark.parametrize('every', [1, 2])
def test_kept_rows_of_a_transfer_come_through_as_they_are(every):
    "Those of one target, of images that are attacked again for another target; all of them, or every second"
    whole = transferred()
    is_odd = (whole.run == 'b') & (whole.i % every == 0)
    odd = whole[is_odd].assign(pred=3, margin=-2.5, queries=11)
    rows = make_transfer(FEW, kept=odd)
    pd.testing.assert_frame_equal(rows[is_odd], odd, check_exact=True)
    pd.testing.assert_frame_equal(rows[~is_odd], whole[~is_odd], check_exact=True)


WEIGHTS = dict(a='aa', b='bb', c='cc')


def test_rows_of_a_file_are_those_of_the_evaluation(tmp_path):
    "Written, read and kept: the same bits, and nothing is done; for a suite and a transfer"
    none = dict.fromkeys(FEW, forbidden)
    save_records(few(), tmp_path / 'suite.parquet', WEIGHTS)
    kept = kept_rows(tmp_path / 'suite.parquet', WEIGHTS, ['natural', *FEW])
    pd.testing.assert_frame_equal(evaluate_suite(none, kept=kept), few(), check_exact=True)
    save_records(transferred(), tmp_path / 'transfer.parquet', WEIGHTS)
    kept = kept_rows(tmp_path / 'transfer.parquet', WEIGHTS, list(FEW))
    pd.testing.assert_frame_equal(make_transfer(none, kept=kept), transferred(), check_exact=True)


def test_rows_of_other_weights_are_left_out(tmp_path):
    "The network that predicted and the one that was attacked; digests of the file count before listed ones"
    file, rows = tmp_path / 'r.parquet', transferred()
    save_records(rows, file, WEIGHTS)

    def found(weights, attacks=('fgsm', 'mim', 'natural'), listed=None):
        kept = kept_rows(file, weights, attacks, listed)
        return None if kept is None else (set(kept.run), set(kept.attack), len(kept))

    assert found(WEIGHTS) == ({'a', 'b', 'c'}, {'fgsm', 'mim'}, 6 * N)
    assert found(WEIGHTS, ['mim']) == ({'a', 'b', 'c'}, {'mim'}, 3 * N)
    assert found(WEIGHTS | dict(b='xx')) == ({'a', 'c'}, {'fgsm', 'mim'}, 4 * N)
    assert found(dict(a='aa', c='cc')) == ({'a', 'c'}, {'fgsm', 'mim'}, 4 * N)
    assert found(WEIGHTS | dict(a='xx')) is None
    assert found(dict(b='bb', c='cc')) is None
    assert found({}) is found(WEIGHTS, []) is found(WEIGHTS, ['cw']) is None
    assert found(dict(a='xx'), listed=dict(a='xx')) is None

    save_records(rows, file)
    assert found(WEIGHTS) is None
    assert found(dict.fromkeys('abc'), listed=dict.fromkeys('abc')) is None
    assert found(WEIGHTS, listed=dict(a='aa', b='other')) == ({'a'}, {'fgsm', 'mim'}, 2 * N)


def altered_row(file):
    "Another prediction, with the file's own digest left as it was"
    table = pq.read_table(file)
    pred = table['pred'].to_pylist()
    column = pa.array([(pred[0] + 1) % 10, *pred[1:]])
    pq.write_table(table.set_column(table.column_names.index('pred'), 'pred', column), file)


def other_row(file):
    "Another prediction, written by a program that stores no digest"
    rows = pd.read_parquet(file)
    rows.assign(pred=(rows.pred + 1) % 10).to_parquet(file)


def altered_byte(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def as_folder(file):
    file.unlink()
    file.mkdir()


def as_link_to_nothing(file):
    file.unlink()
    file.symlink_to(file.with_name('gone.parquet'))


def as_text(file):
    file.write_text('text')


ALONE = [altered_row, as_folder, as_link_to_nothing, as_text]  # is found without the scale's list


@pytest.mark.parametrize(
    'damage, noted', [*product([*ALONE, other_row, altered_byte], [True]), *product(ALONE, [False])]
)
def test_a_file_that_cannot_be_used(tmp_path, damage, noted):
    "One line of warning with its name, no error; with the scale's list of digests and without it"
    file = tmp_path / 'records' / 'white_box-a.parquet'
    save_records(evaluate_suite(dict(fgsm=fgsm)), file, WEIGHTS)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(kept_rows(file, WEIGHTS, ['fgsm'])) == N
        assert kept_rows(file.with_name('other.parquet'), WEIGHTS, ['fgsm']) is None
    damage(file)
    if not noted:
        (tmp_path / 'SHA256SUMS').unlink()
    with pytest.warns(KeptWarning, match='^records/white_box-a.parquet: ') as caught:
        assert kept_rows(file, WEIGHTS, ['fgsm']) is None
    assert len(caught) == 1
    assert '\n' not in str(caught[0].message)
    assert caught[0].filename == __file__
