# SPDX-License-Identifier: Apache-2.0
"""The description of the control API is one, and describes every route and no other."""

from typing import Any, cast

from openapi_spec_validator import validate

from pipeline.api import _Api
from pipeline.openapi import document


def test_is_openapi() -> None:
    validate(document())


def test_describes_every_route_and_no_other() -> None:
    application = _Api(cast(Any, None)).application()
    routes = {(r.resource.canonical, r.method.lower()) for r in application.router.routes() if r.resource}
    described = {(path, method) for path, methods in document()["paths"].items() for method in methods}
    assert {route for route in routes if route[1] != "head"} == described
