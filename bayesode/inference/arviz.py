"""The only door to ArviZ: one code base for 0.x and 1.x."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import xarray as xr
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.ensemble import Ensemble
from bayesode.tabular import dataset
from bayesode.trajectories import Trajectories

with warnings.catch_warnings():
    message = ".*ArviZ is undergoing a major refactor"
    warnings.filterwarnings("ignore", message=message, category=FutureWarning)
    import arviz as az

IS_LEGACY = hasattr(az, "InferenceData")


def inference_data(
    ensemble: Ensemble,
    draws: dict[str, Tensor],
    data: Trajectories,
    labels: dict[str, list[str]],
    train: Trajectories,
) -> Any:
    """Posterior, posterior predictive, observed data and pointwise log likelihood.

    Args:
        ensemble: Predictions at the times of `data`.
        draws: Sites in users' units, (draws, *event); as many as the ensemble has.
        data: Observed data.
        labels: Readable names of the entries of sites.
        train: The data of the fit, whose series x0 has.

    Returns:
        `InferenceData` or `DataTree`; dims are (chain, draw, ...). The log likelihood stacks the
        observed points to one dim `obs`: a NaN of a missing value would make any sum NaN.
    """
    time = {"time": data.times.cpu().numpy()} if data.times.dim() == 1 else {}
    event = (
        ["component"]
        if len(data.event_shape) == 1
        else [f"event{i}" for i in range(len(data.event_shape))]
    )
    common: dict[str, Any] = {"series": list(data.series), "component": list(data.names)} | time
    if "time" not in common:
        common["time_of_series"] = (["series", "time"], data.grid.cpu().numpy())
    attributes = {"created_by": "bayesode", "draws": "independent draws of an approximation"}
    names = list(ensemble.units.names) or [f"x{i + 1}" for i in range(ensemble.path.shape[-1])]
    posterior, coordinates = _posterior(draws, labels, train, names)
    posterior["path"] = (["chain", "draw", "path_series", "time", "state"], _chain(ensemble.states))
    groups = {
        "posterior": dataset(
            posterior, coordinates | time | {"path_series": list(data.series)}, attributes
        ),
        "posterior_predictive": dataset(
            {
                name: (["chain", "draw", "series", "time", *event], _chain(values))
                for name, values in (("values", ensemble.values), ("signal", ensemble.signal))
            },
            common,
            attributes,
        ),
    }
    if data.values is not None and data.mask is not None:
        groups["observed_data"] = data.to_xarray()[["values"]]
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


def _posterior(
    draws: dict[str, Tensor], labels: dict[str, list[str]], train: Trajectories, names: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    variables: dict[str, Any] = {}
    coordinates: dict[str, Any] = {"series": list(train.series), "state": names}
    for site, value in draws.items():
        if site == "x0":
            variables[site] = (["chain", "draw", "series", "state"], _chain(value))
            continue
        dims = [f"{site}_dim{i}" for i in range(value.dim() - 1)]
        if site in labels and len(dims) == 1:
            coordinates[dims[0]] = labels[site]
        variables[site] = (["chain", "draw", *dims], _chain(value))
    return variables, coordinates


def _points(data: Trajectories) -> dict[str, Any]:
    """Series, time and component of each observed point."""
    assert_mask: Any = data.mask
    place = assert_mask.nonzero().cpu()
    times = data.grid.cpu()[place[:, 0], place[:, 1]].numpy()
    labels = [str(data.series[row]) for row in place[:, 0].tolist()]
    points = {"obs_series": ("obs", labels), "obs_time": ("obs", times)}
    if data.names:
        points["obs_component"] = ("obs", [data.names[i] for i in place[:, 2].tolist()])
    return points
