"""Reference recommendation models with their published sizes, as plain `nn.Module`s.

Each factory takes keywords, among them `rows_scale` (shrinks every table) and `seed` (fixes every
weight), and returns a frozen model in eval mode. `model.example_inputs(batch)` makes requests for
it; `MODELS` lists all of them. `clicks` makes a log that those of RecPipe can be trained on.
"""

from .base import DenseInput, IdInput, JaggedInput, Ranker
from .cards import MODELS, ModelCard
from .clicks import clicks
from .collaborative import ncf
from .deep_interest import din
from .dlrms import dlrm, dlrm_rmc1, dlrm_rmc2, dlrm_rmc3
from .interest_evolution import dien
from .microrec import microrec_47, microrec_98
from .recpipe import rm_large, rm_med, rm_small
from .stream_rec import streamrec
from .two_tower import two_tower
from .wide_and_deep import mt_wide_deep, wide_deep

__all__ = [
    "MODELS",
    "DenseInput",
    "IdInput",
    "JaggedInput",
    "ModelCard",
    "Ranker",
    "clicks",
    "dien",
    "din",
    "dlrm",
    "dlrm_rmc1",
    "dlrm_rmc2",
    "dlrm_rmc3",
    "microrec_47",
    "microrec_98",
    "mt_wide_deep",
    "ncf",
    "rm_large",
    "rm_med",
    "rm_small",
    "streamrec",
    "two_tower",
    "wide_deep",
]
