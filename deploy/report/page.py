"""A run's report as a page in Markdown: the numbers of report.json, with how to read them."""

import re
from html import escape
from typing import Any

LIKELIHOOD = {
    "reverse_kl": "KL(student, teacher)",
    "forward_kl": "KL(teacher, student)",
    "acceptance": "acceptance",
    "entropy": "entropy",
    "data_nll": "-log q of data",
}
READING = (
    "**Confidence by position**: where the teacher's confidence on rollouts (sampled slots alone) "
    "lies below that on data, the student's context is one that the teacher does not know.",
    "**Survival of the gate**: which share of the slots at that distance from the start of the "
    "rollout still has a loss; a steep fall means that the gate is a short horizon.",
    "**Divergence between and within clusters**: together the divergence over all codes; what is "
    "within clusters is not trained by a relaxed loss and should not grow.",
    "**Entropy**: a student far below its teacher has lost alternatives. The student's is of open "
    "slots alone: what the gate closed never reaches its head.",
    "**Seconds by stage**: sampling and scoring run beside the learner, which is the bottleneck "
    "while it hardly waits.",
    "**Divergence by position**: what is left to learn, slot by slot, of open slots.",
)


def to_markdown(report: dict[str, Any]) -> str:
    """The page; what is no number in report.json is a dash here."""
    names = list(next(iter(report["metrics"].values())))
    lines = [
        "# Distillation report",
        "",
        "| model | " + " | ".join(names) + " | ms per image |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for model, found in report["metrics"].items():
        cells = [_number(found[n], ".3f") for n in names]
        cells.append(_number(report["milliseconds_per_image"][model], ".3g"))
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    absent = [f"{name} is left out: it {why}." for name, why in report["left_out"].items()]
    features, shown = report["features"], report["classes_shown"]
    lines += [
        "",
        f"{features['samples']} samples per model, of {features['classes']} classes, against "
        f"{one_line(features['reference'])}. {features['note']} Milliseconds are wall clock, "
        f"sampling and decoding, {features['batch_size']} images at a time.",
        *(["", *absent] if absent else []),
        "",
        *_likelihoods(report["likelihood"]),
        "![samples](samples.png)",
        "",
        f"One row per class, {len(shown)} of {features['classes'].split()[-1]}: "
        f"{', '.join(map(one_line, shown))}.",
        "",
        *_curves_page(report),
        *_run_table(report),
    ]
    return "\n".join(lines) + "\n"


def _likelihoods(found: dict[str, dict[str, float]]) -> list[str]:
    """A table of nats per token, without features of images."""
    if not found:
        return []
    names = list(max(found.values(), key=len))
    names = [name for name in names if f"{name}_se" in names]
    lines = [
        "| nats per token | "
        + " | ".join(LIKELIHOOD.get(name, name.replace("_", " ")) for name in names)
        + " |"
    ]
    lines += ["|---" * (len(names) + 1) + "|"]
    for model, numbers in found.items():
        cells = [
            f"{numbers[name]:.4f} ± {numbers[f'{name}_se']:.4f}" if name in numbers else "-"
            for name in names
        ]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    note = (
        "Means over sequences and their standard errors, of plain samples: no classifier decides. "
        "Acceptance is the share of the student's codes that the teacher would keep (1 - TV)."
    )
    return [*lines, "", note, ""]


def _run_table(report: dict[str, Any]) -> list[str]:
    staleness, deaths = report["staleness"], report["worker_deaths"]
    looks = report["perceptual"]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in report["contexts"].items())
    again = [
        f"after step {found['from']}, at step {found['reached']} already, next step after "
        f"{_number(found.get('seconds'), '.1f')} s"
        for found in report["learner_restarts"]
    ]
    instead = [
        f"{dead} by {found['by']} after {found['seconds']:.1f} s"
        for dead, found in report["replaced"].items()
    ]
    slow = ", ".join(f"{name} x{times:g}" for name, times in report["slow_workers"].items())
    return [
        "| run | |",
        "|---|---|",
        f"| objective | {report['objective']['kind']} |",
        *([f"| images compared by | {one_line(looks)} |"] if looks else []),
        f"| contexts | {shares} |",
        f"| steps | {report['steps']} ({one_line(report['ended'])}) |",
        f"| images per second | {report['images_per_second']} |",
        f"| bottleneck | {report['bottleneck'] or '-'} |",
        f"| wall clock | {report['wall_seconds']} s |",
        f"| weight versions published | {report['weights_published']} |",
        f"| staleness | mean {_number(staleness['mean'], '.2f')}, max "
        f"{_number(staleness['max'], '.0f')}, bound {staleness['bound']} steps; "
        f"{staleness['dropped']} images dropped |",
        f"| survival of the gate | {_number(report['survival_rate'], '.1%')} |",
        *([f"| rewards | {_rewards(rewards)} |"] if (rewards := report["rewards"]) else []),
        f"| workers and replicas | {_actors(report)}, {len(deaths)} died |",
        *([f"| replaced | {one_line(', '.join(instead))} |"] if instead else []),
        *([f"| slow workers | {one_line(slow)} |"] if slow else []),
        *(["| learner began again | " + "; ".join(again) + " |"] if again else []),
        f"| seed, config | {report['seed']}, {report['config_digest']} |",
    ]


def _curves_page(report: dict[str, Any]) -> list[str]:
    final = report["final"]
    lines = ["![curves](curves.png)", "", "![diagnostics](diagnostics.png)", ""]
    lines += [*(f"- {line}" for line in READING), ""]
    if not final:
        return lines
    names = [name for name in final if name not in ("steps", "seconds")]
    titles = " | ".join(name.replace("_", " ") for name in names)
    lines += [f"| steps {final['steps']['first']}-{final['steps']['last']} | share | {titles} |"]
    lines += ["|---" * (len(names) + 2) + "|"]
    for context, share in report["shares"].items():
        values = [final[name].get(context) for name in names]
        cells = " | ".join(_number(value, ".4g") for value in values)
        lines.append(f"| {context} | {_number(share, '.1%')} | {cells} |")
    return [*lines, "", "Share: of all rows of the run. Entropies and divergences in nats.", ""]


def _actors(report: dict[str, Any]) -> str:
    """How many were there of each role, where there were processes to count."""
    counts = [
        f"{role} {least}" if least == most else f"{role} {least} to {most}"
        for role, (least, most) in report["actors"].items()
    ]
    return ", ".join(counts) or str(report["rollout_workers"])


def _rewards(found: dict[str, Any]) -> str:
    left_out = f"{found['groups_left_out']} groups left out because one failed"
    if not found["steps"]:
        return f"none could be judged; {left_out}"
    parts = ", ".join(f"{name} {_number(mean, '.4g')}" for name, mean in found["parts"].items())
    mean, spread = (_number(found[name], ".4g") for name in ("mean", "group_std"))
    alike = f"all rows of every group alike in {found['constant_steps']} of {found['steps']} steps"
    return f"{parts}; weighted {mean} ± {spread} within groups; {alike}; {left_out}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def one_line(text: str) -> str:
    """A name from outside, which may hold anything, inside a line or a table: no element, no link
    and no picture."""
    return re.sub(r"\||(?<=\])\(", r"\\\g<0>", escape(" ".join(text.split()), quote=False))
