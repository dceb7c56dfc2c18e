"""A model as torch.export sees it, with sizes that stay free."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.export import ExportedProgram

from recreplay.capture.functional import drop_unread, functional
from recreplay.capture.known_values import held_values
from recreplay.capture.packed_sequences import all_places
from recreplay.capture.packed_steps import forget_lists
from recreplay.capture.quiet_libraries import without_partial_graph
from recreplay.capture.refusals import LastCall, refusal
from recreplay.capture.rows_asked import lines_that_ask
from recreplay.capture.rows_left_out import all_rows_given
from recreplay.capture.stand_ins import exchange_stand_ins
from recreplay.capture.traceable import free_len, provable_strides
from recreplay.runtime.errors import RecReplayError


def trace(
    model: torch.nn.Module, arguments: dict[str, Any], shapes: Any, batch: int
) -> tuple[ExportedProgram, set[str]]:
    """A program that writes to nothing it was given, and the integers and flags of the model whose
    values it was made by. `arguments` are an example of `batch` rows, and `shapes` says which of
    their sizes are free. Raises UnsupportedModelError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own deprecations
        with (
            LastCall() as last,
            lines_that_ask() as asking,
            free_len(model),
            held_values(model) as settled,
            all_places(),
            all_rows_given(model),
            provable_strides(),
            without_partial_graph(),
        ):
            try:
                exported = torch.export.export(model, (), arguments, dynamic_shapes=shapes)
                forget_lists()  # the program may be traced again
                drop_unread(exported.graph)
                exchange_stand_ins(exported.graph)
                program = functional(exported)
            except RecReplayError:  # an imported model's own, which names the node
                raise
            except Exception as error:
                raise refusal(error, last, batch, asking) from error
        return program, settled
