"""The frozen teacher: its signal per token and, where it is read, the entropy of its distributions.

Everything about it is in [teacher]; its place in [scorers] says what comes before and after it.
"""

from teacher_server.replicas import ReplicasConfig
from teacher_server.scorer import ScorerConfig, ScorerFiles
from teacher_server.teacher import Teacher, TeacherConfig


class Config(ScorerConfig):
    reads_entropy = False

    def build(self, files: ScorerFiles) -> Teacher:
        return Teacher(
            files.config,
            files.teacher,
            coalesce=not files.ordered,
            conditions=files.conditions,
            entropy=files.entropy,
        )

    def actors(self, teacher: TeacherConfig) -> ReplicasConfig:
        return teacher
