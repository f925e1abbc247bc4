"""How a run went: distill.json and its page, and the students that it leaves."""

import json
from typing import Any

from common.files.atomic import write_text
from deploy.config import RunConfig
from deploy.report.html_page import write_page
from deploy.run_folder.records import read_facts
from deploy.run_folder.workspace import Workspace
from deploy.stages.student_files import complete_students
from learner.train import Outcome


def account(outcome: Outcome, first: int, stopped: str | None) -> dict[str, Any]:
    """How a run that began after step `first` went, and who stopped it, if anybody."""
    return {
        **outcome.as_dict(),
        "cause": f"stopped by {stopped}" if stopped else outcome.cause,
        "stopped": stopped,
        "begun": outcome.steps > first,
        "resumed": first > 0,
        "resumed_from": first,
    }


def store(config: RunConfig, workspace: Workspace, facts: dict[str, Any]) -> None:
    """The newest snapshot's student and its average, and how the run went."""
    complete_students(config, workspace)
    if not facts["begun"] and workspace.facts.exists():  # all steps were done earlier
        facts = {**read_facts(workspace.facts, "distill"), "resumed": True}
    else:
        facts = {**facts, "rollout_dtype": config.rollout.dtype}
    write_text(workspace.facts, json.dumps(facts, indent=2))
    write_page(config, workspace, facts)
