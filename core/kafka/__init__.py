"""All that Tidegate asks of Apache Kafka; the only package that imports confluent_kafka.

Wiring a core takes nine calls. Whatever happens in Kafka comes back as events of `core.events`, in lists, on the event loop, through the
one `deliver` that every part is given; no callback ever runs on a driver's thread.

    topics = await asyncio.to_thread(prepare_topics, config)         # Topics; raises Unreachable (try again) or TopicMisconfigured (do not)
    config_log = ConfigLog(config, topics.config, limits, loop, deliver)    # ConfigRead, ConfigWritten, EndOffset(partition=-1)
    producer = LogProducer(config, topics.log, limits, loop, deliver)       # Reported, Overfull
    ends = EndOffsets(config, topics.log, limits, loop, deliver)            # EndOffset
    sessions = SessionsLog(config, topics.sessions, limits, loop, deliver)  # SessionRead, SessionWritten, EndOffset(partition=-2)
    found = await asyncio.to_thread(read_state, config, topics.state, topics.log)   # by partition; raises Unreachable
    tail = Tail(config, [topics.log], limits, loop, deliver, checkpoints)   # Tailed, Looked, Gap; after the node has what was found
    owner = OwnerRunner(config, topics.log, topics.state, rules, core=…, limits=…, loop=…, deliver=…)   # Owned

    part.start()             once, on the loop: opens the driver and the part's thread
    await part.close()       ends both; bounded waits only

    producer.append(ticket, partition, key, value, kind, id)         # effect Produce
    ends.ask(ask, partition)                                         # effect AskEnd
    config_log.ask_end(ask); config_log.write(ticket, key, value)    # effects AskConfigEnd, WriteConfig
    sessions.ask_end(ask); sessions.write(ticket, key, value)        # effects AskSessionsEnd, WriteSession
    await config_log.ready(); await sessions.ready()                 # everything that was there at start has been delivered
    await config_log.claim_stream(topics.log)                        # raises TopicMisconfigured if partitions were added

`EmbeddedBroker` is a broker inside this process for `tidegate dev`; `Capabilities` says what it cannot do. `consumer` holds
building blocks for whatever reads.
"""

from core.kafka.config import EMBEDDED, REAL, Capabilities, KafkaConfig
from core.kafka.config_log import ConfigLog
from core.kafka.embedded import EmbeddedBroker
from core.kafka.ends import EndOffsets
from core.kafka.errors import BrokerError, TopicMisconfigured, Unreachable
from core.kafka.owner import OwnerRunner
from core.kafka.producer import LogProducer
from core.kafka.sessions_log import SessionsLog
from core.kafka.state_log import read_state
from core.kafka.tail import Tail
from core.kafka.topics import StreamInfo, Topics, prepare_topics

__all__ = [
    "EMBEDDED",
    "REAL",
    "BrokerError",
    "Capabilities",
    "ConfigLog",
    "EmbeddedBroker",
    "EndOffsets",
    "KafkaConfig",
    "LogProducer",
    "OwnerRunner",
    "SessionsLog",
    "StreamInfo",
    "Tail",
    "TopicMisconfigured",
    "Topics",
    "Unreachable",
    "prepare_topics",
    "read_state",
]
