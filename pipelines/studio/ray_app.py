"""The service with the studio's page, as a Ray Serve application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.serving.ray_app import application
from pipelines.spec.loading import check_serving
from pipelines.studio.app import create_studio

if TYPE_CHECKING:
    from ray.serve import Application


def build(args: Mapping[str, Any]) -> Application:
    """As :func:`pipelines.serving.ray_app.build`, with the page."""
    return application(check_serving(args, "args"), create_studio)
