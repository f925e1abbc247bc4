"""Every command on the finished run, which files it reads, and odd values for its fields."""

from pathlib import Path

from hypothesis import strategies as st

IMAGE = "train/*/003.png"
COMMANDS = {
    "tokenize": ["tokenize", "tiny.toml", "--local", "--out", "new"],
    "tokenize parquet": [
        "tokenize", "tiny.toml", "--local", "--out", "new",
        "images.kind=parquet", "images.train=train.parquet",
    ],
    "tokenize again": ["tokenize", "run", "--local", "--restart"],
    "pretrain": ["pretrain", "run", "--restart"],
    "generate": ["generate", "run", "--local"],
    "dry run": ["distill", "run", "--dry-run"],
    "resume": ["distill", "run", "--local", "--resume", "learner.steps=5"],
    "restart": ["distill", "run", "--local", "--restart"],
    "official": ["distill", "run", "--local", "--restart", "learner.weights=official.pt"],
    "evaluate": ["evaluate", "run"],
    "status": ["status", "run"],
    "sample": ["sample", "run", "--to", "x.png"],
    "sample npz": ["sample", "run", "--to", "x.npz"],
    "export": ["export", "run", "--to", "x.pt"],
    "study": ["study", "study.toml", "--local", "--out", "study"],
    "study report": ["study", "study.toml", "--report", "--out", "study"],
}  # fmt: skip
MODELS = "run/{teacher,student_before}.safetensors"
SNAPSHOTS = "run/snapshots/**/step-*/*"
FILES = {
    "tokenize": ["tiny.toml", IMAGE],
    "tokenize parquet": ["train.parquet"],
    "tokenize again": ["run/*.toml", "run/tokenizer.safetensors", "run/tokens/*.parquet"],
    "pretrain": ["run/*.toml", "run/tokens/train.parquet", "run/tokenizer.safetensors"],
    "generate": ["run/teacher.safetensors", "run/tokens/*.parquet"],
    "dry run": ["run/*.toml", "run/tokens/*.parquet", "run/teacher.safetensors"],
    "resume": [
        "run/*.toml", "run/tokens/*.parquet", "run/teacher.safetensors",
        "run/student_before.safetensors", "run/clusters.safetensors", "run/tokenizer.safetensors",
        SNAPSHOTS, "run/*.jsonl", "run/distill.json",
    ],
    "restart": [
        "run/tokens/*.parquet", "run/student_before.safetensors", "run/clusters.safetensors",
    ],
    "official": ["official.pt"],
    "evaluate": [
        IMAGE, "run/*.toml", "run/student*.safetensors", "run/features.safetensors",
        "run/tokenizer.safetensors", "run/*.jsonl", "run/*.json", "run/tokens/train.parquet",
    ],
    "status": ["run/control/*.json", "run/distill.json"],
    "sample": ["run/*.toml", "run/student.safetensors", "run/tokenizer.safetensors"],
    "sample npz": ["run/student.safetensors"],
    "export": ["run/student.safetensors", "run/*.json", "run/tokens/train.parquet"],
    "study": [
        "study.toml", "tiny.toml", "study/start/*.safetensors", "study/start/start.json",
        "study/cells/*/*/cell.json", "study/start/tokens/*.parquet", "study/start/config.toml",
    ],
    "study report": ["study.toml", "study/cells/*/*/cell.json", "study/start/start.json"],
}  # fmt: skip
READS = [(command, name) for command, names in FILES.items() for name in names]
"""(command, pattern of a file that it reads)."""


def paths(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern, in order."""
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    assert found, f"no {pattern} in {folder}"
    return found


FIELDS = {
    "dry run": (
        "seed", "rollout.workers", "rollout.batch_size", "rollout.cpus", "rollout.gpus",
        "rollout.in_flight", "rollout.sampling.temperature", "rollout.sampling.top_k",
        "rollout.sampling.top_p", "rollout.sampling.guidance", "teacher.replicas", "teacher.cpus",
        "teacher.guidance", "teacher.signal.kind", "buffer.max_mb", "objective.kind",
        "objective.gate.tau", "objective.gate.mode", "objective.relaxation.factor",
        "learner.steps", "learner.global_batch_size", "learner.micro_batch", "learner.chunk_tokens",
        "learner.max_staleness", "learner.publish_every", "learner.world_size",
        "learner.stall_seconds",
        "learner.optimizer.learning_rate", "learner.optimizer.betas", "learner.optimizer.ema",
        "learner.optimizer.warmup", "learner.device", "learner.dtype", "learner.weights",
        "contexts.sources.student.ratio", "contexts.sources.student.min_prefix", "contexts.mix_per",
        "models.student.width", "models.student.depth", "models.student.heads",
        "models.student.kind", "models.teacher.width", "models.teacher.dropout",
        "cluster.nodes", "cluster.cpus", "cluster.gpus", "cluster.memory_gb",
        "cluster.data_images", "cluster.object_store_mb", "out",
    ),
    "tokenize": (
        "images.kind", "images.train", "images.test", "images.size", "images.channels",
        "images.classes", "tokenizer.kind", "tokenizer.patch", "tokenizer.vocab_size",
        "tokens.kind", "tokens.paths", "tokens.crops", "tokens.crop_range", "tokens.part_images",
        "tokens.workers",
    ),
    "pretrain": (
        "pretrain.teacher.steps", "pretrain.teacher.batch_size", "pretrain.student.class_dropout",
        "pretrain.teacher.optimizer.learning_rate", "pretrain.teacher.optimizer.max_grad_norm",
        "pretrain.student.optimizer.weight_decay", "models.teacher.width", "models.teacher.depth",
    ),
    "evaluate": (
        "evaluate.samples", "evaluate.batch_size", "evaluate.reference_images", "evaluate.size",
        "evaluate.sampling.guidance", "evaluate.sampling.top_p", "evaluate.classifier.width",
        "evaluate.classifier.steps", "evaluate.features", "evaluate.inception_weights",
    ),
    "sample": ("sample.per_class", "sample.sampling.temperature", "sample.sampling.guidance"),
}  # fmt: skip
VALUES = (
    "inf", "-inf", "nan", "1e400", "-1", "0", "1000000000000", "18446744073709551616", "true",
    "[]", "{}", "''", "' '", "'x'", "[1, 2]", "{a = 1}", "2024-01-01", "1e-320", "-0.0", "None",
    "/dev/zero", "/dev/stdin", "/", ".", "~nobody/x", "a\0b", "\u202ex", "x" * 5000, "'''",
)  # fmt: skip
OVERRIDES = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda command: st.tuples(
        st.just(command),
        st.builds("{}={}".format, st.sampled_from(FIELDS[command]), st.sampled_from(VALUES)),
    )
)
"""(command, section.key=value): kinds of values that do not belong, or are too much."""
WORDS = (
    *("tokenize", "pretrain", "generate", "distill", "evaluate", "sample", "export", "study"),
    *("options", "configs", "init", "disstill", "--help", "--version", "--dry-run", "--local"),
    *("run", "tiny.toml", "study.toml", "train", "train.parquet", "official.pt", "nowhere"),
    *("--out", "--to", "--model", "student", "teacher", "--layout", "--resume", "--restart"),
    *("--report", "seed=1", "seed", "=", "a.b.c=1", "..=1", "learner.step=1", "-", "--", "", " "),
    *("/dev/zero", "/dev/null", "\u202e", "a\0b", "x" * 300, "x/y/z.png", "*", "--cpu", "--from"),
)
ARGUMENTS = st.sampled_from(WORDS)
