"""The reference models: published sizes, seeds, shapes, row independence, export, id bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import recreplay.models as models
from recreplay.models import MODELS, IdInput, JaggedInput, Ranker
from recreplay.models.cartesian import product_ids, product_table
from recreplay.models.layers import Table
from recreplay.models.microrec import CartesianMicroRec

NAMES = sorted(MODELS)
# Of models that differ in their sizes alone, one is exported.
SIZES = {"dlrm_rmc2", "dlrm_rmc3", "microrec_47", "microrec_98", "rm_med", "rm_large"}
SMALL = 1e-4
BATCHES = (1, 2, 5)

# Tables (count, rows, width) as published; see the factories for the sources.
TABLES: dict[str, list[tuple[int, int, int]]] = {
    "ncf": [(2, 140_000, 64), (2, 28_000, 64)],
    "wide_deep": [(27, 1_000_000, 32)],
    "mt_wide_deep": [(41, 500_000, 32), (2, 5_000_000, 32)],
    "dlrm_rmc1": [(8, 4_000_000, 32)],
    "dlrm_rmc2": [(32, 500_000, 64)],
    "dlrm_rmc3": [(10, 2_000_000, 32)],
    "two_tower": [(3, 1_000_000, 32), (1, 200_000, 32), (1, 10_000, 32)],
    "din": [(1, 1_000_000, 32), (1, 100_000, 32), (2, 10_000_000, 32)],
    "dien": [(2, 500_000, 32), (2, 5_000_000, 32)],
    "dlrm": [(26, 100_000, 32)],
    "streamrec": [(14, 100_000, 8), (13, 100_000, 16), (13, 100_000, 32)],
}

# Published totals: tables, gigabytes of tables (fp32, 1e9), multiply-adds of the linear layers.
TOTALS: dict[str, tuple[int, float, int]] = {
    "ncf": (4, 0.086, 147_456),
    "wide_deep": (27, 3.46, 2_064_640),
    "mt_wide_deep": (43, 3.90, 2_457_600 + 8 * 163_840),
    "dlrm_rmc1": (8, 4.10, 100_416),
    "dlrm_rmc2": (32, 4.10, 319_552),
    "dlrm_rmc3": (10, 2.56, 3_203_328),
    "microrec_47": (47, 1.415, 1_016_064),
    "microrec_98": (98, 15.11, 1_552_640),
    "rm_small": (26, 33_762_577 * 4 * 4 / 1e9, 23_872),
    "rm_med": (26, 33_762_577 * 16 * 4 / 1e9, 25_408),
    "rm_large": (26, 33_762_577 * 32 * 4 / 1e9, 217_600),
}

LOOKUPS = {"dlrm": 20, "dlrm_rmc1": 80, "dlrm_rmc2": 120, "dlrm_rmc3": 20, "streamrec": 20}
DENSE = {
    "wide_deep": 512,
    "mt_wide_deep": 512,
    "dlrm_rmc1": 128,
    "dlrm_rmc2": 256,
    "dlrm_rmc3": 2560,
    "rm_small": 13,
    "rm_med": 13,
    "rm_large": 13,
    "dlrm": 13,
    "streamrec": 13,
}
WIDTHS = {"ncf": 64, "din": 2, "dien": 2, "mt_wide_deep": 128}

_built: dict[str, Ranker] = {}


def small(name: str) -> Ranker:
    """A model with small tables; built once, since tests only read it."""
    if name not in _built:
        _built[name] = MODELS[name].factory(rows_scale=SMALL, seed=3)
    return _built[name]


def on_meta(factory: Callable[..., Ranker], **options: Any) -> Ranker:
    with torch.device("meta"):
        return factory(**options)


def table_sizes(model: nn.Module) -> Counter[tuple[int, int]]:
    return Counter((m.rows, m.dim) for m in model.modules() if isinstance(m, Table))


def run(model: Ranker, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    out = model(**model.arguments(inputs))
    return out if isinstance(out, dict) else {"output": out}


def row(model: Ranker, inputs: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """Row i alone."""
    alone = {name: x[i : i + 1] for name, x in inputs.items()}
    for ids, offsets in model.jagged_inputs.items():
        start, stop = inputs[offsets][i : i + 2].tolist()
        alone[ids] = inputs[ids][start:stop]
        alone[offsets] = torch.tensor([0, stop - start])
    return alone


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-6)


# --- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_have_the_published_rows_and_widths(name: str) -> None:
    want = Counter({(rows, dim): count for count, rows, dim in TABLES[name]})
    assert table_sizes(on_meta(MODELS[name].factory)) == want


@pytest.mark.parametrize("name", sorted(TOTALS))
def test_totals_equal_the_published_ones(name: str) -> None:
    model = on_meta(MODELS[name].factory)
    tables, gigabytes, macs = TOTALS[name]
    sizes = table_sizes(model)
    assert sum(sizes.values()) == tables
    assert sum(n * rows * dim * 4 for (rows, dim), n in sizes.items()) / 1e9 == pytest.approx(
        gigabytes, rel=3e-3
    )
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert sum(m.in_features * m.out_features for m in linear) == macs


@pytest.mark.parametrize("name", NAMES)
def test_the_card_states_the_bytes_of_the_tables(name: str) -> None:
    sizes = table_sizes(on_meta(MODELS[name].factory))
    assert sum(n * rows * dim * 4 for (rows, dim), n in sizes.items()) == MODELS[name].table_bytes


def test_microrec_features_concatenate_to_the_published_widths() -> None:
    for factory, width in ((models.microrec_47, 352), (models.microrec_98, 876)):
        sizes = table_sizes(on_meta(factory))
        assert sum(n * dim for (_, dim), n in sizes.items()) == width


@pytest.mark.parametrize(
    ("factory", "tables", "growth"),
    [(models.microrec_47, 41, 1.0316), (models.microrec_98, 84, 1.0189)],
)
def test_cartesian_tables_have_the_published_number_and_bytes(
    factory: Callable[..., Ranker], tables: int, growth: float
) -> None:
    """MicroRec counts 42 for the small model, one of whose other tables lies in two memories."""
    separate, joint = (table_sizes(on_meta(factory, cartesian=c)) for c in (False, True))
    nbytes = [
        sum(n * rows * dim for (rows, dim), n in sizes.items()) for sizes in (separate, joint)
    ]
    assert sum(joint.values()) == tables
    assert nbytes[1] / nbytes[0] == pytest.approx(growth, abs=1e-4)


@pytest.mark.parametrize("factory", [models.microrec_47, models.microrec_98])
def test_cartesian_tables_score_the_same_rows_alike(factory: Callable[..., Ranker]) -> None:
    separate = factory(rows_scale=0.005)
    joint = factory(rows_scale=0.005, cartesian=True)
    assert isinstance(joint, CartesianMicroRec)
    inputs = separate.example_inputs(64, seed=5)
    asked = joint.joint_inputs(inputs)
    assert [f"ids_{i}" for i in range(len(asked))] == list(asked) == list(joint.example_inputs(2))
    close(run(joint, asked)["output"], run(separate, inputs)["output"])


def test_a_product_has_a_row_for_each_combination() -> None:
    a, b, c = torch.rand(3, 2), torch.rand(4, 1), torch.rand(2, 5)
    table = product_table([a, b, c])
    assert table.shape == (24, 8)
    ids = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(2)).unbind(1)
    rows = product_ids(ids, [3, 4, 2])
    assert torch.equal(rows, torch.arange(24))
    assert torch.equal(table, torch.cat([a[ids[0]], b[ids[1]], c[ids[2]]], dim=1))


def test_a_table_per_position_gives_the_deeprecinfra_counts() -> None:
    dien = table_sizes(on_meta(models.dien, per_position_tables=True))
    assert dien == Counter({(500_000, 32): 41, (5_000_000, 32): 2})
    din = table_sizes(on_meta(models.din, per_position_tables=True))
    assert sum(din.values()) == 253
    assert din[(100_000, 32)] == 250


def test_sequence_lengths_and_top_layers_of_din_and_dien() -> None:
    for factory, length, top_in in ((models.din, 250, 128), (models.dien, 40, 160)):
        model = on_meta(factory)
        assert model.example_inputs(2)["behaviour"].shape == (2, length)
        top = [m for m in model.get_submodule("top").modules() if isinstance(m, nn.Linear)]
        assert [top[0].in_features] + [m.out_features for m in top] == [top_in, 200, 80, 2]


def test_rows_scale_shrinks_tables_but_never_to_nothing() -> None:
    rows = {rows for rows, _ in table_sizes(models.microrec_47(rows_scale=1e-6))}
    assert rows == {8, 10}
    assert min(rows for rows, _ in table_sizes(models.rm_small(rows_scale=1e-6))) == 3
    with pytest.raises(ValueError, match="rows_scale"):
        models.ncf(rows_scale=0.0)


# --- registry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_cards_name_importable_factories(name: str) -> None:
    card = MODELS[name]
    assert card.name == name
    assert getattr(models, name) is card.factory
    assert name in models.__all__
    assert card.source
    assert card.description
    assert "\n" not in card.description


# --- weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone(name: str) -> None:
    factory = MODELS[name].factory
    before = torch.get_rng_state()
    again = factory(rows_scale=SMALL, seed=3).state_dict()
    other = factory(rows_scale=SMALL, seed=4).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    for key, weight in small(name).state_dict().items():
        assert torch.equal(weight, again[key]), key
        drawn = weight.is_floating_point() and not key.endswith("act.weight")  # PReLU slope
        assert torch.equal(weight, other[key]) != drawn, key


@pytest.mark.parametrize("name", NAMES)
def test_models_are_frozen_and_in_eval_mode(name: str) -> None:
    model = small(name)
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


# --- inputs and outputs -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_example_inputs_are_typed_seeded_and_within_bounds(name: str) -> None:
    model = small(name)
    inputs = model.example_inputs(16, seed=1)
    assert list(inputs) == [
        name
        for spec in model.inputs
        for name in ([spec.name, spec.offsets] if isinstance(spec, JaggedInput) else [spec.name])
    ]
    again, other = model.example_inputs(16, seed=1), model.example_inputs(16, seed=2)
    assert all(torch.equal(x, again[key]) for key, x in inputs.items())
    assert any(not torch.equal(x, other[key]) for key, x in inputs.items())
    for spec in model.inputs:
        x = inputs[spec.name]
        if isinstance(spec, IdInput):
            assert x.dtype == torch.int64
            assert x.shape == ((16, spec.lookups) if spec.lookups > 1 else (16,))
            assert 0 <= int(x.min()) <= int(x.max()) < spec.rows
        elif isinstance(spec, JaggedInput):
            offsets = inputs[spec.offsets]
            assert x.dtype == offsets.dtype == torch.int64
            assert 0 <= int(x.min()) <= int(x.max()) < spec.rows
            assert offsets.shape == (17,)
            assert (int(offsets[0]), int(offsets[-1])) == (0, len(x))
            assert bool((offsets.diff() >= 0).all())
        else:
            assert x.dtype == torch.float32
            assert x.shape == (16, DENSE.get(name, spec.width))
    if name in LOOKUPS:
        assert inputs["ids_0"].shape == (16, LOOKUPS[name])
    with pytest.raises(ValueError, match="batch"):
        model.example_inputs(0)


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_bound_of_each_id_is_the_end_of_its_table(name: str) -> None:
    model = small(name)
    last = model.example_inputs(4)
    ids = [spec for spec in model.inputs if isinstance(spec, (IdInput, JaggedInput))]
    for spec in ids:
        last[spec.name] = torch.full_like(last[spec.name], spec.rows - 1)
    run(model, last)
    for spec in ids:
        if len(last[spec.name]):
            beyond = {**last, spec.name: torch.full_like(last[spec.name], spec.rows)}
            with pytest.raises((IndexError, RuntimeError)):
                run(model, beyond)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_have_one_row_per_row_and_do_not_depend_on_the_others(name: str) -> None:
    model = small(name)
    for batch in BATCHES:
        inputs = model.example_inputs(batch, seed=batch)
        outputs = run(model, inputs)
        if name == "mt_wide_deep":
            assert list(outputs) == [f"task_{i}" for i in range(8)]
        for i in range(batch):
            alone = run(model, row(model, inputs, i))
            for key, out in outputs.items():
                assert out.shape == (batch, WIDTHS.get(name, 1))
                close(alone[key], out[i : i + 1])


@pytest.mark.parametrize("name", NAMES)
def test_outputs_vary_between_rows_and_stay_finite(name: str) -> None:
    # A saturated model would agree with anything, so parity tests on it could not fail.
    for out in run(small(name), small(name).example_inputs(128)).values():
        assert bool(torch.isfinite(out).all())
        assert float(out.std(dim=0).median()) > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_every_input_matters(name: str) -> None:
    model = small(name)
    inputs, others = model.example_inputs(32, seed=1), model.example_inputs(32, seed=2)
    base = run(model, inputs)
    jagged = model.jagged_inputs
    for key in inputs:
        if key in jagged.values():
            continue  # goes with its ids
        new = {key: others[key]} | ({jagged[key]: others[jagged[key]]} if key in jagged else {})
        changed = run(model, {**inputs, **new})
        assert any(not torch.equal(changed[k], base[k]) for k in base), key


# --- export -----------------------------------------------------------------------------------


def export(model: Ranker) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    arguments = model.arguments(model.example_inputs(3))
    shapes: dict[str, Any] = {
        key: [{0: batch} for _ in value] if isinstance(value, list) else {0: batch}
        for key, value in arguments.items()
    }
    for ids, offsets in model.jagged_inputs.items():
        shapes |= {ids: {0: torch.export.Dim(f"n_{ids}", min=1)}, offsets: {0: batch + 1}}
    return torch.export.export(model, (), kwargs=arguments, dynamic_shapes=shapes)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SIZES])
def test_export_with_a_dynamic_batch_equals_eager(name: str) -> None:
    model = small(name)
    program = export(model)
    for node in program.graph.nodes:
        assert not node.meta.get("unbacked_bindings"), f"{node} depends on data"
    assert not program.constants, "a constant outside the buffers does not follow the weights"
    # torch takes it for given that there is more than one bag, but the program serves one as well.
    exported = program.module(check_guards=not model.jagged_inputs)
    for batch in BATCHES:
        inputs = model.example_inputs(batch, seed=batch)
        got = exported(**model.arguments(inputs))
        for key, want in run(model, inputs).items():
            close(got[key] if isinstance(got, dict) else got, want)


# --- options ----------------------------------------------------------------------------------


def test_dlrm_checks_its_options() -> None:
    with pytest.raises(ValueError, match="bottom ends at width 16"):
        models.dlrm(rows=10, dim=8, bottom=(16,))
    with pytest.raises(ValueError, match="interaction"):
        models.dlrm(rows=10, interaction="sum")  # type: ignore[arg-type]


def test_dlrm_takes_one_row_count_per_table_and_one_lookup() -> None:
    model = models.dlrm(rows=[10, 20, 30], lookups=1, dim=8, interaction="dot")
    inputs = model.example_inputs(4)
    assert list(inputs) == ["dense", "ids_0", "ids_1", "ids_2"]
    assert inputs["ids_0"].shape == (4,)
    assert run(model, inputs)["output"].shape == (4, 1)


def test_jagged_inputs_have_the_mean_length_they_say() -> None:
    model = models.two_tower(rows_scale=SMALL)
    inputs = model.example_inputs(4096)
    for ids, mean in (("watched", 50.0), ("searched", 10.0), ("tags", 3.0)):
        lengths = inputs[model.jagged_inputs[ids]].diff().to(torch.float32)
        assert float(lengths.mean()) == pytest.approx(mean, rel=0.1)
        assert int(lengths.min()) == 0


def test_streamrec_without_dense_values() -> None:
    model = models.streamrec(features=3, rows=50, dense=0)
    inputs = model.example_inputs(2)
    assert list(inputs) == ["ids_0", "ids_1", "ids_2"]
    assert run(model, inputs)["output"].shape == (2, 1)
    close(export(model).module()(**model.arguments(inputs)), run(model, inputs)["output"])
    with pytest.raises(ValueError, match="lookups"):
        models.streamrec(lookups=1, rows=50)


def test_heads_can_be_scalar() -> None:
    ncf = models.ncf(head=1, rows_scale=SMALL)
    assert run(ncf, ncf.example_inputs(2))["output"].shape == (2, 1)
    tasks = models.mt_wide_deep(tasks=2, tower=(256, 128, 1), rows_scale=SMALL)
    outputs = run(tasks, tasks.example_inputs(2))
    assert {key: tuple(out.shape) for key, out in outputs.items()} == {
        "task_0": (2, 1),
        "task_1": (2, 1),
    }
