"""The API of ``dp-serve`` over a Ray cluster: ``serve run diffplugin.runtime.scale.ray_serve:app``.

One replica of :class:`Api` takes requests and keeps the jobs; its worker threads hand each photo to a replica of
:class:`Photos`, which Ray adds and removes by the number of waiting requests.

Settings come from the environment: ``DIFFPLUGIN_BUNDLE``, ``DIFFPLUGIN_STATE``, ``DIFFPLUGIN_TOKENS`` (a token file),
``DIFFPLUGIN_MAX_REPLICAS``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from ray import serve

from diffplugin.runtime.photos.read import Photo
from diffplugin.runtime.scale.recipe import Recipe
from diffplugin.runtime.serve.app import make_app
from diffplugin.runtime.serve.call import restore_job
from diffplugin.runtime.serve.job import Job
from diffplugin.runtime.serve.metrics import Metrics
from diffplugin.runtime.serve.models import Models
from diffplugin.runtime.serve.service import Service
from diffplugin.runtime.serve.settings import Settings, read_tokens
from diffplugin.runtime.serve.store import JobStore

if TYPE_CHECKING:
    from diffplugin.runtime.restoration import Restoration
    from diffplugin.runtime.restorer import Restorer

MAX_REPLICAS = int(os.environ.get("DIFFPLUGIN_MAX_REPLICAS", "8"))


class Photos:
    """A restorer in its own process."""

    def __init__(self, recipe: Recipe) -> None:
        self._restorer = recipe.load()

    def restore(self, job: Job, files: Mapping[str, bytes], max_pixels: int) -> tuple[bytes, str | None, Restoration]:
        """(the result's file, its name, the restoration) of a job, as ``restore_job`` has them; its files are given as
        bytes."""
        with tempfile.TemporaryDirectory() as folder:
            paths = {kind: Path(folder) / kind for kind in files}
            for kind, path in paths.items():
                path.write_bytes(files[kind])
            made, name = restore_job(
                self._restorer,
                job,
                paths,
                Path(folder),
                max_pixels=max_pixels,
                on_plan=lambda plan, selection: None,
                progress=lambda step, steps, plugin: None,
                restored=lambda: None,
                cancelled=lambda: False,
            )
            small = replace(made, photo=Photo(rgb=made.photo.rgb[:1, :1]))  # the pixels travel as the file
            return b"" if name is None else (Path(folder) / name).read_bytes(), name, small


scaled_photos: Any = serve.deployment(
    Photos,
    max_ongoing_requests=1,
    autoscaling_config={"min_replicas": 1, "max_replicas": MAX_REPLICAS, "target_ongoing_requests": 1},
    ray_actor_options={"num_cpus": 1},
)


class RemoteModels(Models):
    """The models that the API's replica uses to plan and answer; it loads no engine before one is needed."""

    def prepare(self, size: tuple[int, int]) -> None:
        self.unready = None


def remote_job(handle: Any) -> Callable[..., tuple[Restoration, str | None]]:
    """``restore_job`` for the API's replica, run by another replica. A running job is not cancelled."""

    def run(
        restorer: Restorer, job: Job, files: Mapping[str, Path], results: Path, *, max_pixels: int, **hooks: Any
    ) -> tuple[Restoration, str | None]:
        sent = {kind: path.read_bytes() for kind, path in files.items()}
        data, name, made = handle.restore.remote(job, sent, max_pixels).result()
        hooks["on_plan"](made.plan, made.selection)
        from diffplugin.files import write_bytes

        if name is not None:
            write_bytes(results / name, data)
        return made, name

    return run


def build(recipe: Recipe, settings: Settings, max_replicas: int = MAX_REPLICAS) -> Any:
    """The Ray Serve application."""

    def make_api() -> FastAPI:
        handle = serve.get_deployment_handle("Photos", app_name=serve.get_replica_context().app_name)
        models = RemoteModels([recipe.load()], workers=max_replicas)
        service = Service(settings, models, JobStore(settings.state), Metrics(), run_job=remote_job(handle))
        return make_app(service)

    class Api:
        """Requests, jobs and the page."""

        def __init__(self, photos: Any) -> None:
            self._photos = photos

    api: Any = serve.deployment(serve.ingress(make_api)(Api), max_ongoing_requests=1000)
    return api.bind(scaled_photos.bind(recipe))


def _settings() -> Settings:
    from diffplugin.bundle import cache_folder

    tokens = os.environ.get("DIFFPLUGIN_TOKENS")
    state = os.environ.get("DIFFPLUGIN_STATE")
    return Settings(
        tokens=read_tokens(Path(tokens)) if tokens else {},
        state=Path(state) if state else cache_folder() / "ray-serve",
    )


def app(arguments: dict[str, str]) -> Any:
    """The application that ``serve run`` builds; arguments ``bundle=…``, ``engine=…``, ``quality=…`` go into the
    recipe.
    """
    fields: dict[str, Any] = {"bundle": os.environ.get("DIFFPLUGIN_BUNDLE"), **arguments}
    return build(Recipe(**fields), _settings())
