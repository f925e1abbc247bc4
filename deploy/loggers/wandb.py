"""Weights & Biases. WANDB_API_KEY, WANDB_BASE_URL and WANDB_MODE are read from the environment."""

import importlib
from typing import Any, ClassVar

from common.exchange.metrics import PROFILE
from deploy.logger import LoggedRun, LoggerConfig, numbers


class Config(LoggerConfig):
    package: ClassVar[str] = "wandb"

    project: str = "varkd"
    """Project that the run appears in."""
    entity: str | None = None
    """Team or user; by default that of the key."""
    group: str | None = None
    """Runs that are shown together."""

    def open(self, run: LoggedRun) -> "WandbLogger":
        wandb: Any = importlib.import_module(self.package)
        began = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        return WandbLogger(began)


class WandbLogger:
    """Steps that a resumed run repeats are left out: W&B takes each once."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._next = int(getattr(run, "step", 0) or 0)

    def write(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if PROFILE not in row and row["step"] >= self._next:
                self._run.log(numbers(row), step=row["step"])
                self._next = row["step"] + 1

    def close(self) -> None:
        self._run.finish()
