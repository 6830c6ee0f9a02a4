"""Every error of the tree survives copying, pickling and the way over a wire."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

import aiochroma
from aiochroma import _errors
from aiochroma._errors import AiochromaError, ForeignError, error_from_dict, error_to_dict

FIELDS = {
    aiochroma.QueueFullError: {"limit": 5},
    aiochroma.DeadlineExceededError: {"started": True},
    aiochroma.PartialWriteError: {"applied": ("a", "b"), "remaining": ("c",)},
    aiochroma.DatabaseInUseError: {"pid": 7, "host": "h", "since": "2026-01-01T00:00:00+00:00"},
    aiochroma.DatabaseCorruptError: {"problems": ("one", "two")},
    aiochroma.MigrationError: {"problems": ("one",)},
    aiochroma.MissingExtraError: {"name": "typer", "path": None},
}
TREE = [
    kind for kind in vars(_errors).values() if isinstance(kind, type) and issubclass(kind, AiochromaError)
]


def _pickled(error):
    return pickle.loads(pickle.dumps(error))


def _wired(error):
    return error_from_dict(json.loads(json.dumps(error_to_dict(error))))


@pytest.fixture(params=TREE, ids=lambda kind: kind.__name__)
def error(request):
    """One error of each kind, with fields, a note and a cause."""
    error = request.param(f"{request.param.__name__}: é happened", **FIELDS.get(request.param, {}))
    if hasattr(error, "add_note"):
        error.add_note("while testing")
    error.__cause__ = ValueError("the reason")
    return error


def test_every_kind_with_fields_is_listed_here():
    """A field that is added to an error must be added to the table above, too."""
    for kind in TREE:
        keywords = {
            name
            for name, parameter in inspect.signature(kind.__init__).parameters.items()
            if "__init__" in vars(kind) and parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        assert keywords <= set(FIELDS.get(kind, {})), kind


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, _pickled, _wired])
def test_it_arrives_whole(error, way):
    """Class, message, fields, notes and cause are those of the original."""
    arrived = way(error)
    assert arrived is not error
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert arrived.args == error.args
    assert vars(arrived) == vars(error)
    for name, value in FIELDS.get(type(error), {}).items():
        assert getattr(arrived, name) == value
    assert (type(arrived.__cause__), str(arrived.__cause__)) == (ValueError, "the reason")


def test_a_copy_has_notes_of_its_own(error):
    """What is added to the copy is not added to the original."""
    if not hasattr(error, "add_note"):
        pytest.skip("notes came with Python 3.11")
    copied = copy.copy(error)
    copied.add_note("later")
    assert error.__notes__ == ["while testing"]


def test_a_cause_that_cannot_be_pickled_is_named():
    """An error of another library never keeps ours from arriving."""

    class Native(Exception):  # noqa: N818 - a class that pickle does not find
        pass

    error = aiochroma.StoreUnavailableError("the store is gone")
    error.__cause__ = Native("disk I/O error")
    for arrived in (_pickled(error), _wired(error)):
        assert str(arrived) == "the store is gone"
        assert isinstance(arrived.__cause__, ForeignError)
        assert str(arrived.__cause__).endswith("Native: disk I/O error")
    assert str(_pickled(_pickled(error)).__cause__) == str(_pickled(error).__cause__)


def test_chromas_errors_arrive_over_a_wire():
    """Those that are made of a message; a cause of the cause comes along."""
    import chromadb.errors

    error = chromadb.errors.NotFoundError("no such collection")
    error.__cause__ = aiochroma.QueueFullError("full", limit=3)
    arrived = _wired(error)
    assert type(arrived) is chromadb.errors.NotFoundError
    assert str(arrived) == "no such collection"
    assert arrived.__cause__.limit == 3


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "builtins.SystemExit", "aiochroma._errors.error_from_dict", "x", ""],
)
def test_what_comes_over_a_wire_never_names_what_is_run(name):
    """Only errors are made, and only of known modules."""
    arrived = error_from_dict({"type": name, "message": "m", "cause": None})
    assert type(arrived) is ForeignError


def test_an_error_of_a_user_is_kept_by_pickle():
    """Also where a derived class has another signature."""
    arrived = _pickled(OwnError("path", 3))
    assert (type(arrived), str(arrived), arrived.number) == (OwnError, "path is full (3)", 3)


class OwnError(aiochroma.StoreUnavailableError):
    """What a user may derive."""

    def __init__(self, name, number):
        super().__init__(f"{name} is full ({number})")
        self.number = number


def _fail():
    raise aiochroma.DeadlineExceededError("the store did not answer in time", started=False)


def test_a_worker_process_delivers_it():
    """A pool does not break down because of an error of ours."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        with pytest.raises(aiochroma.DeadlineExceededError) as caught:
            executor.submit(_fail).result()
        assert caught.value.started is False
        assert executor.submit(len, "abc").result() == 3
