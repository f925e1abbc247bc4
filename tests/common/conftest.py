"""One-step students of every family, for the tests of this folder."""

import pytest
from building.students import KINDS, TEACHERS, student_of


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def teacher(kind, tiny):
    return tiny(TEACHERS[kind])


@pytest.fixture
def make(kind, teacher):
    """A student that began as the teacher; fields of its config by name."""

    def build(**fields):
        student = student_of(kind, teacher, **fields)[1]
        student.start_from(teacher)
        return student

    return build
