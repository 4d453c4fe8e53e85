"""docs/openapi.yaml says of the HTTP API what a running server does."""

from __future__ import annotations

import hmac
import re
import time
from hashlib import md5, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import requests
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from requests.auth import AuthBase
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cachecast.protocol.http_api import find_route
from cachecast.server.endpoints import _ENDPOINTS
from tests.e2e.server import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = Path(__file__).parents[2] / "docs" / "openapi.yaml"
DOCUMENT = yaml.safe_load(PATH.read_text())
OPERATIONS = {
    operation["operationId"]: (method, path)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method != "parameters"
}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SIGNED = {"auth_key", "auth_timestamp", "auth_version", "auth_signature", "body_md5"}
KEY, SECRET, APP_ID = "app-key", "app-secret", "4242"


class Signature(AuthBase):
    """Pusher's, over a request as it is about to be sent."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        url = urlsplit(request.url or "")
        query = {
            name: value
            for name, value in parse_qsl(url.query, keep_blank_values=True)
            if name.lower() not in SIGNED
        }
        query |= {"auth_key": KEY, "auth_timestamp": str(int(time.time())), "auth_version": "1.0"}
        body = request.body or b""
        if body:
            raw = body if isinstance(body, bytes) else body.encode()
            query["body_md5"] = md5(raw, usedforsecurity=False).hexdigest()
        pairs = sorted((name.lower(), value) for name, value in query.items())
        text = f"{request.method}\n{url.path}\n" + "&".join("=".join(pair) for pair in pairs)
        query["auth_signature"] = hmac.new(SECRET.encode(), text.encode(), sha256).hexdigest()
        request.url = url._replace(query=urlencode(query)).geturl()
        return request


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path_factory.mktemp("server"))
    yield process
    assert process.stop() == 0


#: Channels of which there is something to say, for operations that others are refused to.
CHANNELS = {"listUsers": "presence-room", "readCache": "cache-prices"}
ASKED = [
    (name, mode)
    for name, (_, path) in OPERATIONS.items()
    for mode in GenerationMode
    # Health has no parameter of which one could be wrong.
    if "{" in path or mode is GenerationMode.POSITIVE
]


def publish(server: ServerProcess, body: object, endpoint: str = "events") -> None:
    url = f"{server.url}/apps/{APP_ID}/{endpoint}"
    answer = requests.post(url, json=body, auth=Signature(), timeout=20)
    assert (answer.status_code, answer.json()) == (200, {})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), ASKED)
def test_a_server_answers_as_the_document_says(
    server: ServerProcess, name: str, mode: GenerationMode
) -> None:
    """Whatever the document allows, and whatever it forbids, signed."""
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    method, path = OPERATIONS[name]
    operation = schema[path][method.upper()]
    answers: list[int] = []
    publish(server, {"name": "tick", "channel": "cache-prices", "data": "1"})

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=8,
        phases=[Phase.explicit, Phase.generate],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        if "app_id" in case.path_parameters:
            case.path_parameters["app_id"] = APP_ID
        if name in CHANNELS and mode is GenerationMode.POSITIVE:
            case.path_parameters["channel"] = CHANNELS[name]
        auth = Signature() if case.path_parameters else None
        answer = case.call(base_url=server.url, auth=auth)
        case.validate_response(answer, checks=CHECKS)
        answers.append(answer.status_code)

    ask()
    assert mode is GenerationMode.NEGATIVE or any(status < 300 for status in answers)


REFUSED = {
    400: {"json": {"name": "tick", "channel": "no spaces", "data": "1"}},
    401: {"auth": None, "params": {"auth_key": KEY}},
    404: {"app_id": "1"},
    405: {"method": "DELETE"},
    413: {"json": {"name": "tick", "channel": "prices", "data": "x" * 10_241}},
    415: {"data": b"not gzip", "headers": {"Content-Encoding": "gzip"}},
}


@pytest.mark.parametrize("status", REFUSED)
def test_refusals_are_those_of_the_document(server: ServerProcess, status: int) -> None:
    """Those that a request brings upon itself; 403, 429 and 503 need another configuration."""
    request: dict[str, Any] = {"method": "POST", "auth": Signature(), "app_id": APP_ID}
    request |= REFUSED[status]
    url = f"{server.url}/apps/{request.pop('app_id')}/events"
    answer = requests.request(url=url, timeout=20, **request)

    assert answer.status_code == status
    told = DOCUMENT["paths"]["/apps/{app_id}/events"]["post"]["responses"][str(status)]
    response = DOCUMENT["components"]["responses"][told["$ref"].rpartition("/")[2]]
    assert answer.headers["Content-Type"] in response["content"]
    assert answer.text.endswith("\n")
    assert all(name in answer.headers for name in response.get("headers", {}))


def test_the_document_names_every_endpoint() -> None:
    """And each has the method that the server takes."""
    routes = set()
    for method, path in OPERATIONS.values():
        if path.startswith("/apps/"):
            route = find_route(re.sub(r"{\w+}", "1", path))
            assert route is not None
            assert route.method == method.upper()
            routes.add(route.name)

    assert routes == set(_ENDPOINTS)


@pytest.mark.parametrize("name", ["publish", "publishBatch"])
def test_examples_of_the_document_are_accepted(server: ServerProcess, name: str) -> None:
    method, path = OPERATIONS[name]
    content = DOCUMENT["paths"][path][method]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        publish(server, example["value"], path.rpartition("/")[2])
