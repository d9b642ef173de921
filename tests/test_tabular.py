"""Tables in, tables out: tidy tables, CSV files, the real records, xarray."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from bayesode import tabular
from bayesode.datasets import lynx_hare
from bayesode.errors import DataError
from bayesode.inputs import Inputs
from bayesode.trajectories import Trajectories

SHARED = Path(
    os.environ.get("BAYESODE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
)
COLUMNS = {"time": "t", "values": ["x", "y"], "series": "who"}


def shared_file(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is absent; set BAYESODE_DATA to the folder of the real data")
    return path


def table() -> pd.DataFrame:
    """Two series: ann at 0, 1, 2.5 with a missing x, bob at 5 and 7."""
    return pd.DataFrame(
        {
            "who": ["ann", "ann", "ann", "bob", "bob"],
            "t": [0.0, 1.0, 2.5, 5.0, 7.0],
            "x": [1.0, np.nan, 3.0, 4.0, 5.0],
            "y": [10, 20, 30, 40, 50],
            "note": list("abcde"),
            "good": [True] * 5,
            "phase": [1j] * 5,
            "when": pd.date_range("2020-01-01", periods=5),
        }
    )


def assert_is_table(data: Trajectories):
    rows = dict(zip(data.series, data.positions(data.series).tolist(), strict=True))
    ann, bob = rows["ann"], rows["bob"]
    assert data.num_times[[ann, bob]].tolist() == [3, 2]
    assert data.times[[ann, bob]].tolist() == [[0.0, 1.0, 2.5], [5.0, 7.0, 7.0]]
    assert data.values[ann, [0, 2]].tolist() == [[1.0, 10.0], [3.0, 30.0]]
    assert data.values[ann, 1, 1] == 20.0
    assert data.values[bob, :2].tolist() == [[4.0, 40.0], [5.0, 50.0]]
    assert data.mask[ann].tolist() == [[True, True], [False, True], [True, True]]
    assert data.mask[bob].tolist() == [[True, True], [True, True], [False, False]]
    assert data.names == ("x", "y")


# ---- tables --------------------------------------------------------------------------------------
def test_rows_may_come_in_any_order():
    for seed in range(10):
        mixed = table().sample(frac=1.0, random_state=seed)
        data = Trajectories.from_dataframe(mixed, **COLUMNS)
        assert data.series == tuple(mixed["who"].unique())
        assert_is_table(data)


def test_values_get_the_default_dtype_and_times_float64():
    data = Trajectories.from_dataframe(table(), **COLUMNS)
    assert data.values.dtype == torch.float32 and data.times.dtype == torch.float64
    seconds = table().assign(t=1.6e9 + table()["t"] / 1000)
    assert Trajectories.from_dataframe(seconds, **COLUMNS).times[0].tolist() == [
        1.6e9,
        1.6e9 + 0.001,
        1.6e9 + 0.0025,
    ]


def test_equal_times_of_all_series_are_shared_and_one_series_needs_no_labels():
    same = table().assign(t=[0.0, 1.0, 2.0, 0.0, 1.0]).iloc[[0, 1, 3, 4]]
    assert Trajectories.from_dataframe(same, **COLUMNS).times.tolist() == [0.0, 1.0]
    renamed = table().rename(columns={"y": "dose"})
    alone = Trajectories.from_dataframe(renamed, time="t", values="dose", start=-1.0)
    assert alone.series == ("0",) and alone.names == ("dose",) and alone.start.tolist() == [-1.0]
    assert alone.values.flatten().tolist() == [10.0, 20.0, 30.0, 40.0, 50.0]


def test_series_that_begin_alike_but_differ_in_length_are_padded():
    ragged = table().assign(t=[0.0, 1.0, 2.0, 0.0, 1.0])
    data = Trajectories.from_dataframe(ragged, **COLUMNS)
    assert data.times.tolist() == [[0.0, 1.0, 2.0], [0.0, 1.0, 1.0]]
    assert data.num_times.tolist() == [3, 2]


def test_labels_are_plain_numbers_or_strings():
    data = Trajectories.from_dataframe(table().assign(who=[3, 3, 3, 1, 1]), **COLUMNS)
    assert data.series == (3, 1) and all(type(label) is int for label in data.series)
    category = pd.Categorical(table()["who"], categories=["zoe", "bob", "ann"])
    assert_is_table(Trajectories.from_dataframe(table().assign(who=category), **COLUMNS))


def test_missing_cells_of_every_kind_are_missing_values():
    for column in (
        [1.0, np.nan, 3.0, 4.0, 5.0],
        pd.array([1, None, 3, 4, 5], dtype="Int64"),
        pd.array([1.0, None, 3.0, 4.0, 5.0], dtype="Float64"),
    ):
        assert_is_table(Trajectories.from_dataframe(table().assign(x=column), **COLUMNS))
    empty = Trajectories.from_dataframe(table().assign(x=np.nan), **COLUMNS)
    assert empty.num_observed == 5


@pytest.mark.parametrize(
    ("change", "columns", "words"),
    [
        ({}, {"values": ["z"]}, "no column 'z'; its columns are"),
        ({}, {"time": "hour"}, "no column 'hour'"),
        ({}, {"series": "patient"}, "no column 'patient'"),
        ({}, {"values": ["note"]}, "column 'note' holds .*, not numbers; convert it first"),
        ({}, {"values": ["good"]}, "column 'good' holds bool"),
        ({}, {"values": ["phase"]}, "column 'phase' holds complex128"),
        ({}, {"time": "when"}, "days or years since a start"),
        ({}, {"values": []}, "at least one row and one column of values"),
        ({}, {"values": ["x", "x"]}, "names must be unique"),
        ({"x": None}, {}, "column 'x' holds object"),
        ({"x": np.inf}, {}, "mark missing values by NaN"),
        ({"t": [0.0, 1.0, 1.0, 5.0, 7.0]}, {}, "times of series 'ann' are repeated"),
        ({"t": [0.0, 1.0, np.nan, 5.0, 7.0]}, {}, "drop those rows"),
        ({"who": ["ann", None, "ann", "bob", "bob"]}, {}, "'who' has no label in row 2"),
        ({}, {"series": "when"}, r"strings or numbers, not Timestamp.*take str\(\)"),
        ({}, {"start": 1.0}, "before its start 1.0"),
    ],
    ids=str,
)
def test_tables_that_cannot_be_used_are_refused(change, columns, words):
    with pytest.raises(DataError, match=words):
        Trajectories.from_dataframe(table().assign(**change), **COLUMNS | columns)


def test_what_is_no_table_or_has_no_row_is_refused():
    with pytest.raises(DataError, match="at least one row"):
        Trajectories.from_dataframe(table()[:0], **COLUMNS)
    with pytest.raises(DataError, match="a pandas DataFrame is needed, not dict"):
        Trajectories.from_dataframe({"t": [0.0]}, **COLUMNS)
    twice = pd.concat([table(), table()[["x"]]], axis=1)
    with pytest.raises(DataError, match="more than one column 'x'"):
        Trajectories.from_dataframe(twice, **COLUMNS)


def test_records_become_a_table_with_an_index():
    records = [{"name": "a", "score": 1.0}, {"name": "b", "score": 2.0}]
    assert tabular.frame(records).columns.tolist() == ["name", "score"]
    assert tabular.frame(records, index="name").loc["b", "score"] == 2.0


# ---- files ---------------------------------------------------------------------------------------
def test_a_csv_file_is_read_with_comments_blanks_and_missing_cells(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text(
        "# two patients\nwho, t, x, y\nbob, 7, 5, 50\n  # in between\nann, 0, 1, 10\n"
        "ann, 1, , 20\nann, 2.5, 3, 30\nbob, 5, 4, 40\n"
    )
    assert_is_table(Trajectories.from_csv(path, **COLUMNS))
    assert_is_table(Trajectories.from_csv(str(path), **COLUMNS))
    path.write_text("\ufeff" + path.read_text(), "utf-8")  # as Excel begins its files
    assert_is_table(Trajectories.from_csv(path, **COLUMNS))


def test_a_mark_of_comments_inside_a_line_is_part_of_the_line(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("t,x,who\n0,1,mouse #1\n1,2,mouse #2\n")
    data = Trajectories.from_csv(path, time="t", values=["x"], series="who")
    assert data.series == ("mouse #1", "mouse #2")
    path.write_text("#t,x\n0,1\n")
    assert Trajectories.from_csv(path, comment=None, time="#t", values=["x"]).num_observed == 1


def test_a_comma_at_the_end_of_each_row_does_not_shift_the_columns(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("t,x\n0,1,\n1,2,\n")
    data = Trajectories.from_csv(path, time="t", values=["x"])
    assert data.times.tolist() == [0.0, 1.0] and data.values.flatten().tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read as a CSV table: No columns"),
        ("# nothing\n", "cannot be read as a CSV table: No columns"),
        ("t,x\n", "at least one row"),
        ("t;x\n0;1\n", "no column 't'"),
        ("t,x\n0,1,5\n1,2,6\n", "more cells than the header"),
        ("t,x\n0,1\n1,2,6\n", "cannot be read as a CSV table"),
        ("t,x\n0,.\n1,2\n", "column 'x' holds"),
    ],
)
def test_csv_files_that_are_no_table_are_refused(tmp_path, text, words):
    path = tmp_path / "data.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        Trajectories.from_csv(path, time="t", values=["x"])


def test_files_that_are_missing_or_no_text_are_refused(tmp_path):
    (tmp_path / "noise").write_bytes(bytes(range(128, 256)))
    for path in (tmp_path / "absent.csv", tmp_path, tmp_path / "noise", None):
        with pytest.raises(DataError, match="cannot be read as a CSV table"):
            Trajectories.from_csv(path, time="t", values=["x"])


def test_lynx_hare_file_is_the_built_in_record():
    path = shared_file("lynx_hare/hudson-bay-lynx-hare.csv")
    data, known = Trajectories.from_csv(path, time="Year", values=["Hare", "Lynx"]), lynx_hare()
    assert torch.equal(data.values, known.values) and torch.equal(data.times, known.times)
    assert data.names == ("Hare", "Lynx") and data.num_observed == 42


def test_theophylline_keeps_the_own_grid_of_every_subject():
    path = shared_file("pk/theoph.csv")
    data = Trajectories.from_csv(path, time="Time", values=["conc"], series="Subject")
    assert data.series == tuple(range(1, 13)) and data.times.shape == (12, 11)
    assert data.num_observed == 132 and data.start.tolist() == [0.0] * 12
    first = data.rows(data.positions([1]))
    assert first.times[0, [2, -1]].tolist() == [0.57, 24.37]
    assert first.values[0, [2, -1], 0].tolist() == pytest.approx([6.57, 3.28], rel=1e-6)
    assert len({tuple(row) for row in data.times.tolist()}) == 12
    train, test = data.split(time=12.0)
    assert train.num_observed + test.num_observed == 132
    assert test.grid.min() > 12.0 and test.start.tolist() == [0.0] * 12


# ---- xarray --------------------------------------------------------------------------------------
VALUES = torch.arange(12.0, dtype=torch.float64).view(2, 3, 2)


def own_times(**changes) -> Trajectories:
    """Padded own times, a missing and a hidden value, starts, mixed labels and inputs."""
    values = VALUES.clone()
    values[0, 1, 0] = torch.nan
    mask = torch.ones(2, 3, 2).bool()
    mask[1, 0, 1] = False
    arguments = {
        "mask": mask,
        "series": ["a", 7],
        "names": ["prey", "predator"],
        "start": [-1.0, 0.1],
        "inputs": Inputs([[1.0, 2.0], [3.0, 4.0]], ["dose", "weight"]),
        "num_times": [3, 2],
    }
    return Trajectories([[0.0, 1.0, 2.0], [0.1, 0.3, 9.0]], values, **arguments | changes)


def assert_same(data: Trajectories, other: Trajectories):
    """All but hidden values."""
    assert data.series == other.series and data.names == other.names
    assert [type(label) for label in data.series] == [type(label) for label in other.series]
    for name in ("times", "start", "num_times", "mask", "index"):
        assert torch.equal(getattr(data, name), getattr(other, name)), name
    assert data.values.dtype == other.values.dtype
    assert torch.equal(data.values[data.mask], other.values[other.mask])
    assert (data.inputs is None) == (other.inputs is None)
    if data.inputs is not None:
        assert data.inputs.names == other.inputs.names
        assert torch.equal(data.inputs.static, other.inputs.static)


@pytest.mark.parametrize(
    "data",
    [
        own_times(),
        own_times(series=None, inputs=None),
        own_times().to(dtype=torch.float32),
        Trajectories([0.0, 0.5, 2.0], VALUES, start=-1.0, series=["u", "v"]),
        Trajectories([0.0, 0.5, 2.0], VALUES, num_times=2),
        Trajectories([1.6e9, 1.6e9 + 0.001], torch.rand(3, 2, 4, 5)),
    ],
    ids=repr,
)
def test_xarray_and_back_keeps_all_but_hidden_values(data):
    again = Trajectories.from_xarray(data.to_xarray())
    assert_same(again, data)
    assert torch.equal(torch.isnan(again.values), ~data.mask)


def test_data_survive_a_netcdf_file(tmp_path):
    for number, data in enumerate((own_times(series=["a", "b"]), own_times(series=[3, 4]))):
        path = tmp_path / f"{number}.nc"
        data.to_xarray().to_netcdf(path, engine="h5netcdf")
        assert_same(Trajectories.from_xarray(xr.load_dataset(path, engine="h5netcdf")), data)


def test_series_selected_in_xarray_come_back():
    data = own_times(series=["a", "b"])
    assert_same(Trajectories.from_xarray(data.to_xarray().sel(series=["b"])), data.rows([1]))


def test_xarray_shows_dims_coordinates_and_missing_values():
    shared = Trajectories([0.0, 1.0, 2.0], own_times().values, series=["u", "v"], start=-1.0)
    cells = shared.to_xarray()
    assert cells["values"].dims == ("series", "time", "component")
    assert cells["series"].values.tolist() == ["u", "v"]
    assert cells["time"].values.tolist() == [0.0, 1.0, 2.0]
    assert np.isnan(cells["values"].sel(series="u", time=1.0, component="x1"))
    assert not cells["observed"].sel(series="u", time=1.0, component="x1")
    assert float(cells["values"].sel(series="v", time=2.0, component="x2")) == 11.0
    hidden = own_times().to_xarray()
    assert "time" not in hidden.coords
    assert np.isnan(hidden["values"].sel(series=7, component="predator")[0])
    images = Trajectories([0.0], torch.rand(3, 1, 4, 5)).to_xarray()
    assert images["values"].dims == ("series", "time", "row", "column")


def test_writing_xarray_does_not_share_memory_with_the_data():
    data = own_times()
    cells = data.to_xarray()
    for name in ("values", "observed", "times", "start", "num_times", "static"):
        cells[name].values[:] = 0
    assert_same(data, own_times())


def test_xarray_data_that_cannot_be_read_are_refused():
    cells = own_times().to_xarray()
    for name in ("values", "times", "start", "num_times"):
        with pytest.raises(DataError, match=f"no variable '{name}'"):
            Trajectories.from_xarray(cells.drop_vars(name))
    with pytest.raises(DataError, match="an xarray Dataset is needed, not int"):
        Trajectories.from_xarray(5)
    with pytest.raises(DataError, match="export the observed data"):
        own_times().at([9.0]).to_xarray()
