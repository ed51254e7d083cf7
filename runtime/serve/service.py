"""The service behind the API: accepts, runs, cancels and returns jobs."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from diffplugin.engines.pages import give_back_memory
from diffplugin.errors import Cancelled
from diffplugin.runtime.serve.budget import MemoryBudget
from diffplugin.runtime.serve.call import restore_job
from diffplugin.runtime.serve.job import Job, Progress
from diffplugin.runtime.serve.problems import Problem, details, nothing_selected, problem_of
from diffplugin.runtime.serve.store import QueueFull

if TYPE_CHECKING:
    from diffplugin.runtime.planning.plan import Plan
    from diffplugin.runtime.request.selection import Selection
    from diffplugin.runtime.restoration import Restoration
    from diffplugin.runtime.serve.metrics import Metrics
    from diffplugin.runtime.serve.models import Models
    from diffplugin.runtime.serve.settings import Settings
    from diffplugin.runtime.serve.store import JobStore

_log = logging.getLogger("diffplugin.serve")
_EXPIRE_EVERY = 30.0  # seconds


class _Listener(NamedTuple):
    loop: asyncio.AbstractEventLoop
    event: asyncio.Event
    to_its_end: bool


class Service:
    """One server's jobs and the threads that run them. All methods may be called from any thread."""

    def __init__(
        self,
        settings: Settings,
        models: Models,
        store: JobStore,
        metrics: Metrics,
        budget: MemoryBudget | None = None,
        run_job: Callable[..., tuple[Restoration, str | None]] = restore_job,
    ) -> None:
        """``run_job`` has the arguments of :func:`restore_job`, and may run the job in another process."""
        self._run_job = run_job
        self.settings, self.models, self.store, self.metrics = settings, models, store, metrics
        self.budget = budget or MemoryBudget()
        self.progress: dict[str, Progress] = {}
        self.stopping = threading.Event()
        self._handing_back = threading.Event()
        self._wake = threading.Condition()
        self._places = threading.Semaphore(models.workers)
        self._threads: list[threading.Thread] = []
        self._listeners: dict[str, list[_Listener]] = {}
        self._listening = threading.Lock()

    def start(self) -> None:
        """Recover the jobs of a former server, prepare the engines and start the workers."""
        queued, again = self.store.recover()
        if queued:
            _log.info("%d jobs of the former server wait, %d of them had begun", queued, again)
        ready = self.models.prepare_in_background(self.settings.warm)
        # one more than photos at the same time: it writes a result while the next photo is restored
        names = [f"worker-{i + 1}" for i in range(self.models.workers + 1)]
        self._threads = [threading.Thread(target=self._work, args=(ready,), name=name, daemon=True) for name in names]
        self._threads.append(threading.Thread(target=self._expire, name="expire", daemon=True))
        for thread in self._threads:
            thread.start()

    # accepting

    def check_room(self) -> None:
        """Raises:
        Problem: the queue is full, the server stops, or its engines are broken.
        """
        if self.stopping.is_set():
            raise Problem("unavailable", "the server is stopping; try again in a moment", retry_after=5)
        if self.models.failed:
            raise Problem("unavailable", f"the engines cannot be prepared: {self.models.failed}", retry_after=60)
        if (waiting := self.store.count("queued")) >= self.settings.max_queue:
            raise self.queue_full(f"{waiting} jobs wait already, as many as may; try again later")

    def queue_full(self, detail: str) -> Problem:
        """The refusal, with the time until a place in the queue is free."""
        wait = self.models.typical_seconds() / self.models.workers
        return Problem("queue-full", detail, retry_after=min(max(wait, 1), 600))

    def accept(self, values: Mapping[str, Any], files: Mapping[str, Path]) -> tuple[Job, bool]:
        """Queue a job; returns (the job, whether it is new).

        Raises:
            Problem: the queue is full. KeyReused: as :meth:`JobStore.add`.
        """
        try:
            job, new = self.store.add(values, files, max_queue=self.settings.max_queue)
        except QueueFull as error:
            raise self.queue_full(str(error)) from None
        if new:
            with self._wake:
                self._wake.notify()
        return job, new

    def cancel(self, job: Job) -> None:
        """End a job that is not finished: at once if it waits, before its next step if it runs."""
        if self.store.cancel_queued(job, cancelled_details(job.id)):
            self.metrics.job_ended("cancelled")
            self.notify(job.id, ended=True)
        elif (live := self.progress.get(job.id)) is not None:
            live.cancel.set()

    # watching

    @contextmanager
    def listening(self, job_id: str, *, to_its_end: bool = False) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set whenever the job changes, or only when it ends or waits again."""
        entry = _Listener(asyncio.get_running_loop(), asyncio.Event(), to_its_end)
        with self._listening:
            self._listeners.setdefault(job_id, []).append(entry)
        try:
            yield entry.event
        finally:
            with self._listening:
                entries = self._listeners[job_id]
                entries.remove(entry)
                if not entries:
                    del self._listeners[job_id]

    def notify(self, job_id: str, *, ended: bool = False) -> None:
        """Notify the listeners that a job has changed, or ended."""
        with self._listening:
            entries = [entry for entry in self._listeners.get(job_id, ()) if ended or not entry.to_its_end]
        for entry in entries:
            entry.loop.call_soon_threadsafe(entry.event.set)

    def notify_all(self) -> None:
        for job_id in list(self._listeners):
            self.notify(job_id, ended=True)

    # working

    def _work(self, ready: threading.Thread) -> None:
        ready.join()
        rested = True
        while not self.stopping.is_set() and not self.models.failed:
            with ExitStack() as place:
                place.enter_context(self._places)
                if (job := self._next()) is None:
                    if not rested:
                        give_back_memory()  # kept from job to job, and not through the night
                    rested = True
                    continue
                rested = False
                try:
                    self._run(job, place.close)
                except Exception:  # the store itself failed, for example on a full disk
                    _log.exception("job %s: its end cannot be recorded", job.id)
                    time.sleep(1)

    def _next(self) -> Job | None:
        """The next job; None after a while without one, or once the server stops."""
        with self._wake:
            if self.stopping.is_set():
                return None
            job = self.store.claim()
            if job is None:
                self._wake.wait(1.0)
            return job

    def _run(self, job: Job, restored: Callable[[], None]) -> None:
        """Run a job to its end. ``restored`` is called when only its result is still to be written."""
        live = self.progress[job.id] = Progress()
        self.notify(job.id)
        began = time.monotonic()

        def stopped() -> bool:
            return live.cancel.is_set() or self._handing_back.is_set()

        try:
            with self.budget.hold(job.need_bytes, stopped):
                made = self._restore(job, live, stopped, restored)
        except Cancelled:
            if self._handing_back.is_set() and not live.cancel.is_set():
                self.store.hand_back(job)
                _log.info("job %s waits for the next server", job.id)
            else:
                self._end(job, "cancelled", problem=cancelled_details(job.id))
        except BaseException as error:
            problem = problem_of(error)
            if problem.kind == "internal":
                _log.exception("job %s failed", job.id)
            self.metrics.error(problem.kind)
            self._end(job, "failed", problem=details(problem, f"/v1/jobs/{job.id}"))
        else:
            self.metrics.job_done(made, time.monotonic() - began, (job.started or job.created) - job.created)
        finally:
            self.progress.pop(job.id, None)
            self.notify(job.id, ended=True)

    def _restore(
        self, job: Job, live: Progress, stopped: Callable[[], bool], restored: Callable[[], None]
    ) -> Restoration:
        store, began = self.store, time.monotonic()
        kinds = ("inputs", "masks") if job.has_mask else ("inputs",)

        def on_plan(plan: Plan, selection: Selection) -> None:
            live.plan, live.selection = short_plan(plan), selection.to_json()
            live.steps = plan.unet_runs
            self.notify(job.id)

        def progress(done: int, total: int, plugin: str) -> None:
            live.began = live.began or time.monotonic()
            live.step, live.steps, live.plugin = done, total, plugin
            self.notify(job.id)

        made, result = self._run_job(
            self.models.get(job.request.bundle),
            job,
            {kind: store.path(kind, job.id) for kind in kinds},
            store.folder / "results",
            max_pixels=self.settings.max_pixels,
            on_plan=on_plan,
            progress=progress,
            restored=restored,
            cancelled=stopped,
        )
        if result is None:
            raise nothing_selected(made.selection, self.models.get(job.request.bundle).cards)
        seconds = time.monotonic() - began
        report = {
            "plan": short_plan(made.plan),
            "selection": made.selection.to_json(),
            "timings": {name: round(value, 4) for name, value in made.timings.items()},
            "strength": made.strength,
            "seconds": round(seconds, 4),
        }
        self.models.learn(job.request.bundle, made.plan, seconds)
        self._end(job, "done", result=result, report=report)
        return made

    def _end(self, job: Job, state: str, **facts: Any) -> None:
        if self.store.finish(job, state, **facts):
            self.metrics.job_ended(state)
            _log.info("job %s: %s", job.id, state)

    def _expire(self) -> None:
        while not self.stopping.wait(_EXPIRE_EVERY):
            try:
                self.store.expire(self.settings.keep_seconds)
            except Exception:
                _log.exception("old jobs cannot be removed")

    # stopping

    def stop_accepting(self) -> None:
        """Refuse requests from now on and start no further job."""
        self.stopping.set()
        with self._wake:
            self._wake.notify_all()
        self.notify_all()

    def stop(self, grace_seconds: float) -> bool:
        """Give running jobs this long, then return them to the queue. False: one did not stop in time."""
        self.stop_accepting()
        deadline = time.monotonic() + grace_seconds
        workers = [thread for thread in self._threads if thread.name.startswith("worker")]
        for thread in workers:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._handing_back.set()
        for thread in workers:
            thread.join(10)
        return not any(thread.is_alive() for thread in workers)


def cancelled_details(job_id: str) -> dict[str, Any]:
    """The problem of a job that its caller cancelled."""
    return details(Problem("cancelled", "cancelled by the caller"), f"/v1/jobs/{job_id}")


def short_plan(plan: Plan) -> dict[str, Any]:
    """A plan as JSON, with the number of its pieces instead of all of them."""
    facts = plan.to_json()
    facts["pieces"] = len(facts.pop("tiles"))
    facts["pieces_in_all"] = len(facts.pop("grid")) or facts["pieces"]
    return facts
