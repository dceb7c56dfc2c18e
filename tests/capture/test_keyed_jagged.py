"""Models of torchrec take a KeyedJaggedTensor; an artifact takes ids and lengths of each key."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture import Jagged
from recreplay.capture.keyed_jagged import plain_inputs
from recreplay.runtime import Runtime
from recreplay.runtime.errors import CaptureError, UnsupportedModelError
from recreplay.tools.target import load_target

torchrec = pytest.importorskip("torchrec", reason="no torchrec, which belongs to one torch")
Capture = Callable[..., Path]
KEYS = ["ads", "user", "tags"]


def tables(weighted: bool = False) -> Any:
    configs = [
        torchrec.EmbeddingBagConfig(
            name=f"t_{key}", embedding_dim=8, num_embeddings=100, feature_names=[key]
        )
        for key in KEYS
    ]
    return torchrec.EmbeddingBagCollection(tables=configs, is_weighted=weighted)


def keyed(batch: int, seed: int = 0, weighted: bool = False) -> Any:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (len(KEYS) * batch,), generator=random, dtype=torch.int32)
    count = int(lengths.sum())
    return torchrec.KeyedJaggedTensor.from_lengths_sync(
        keys=KEYS,
        values=torch.randint(0, 100, (count,), generator=random),
        lengths=lengths,
        weights=torch.rand(count, generator=random) if weighted else None,
    )


class Dense(nn.Module):
    """Reads keys in another order, and a table's rows beside lengths."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = tables()
        self.out = nn.Linear(16, 1)

    def forward(self, x: Tensor, sparse: Any) -> dict[str, Tensor]:
        front, last = sparse.to(x.device).permute([1, 0, 2]).split([1, 2])
        pooled = self.tables(sparse)
        both = torch.cat([pooled["ads"], pooled["tags"]], 1)
        some = last["tags"].lengths() + front["user"].lengths()
        return {"score": self.out(both).squeeze(1) + x.sum(1), "some": some.float()}

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Any]:
        return {"x": torch.randn(batch, 3), "sparse": keyed(batch, seed)}


def dlrm() -> nn.Module:
    from torchrec.models.dlrm import DLRM

    torch.manual_seed(0)
    return DLRM(tables(), 3, [16, 8], [16, 1])


def deep_fm() -> nn.Module:
    from torchrec.models.deepfm import SimpleDeepFMNN

    torch.manual_seed(0)
    return SimpleDeepFMNN(3, tables(), 16, 4)


def request(name: str, value: Any) -> dict[str, Tensor]:
    """As the README says it."""
    found = {}
    for key, jagged in value.to_dict().items():
        found[f"{name}_{key}"] = jagged.values()
        found[f"{name}_{key}_lengths"] = jagged.lengths()
        if jagged.weights_or_none() is not None:
            found[f"{name}_{key}_weights"] = jagged.weights()
    return found


def outputs(result: Any) -> dict[str, Tensor]:
    if isinstance(result, dict):
        return result
    return {"output": result} if isinstance(result, Tensor) else dict(result.to_dict())


@pytest.mark.parametrize("make", [dlrm, deep_fm, Dense])
def test_scores_are_those_of_the_keyed_model(captured: Capture, make: Any) -> None:
    model = make().eval()
    name = "sparse" if make is Dense else "sparse_features"
    dense = "x" if make is Dense else "dense_features"
    path = captured(model, (torch.randn(64, 3), keyed(64)), buckets=[1, 16])
    with Runtime.load(path) as runtime, torch.no_grad():
        for rows in (1, 7, 40):
            x, sparse = torch.randn(rows, 3), keyed(rows, seed=rows)
            got = runtime.run({dense: x, **request(name, sparse)})
            for of, want in outputs(model(x, sparse)).items():
                np.testing.assert_allclose(got[of], want.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_collection_alone_gives_each_key(captured: Capture, weighted: bool) -> None:
    model, sparse = tables(weighted).eval(), keyed(64, weighted=weighted)
    path = captured(model, (sparse,), buckets=[16])
    with Runtime.load(path) as runtime, torch.no_grad():
        few = keyed(9, 1, weighted)
        got = runtime.run(request("features", few))
        want = outputs(model(few))
    assert list(got) == KEYS == list(want)
    for key in KEYS:
        np.testing.assert_allclose(got[key], want[key].numpy(), rtol=1e-5, atol=1e-6)


def test_weights_keep_their_names_and_capacities_can_be_said(captured: Capture) -> None:
    model = Dense().eval()
    path = captured(
        model, None, jagged=[Jagged("sparse_ads", lengths="sparse_ads_lengths", capacity=9)]
    )
    with Runtime.load(path) as runtime:
        rooms = {spec.name: spec.capacity for spec in runtime.manifest.inputs if spec.capacity}
        assert rooms == {"sparse_ads": 9, "sparse_user": 4, "sparse_tags": 4}
        runtime.update_weights({name: value * 2 for name, value in model.state_dict().items()})
        x, sparse = torch.randn(5, 3), keyed(5)
        got = runtime.run({"x": x, **request("sparse", sparse)})["score"]
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(2)
        want = model(x, sparse)["score"].numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


class Registered(Dense):
    """Says what it reads by a name that inputs have here, and cannot be inherited from as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.input_names = ["ads", "tags"]

    def __init_subclass__(cls, /, key: str) -> None:
        super().__init_subclass__()

    def forward(self, x: Tensor, sparse: Any) -> dict[str, Tensor]:
        pooled = self.tables(sparse)
        both = torch.cat([pooled[key] for key in self.input_names], 1)
        return {"score": self.out(both).squeeze(1) + x.sum(1)}


def of_its_own() -> nn.Module:
    model = Dense()
    model.forward = lambda x, sparse: {"score": Dense.forward(model, x, sparse)["score"] * 2}
    return model


def hooked() -> nn.Module:
    from torchrec.models.deepfm import SimpleDeepFMNN

    def scale(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (args[0] * 3, *args[1:]), kwargs
        return args, {k: v * 3 if k == "dense_features" else v for k, v in kwargs.items()}

    model = SimpleDeepFMNN(3, tables(), 16, 4)
    model.register_forward_pre_hook(scale, with_kwargs=True)
    model.register_forward_hook(lambda module, args, result: result * 2)
    return model


def traced() -> nn.Module:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(3, 1)

        def forward(self, x: Tensor, sparse: Any) -> Tensor:
            return self.out(x).squeeze(1) + sparse["ads"].lengths()

    return torch.fx.symbolic_trace(Small())


@pytest.mark.parametrize("make", [Registered, of_its_own, hooked, traced])
def test_a_model_runs_as_what_it_is(captured: Capture, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    path = captured(model, (torch.randn(64, 3), keyed(64)), buckets=[8])
    x, sparse = torch.randn(5, 3), keyed(5)
    named = ("dense_features", "sparse_features") if make is hooked else ("x", "sparse")
    with Runtime.load(path) as runtime, torch.no_grad():
        got = runtime.run({named[0]: x, **request(named[1], sparse)})
        for of, want in outputs(model(x, sparse)).items():
            np.testing.assert_allclose(got[of], want.numpy(), rtol=1e-4, atol=1e-5)


def test_a_copy_has_weights_of_its_own() -> None:
    made, given = plain_inputs(Dense().eval(), (torch.randn(4, 3), keyed(4)))
    copied = deepcopy(made)
    want = made([*given.values()])["score"]
    with torch.no_grad():
        for value in made.parameters():
            value.zero_()
    assert torch.equal(copied([*given.values()])["score"], want)
    assert [*copied.state_dict()] == [*Dense().state_dict()]


def test_a_model_of_plain_tensors_is_itself() -> None:
    model = nn.Linear(3, 1)
    assert plain_inputs(model, (torch.ones(2, 3),))[0] is model


def test_what_has_no_rows_or_no_name_is_refused(captured: Capture) -> None:
    kind = torchrec.KeyedJaggedTensor
    uneven = kind(
        keys=KEYS[:2],
        values=torch.arange(3),
        lengths=torch.ones(3, dtype=torch.int64),
        stride_per_key_per_rank=[[1], [2]],
    )
    with pytest.raises(UnsupportedModelError, match=r"^KeyedJaggedTensor 'sparse' has another num"):
        captured(Dense().eval(), {"x": torch.randn(2, 3), "sparse": uneven})
    twice = kind.from_lengths_sync(
        keys=["a", "a_lengths"], values=torch.arange(4), lengths=torch.ones(4, dtype=torch.int64)
    )
    with pytest.raises(CaptureError, match=r"^two example inputs are named 'sparse_a_lengths': th"):
        captured(Dense().eval(), {"x": torch.randn(2, 3), "sparse": twice})
    for keys in (["ads", "ads"], []):
        wrong = kind.from_lengths_sync(
            keys=keys,
            values=torch.arange(2 * len(keys)),
            lengths=torch.ones(2 * len(keys), dtype=torch.int64),
            stride=2,
        )
        message = rf"^KeyedJaggedTensor 'sparse' of the example has keys {re.escape(str(keys))}; ex"
        with pytest.raises(CaptureError, match=message):
            captured(Dense().eval(), {"x": torch.randn(2, 3), "sparse": wrong})


def test_the_command_line_has_it_in_plain_tensors(tmp_path: Path) -> None:
    (tmp_path / "of_torchrec.py").write_text(
        "from capture.test_keyed_jagged import Dense\n\ndef build():\n    return Dense().eval()\n"
    )
    made = load_target(f"{tmp_path / 'of_torchrec.py'}:build").model
    assert {name: tuple(tensor.shape) for name, tensor in made.example_inputs(4).items()} == {
        "x": (4, 3),
        **{f"sparse_{key}": tuple(keyed(4).to_dict()[key].values().shape) for key in KEYS},
        **{f"sparse_{key}_lengths": (4,) for key in KEYS},
    }
    assert type(made).__name__ == "Dense"


class Sequences(nn.Module):
    """Attention of one key over the list of another one, as `EmbeddingCollection` gives them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        configs = [
            torchrec.EmbeddingConfig(
                name=f"t_{key}", embedding_dim=8, num_embeddings=100, feature_names=[key]
            )
            for key in KEYS
        ]
        self.tables = torchrec.EmbeddingCollection(tables=configs)

    def forward(self, sparse: Any) -> Tensor:
        found = self.tables(sparse)
        query = found["user"].to_padded_dense(1)
        items = found["ads"].to_padded_dense(3)
        weights = (items * query).sum(-1)
        absent = torch.arange(3) >= sparse["ads"].lengths()[:, None]
        return (weights.masked_fill(absent, -1e9).softmax(1)[..., None] * items).sum(1)


def test_lists_of_embeddings_are_padded(captured: Capture) -> None:
    model = Sequences().eval()
    path = captured(model, (keyed(64),), buckets=[1, 16])
    with Runtime.load(path) as runtime, torch.no_grad():
        for rows in (1, 7, 40):
            sparse = keyed(rows, seed=rows)
            got = runtime.run(request("sparse", sparse))["output"]
            np.testing.assert_allclose(got, model(sparse).numpy(), rtol=1e-4, atol=1e-5)
