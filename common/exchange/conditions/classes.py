"""Class labels, as they are: every backbone has an embedding of each, and of the null class."""

from common.exchange.condition import ClassConditions, ConditionsConfig


class Config(ConditionsConfig):
    def table(self, num_classes: int) -> ClassConditions:
        return ClassConditions(num_classes)
