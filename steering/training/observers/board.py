"""Distributions, pictures and pages of TensorBoard that need more than a step's scalars."""

from __future__ import annotations

from typing import Any

from steering import distributed
from steering.errors import SteeringError
from steering.methods.registry import Step
from steering.training.board.layout import HEALTH
from steering.training.board.look import look_at
from steering.training.board.pictures import gallery_figure, histograms, map_figure
from steering.training.observers.observer import Observer
from steering.training.state import State


class Board(Observer):
    """`train.board` says how often. Nothing is gathered or drawn at any other step."""

    def start(self, run: State, step: int) -> None:
        self.shows = True
        if run.log is None or step > 0:
            return
        run.log.layout(HEALTH)
        if run.job.config is not None:
            run.log.text("config", f"```yaml\n{run.job.config}\n```")

    def after_step(self, run: State, done: int, step: Step) -> None:
        options = run.job.train.board
        bars = run.due(done, options.histograms_every)
        draws = run.due(done, options.pictures_every)
        if not (bars or draws):
            return
        look = look_at(step)  # every rank: it gathers
        if run.log is not None and bars:
            run.log.histograms(done, histograms(look))
        if run.log is not None and draws:
            wrong = run.wrong
            figures = {"steer/map": map_figure(look, wrong)}
            if options.examples and self.shows:
                figures |= self._gallery(run, look)
            run.log.figures(done, figures)
        # The others must not start a step, and with it a collective, while rank 0 draws.
        distributed.barrier()

    def _gallery(self, run: State, look: Any) -> dict[str, Any]:
        try:
            count = run.job.train.board.examples
            figure = gallery_figure(look, count, run.job.task.exhibits, run.wrong)
        except SteeringError:
            self.shows = False  # a task that shows no examples, or whose data are gone
            return {}
        return {} if figure is None else {"steer/examples": figure}

    def finish(self, run: State) -> dict[str, Any]:
        if run.log is not None:
            run.log.settings(run.job.config, run.job.seed)
        return {}
