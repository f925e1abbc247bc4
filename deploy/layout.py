"""Our import names are ordinary words; make sure the words mean us."""

import importlib

PACKAGES = ("common", "rollout", "teacher_server", "learner", "deploy")


def check_layout() -> None:
    """Fail early if another installed distribution owns one of our package names.

    Raises:
        ImportError: a package of ours resolves to somebody else's files.
    """
    for name in PACKAGES:
        module = importlib.import_module(name)
        if getattr(module, "DISTRIBUTION", None) != "varkd":
            raise ImportError(
                f"package {name!r} resolved to {module.__file__}, which is not ours; "
                "uninstall the distribution that also ships it, or use a clean environment"
            )
