"""Lynx and snowshoe hare in Canada: the classical predator-prey record."""

from __future__ import annotations

import torch

from bayesode.trajectories import Trajectories

FIRST_YEAR = 1900
HARE = (
    *(30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4),
    *(27.1, 40.3, 57.0, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7),
)
LYNX = (
    *(4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1),
    *(7.4, 8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6),
)


def lynx_hare() -> Trajectories:
    """Pelts of lynx and snowshoe hare traded by the Hudson's Bay Company, 1900 to 1920.

    Returns:
        One series, "hudson-bay", with yearly values (1, 21, 2), float32, in thousands of pelts;
        the components are "hare" and "lynx", the times calendar years.

    Source: The Hudson's Bay Company's record after Odum and Odum, "Fundamentals of Ecology"; as
        tabulated by Howard (2009), "Modeling basics", Texas A&M University, and used by Carpenter
        (2018), "Predator-prey population dynamics", Stan case studies.

    Example:
        >>> data = lynx_hare()
        >>> data.names, data.values.shape, data.times[[0, -1]].tolist()
        (('hare', 'lynx'), torch.Size([1, 21, 2]), [1900.0, 1920.0])
    """
    years = torch.arange(len(HARE), dtype=torch.float64) + FIRST_YEAR
    pelts = torch.tensor([HARE, LYNX], dtype=torch.float32).T.unsqueeze(0)
    return Trajectories(years, pelts, series=("hudson-bay",), names=("hare", "lynx"))
