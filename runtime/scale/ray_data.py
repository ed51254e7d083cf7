"""A folder of photos over a Ray cluster, by Ray Data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from diffplugin.errors import MissingDependency
from diffplugin.runtime.scale.files import Task, find_tasks, is_done, restore_task

if TYPE_CHECKING:
    from diffplugin.runtime.options import RestoreOptions
    from diffplugin.runtime.scale.recipe import Recipe


class Worker:
    """An actor of the cluster: loads its restorer once and restores task after task."""

    def __init__(self, recipe: Recipe, source: str, target: str, options: RestoreOptions) -> None:
        self._restorer = recipe.load()
        self._source, self._target, self._options = source, target, options

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        record = restore_task(self._restorer, Task(**row), self._source, self._target, self._options)
        return {"record": json.dumps(record)}


def restore_folder(
    source: str,
    target: str,
    options: RestoreOptions,
    recipe: Recipe,
    *,
    workers: int,
    cpus: float = 1,
    gpus: float = 0,
    address: str | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[dict[str, Any]]:
    """Restore every photo below ``source`` whose result is not below ``target`` yet.

    Args:
        source, target: folders as fsspec names them; every worker must reach both.
        workers: actors, each with its own restorer.
        cpus, gpus: the number that Ray reserves for each.
        address: of a Ray cluster; None: one is started on this machine.

    Yields:
        The record of each photo (:func:`restore_task`), as each is finished.

    Raises:
        MissingDependency: Ray is not installed.
        RequestError: ``source`` is not a folder.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependency(f"Ray Data needs {error.name}: pip install 'diffplugin[scale]'") from None
    request = json.dumps([asdict(options), asdict(recipe) | {"threads": None}], sort_keys=True, default=str)
    tasks = list(find_tasks(source, target, request))
    waiting = [task for task in tasks if not is_done(task, target)]
    log(f"{len(tasks)} photos, {len(tasks) - len(waiting)} of them done before")
    if not waiting:
        return
    own = not ray.is_initialized()
    if own:
        ray.init(address=address, log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        data = ray.data.from_items([asdict(task) for task in waiting], override_num_blocks=len(waiting))
        done = data.map(
            Worker,
            fn_constructor_args=(recipe, source, target, options),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(waiting))),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        for row in done.iter_rows():
            yield json.loads(row["record"])
    finally:
        if own:
            ray.shutdown()
