"""The list of reference models, for the command line and for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .base import Ranker
from .collaborative import ncf
from .deep_interest import din
from .dlrms import dlrm, dlrm_rmc1, dlrm_rmc2, dlrm_rmc3
from .interest_evolution import dien
from .microrec import microrec_47, microrec_98
from .recpipe import rm_large, rm_med, rm_small
from .stream_rec import streamrec
from .two_tower import two_tower
from .wide_and_deep import mt_wide_deep, wide_deep

DEEPRECINFRA = "DeepRecInfra, arXiv 2001.02772"
MICROREC = "MicroRec, arXiv 2010.05894"
RECPIPE = "RecPipe, arXiv 2105.08820"
STREAMREC = "StreamRec, DASFAA 2023 (sizes ours)"
YOUTUBE = "YouTube DNN, RecSys 2016 (sizes ours)"
DLRM = "DLRM, arXiv 1906.00091 (sizes ours)"


@dataclass(frozen=True)
class ModelCard:
    """One reference model: its factory, where its sizes come from, and one line about it.

    Every factory takes `rows_scale` and `seed` as keywords. `table_bytes` is what its embedding
    tables take at `rows_scale=1`.
    """

    name: str
    factory: Callable[..., Ranker]
    source: str
    description: str
    table_bytes: int


_CARDS = (
    ModelCard(
        "ncf",
        ncf,
        DEEPRECINFRA,
        "user and item; matrix factorisation beside an MLP",
        86_016_000,
    ),
    ModelCard(
        "wide_deep",
        wide_deep,
        DEEPRECINFRA,
        "27 tables and 512 dense values into one large MLP",
        3_456_000_000,
    ),
    ModelCard(
        "mt_wide_deep",
        mt_wide_deep,
        DEEPRECINFRA,
        "43 tables, a shared MLP and 8 task towers",
        3_904_000_000,
    ),
    ModelCard(
        "dlrm_rmc1",
        dlrm_rmc1,
        DEEPRECINFRA,
        "8 tables x 80 lookups, small MLPs; bound by lookups",
        4_096_000_000,
    ),
    ModelCard(
        "dlrm_rmc2",
        dlrm_rmc2,
        DEEPRECINFRA,
        "32 tables x 120 lookups; bound by memory bandwidth",
        4_096_000_000,
    ),
    ModelCard(
        "dlrm_rmc3",
        dlrm_rmc3,
        DEEPRECINFRA,
        "10 tables x 20 lookups, 2560 dense values; bound by matrix products",
        2_560_000_000,
    ),
    ModelCard(
        "din",
        din,
        DEEPRECINFRA,
        "attention of the candidate over 250 behaviours",
        2_700_800_000,
    ),
    ModelCard(
        "dien",
        dien,
        DEEPRECINFRA,
        "GRU, attention and AUGRU over 40 behaviours; 80 sequential steps",
        1_408_000_000,
    ),
    ModelCard(
        "microrec_47",
        microrec_47,
        MICROREC,
        "47 tables of mixed widths, one lookup each",
        1_414_678_400,
    ),
    ModelCard(
        "microrec_98",
        microrec_98,
        MICROREC,
        "98 tables of mixed widths, one lookup each",
        15_107_411_200,
    ),
    ModelCard(
        "rm_small",
        rm_small,
        RECPIPE,
        "26 Criteo tables x 4, dot interaction; first stage of a pipeline",
        540_201_232,
    ),
    ModelCard(
        "rm_med",
        rm_med,
        RECPIPE,
        "26 Criteo tables x 16, dot interaction; middle stage",
        2_160_804_928,
    ),
    ModelCard(
        "rm_large",
        rm_large,
        RECPIPE,
        "26 Criteo tables x 32, dot interaction, deeper MLP; last stage",
        4_321_609_856,
    ),
    ModelCard(
        "streamrec",
        streamrec,
        STREAMREC,
        "40 features, each with attention pooling and an interaction layer",
        294_400_000,
    ),
    ModelCard(
        "dlrm",
        dlrm,
        DLRM,
        "a DLRM of any size; 26 tables x 20 lookups unless told otherwise",
        332_800_000,
    ),
    ModelCard(
        "two_tower",
        two_tower,
        YOUTUBE,
        "a user with jagged histories and items with jagged tags; a user side to share",
        410_880_000,
    ),
)

MODELS: Mapping[str, ModelCard] = MappingProxyType({card.name: card for card in _CARDS})
