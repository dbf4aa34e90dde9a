"""Another Kafka cluster: a broker that has users, with passwords or tokens, and TLS if asked for."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka.admin import AdminClient, NewTopic, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.kafka import skip_or_fail
from tests.support.token_endpoint import AUDIENCE, CLIENT, ISSUER, SCOPE, SECRET, TokenEndpoint
from tidegate.kafka_local import KafkaUnavailable, LocalKafka, free_port

USER, PASSWORD = "relay", "a password of rules"
SETTINGS = """\
listeners=%(listeners)s,CONTROLLER://127.0.0.1:{controller}
advertised.listeners=%(listeners)s
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT,SECURE:SASL_SSL,TOKENS:SASL_SSL
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
%(logins)s
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location={directory}/keystore.pem
listener.name.tokens.ssl.keystore.type=PEM
listener.name.tokens.ssl.keystore.location={directory}/keystore.pem
listener.name.tokens.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.tokens.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;
listener.name.tokens.oauthbearer.sasl.server.callback.handler.class=%(validator)s
listener.name.tokens.oauthbearer.connections.max.reauth.ms=3600000
sasl.oauthbearer.jwks.endpoint.url=file://{directory}/jwks.json
sasl.oauthbearer.expected.issuer=%(issuer)s
sasl.oauthbearer.expected.audience=%(audience)s
sasl.oauthbearer.clock.skew.seconds=0
"""
VALIDATOR = "org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler"
LOGIN = """\
listener.name.%(name)s.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_%(user)s="%(password)s";
listener.name.%(name)s.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.%(name)s.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"""


class OtherCluster:
    """`broker.pause`, `kill` and `start` are what happens to it."""

    def __init__(self, directory: Path) -> None:
        self.sasl, self.secure, self.tokens = free_port(), free_port(), free_port()
        ports = ("PLAINTEXT", "{port}"), ("SASL", self.sasl), ("SECURE", self.secure), ("TOKENS", self.tokens)
        settings = SETTINGS % {
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports),
            "logins": "".join(LOGIN % {"name": name, "user": USER, "password": PASSWORD} for name in ("sasl", "secure")),
            "validator": VALIDATOR,
            "issuer": ISSUER,
            "audience": AUDIENCE,
        }
        allowed = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls=file://{directory}/jwks.json"
        self.broker = LocalKafka(directory=directory, extra=settings, options=[allowed])
        directory.mkdir(parents=True, exist_ok=True)
        private, self.ca = _self_signed()
        (directory / "keystore.pem").write_text(private + self.ca)
        private, self.token_ca = _self_signed()
        (directory / "tokens.pem").write_text(private + self.token_ca)
        self.endpoint = TokenEndpoint(directory / "tokens.pem")
        """Gives tokens for the listener `tokens`."""
        (directory / "jwks.json").write_text(self.endpoint.jwks)

    def start(self) -> None:
        """Raises KafkaUnavailable."""
        self.plain = self.broker.start()
        admin = self.admin
        for number in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            change = UserScramCredentialUpsertion(USER, ScramCredentialInfo(number, 4096), PASSWORD.encode())
            for done in admin.alter_user_scram_credentials([change]).values():
                done.result(10)

    @property
    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.plain})

    def create(self, topic: str, partitions: int = 2, **settings: str) -> str:
        admin = self.admin  # its answers go with it
        for done in admin.create_topics([NewTopic(topic, partitions, config=settings)]).values():
            done.result(10)
        return topic

    def target(self, mechanism: str = "scram-sha-512", *, tls: bool = False, **sasl: Any) -> dict[str, Any]:
        """Of a rule that writes here."""
        login = {"mechanism": mechanism, "username": USER, "password": PASSWORD} | sasl
        port = self.secure if tls else self.sasl
        return {"brokers": [f"127.0.0.1:{port}"], "auth": {"sasl": login}, "tls": tls} | ({"ca": self.ca} if tls else {})

    def token_target(self, **sasl: Any) -> dict[str, Any]:
        """The same with tokens of `endpoint`, which has an authority of its own."""
        login = {"mechanism": "oauthbearer", "username": CLIENT, "password": SECRET, "scope": SCOPE, "extensions": "logicalCluster=one"}
        login |= {"token_endpoint": self.endpoint.url, "token_ca": self.token_ca} | sasl
        return {"brokers": [f"127.0.0.1:{self.tokens}"], "auth": {"sasl": login}, "ca": self.ca}


@contextmanager
def other_cluster(directory: Path) -> Iterator[OtherCluster]:
    """One that runs. Skips the test, or fails it in CI, if there cannot be one."""
    cluster = OtherCluster(directory)
    try:
        cluster.start()
        yield cluster
    except KafkaUnavailable as missing:
        skip_or_fail(str(missing))
    finally:
        cluster.broker.stop()


def _self_signed() -> tuple[str, str]:
    """Private key and certificate of 127.0.0.1, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kafka")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private.decode(), made.public_bytes(pem).decode()
