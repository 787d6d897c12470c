"""Runs of a teacher over many texts: killed, resumed, extended; the files: test_store.py."""

import numpy as np
import pytest

from training.attribution.record import PREDICTED
from training.attribution.run import Job, attribute_texts, run_locally
from training.attribution.store import AttributionStore, StoreError
from training.attribution.teachers import TEACHERS, teacher_named
from training.blackbox.callable import CallableBlackBox

TEXTS = {
    f"t{number}": f"the {subject} was {word} and i loved the music of it ."
    for number, (subject, word) in enumerate(
        (subject, word)
        for subject in ("film", "plot")
        for word in ("great", "dull", "weak", "funny", "awful")
    )
}
LABELS = [1, 1, 1, 1, 0] * 2  # loved 1, great 1.5, dull -.75, weak -.375, funny .5, awful -1.5
ENSEMBLE = "ensemble:lime+kernel_shap"
# Teacher -> a budget, a larger one, what both come to for a text of twelve words.
GROWING = {
    "lime": (40, 80, 40, 80),
    "kernel_shap": (40, 81, 40, 80),
    "permutation_shap": (40, 80, 24, 68),
    ENSEMBLE: (40, 80, 80, 160),
}


@pytest.fixture
def run(linear_black_box, tmp_path):
    """Attributes our ten texts, three to a shard; each shard takes one call."""

    def attribute(black_box=linear_black_box, texts=TEXTS, folder="store", **changes):
        settings = {"teacher": "lime", "budget": 12, "seed": 1, "shard": 3, **changes}
        store = AttributionStore(tmp_path / folder, {"black_box": "linear"})
        return attribute_texts(black_box, texts, store=store, **settings)

    return attribute


@pytest.fixture
def files(tmp_path):
    """The files of a store that hold attributions: name to bytes."""
    return lambda folder="store": {
        path.name: path.read_bytes() for path in (tmp_path / folder).glob("*.parquet")
    }


def same(found, expected):
    """Equal to the bit."""
    assert [flat(record) for record in found] == [flat(record) for record in expected]


def flat(record):
    names = ("id", "target", "teacher", "budget", "seed", "value", "null_value", "eps")
    fields = [getattr(record, name) for name in names]
    return [*fields, record.weights.tobytes(), record.values.tobytes()]


def by_hand(black_box, record, text):
    document = black_box.encoder.encode(text)
    return black_box.contributions(document) * (1 if record.target == 1 else -1)


def test_results_come_in_the_order_of_the_texts(run):
    found = run()
    assert [record.id for record in found] == list(TEXTS)
    assert [record.target for record in found] == LABELS
    backwards = run(texts=dict(reversed(TEXTS.items())), folder="other")
    same(backwards[::-1], found)


def test_no_texts_no_results(run, linear_black_box, files):
    assert run(texts={}) == []
    assert (linear_black_box.calls, files()) == ([], {})


def test_a_second_run_reads_what_the_first_wrote(run, linear_black_box, files):
    first, before = run(), files()
    calls = len(linear_black_box.calls)
    same(run(), first)
    assert len(linear_black_box.calls) == calls
    assert files() == before


@pytest.mark.parametrize("life", range(4))
def test_killed_at_any_call_it_resumes_and_ends_alike(life, run, linear_black_box, mortal, files):
    whole = run(folder="whole")
    with pytest.raises(mortal.killed):
        run(mortal(linear_black_box, life))
    assert len(files()) == life
    before = len(linear_black_box.calls)
    same(run(), whole)
    assert len(linear_black_box.calls) - before == 4 - life
    assert files() == files("whole")


@pytest.mark.parametrize("life", range(4))
def test_killed_while_a_budget_grows_it_resumes_too(life, run, linear_black_box, mortal, files):
    for folder in ("whole", "store"):
        run(folder=folder, budget=9)
    whole = run(folder="whole", budget=17)
    with pytest.raises(mortal.killed):
        run(mortal(linear_black_box, life), budget=17)
    same(run(budget=17), whole)
    assert files() == files("whole")


@pytest.mark.parametrize("life", range(8))
def test_killed_in_an_ensemble_it_resumes_too(life, run, linear_black_box, mortal, files):
    whole = run(folder="whole", teacher=ENSEMBLE)
    with pytest.raises(mortal.killed):
        run(mortal(linear_black_box, life), teacher=ENSEMBLE)
    assert len(files()) == life
    same(run(teacher=ENSEMBLE), whole)
    assert files() == files("whole")


def test_shards_do_not_matter_to_the_result(run):
    same(run(folder="small", shard=1), run(folder="large", shard=64))


def test_an_engine_may_finish_in_any_order(run, files):
    def backwards(black_box, work, jobs):
        assert [len(job.texts) for job in jobs] == [3, 3, 3, 1]
        assert all(isinstance(job, Job) for job in jobs)
        yield from run_locally(black_box, work, jobs[::-1])

    whole = run(folder="whole")
    same(run(engine=backwards), whole)
    assert files() == files("whole")


def test_a_damaged_file_is_computed_anew_once_removed(run, tmp_path, files):
    whole, before = run(), files()
    path = tmp_path / "store" / max(before)
    path.write_bytes(before[path.name][:-4] + b"PAR2")
    with pytest.raises(StoreError, match=path.name):
        run()
    path.unlink()
    same(run(), whole)
    assert files() == before


# What a record answers


def test_texts_may_be_renamed(run, linear_black_box):
    """What was computed for a text stays good; only the name that it is returned under changes."""
    first = run()
    calls = len(linear_black_box.calls)
    renamed = run(texts={f"new {name}": text for name, text in TEXTS.items()})
    assert [record.id for record in renamed] == [f"new {name}" for name in TEXTS]
    assert [record.value for record in renamed] == [record.value for record in first]
    assert len(linear_black_box.calls) == calls


def test_the_same_text_under_two_names_is_explained_once(run, linear_black_box):
    text = TEXTS["t0"]
    found = run(texts={"a": text, "b": text, "c": TEXTS["t1"], "d": text}, shard=64)
    assert [record.id for record in found] == ["a", "b", "c", "d"]
    assert linear_black_box.calls == [2 * 12]
    assert flat(found[0])[1:] == flat(found[1])[1:] == flat(found[3])[1:] != flat(found[2])[1:]


def test_the_same_text_may_be_explained_for_two_targets(run, linear_black_box):
    text = TEXTS["t0"]
    found = run(texts=dict.fromkeys("abc", text), targets={"a": 0, "b": 1, "c": 0}, shard=64)
    assert [record.target for record in found] == [0, 1, 0]
    assert linear_black_box.calls == [2 * 12]
    np.testing.assert_allclose(found[0].weights, -found[1].weights, atol=1e-12)


def test_predicted_and_explicit_targets_agree(run, linear_black_box):
    """What was made for the predicted class is found under its name; not the other way round."""
    first = run()
    calls = len(linear_black_box.calls)
    explicit = dict(zip(TEXTS, LABELS, strict=True))
    same(run(targets=explicit), first)
    same(run(targets=dict.fromkeys(TEXTS, PREDICTED)), first)
    assert len(linear_black_box.calls) == calls
    other = run(targets={name: 1 - target for name, target in explicit.items()})
    assert len(linear_black_box.calls) == calls + 4
    assert [record.target for record in other] == [1 - target for target in LABELS]
    run(folder="explicit", targets=explicit)
    calls = len(linear_black_box.calls)
    same(run(folder="explicit"), first)
    assert len(linear_black_box.calls) == calls + 4


@pytest.mark.parametrize(
    "changes",
    [{"seed": 2}, {"teacher": "kernel_shap"}, {"texts": {"t0": "the film was fine ."}}],
)
def test_another_setting_is_computed_beside_the_first(changes, run, linear_black_box):
    first = run()
    calls = sum(linear_black_box.calls)
    other = run(**changes)
    assert sum(linear_black_box.calls) == calls + 12 * len(other)
    for mine, theirs in zip(other, first[: len(other)], strict=True):
        assert flat(mine)[2:] != flat(theirs)[2:]
    calls = sum(linear_black_box.calls)
    same(run(), first)
    same(run(**changes), other)
    assert sum(linear_black_box.calls) == calls


def test_words_without_pieces_take_no_evaluations(run, linear_black_box):
    """A text of nothing else has its two ends only."""
    texts = {"a": "great \x00 film", "b": "great film", "c": "\x00 \x00"}
    for teacher, spent in (
        ("occlusion", (4, 4, 2)),
        ("kernel_shap", (4, 4, 2)),
        ("lime", (9, 9, 2)),
    ):
        a, b, c = run(texts=texts, teacher=teacher, budget=9)
        assert (a.budget, b.budget, c.budget) == spent
        np.testing.assert_allclose(a.weights[[0, 2]], b.weights, atol=1e-1)
        assert a.weights[1] == 0
        assert c.weights.tolist() == [0, 0]
    assert sum(linear_black_box.calls) == 10 + 10 + 20


# Budgets


@pytest.mark.parametrize("teacher", GROWING)
def test_a_larger_budget_evaluates_the_difference(teacher, run, linear_black_box):
    """And ends, to the bit, where a fresh run of this budget does; the smaller one stays good."""
    small, large, spent, spent_more = GROWING[teacher]
    calls = linear_black_box.calls
    first = run(teacher=teacher, budget=small)
    assert {record.budget for record in first} == {spent}
    assert sum(calls) == 10 * spent
    second = run(teacher=teacher, budget=large)
    assert {record.budget for record in second} == {spent_more}
    assert sum(calls) == 10 * spent_more
    same(run(teacher=teacher, budget=large, folder="fresh"), second)
    calls.clear()
    same(run(teacher=teacher, budget=small), first)
    same(run(teacher=teacher, budget=large), second)
    assert calls == []


@pytest.mark.parametrize("teacher", GROWING)
def test_a_smaller_budget_takes_the_first_samples(teacher, run, linear_black_box):
    small, large, *_ = GROWING[teacher]
    run(teacher=teacher, budget=large)
    linear_black_box.calls.clear()
    cut = run(teacher=teacher, budget=small)
    assert linear_black_box.calls == []
    same(cut, run(teacher=teacher, budget=small, folder="fresh"))


def test_some_texts_may_have_more_than_others(run, linear_black_box):
    """Each text of a shard goes on from what it has."""
    run(texts={name: TEXTS[name] for name in ("t1", "t4")}, budget=20)
    run(texts={name: TEXTS[name] for name in ("t4", "t5")}, budget=30)
    linear_black_box.calls.clear()
    found = run(budget=30)
    assert sum(linear_black_box.calls) == 7 * 30 + (30 - 20)
    same(found, run(budget=30, folder="fresh"))


def test_a_teacher_that_samples_nothing_is_computed_anew(run, lively_black_box):
    """Integrated gradients of other steps are others; both stay."""
    texts = {name: TEXTS[name] for name in ("t0", "t1")}
    counted = Counting(lively_black_box)
    ask = {"texts": texts, "teacher": "integrated_gradients"}
    few, many = (run(lively_black_box, budget=budget, **ask) for budget in (4, 10))
    assert [record.budget for record in (*few, *many)] == [4, 4, 10, 10]
    assert all(flat(one)[-2] != flat(two)[-2] for one, two in zip(few, many, strict=True))
    for budget, expected in ((4, few), (10, many)):
        same(run(counted, budget=budget, **ask), expected)
    assert counted.calls == 0
    between = run(lively_black_box, budget=6, **ask)
    for budget, expected in ((6, between), (4, few)):
        same(run(counted, budget=budget, **ask), expected)
    assert counted.calls == 0


class Counting:
    """A black box that counts its calls and refuses to be looked into."""

    def __init__(self, inner):
        self.inner, self.calls = inner, 0
        self.labels, self.encoder, self.eps = inner.labels, inner.encoder, inner.eps

    def logits(self, documents, keep=None):
        self.calls += 1
        return self.inner.logits(documents, keep)


@pytest.mark.parametrize("teacher", [*TEACHERS, ENSEMBLE])
def test_every_teacher_says_beforehand_what_it_spends(teacher, run, lively_black_box):
    texts = {"a": TEXTS["t0"], "b": "great", "c": "dull \x00 film"}
    found = run(lively_black_box, texts=texts, teacher=teacher, budget=30)
    for record in found:
        document = lively_black_box.encoder.encode(texts[record.id])
        assert record.budget == teacher_named(teacher).spent(document, 30)
        assert all(len(part.values) in (0, part.budget) for part in (record, *record.members))


# Functions may change behind their name


def test_a_function_that_answers_otherwise_is_refused(run):
    bias = 0.0

    def predict(texts):
        chance = [0.3 + 0.4 * ("great" in text) + bias for text in texts]
        return np.stack([1 - np.array(chance), chance], axis=1)

    black_box = CallableBlackBox(predict)
    first = run(black_box)
    same(run(black_box), first)
    bias = 1e-6  # rounding on another machine
    same(run(black_box), first)
    bias = 0.05
    with pytest.raises(StoreError, match=r"store holds attributions of a function that answered "):
        run(black_box)
    with pytest.raises(StoreError, match=r"otherwise .*: remove the folder$"):
        run(black_box, budget=20)
    run(black_box, seed=2)  # nothing is known of this seed


def test_the_last_digit_of_a_near_certain_probability_is_no_change(run):
    """In single precision it moves the log-odds by 0.06 there."""
    chance = np.float32(0.999998)
    black_box = CallableBlackBox(lambda texts: [[1 - chance, chance]] * len(texts))
    first = run(black_box, teacher="occlusion")
    chance = np.nextafter(chance, np.float32(1))
    assert np.log(chance / (1 - chance)) - first[0].value > 0.02
    same(run(black_box, teacher="occlusion"), first)


def test_a_function_is_asked_a_little_to_see_whether_it_changed(run):
    """The first, a middle and the last text: whole, all masked, and the last masked copy."""
    asked = []

    def predict(texts):
        asked.append(texts)
        return [[0.25, 0.75]] * len(texts)

    black_box = CallableBlackBox(predict)
    run(black_box, teacher="occlusion")
    asked.clear()
    run(black_box, teacher="occlusion")
    [together] = asked
    spread = [TEXTS[name] for name in ("t0", "t5", "t9")]
    last = [text.removesuffix(".") + "[MASK]" for text in spread]
    assert {*together} == {*spread, *last, " ".join(["[MASK]"] * 12)}


@pytest.mark.parametrize("changed", [TEXTS["t9"], " ".join(["[MASK]"] * 12), "of it [MASK]"])
def test_a_change_that_the_first_text_does_not_show_is_found(changed, run):
    late = False

    def predict(texts):
        chance = [0.75 - 0.25 * (late and text.endswith(changed)) for text in texts]
        return np.stack([1 - np.array(chance), chance], axis=1)

    black_box = CallableBlackBox(predict)
    run(black_box, teacher="occlusion")
    late = True
    with pytest.raises(StoreError, match=r"answered otherwise \(1\.099 then, 0 now\)"):
        run(black_box, teacher="occlusion")


# Ensembles


class Wavering:
    """A near tie that rounding decides, at each call otherwise."""

    def __init__(self, inner):
        self.inner, self.calls = inner, []
        self.labels, self.encoder, self.eps = inner.labels, inner.encoder, inner.eps

    def logits(self, documents, keep=None):
        self.inner.bias = 1e-13 * (-1) ** len(self.calls)
        self.calls.append(len(documents))
        return self.inner.logits(documents, keep)


def test_members_that_disagree_about_a_near_tie_are_asked_again(run, linear_black_box):
    """Those texts only, for the class of the first member; what was stored stays."""
    texts = {"a": "great film", "tie": "the film was"}
    wavering = Wavering(linear_black_box)
    found = run(wavering, texts=texts, teacher=ENSEMBLE)
    assert [[part.target for part in record.members] for record in found] == [[1, 1], [1, 1]]
    assert len(wavering.calls) == 3
    assert wavering.calls[2] == found[1].members[1].budget
    same(run(wavering, texts=texts, teacher=ENSEMBLE), found)
    lime, kernel = (run(wavering, texts=texts, teacher=name) for name in ("lime", "kernel_shap"))
    assert [[record.target for record in records] for records in (lime, kernel)] == [[1, 1], [1, 0]]
    assert len(wavering.calls) == 3


def test_a_member_that_lacks_budget_is_named_before_any_work(run, linear_black_box, files):
    with pytest.raises(ValueError, match="permutation_shap needs a budget of at least 24 for a"):
        run(teacher="ensemble:lime+permutation_shap", budget=23)
    assert (linear_black_box.calls, files()) == ([], {})


# How far it is


def test_texts_are_counted_not_files(run, capsys):
    run(texts={name: TEXTS[name] for name in ("t0", "t1", "t2", "t3")})
    assert capsys.readouterr().err == "lime attributions: 4/4 texts in 0:00:00\n"
    run()
    assert capsys.readouterr().err.splitlines() == [
        "lime attributions: 4/10 texts done already",
        "lime attributions: 10/10 texts in 0:00:00",
    ]
    run()
    assert capsys.readouterr().err == ""


# Files


def test_long_texts_get_files_of_their_own(run, files):
    """300 words of 4,000 copies are 1.2 million each: no two fit into a file of 2 million."""
    texts = {str(row): f"{'great plot dull ' * 100} {row}" for row in range(3)} | {"short": "dull"}
    documents = [text.split() for text in texts.values()]
    assert {len(words) for words in documents} == {301, 1}
    run(texts=texts, teacher="occlusion", shard=64)
    assert len(files()) == 1  # 301 x 303 each
    run(texts=texts, budget=4000, shard=64, folder="dear")
    assert len(files("dear")) == 3
