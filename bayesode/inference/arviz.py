"""The only door to ArviZ: one code base for 0.x and 1.x."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.ensemble import Ensemble
from bayesode.tabular import dataset, event_dims
from bayesode.trajectories import Trajectories

with warnings.catch_warnings():
    message = r"\s*ArviZ is undergoing a major refactor"  # it begins with a line break
    warnings.filterwarnings("ignore", message=message, category=FutureWarning)
    import arviz as az

IS_LEGACY = hasattr(az, "InferenceData")


def inference_data(ensemble: Ensemble, data: Trajectories, labels: Mapping[str, list[str]]) -> Any:
    """Posterior, posterior predictive, sample stats, observed data, pointwise log likelihood.

    Args:
        ensemble: Predictions at the times of `data`.
        data: Observed data, or a question.
        labels: Readable names of the entries of sites.

    Returns:
        `InferenceData` or `DataTree`; dims are (chain, draw, ...), the series those of `data`. The
        log likelihood stacks the observed points to one dim `obs`: a NaN of a missing value would
        make any sum NaN. `failed` of the sample stats marks draws that left the model's bound.
    """
    attributes = {"created_by": "bayesode", "draws": "independent draws of an approximation"}
    event = event_dims(len(ensemble.event_shape))
    where: dict[str, Any] = {"series": _labels(data)}
    if data.times.dim() == 1:
        where["time"] = data.times.cpu().numpy()
    else:
        where["time_of_series"] = (["series", "time"], data.grid.cpu().numpy())
    seen = dict(where)
    if ensemble.train.names:
        seen["component"] = list(ensemble.train.names)
    variables, coordinates = _posterior(ensemble, labels)
    predictive = {
        name: (["chain", "draw", "series", "time", *event], _chain(values))
        for name, values in (("values", ensemble.values), ("signal", ensemble.signal))
    }
    failed = {"failed": (["chain", "draw", "series"], _chain(ensemble.failed))}
    groups = {
        "posterior": dataset(variables, coordinates | where, attributes),
        "posterior_predictive": dataset(predictive, seen, attributes),
        "sample_stats": dataset(failed, {"series": where["series"]}, attributes),
    }
    if data.values is not None and data.mask is not None:
        observed = data.to_xarray()[["values"]]
        groups["observed_data"] = observed.assign_coords(series=where["series"])
        pointwise = ensemble.log_prob(data)[:, data.mask]
        groups["log_likelihood"] = dataset(
            {"values": (["chain", "draw", "obs"], _chain(pointwise))}, _points(data), attributes
        )
    return _tree(groups)


def save_netcdf(data: Any, path: Path) -> None:
    """Write ArviZ data to a netCDF file.

    Raises:
        DataError: If the file cannot be written.
    """
    try:
        data.to_netcdf(path, engine="h5netcdf")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error


def _tree(groups: dict[str, xr.Dataset]) -> Any:
    if IS_LEGACY:
        return az.InferenceData(**groups)  # pyright: ignore
    return xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})


def _chain(values: Tensor) -> Any:
    return values.detach().cpu().unsqueeze(0).numpy()


def _labels(data: Trajectories) -> list[str | int]:
    """Labels of the series, all of one type: netCDF knows no mixed arrays."""
    is_whole = all(isinstance(label, int) for label in data.series)
    return list(data.series) if is_whole else [str(label) for label in data.series]


def _posterior(
    ensemble: Ensemble, labels: Mapping[str, list[str]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables of the posterior, and names of states and of entries of sites."""
    path = ensemble.states
    known = ensemble.units.names or ensemble.train.names
    names = known if len(known) == path.shape[-1] else [f"x{i + 1}" for i in range(path.shape[-1])]
    variables = {"path": (["chain", "draw", "series", "time", "state"], _chain(path))}
    coordinates: dict[str, Any] = {"state": list(names)}
    for site, value in ensemble.draws.items():
        name = site.replace("/", ".")  # a slash would start a group in netCDF
        dims = [f"{name}_dim{i}" for i in range(value.dim() - 1)]
        if site == "x0":
            dims = ["series", "state"]
        elif site in labels and len(dims) == 1:
            coordinates[dims[0]] = labels[site]
        variables[name] = (["chain", "draw", *dims], _chain(value))
    return variables, coordinates


def _points(data: Trajectories) -> dict[str, Any]:
    """Series, time and component of each observed point."""
    place = data.mask.nonzero().cpu()  # type: ignore[union-attr]
    times, labels = data.grid.cpu()[place[:, 0], place[:, 1]].numpy(), _labels(data)
    series = [labels[row] for row in place[:, 0].tolist()]
    points = {"obs_series": ("obs", series), "obs_time": ("obs", times)}
    if data.names:
        points["obs_component"] = ("obs", [data.names[i] for i in place[:, 2].tolist()])
        return points
    for axis, dim in enumerate(event_dims(len(data.event_shape)), start=2):
        points[f"obs_{dim}"] = ("obs", place[:, axis].numpy())
    return points
