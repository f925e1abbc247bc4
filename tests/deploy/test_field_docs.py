"""What `varkd options` says of a field is what is written beneath it."""

from pydantic import Field

from common.config.schema import Config
from deploy.cli.config_reference import every_option
from deploy.cli.field_docs import field_docs


class Parent(Config):
    kept: int = 1
    """Of the
    parent."""
    replaced: int = 2
    """Not this."""


class Child(Parent):
    """A class's own text is no field's."""

    replaced: int = 3
    """Of the child."""
    bare: int = 4
    said: int = Field(default=5, description="In its own way.")


def test_the_words_beneath_a_field_are_its_own_or_its_parents():
    found = {name: " ".join(text.split()) for name, text in field_docs(Child).items()}
    assert found == {"kept": "Of the parent.", "replaced": "Of the child."}


def test_every_field_of_a_run_has_a_meaning():
    empty = [option.key for option in every_option() if not option.meaning]
    assert len(every_option()) > 400
    assert empty == []
