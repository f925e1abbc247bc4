"""Launchers for tests: services of a test's own, and a thread that does harm beside a run."""

from collections.abc import Callable, Mapping
from threading import Thread
from typing import Any

from deploy.backend.actors import ActorOptions
from deploy.backend.launcher import LocalLauncher


class Replacing(LocalLauncher):
    """Creates a test's own subclasses where a run asks for their originals."""

    def __init__(self, instead: Mapping[type, type]) -> None:
        super().__init__()
        self._instead = instead

    def __call__(
        self, cls: type, *args: Any, site: ActorOptions | None = None, **kwargs: Any
    ) -> Any:
        return super().__call__(self._instead.get(cls, cls), *args, site=site, **kwargs)


def beside(harm: Callable[[dict[str, Any]], None]) -> Any:
    """Ray actors; once they are up, `harm` runs in a thread and is handed their proxies by name."""
    from deploy.backend.proxies import RayLauncher

    class Beside(RayLauncher):
        def __init__(self) -> None:
            super().__init__()
            self.made: dict[str, Any] = {}

        def __call__(self, cls: type, *args: Any, **kwargs: Any) -> Any:
            made = super().__call__(cls, *args, **kwargs)
            self.made[kwargs["site"].name] = made
            return made

        def wait_ready(self, say: Callable[[str], object] = lambda what: None) -> None:
            super().wait_ready(say)
            Thread(target=harm, args=(self.made,), daemon=True).start()

    return Beside()


def groups() -> list[list[dict[str, float]]]:
    """What is held on the cluster, or asked for: the bundles of each placement group."""
    from ray.util.placement_group import placement_group_table

    return [
        [dict(bundle) for bundle in group["bundles"].values()]
        for group in placement_group_table().values()
        if group["state"] != "REMOVED"
    ]
