"""Tiny studies as their files hold them."""

from pathlib import Path
from typing import Any

import tomli_w
from building.runs import TINY

from common.config.toml_tree import apply_override

STUDY = {
    "base": "smoke",
    "seeds": [0, 1],
    "curve": 2,
    "baselines": ["kd"],
    "ablation": ["base", "kd", "varkd"],
    "budget": {"steps": 4},
    "guidance": {"fixed": 1.5, "sweep": [1.0]},
    "methods": {
        "kd": {"objective": {"kind": "kd"}, "contexts": {"sources": {"student": {"ratio": 0.0}}}},
        "varkd": {"objective": {"kind": "varkd"}},
        "strict": {"like": "varkd", "objective": {"gate": {"tau": 0.3}}},
    },
}

VELOCITY = {"student": {"kind": "dd2_llamagen", "head_width": 16, "head_depth": 1}}
ONE_PASS = {
    "base": "smoke_dd1",
    "seeds": [0],
    "curve": 2,
    "weights": "student_ema",
    "baselines": ["teacher", "dd1_2_steps"],
    "ablation": ["slots", "dd2"],
    "budget": {"steps": 2, "own": {"dd2": 6}},
    "guidance": {"fixed": 1.5, "sweep": []},
    "speed": {"batches": [2, 8], "rounds": 2},
    "methods": {
        "dd1": {"evaluate": {"steps": [1, 2], "inserted": [3, 5]}},
        "dd2_gts": {
            "models": VELOCITY,
            "objective": {"kind": "dd2_gts"},
            "teacher": {"guidance": 1.5},
            "evaluate": {"steps": 1},
        },
        "dd2": {
            "like": "dd2_gts",
            "after": "dd2_gts",
            "objective": {"kind": "dd2_csd", "guidance": {"steps": 2}},
            "contexts": {
                "sources": {
                    "teacher": {"ratio": 0.0},
                    "student": {"min_prefix": 0.0, "max_prefix": 0.0},
                }
            },
            "learner": {"max_staleness": 0},
            "evaluate": {"steps": [1, 3]},
        },
    },
}
"""Both kinds of one-pass students, one of them in two stages."""


def one_pass_study(folder: Path) -> Path:
    """Its file, with the models of other tests' runs."""
    changed: dict[str, Any] = {}
    given = [o for o in TINY if not o.startswith(("models.student", "pretrain.student"))]
    own = ["evaluate.samples=40", "contexts.sources.teacher.sequences=48", "learner.ordered=true"]
    for override in [*given, *own]:
        apply_override(changed, override)
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(ONE_PASS | {"set": changed}))
    return path
