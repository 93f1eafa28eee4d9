"""A training as it happens, in MLflow. Nothing that goes wrong there ever stops the training, or holds it up for long.

A thread of its own talks to the server, so that a slow one, or a database that somebody else has locked, costs the
training nothing: it waits for the run to begin, for some seconds, and at its end.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from finetune import study
from finetune.background import Background
from finetune.experiment import SIDE, Experiment, cell, epoch_metrics, open_experiment
from finetune.interruption import at_worst
from finetune.params import Params
from finetune.process_name import this_process
from finetune.tracking_store import attached_run_id, import_client, one_line

if TYPE_CHECKING:
    from mlflow.entities import Run

_PATIENCE = 3.0  # seconds for the server's answer while the process is ended by a signal
_BEGINNING = 10.0  # seconds for the run to begin before the training goes on without
_GOES_ON = "training goes on"
_IS_WHOLE = "the run is whole"


class Live:
    """Sends one training to MLflow: `started`, then `epoch` after each, then `finished`.

    The first failure is said once on stderr, and from then on nothing more is sent: `track` repairs. A training that
    is taken up again goes on in its own run and sends only the epochs that the server lacks. Used as a context
    manager, it ends the run as FAILED on an error, and as KILLED on KeyboardInterrupt or SystemExit (a signal).
    """

    def __init__(self, params: Params, side: bool = False) -> None:
        """`side`: the training is one outside DVC, which never takes the place of the study's own."""
        self._study = params.study.name
        self._side = side
        self._entered = ExitStack()
        self._background = Background()
        self._saying = threading.Lock()
        self._given_up = False
        self._ending = False
        self._late: list[Callable[[], object]] = []  # what waited when the end began
        self._whole = False
        self._experiment: Experiment | None = None
        self._run: Run | None = None
        self._beginning: str | None = None  # the run_key of one that is being made
        self._sent: set[int] = set()  # epochs

    def __enter__(self) -> Self:
        self._entered.enter_context(at_worst(lambda: self._end("KILLED")))
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        with self._entered:
            if kind is None:
                if not self._given_up:
                    self._background.wait()
                return
            told = issubclass(kind, KeyboardInterrupt | SystemExit)
            self._end("KILLED" if told else "FAILED")
            state = "what was trained is saved" if told else "the training failed"
            self._wait(_PATIENCE if told or self._given_up else None, state)

    def started(self, run: Mapping[str, Any]) -> None:
        """The training that `run` (the content of run.json) describes begins, or goes on."""
        # Here, as two threads that import the same modules at once may each find the other's half done.
        self._guard(lambda: import_client(study.anchor()), _GOES_ON)
        self._do(lambda: self._start(run))
        self._background.wait(_BEGINNING)

    def resumed(self, rows: Iterable[Mapping[str, float | None]], _steps: int = 0) -> None:
        """These epochs were trained before, and so many steps of the next."""
        for row in rows:
            self.epoch(row)

    def epoch(self, row: Mapping[str, float | None]) -> None:
        """An epoch is done; `row` is keyed as the columns of curves.csv."""
        now, sent = time.time(), dict(row)
        self._do(lambda: self._send(sent, now), late=True)

    def caught_up(self) -> None:
        """Wait until every epoch is sent, or could not be."""
        self._background.wait()

    def finished(self, at_most: float | None = None) -> None:
        """The training is whole; its run takes the place of earlier ones of the same data set, strategy and seed.

        Args:
            at_most: seconds to wait for the server, where no signal ends the waiting; None for as long as it takes.
        """
        self._do(self._finish, _IS_WHOLE)
        self._wait(at_most, _IS_WHOLE)

    def completed(self, send: Callable[[], None]) -> None:
        """The run is evaluated too; `send` sends what is lacking, tried also after an earlier failure."""
        try:
            send()
        except Exception as error:
            self._say(error, _IS_WHOLE)

    @property
    def run_id(self) -> str | None:
        """The run's id in MLflow, if it has got there."""
        return self._run.info.run_id if self._run else attached_run_id()

    def _do(self, action: Callable[[], None], state: str = _GOES_ON, late: bool = False) -> None:
        """`late`: also once the end has begun, after that."""
        self._background.do(lambda: self._guard(action, state, late))

    def _wait(self, at_most: float | None, state: str) -> None:
        """Leave a server that does not answer in time alone: whoever sent a signal may send SIGKILL next."""
        if not self._background.wait(at_most):
            self._say(TimeoutError("no answer in time"), state)

    def _guard(self, action: Callable[[], object], state: str, late: bool = False) -> None:
        if self._ending and late:
            self._late.append(action)
        if self._given_up or self._ending:
            return
        try:
            action()
        except Exception as error:
            self._say(error, state)

    def _end(self, status: str) -> None:
        self._ending = True
        self._background.do(lambda: self._at_last(status))

    def _at_last(self, status: str) -> None:
        """End the run, also after an earlier failure: the server may be there again. Then send what still waits."""
        try:
            self._fail(status)
            for action in self._late:
                action()
        except Exception as error:
            self._say(error, "the process ends")

    def _say(self, error: Exception, state: str) -> None:
        with self._saying:
            first, self._given_up = not self._given_up, True
        if first:
            text = f"tracking failed: {one_line(error)}; {state}, and `finetune track` sends the rest later"
            with suppress(OSError):  # whoever listened may be gone
                print(text, file=sys.stderr, flush=True)

    def _start(self, run: Mapping[str, Any]) -> None:
        process = {"process": this_process()}  # by which `track` knows whether a run that says RUNNING still is
        experiment = open_experiment(study.anchor(), self._study)
        experiment = self._experiment = experiment.beside(run) if self._side else experiment
        client, attached = experiment.client, attached_run_id()
        found = client.get_run(attached) if attached else experiment.find(run["run_key"])
        if found is not None and experiment.aside and not self._side and found.info.status == "FINISHED":
            return  # the workspace's own, which is whole: repeating it adds nothing, nor takes anything from it
        if found is None:
            self._beginning = run["run_key"]
            found = self._run = experiment.create(run, more_tags=process)
            self._beginning = None
            experiment.complete(found, run, process)
        else:
            self._run = found
            self._sent = {m.step for m in client.get_metric_history(found.info.run_id, "train/loss")}
            experiment.complete(found, run, process)
            client.update_run(found.info.run_id, status="RUNNING")
        self._run = client.get_run(found.info.run_id)

    def _send(self, row: Mapping[str, float | None], now: float) -> None:
        epoch = int(row["epoch"] or 0)
        if self._run is not None and self._experiment is not None and epoch not in self._sent:
            self._experiment.client.log_batch(self._run.info.run_id, metrics=epoch_metrics(row, now))
            self._sent.add(epoch)

    def _finish(self) -> None:
        if self._run is None or self._experiment is None:
            return
        run_id = self._run.info.run_id
        if not self._experiment.aside:
            for other in self._experiment.current():
                if other.info.run_id != run_id and self._replaces(other.data.tags):
                    self._experiment.retire(other.info.run_id, by=run_id)
        if not attached_run_id():  # `mlflow run` ends its own
            self._experiment.client.set_terminated(run_id, "FINISHED")
        self._whole = True

    def _replaces(self, other: Mapping[str, str]) -> bool:
        """The study's own run replaces all of its cell; one outside DVC only an earlier one of the same training."""
        assert self._run is not None
        own = self._run.data.tags
        if self._side:
            return SIDE in other and other["run_key"] == own["run_key"]
        return cell(other) == cell(own)

    def _fail(self, status: str) -> None:
        if self._run is None and self._beginning is not None and self._experiment is not None:
            self._run = self._experiment.find(self._beginning)
        if self._run is not None and self._experiment is not None and not self._whole:
            # In this order: `track` mends a run that is ended and still current, but not one that is neither.
            self._experiment.client.set_terminated(self._run.info.run_id, status)
            self._experiment.retire(self._run.info.run_id)
