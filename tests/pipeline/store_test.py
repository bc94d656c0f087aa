import json
import multiprocessing

import pytest

from tfseg_prune.pipeline.store import Store


def make(store, calls, *, settings=1, inputs=(), outputs=("out.txt",), stage="stage", result=None):
    def work(key):
        calls.append(key)
        for name in outputs:
            store.path(name).write_text(f"made {len(calls)}")
        return result

    return store.run(
        stage, work, settings=settings, inputs=inputs, outputs=outputs, say=lambda text: None
    )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "work")


def test_a_stage_runs_once_also_for_another_process(store):
    calls = []
    first = make(store, calls, result={"value": [1, None, "x"]})
    again = make(Store(store.workdir), calls)
    assert len(calls) == 1 and again == first
    assert first["value"] == [1, None, "x"] and first["seconds"] >= 0


def test_settings_and_the_content_of_inputs_count(store):
    store.path("in.txt").write_text("a")
    calls = []
    for settings, text, total in ((1, "a", 1), (2, "a", 2), (2, "b", 3), (2, "b", 3)):
        store.path("in.txt").write_text(text)
        make(store, calls, settings=settings, inputs=["in.txt"])
        assert len(calls) == total
    assert len(set(calls)) == 3


def test_tuples_and_lists_are_the_same_settings(store):
    assert store.key({"size": (1, 2)}) == store.key({"size": [1, 2]})
    assert store.key({"a": 1, "b": 2}) == store.key({"b": 2, "a": 1})
    assert store.key({"a": 1}) != store.key({"a": 2})


@pytest.mark.parametrize("damage", ["delete", "change", "stamp_cut", "stamp_other", "no_stamp"])
def test_what_is_gone_or_damaged_is_made_again(store, damage):
    calls = []
    make(store, calls)
    stamp = store.workdir / ".stages" / "stage.json"
    if damage == "delete":
        store.path("out.txt").unlink()
    elif damage == "change":
        store.path("out.txt").write_text("made 1 ")
    elif damage == "stamp_cut":
        stamp.write_text(stamp.read_text()[:20])
    elif damage == "stamp_other":
        stamp.write_text(json.dumps([1, 2]))
    else:
        stamp.unlink()
    make(store, calls)
    assert len(calls) == 2 and store.path("out.txt").read_text() == "made 2"


def test_a_stage_that_fails_is_not_done(store):
    def fail(key):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        store.run("stage", fail, settings=1, say=lambda text: None)
    calls = []
    make(store, calls)
    assert len(calls) == 1


def test_a_missing_input_is_named(store):
    with pytest.raises(ValueError, match="'stage'.*Expected: in.txt.*Received.*without in.txt"):
        make(store, [], inputs=["in.txt"])


def test_without_work_a_stage_must_be_up_to_date(store):
    calls = []
    expected = make(store, calls)
    options = {"outputs": ["out.txt"], "say": print}
    assert store.run("stage", None, settings=1, **options) == expected
    with pytest.raises(ValueError, match="'stage' isn't up to date"):
        store.run("stage", None, settings=2, **options)


def _try_lock(workdir, answers):
    try:
        with Store(workdir).locked():
            answers.put("got it")
    except ValueError as error:
        answers.put(str(error))


def test_two_processes_do_not_work_in_one_folder(store):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def other():
        process = context.Process(target=_try_lock, args=(store.workdir, answers))
        process.start()
        answer = answers.get(timeout=60)
        process.join()
        return answer

    with store.locked():
        assert "Another process is at work" in other()
    assert other() == "got it"


def test_what_a_killed_process_left_half_written_is_cleared_away(store):
    leftover = store.path(".writing-abc")
    leftover.mkdir()
    (leftover / "dense.keras").write_text("half")
    store.path("dense.keras").write_text("whole")
    with store.locked():
        assert not leftover.exists() and store.path("dense.keras").read_text() == "whole"


def test_a_working_directory_that_cannot_be_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="working directory can't be used.*Expected.*Received"):
            Store(path)
