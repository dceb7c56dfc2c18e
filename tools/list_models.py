"""`recreplay models`: the reference models."""

from __future__ import annotations

from recreplay.tools import tables
from recreplay.tools.console import print_json, show
from recreplay.tools.options import AsJson


def models(as_json: AsJson = False) -> None:
    """List the reference models, with the size of their tables and where that comes from."""
    from recreplay.models import MODELS

    if as_json:
        print_json(
            [
                {
                    "name": card.name,
                    "target": f"recreplay.models:{card.name}",
                    "table_bytes": card.table_bytes,
                    "source": card.source,
                    "description": card.description,
                }
                for card in MODELS.values()
            ]
        )
        return
    show(
        tables.table(
            "Reference models",
            ("name", "tables>", "what it is", "sizes from"),
            [
                (card.name, tables.size(card.table_bytes), card.description, card.source)
                for card in MODELS.values()
            ],
        ),
        "Capture one:  recreplay capture recreplay.models:dlrm_rmc1 --arg rows_scale=0.01 "
        "--out dlrm.rr\n"
        "rows_scale shrinks every table; the sizes above are at rows_scale=1.",
    )
