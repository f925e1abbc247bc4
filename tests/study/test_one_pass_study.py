"""A study of one-pass students: trained once, measured in all their ways, one after the other's
student; and what is refused before anything starts."""

import pytest
import torch
from building.one_pass import borrow
from building.runs import go
from building.studies import one_pass_study

from common.artifacts.generator_file import load_generator
from common.data.tokens import load_tokens
from common.errors import InputError
from common.perceptual.classifier import load_classifier
from deploy.run_folder.borrowing import link
from deploy.run_folder.workspace import Workspace
from deploy.stages.second_stage import second_stage
from deploy.study.budget import StudyFolder, jobs
from deploy.study.config import open_study
from deploy.study.page.publish import publish
from deploy.study.runner import collect, run_cells, run_study
from deploy.study.slots import slots_alone

ROWS = {
    "teacher": {0},
    "slots": {0},
    "dd1": {1, 2},
    "dd1_2_steps": {2},
    "dd1_inserted": {2},
    "dd2_gts": {1, 2},
    "dd2": {3, 6},
    "dd2_3_steps": {6},
}
"""Steps at which each is measured."""


@pytest.fixture(scope="module")
def done(prepared, tmp_path_factory):
    """A study that has run: (study, its folder, cells wanted, what they found)."""
    from rich.console import Console

    root = tmp_path_factory.mktemp("study")
    study = open_study(one_pass_study(root), [])
    folder = StudyFolder(root / "out")
    borrow(prepared, folder.start)
    found = run_study(study, folder, Console(quiet=True), local=True, restart=False)
    return study, folder, *found


def state_of(path):
    return load_generator(path)[0].state_dict()


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_student_is_trained_once_and_measured_in_all_its_ways(done):
    study, _, wanted, harvest = done
    assert harvest.found.keys() == wanted.keys()
    assert {name for name, _ in wanted} == {"teacher", "slots", "dd1", "dd2_gts", "dd2"}
    rows = [row for cell in harvest.found.values() for row in cell.measurements]
    assert {n: {r.step for r in rows if r.method == n} for n in {r.method for r in rows}} == ROWS
    assert study.shown == tuple(name for name in ROWS if name not in study.references)
    ends = {row.method: row.fid for row in rows if row.step in (0, max(ROWS[row.method]))}
    assert len(set(ends.values())) == len(ROWS), "every way draws other images"


def test_a_second_stage_begins_with_the_average_of_its_first(done, tmp_path):
    """The very run of two stages by hand, to the same weights."""
    study, folder, *_ = done
    first = Workspace(folder.cell("dd2_gts", 0))
    workspace = Workspace(tmp_path / "run")
    link(folder.start, workspace.root)
    config = second_stage(study.run("dd2", 0, 6), workspace, first)
    assert config.learner.weights == first.student_ema
    go((config, workspace))
    ours, theirs = (state_of(w.student) for w in (workspace, Workspace(folder.cell("dd2", 0))))
    assert same(ours, theirs)
    assert not same(ours, state_of(first.student_ema))


def test_the_judge_is_not_the_network_that_a_loss_looks_through(done):
    """Of a cell whose seed is the start's."""
    study, folder, *_ = done
    assert study.start.seed == study.config.seeds[0]
    judge, lens = (
        load_classifier(Workspace(root).classifier)[1]["digest"]
        for root in (folder.start, folder.cell("dd1", 0))
    )
    assert judge != lens


def test_slots_by_themselves_have_the_teachers_shares_and_no_more(prepared, done):
    """Each slot of a class as often as in the teacher's sequences; two slots without relation."""
    _, folder, *_ = done
    start = Workspace(folder.start)
    made = load_tokens(start.teacher_tokens)
    label = int(made.label_N[0])
    token_NL = slots_alone(start, torch.full((4000,), label), seed=0)
    rows_nL = made.token_NAL[made.label_N == label, 0].long()
    known = [len(slot_n.unique()) for slot_n in rows_nL.T]
    first, second = torch.tensor(known).topk(2).indices.tolist()
    for slot in (first, second):
        of = rows_nL[:, slot]
        for code in of.unique().tolist():
            share, wanted = (float((t == code).float().mean()) for t in (token_NL[:, slot], of))
            assert share == pytest.approx(wanted, abs=0.05)
    together, alone = (
        len({tuple(pair) for pair in t[:, [first, second]].tolist()}) for t in (rows_nL, token_NL)
    )
    assert together < alone == known[first] * known[second]


def test_everything_is_timed_side_by_side_and_once(done, quiet):
    """In CPU time, with the teacher as the measure of all."""
    study, folder, _, harvest = done
    models = [name for name in ROWS if name != "slots"]
    rows = {(row.method, row.batch): row for row in harvest.speed}
    assert list(rows) == [(name, batch) for batch in (2, 8) for name in models]
    for (name, batch), row in rows.items():
        assert (row.rounds, row.clock) == (2, "cpu")
        assert row.low is not None
        assert row.low <= row.milliseconds
        ratio = rows["teacher", batch].milliseconds / row.milliseconds
        assert row.times_as_fast == pytest.approx(ratio, rel=0.5)
        assert (name != "teacher") or row.times_as_fast == 1
    written = folder.speed.stat().st_mtime_ns
    _, again = run_study(study, folder, quiet, local=True, restart=False)
    assert (again.speed, folder.speed.stat().st_mtime_ns) == (harvest.speed, written)
    assert collect(study, folder)[1].speed == harvest.speed
    more = open_study(study.path, ["speed.rounds=3"])
    assert collect(more, folder)[1].speed == [], "other rounds were asked for"


def test_the_page_has_a_row_for_every_way(done, quiet):
    study, folder, wanted, harvest = done
    analysis = publish(study, folder, wanted, harvest, quiet)
    assert list(analysis.summaries) == list(ROWS)
    assert analysis.reference is None
    page = (folder.root / "study.html").read_text()
    assert all(f'"method">{name}<' in page for name in ROWS)
    assert 'alt="dd1_inserted"' in page
    assert (folder.root / "speed.csv").read_text().count("\n") == 1 + 2 * (len(ROWS) - 1)
    assert "Teacher against base student" not in page


def test_a_second_stage_without_a_first_is_not_begun(done, tmp_path, quiet):
    study, *_ = done
    folder = StudyFolder(tmp_path / "out")
    wanted = {
        key: job
        for key, job in jobs(study, folder, dict.fromkeys(study.config.methods, 2)).items()
        if key[0] in ("dd2_gts", "dd2")
    }
    asked = []

    def call(function, work):
        asked.extend(work)
        for key in work:
            yield key, OSError("no room")

    harvest = run_cells(wanted, call, quiet)
    assert asked == [("dd2_gts", 0)]
    assert set(harvest.failed) == set(wanted)
    assert harvest.failed["dd2", 0] == "what it comes after, dd2_gts, has no result"


def test_other_first_stages_make_other_second_ones(done):
    study, folder, *_ = done
    requests = [
        jobs(study, folder, {"dd2_gts": steps, "dd2": 6})["dd2", 0].request for steps in (2, 3)
    ]
    assert requests[0] == requests[1], "a first stage has the study's steps"
    more = open_study(study.path, ["budget.own.dd2_gts=3"])
    assert jobs(more, folder, {"dd2": 6})["dd2", 0].request != requests[0]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("methods.dd1.evaluate.steps=[1,3]", "evaluate.steps is 3, but models.student.positions"),
        ("methods.dd1.evaluate.inserted=[2,4]", "inserted is .*, but models.student.positions"),
        ("methods.dd2.evaluate.steps=17", "evaluate.steps is 17, but a sequence has 16"),
        ("methods.dd1.models.student.kind='dd1_var'", "methods.dd1: .* starts from a var, but te"),
        ("methods.dd1.models.teacher.width=16", "sets 'models.teacher', which is part of the sh"),
        ("methods.dd1.evaluate.samples=50", "sets 'evaluate.samples', which is part of the shar"),
        ("methods.dd2.after='nobody'", "methods.dd2 is after 'nobody', but there is no such me"),
        ("methods.dd2.after='dd1'", r"methods.dd2: after names .* \(kind dd1_llamagen, here dd2_"),
        ("methods.dd2_gts.after='dd2'", "methods dd2_gts -> dd2 -> dd2_gts go in a circle"),
        ("guidance.sweep=[1.0]", "guidance.sweep has 2 scales, but a student of methods.dd1 dra"),
        ("budget={seconds=5}", "budget: own has steps of single methods; give steps for the oth"),
        ("budget.own.nobody=3", "budget.own names 'nobody', but methods are dd1, dd2_gts, dd2"),
        ("baselines=['base']", "baselines names 'base', but methods are dd1, dd1_2_steps, dd1_in"),
        ("methods.dd1_2_steps.like='dd2'", "two methods have rows called 'dd1_2_steps'; rename"),
        ("methods.dd1.contexts.sources.teacher.sequences=9", "dd1 and methods.dd2_gts read other"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(tmp_path, override, sentence):
    path = one_pass_study(tmp_path)
    with pytest.raises(InputError, match=sentence) as refused:
        open_study(path, [override])
    assert "\n" not in str(refused.value)


def test_a_second_stage_needs_a_first_and_a_student_that_is_pretrained_the_start(tmp_path):
    text = (path := one_pass_study(tmp_path)).read_text()
    for old, new, sentence in (
        ('after = "dd2_gts"\n', "", r"methods.dd2: objective.kind=dd2_csd begins with .* after"),
        ("[budget.own]\ndd2 = 6\n", "", "methods.dd2 begins after another, so its steps cannot"),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=sentence):
            open_study(path, ["budget={seconds=5}"] if "budget" in old else [])
    path.write_text(text)
    plain = "methods.kd={objective={kind='kd'}, models={student={kind='llamagen'}}}"
    sources = "methods.kd.contexts.sources={teacher={ratio=0.0}, data={ratio=1.0}}"
    with pytest.raises(InputError, match=r"models.student.kind is llamagen, which is pretrained"):
        open_study(path, [plain, sources])
