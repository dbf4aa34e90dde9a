"""A double of an OAuth token endpoint, on a thread of the test: the client credentials grant (RFC 6749 4.4), over https, with signed tokens
that a real broker checks."""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

CLIENT, SECRET, SCOPE = "relay-client", "the client's $ecret: %s", "kafka:write"
LIVES_S = 6
ISSUER, AUDIENCE = "https://id.example", "kafka.example"


class TokenEndpoint:
    """Listens from `up` to `down`, on the same port each time."""

    def __init__(self, certificate: Path) -> None:
        """`certificate`: a file with its private key and certificate, in PEM."""
        self.given = 0
        """Tokens."""
        self.port = 0
        self._certificate = certificate
        self._key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/token"

    @property
    def jwks(self) -> str:
        """What a broker checks signatures with."""
        public = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return json.dumps({"keys": [public | {"kid": "1", "use": "sig", "alg": "RS256"}]})

    def token(self) -> str:
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": CLIENT, "scope": SCOPE, "iat": now, "exp": now + LIVES_S}
        return jwt.encode(claims | {"jti": secrets.token_hex(8)}, self._key, "RS256", {"kid": "1"})

    def up(self) -> None:
        self._server = _Server(("127.0.0.1", self.port), type("Handler", (_Handler,), {"endpoint": self}))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def down(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def answer(self, authorization: str, body: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON (RFC 6749 5.1, 5.2)."""
        user, _, password = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        asked = {name: values[0] for name, values in parse_qs(body).items()}
        if (user, password) != (CLIENT, SECRET) or asked != {"grant_type": "client_credentials", "scope": SCOPE}:
            return 401, {"error": "invalid_client", "error_description": f"{user} is not known by {password}"}  # as careless as can be
        self.given += 1
        return 200, {"access_token": self.token(), "token_type": "bearer", "expires_in": LIVES_S}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that does not trust the certificate."""


class _Handler(BaseHTTPRequestHandler):
    endpoint: ClassVar[TokenEndpoint]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        status, said = self.endpoint.answer(self.headers["Authorization"], body)
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""
