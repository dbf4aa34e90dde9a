"""Every bound of Tidegate: its default, its unit, and what happens at it. `docs/limits.md` is made from this module.

Zero never means "unlimited". A field's docstring says what happens at the bound.
"""

from __future__ import annotations

import msgspec


class EdgeLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What clients may ask of one edge process. Setting: `[limits]` of edge.toml."""

    max_message_bytes: int = 65_536
    """Largest publish, in payload bytes once decoded (specification TM6). Above it: NACK or HTTP 413 with 40009, connection kept."""
    max_frame_bytes: int = 524_288
    """Largest WebSocket frame or request body. Above it: ERROR 40009 and close 1009, or HTTP 413."""
    max_idle_interval_s: float = 15.0
    """Longest silence towards a client, in seconds (CONNECTED carries it in milliseconds); heartbeats go at two thirds of it."""
    connection_state_ttl_s: float = 120.0
    """How long a dropped connection may be resumed."""
    connections: int = 50_000
    """Clients connected at once. Above it: DISCONNECTED 50320, which sends them to another edge."""
    address_connects_per_s: float = 500.0
    """New connections from one address (IPv6: one /64), a second. Above it, and above the burst: DISCONNECTED 80021."""
    address_connects_burst: int = 5_000
    """What one address may save up of these."""
    address_failures_per_s: float = 5.0
    """Refused credentials from one address, a second. Above it, and above the burst: DISCONNECTED 80021 or HTTP 429; no core is asked."""
    address_failures_burst: int = 200
    """What one address may save up of these."""
    addresses: int = 20_000
    """Addresses remembered for these limits. Above it: the one seen longest ago starts afresh."""
    admits_outstanding: int = 64
    """Admissions that one link has not answered. Above it: further ones wait here."""
    admits_waiting: int = 4_096
    """Admissions that wait for a link or for their turn. Above it: DISCONNECTED 50320 or HTTP 503."""
    link_wait_s: float = 5.0
    """How long an admission waits while there is no link at all. Beyond it: DISCONNECTED 50320 or HTTP 503."""
    admit_wait_s: float = 9.0
    """How long a client waits for its first answer (SDKs give up after 10). Beyond it: DISCONNECTED 50003."""
    frames_before_connected: int = 64
    """Frames that a client may send before its CONNECTED, of `max_frame_bytes` together. Above it: ERROR 80013, closed."""
    channels_per_connection: int = 200
    """Attachments of one connection. Above it: ERROR on the channel with 90010."""
    filters_per_connection: int = 50
    """Of these, derived channels. Above it: ERROR 90010 for that channel."""
    filters_per_channel: int = 200
    """Distinct expressions of derived channels of one channel on this edge: each is asked of each message. Above it: ERROR 90021 for the
    derived channel that adds one."""
    filters: int = 10_000
    """The same for all channels together, for the memory they take (up to some 25 KB each). Above it: ERROR 90021."""
    filter_attach_cost: int = 20
    """What an ATTACH of a derived channel counts for, in ProtocolMessages (`inbound_per_s`): its expression has to be made into a filter.
    Where not as much is left: DETACHED 42911 for that channel; the client tries again."""
    filter_replay_steps: int = 1_000_000
    """Messages that one resume of a derived channel goes over, times the names, values, operators and brackets of its expression. Above it:
    continuity is given up (ATTACHED with 90004 and no RESUMED)."""
    filter_position_records: int = 500
    """After so many records of which a derived channel got none, its clients are told the position, so that a resume need not go over
    them."""
    filter_position_s: float = 15.0
    """The same by time: so long after the first such record, in seconds."""
    attach_wait_s: float = 8.0
    """How long an ATTACH waits for the core. Beyond it: DETACHED 50003 on the channel; the client tries again."""
    channel_linger_s: float = 5.0
    """How long a channel stays open on the link after its last detach."""
    held_records: int = 10_000
    """Records of one channel held back while it is opened again. Above it: continuity is given up (ATTACHED with 90004 and no RESUMED)."""
    held_bytes: int = 8_388_608
    """The same, in bytes."""
    inbound_per_s: float = 500.0
    """ProtocolMessages from one connection, a second. Above it, and above the burst: NACK 42911, connection kept."""
    inbound_burst: int = 5_000
    """What one connection may save up of these; as many again beyond the limit: ERROR 42921, closed."""
    unanswered_publishes: int = 10_000
    """Publishes of one connection without ACK. Above it: NACK 42911."""
    unanswered_bytes: int = 8_388_608
    """The same, in payload bytes."""
    total_unanswered_bytes: int = 134_217_728
    """The same for all publishers of the edge. Above it: NACK 50003 or HTTP 503."""
    rewind_messages: int = 100
    """Messages of one rewind. Above it: the newest of them, and ATTACHED says 90004."""
    page_messages: int = 1_000
    """Largest `limit` of one page of history. Above it: 40003."""
    publish_wait_s: float = 20.0
    """How long a publish may stay unanswered. Beyond it: DISCONNECTED 50003 (the client sends it again) or HTTP 503."""
    unknown_wait_s: float = 5.0
    """How long a connection with a publish of unknown fate is kept. Then: DISCONNECTED 50003; the client settles it by sending again."""
    outbox_bytes: int = 2_097_152
    """Unread output of one client, beyond what its socket has taken. Above it: that client is disconnected, and may resume."""
    outbox_age_s: float = 15.0
    """Oldest unread output of one client, in seconds. Beyond it: the same."""
    rest_calls: int = 2_000
    """REST requests in progress. Above it: HTTP 503 with 50004."""
    rest_body_bytes: int = 67_108_864
    """Bodies of requests in progress, of all callers together. Above it: HTTP 503 with 50004."""
    batch_body_bytes: int = 2_097_152
    """Largest body of `POST /messages`. Above it: HTTP 413 with 40009."""
    connector_body_bytes: int = 8_388_608
    """The same for a request with `newBatchResponse=true`, as Kafka connectors send it: they do not split what has become too large."""
    large_bodies_bytes: int = 33_554_432
    """Bodies of which each may be larger than `max_frame_bytes`, of all callers together, so that the others always have their part of
    `rest_body_bytes`. Above it: they wait to be read, half of it at most for one address."""
    large_body_wait_s: float = 4.0
    """How long such a body waits. Beyond it: HTTP 503 with 50004."""
    batch_channels: int = 100
    """Distinct channels of one batch. Above it: 90010, for the whole request or, with `newBatchResponse=true`, for the specs concerned."""
    batch_publishes: int = 10_000
    """Publishes of one batch: one for each channel of each spec. Above it: 40034, nothing is published."""
    batch_messages: int = 100_000
    """Messages of one batch, counted once for each channel. Above it: further publishes of the batch fail with 40034."""
    batch_window_publishes: int = 64
    """Publishes of one batch that are under way at once. At it: further ones wait until some of these are answered."""
    batch_window_bytes: int = 1_048_576
    """The same, in payload bytes."""
    batch_window_reads: int = 8
    """Presence sets that one batch reads at once. At it: further ones wait."""
    batch_presence_bytes: int = 8_388_608
    """Presence sets in one answer, as they came from the core. Above it: 40009 for those that are left."""
    batch_wait_s: float = 9.0
    """How long a batch may take. Beyond it: what has no result yet fails with 50003, each by itself."""
    rest_body_wait_s: float = 10.0
    """How long a request body may take to arrive. Beyond it: HTTP 408."""
    rest_grants: int = 10_000
    """Credentials of REST callers whose grant is remembered. Above it: the one used longest ago is presented to a core again."""
    members_page: int = 500
    """Members that an edge asks for at once while it loads a presence set; a core may send fewer."""
    members_wait_s: float = 8.0
    """How long such a page may take. Beyond it: the set is loaded from its beginning; clients wait for their SYNC meanwhile."""
    presence_bytes: int = 536_870_912
    """Presence sets of all open channels, in bytes of memory. Above it: the set that grew last is given up, and who wants to know it gets
    DETACHED 50004 until there is room again (a tenth of this)."""
    sync_page_members: int = 100
    """Members in one SYNC message. At it: another one is begun."""
    sync_page_bytes: int = 131_072
    """The same, in bytes of memory; a member that is larger is sent alone."""
    sync_window_bytes: int = 65_536
    """SYNC messages for one client, in bytes. At it: the next one waits until the client's socket has taken these."""
    leave_members: int = 500
    """Members of one detaching client that leave in one record; more take several."""
    leave_wait_s: float = 60.0
    """How long an edge tries to make the members of a detached client leave. Beyond it: they stay until its connection ends."""
    departures: int = 10_000
    """Ended connections remembered, so that another core can be told if the one that was told dies. Above it: the oldest is forgotten, and
    its connection counts as dropped only once the edge itself has ended."""
    counts_interval_s: float = 1.0
    """Shortest time between two reports of how many are attached to one channel, in seconds. Within it: the last state waits."""
    counts_per_s: int = 1_000
    """Such reports of all channels, a second. Above it: they wait their turn, the newest of each channel only."""
    emptied_channels: int = 10_000
    """Channels whose last attachment has just gone, remembered for ten seconds so that another core can be told if the one that was told
    dies. Above it: the oldest is forgotten, and may count until this process ends."""
    stats_interval_s: float = 5.0
    """Shortest time between two reports of what was counted of one app, in seconds. What is counted within it is lost if the process is
    killed."""
    stats_apps: int = 10_000
    """Apps that one edge process counts for. Above it: what it does for further ones is in no statistics, until it starts anew."""
    auth_notice_s: float = 30.0
    """How long before its token expires a client is asked (AUTH) for another, if the token lives longer than that."""
    grant_renewal_s: float = 60.0
    """How long before its end a grant is renewed."""


class LinkLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The link between edge and core. Setting: `[link.limits]` of either file."""

    max_frame_bytes: int = 262_144
    """Largest batch on a lane; one frame may exceed it alone."""
    max_message_bytes: int = 4_194_304
    """Longest message that is received. Above it: the link is closed as `oversize`, and the message was not read."""
    bulk_chunk_bytes: int = 65_536
    """Pieces in which bulk answers are cut, so that takers share the lane."""
    credit_bytes: int = 8_388_608
    """What a sender may have unacknowledged on a lane; above it frames queue on the sender."""
    queue_bytes: int = 33_554_432
    """Live frames queued for one peer. Above it, or older than `queue_age_s`: the link is closed as `slow`; the edge redials."""
    queue_age_s: float = 5.0
    """Oldest live frame that may wait for credit or for the socket, in seconds. Beyond it: the link is closed as `slow`."""
    bulk_queue_bytes: int = 67_108_864
    """Bulk frames queued for one peer. Above it: the link is closed as `slow`."""
    bulk_pause_bytes: int = 8_388_608
    """Bulk frames queued for one edge at which a core pauses replays and pages for it, until half of them have gone."""
    bulk_stall_s: float = 30.0
    """Longest time in which nothing of a bulk queue could be sent, in seconds. Beyond it: the link is closed as `slow`."""
    ping_after_s: float = 1.0
    """Silence on a lane after which the peer is pinged, in seconds."""
    silent_after_s: float = 4.0
    """Silence on a lane, in seconds, after which the link is given up as `silent`; the edge redials."""
    handshake_s: float = 5.0
    """Longest TCP connect, TLS handshake, upgrade, wait for a hello or for the bulk lane, each, in seconds. Beyond it: closed as `late`."""
    max_unpaired: int = 256
    """Live lanes of a core that wait for their bulk lane. Above it: a further hello is refused as `full`; the edge redials."""
    redial_min_s: float = 1.0
    """Shortest wait before an edge redials a core, in seconds; only the first redial after a link that held goes at once."""
    redial_max_s: float = 5.0
    """Longest wait before an edge redials a core, in seconds."""
    pair_attempts: int = 16
    """Dials of a bulk lane that may end at another core than its live lane. After them: both are closed, and the edge redials."""
    early_messages: int = 64
    """Messages a core may send between its edge's bulk hello and the edge's own word that the link is up. Above it: closed as `pair`."""
    max_requests: int = 65_536
    """Requests in flight on one link. Above it: the request is refused with 50003 before it is sent."""


class CoreLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What edges may ask of one core process. Setting: `[limits]` of core.toml."""

    partition_budget_bytes: int = 4_194_304
    """Un-reported publishes of one partition, in bytes. Above it: `Unknown` for a connection, which is then
    disconnected and sends it again in its order; HTTP 503 for a request. The record was never handed to Kafka."""
    partition_budget_records: int = 2_000
    """The same, in records."""
    publish_timeout_s: float = 60.0
    """How long a publish may stay un-reported. Beyond it: every un-reported publish of the core has an unknown fate, and none of them is
    appended again."""
    tail_queue_bytes: int = 16_777_216
    """Records read from the log that the core has not taken in yet. Above it: reading pauses."""
    tail_queue_records: int = 20_000
    """The same, in records."""
    end_asks: int = 10_000
    """Barriers waiting for an end offset. Above it: a further one fails at once, and the read that asked is refused with 50003."""
    end_timeout_s: float = 5.0
    """How long a barrier waits for Kafka. Beyond it: it fails."""
    config_writes: int = 1_000
    """Writes to the configuration topic under way. Above it: a further one fails at once. From half of it on `revokeTokens` is refused with
    50004, so that operators can still act."""
    session_writes: int = 50_000
    """Writes to the sessions topic under way. Above it: a further one fails at once; a resume is then refused with 50003, and the record
    of a connect or a drop is written later."""
    session_waiters: int = 10_000
    """Resumes, and publishes on behalf of a connection, that wait until what other cores wrote has been read. Above it: refused with
    50004. As many of them wait a second for the first record of their connection. Above it: answered at once, with 80008 or 40006."""
    connection_state_ttl_s: float = 120.0
    """How long a dropped connection may be resumed. Beyond it: a new connection with 80008. Keep it equal to the edges' own."""
    connections: int = 1_000_000
    """Connections of the whole deployment that a core remembers, about 1 KB each. Above it: the oldest cannot be resumed through it."""
    edge_lease_s: float = 10.0
    """How long after the last word of its lease an edge counts as alive. Beyond it: its connections count as dropped."""
    edge_lease_renewal_s: float = 3.0
    """How old the lease of a linked edge may become before a core renews it, in seconds: one record for each edge, not for each link."""

    max_message_bytes: int = 65_536
    """Largest publish a core takes from an edge, in payload bytes. Above it: `Refused` 40009. Keep it equal to the edges' own."""
    max_publish_id_bytes: int = 1_024
    """Longest publish id. Above it: `Refused` 40031."""
    max_credential_bytes: int = 131_072
    """Longest key or token that is looked at. Above it: refused as malformed."""
    max_call_bytes: int = 131_072
    """Largest body of a call (`requestToken`, sandbox apps). Above it: refused with 40009."""
    link_sessions: int = 100_000
    """Sessions of one link with a live grant. Above it: Admit is refused with 50004, a presented grant is ignored and counted."""
    link_channels: int = 200_000
    """Channels that one link has open. Above it: Open is refused with 90021."""
    link_appends: int = 20_000
    """Unanswered appends of one link. Above it: as for `partition_budget_bytes`."""
    link_append_bytes: int = 33_554_432
    """The same, in bytes of record values."""
    verdict_wait_s: float = 60.0
    """How long a durable publish waits for the tail to read it. Beyond it: `Unknown`; the client sends it again under its id."""
    link_admits: int = 256
    """Admits and calls of one link that wait for their turn. Above it: refused with 50004, which clients try again."""
    admits_per_turn: int = 24
    """Admits and calls served in one turn of the loop, about 50 µs each, links in rotation: appends never wait behind more than these."""
    failed_credentials: int = 10_000
    """Refused credentials remembered, by keyed hash. Above it: the oldest is forgotten, and costs a signature check if it comes again."""
    failed_credential_s: float = 10.0
    """How long a refused credential is remembered, in seconds."""
    nonces: int = 100_000
    """Nonces of token requests remembered, for as long as their timestamp is current. Above it: requestToken is refused with 50004."""
    revoked_targets: int = 100_000
    """Targets of revocations (`revokeTokens`, the Control API) of the last 25 hours, over all apps. Above it: further requests are refused
    with 42910."""
    revoked_app_targets: int = 25_000
    """Those of one app. Above it: further requests of `revokeTokens` are refused with 42910; the Control API has room up to
    `revoked_targets`."""
    config_waiters: int = 1_024
    """Admits that wait to learn whether an unknown key was just created elsewhere. Above it: refused with 50004."""
    config_barrier_interval_s: float = 0.1
    """Shortest time between two questions for the end of `tidegate.config`, in seconds. Waiting admits share one."""
    config_wait_s: float = 10.0
    """How long such a question may stay unanswered, in seconds. Beyond it: who waits is refused with 50004."""
    starting_frames: int = 10_000
    """Frames held while the core looks back at its start. Above it: the link that sent one more is closed; the edge redials."""
    starting_bytes: int = 33_554_432
    """The same, in bytes."""
    starting_wait_s: float = 10.0
    """How long a frame is held while the core starts, in seconds. Beyond it: refused with 50320, a repeated publish answered `Unknown`."""
    grant_s: float = 300.0
    """Life of a grant, in seconds; never beyond the token's. Edges renew before; an unrenewed grant ends its session's rights."""
    departed: int = 100_000
    """Sessions remembered as departed or superseded, until their grants have expired. Above it: the oldest is forgotten."""
    witness_grace_s: float = 10.0
    """How long a channel stays open once its witness is gone, in seconds. Then another session of the link that may read it becomes the
    witness, or the channel is `Lost` with 40160."""
    fold_ids: int = 4_000_000
    """Publish ids remembered for the duplicate verdict, about 200 bytes each. Above it: the oldest are forgotten before their window of
    240 s is over, counted, and a late repetition of those would be delivered twice."""
    replay_records: int = 1_000
    """Records replayed when a channel is opened after a serial. Above it: error 90004 and the newest part."""
    replay_bytes: int = 1_048_576
    """The same, in bytes."""
    replay_turn_bytes: int = 65_536
    """Replayed bytes sent to one link in one turn of the loop."""
    link_replays: int = 128
    """Replays of one link that run at once; further ones wait, and hold no records meanwhile."""
    link_replay_bytes_per_s: int = 16_777_216
    """Replayed bytes for one link, a second, so that catching up never fills its queue. Above it: replays wait."""
    app_replays: int = 32
    """Replays of one app on one link that run at once; further ones wait, and hold no records meanwhile."""
    app_replay_bytes_per_s: int = 8_388_608
    """Replayed bytes for one app on one link, a second. Above it: its replays wait, and those of other apps go on."""
    app_replays_waiting: int = 10_000
    """Replays of one app on one link that wait for their turn. Above it: Open is refused with 42912, and tried again later."""
    recent_channels: int = 1_000_000
    """Channels whose last record's position a core remembers, about 250 bytes each, an equal share for each partition. Above it: the one
    that was quiet for longest is forgotten, and a client that comes back to such a channel after minutes may be told 90003."""
    position_wait_s: float = 10.0
    """How long an Open waits for the tail to reach its serial, in seconds. Beyond it: `Refused` 50003; the edge tries again."""
    barrier_s: float = 5.0
    """How long an attach waits to see all that was acknowledged before it, in seconds. Beyond it: it is answered without."""
    barrier_waiters: int = 200_000
    """Attaches that wait so. Above it: the same."""
    link_reads: int = 256
    """Reads of the past (history, rewind, single messages) of one link that are unanswered. Above it: `Refused` 42910."""
    read_wait_s: float = 10.0
    """How long such a read waits to see all that was acknowledged before it, in seconds. Beyond it: `Refused` 50003."""
    read_turn_records: int = 250
    """Records looked at for the reads of one link in one turn of the loop, about 8 µs each."""
    read_records: int = 20_000
    """Records looked at for one page. At it: the page ends where it is, and its cursor goes on from there."""
    read_bytes: int = 1_048_576
    """Longest page, in bytes of record values. At it: the same."""
    read_bytes_per_s: int = 8_388_608
    """Pages for one link, in bytes a second, so that reading the past never fills its queue. Above it: reads wait."""
    history_s: int = 120
    """How far back history and rewind go, in seconds. Older messages are left out, though the index may still hold them."""
    presence_members: int = 200
    """Members of one channel, unless its app says otherwise. Above it: NACK 91003."""
    presence_bytes: int = 16_777_216
    """The presence set of one channel, in bytes of clientIds and data. Above it: NACK 91006."""
    presence_grace_s: float = 15.0
    """How long members stay after their connection ended abruptly, unless the client asked otherwise (`remainPresentFor`). Then: LEAVE."""
    presence_grace_max_s: float = 120.0
    """Longest `remainPresentFor` that is granted. Above it: cut to this."""
    presence_leaves: int = 500
    """Records of one partition that a core has appended of its own accord (ends of graces, mostly) and that are un-reported. Above it:
    further graces end a little later, so that publishers keep their part of `partition_budget_records`."""
    presence_back_wait_s: float = 5.0
    """How long a resume waits, in seconds, until it is in the log that the connection's members are no longer on their way out. Beyond it:
    refused with 50003, and the client tries again."""
    members_page: int = 500
    """Members in one page of a presence set between core and edge. Above it: cut, and asked for again from there."""
    occupancy_entries: int = 1_000_000
    """Channels with attachments, counted once for each edge that has some, that a core remembers, about 400 bytes each. Above it: a further
    one is left out of the counts shown."""
    link_counts: int = 200_000
    """Of these, those that one edge process may report. Above it: what it reports of further channels is ignored."""
    link_counts_per_s: int = 1_000
    """Reports of one edge that a core writes to the sessions topic, a second. Above it: they wait, the newest of each channel only."""
    occupancy_interval_s: float = 1.0
    """Shortest time between two states of a channel's occupancy towards one edge, in seconds, unless a category becomes zero or ceases to
    be. Within it: the last state waits for its end."""
    occupancy_events: int = 200_000
    """Channels whose occupancy changes and is written to the log for rules, at one time. Above it: a further one is written when it changes
    again (`occupancy.unsaid`)."""
    stats_interval_s: float = 5.0
    """Shortest time between two records of what a core has counted of one app, in seconds. What is counted within it is lost if the core
    is killed."""
    stats_apps: int = 10_000
    """Apps that one core counts for, and that one edge process may report. Above it: what is done for further ones is in no statistics."""
    stats_entries: int = 250_000
    """Intervals of statistics that a core remembers, counted once for each process that was part of one, about 500 bytes each. Above it: a
    further one is left out of what is shown (`stats.full`)."""
    stats_minutes_s: float = 86_400.0
    """How long the statistics of a minute are kept, in seconds."""
    stats_hours_s: float = 2_678_400.0
    """The same of an hour."""
    stats_days_s: float = 34_560_000.0
    """The same of a day, and of a month."""
    channel_close_s: float = 60.0
    """How long a channel without attachments and publishes stays open, in seconds. Then: `channel.closed`."""
    lifecycle_channels: int = 500_000
    """Open channels in the partitions that a core owns. Above it: a further one is in use without `channel.opened`."""
    lifecycle_closed: int = 50_000
    """Closed channels of one partition whose number is kept, for ten minutes. Above it: the one closed longest ago starts counting anew."""
    lifecycle_unshown: int = 100_000
    """Events of channels and connections not yet on their metachannel. Above it: the oldest never will be (`lifecycle.unshown`)."""
    lifecycle_under_way: int = 200
    """Of these, messages that a core has appended and not read back. Above it: further ones wait, so that publishers keep their part of
    `partition_budget_records`."""
    tail_readers: int = 16
    """Operators that watch channels through one core (`tidegate tail`). Above it: HTTP 503."""
    tail_lines: int = 1_000
    """Events that wait for one of them. Above it: further ones are left out, and a line says how many."""
    sandbox_apps: int = 1_000
    """Apps made through the sandbox and not deleted. Above it: 42910."""

    control_requests: int = 64
    """Requests of the Control API under way in one core. Above it: HTTP 503."""
    control_body_bytes: int = 262_144
    """Largest body of a request to the Control API. Above it: HTTP 413."""
    control_apps: int = 1_000
    """Apps made by the Control API or the sandbox. Above it: 42910."""
    control_per_app: int = 1_000
    """Keys of one app made by the Control API, revoked ones of the last 30 days included; its namespaces, its rules and its mappings have
    the same bound each. Above it: 42910."""
    control_closed_namespaces: int = 100
    """Namespaces of one app with `authenticated` or `tlsOnly`: clients that may not use them are sent all their names. Above it: 42910."""
    control_tokens: int = 1_000
    """Access tokens made by the Control API, those revoked or expired in the last 30 days included. Above it: 42910."""
    control_upkeep_records: int = 500
    """Records of `tidegate.config` that a core puts in order in one go (`core.control.ledger`). Above it: the rest waits for the next."""
    audit_records: int = 10_000
    """Changes in the audit, as many readings of secrets, and as many revocations by holders of keys. Above it: the oldest is taken out."""
    audit_bytes: int = 16_777_216
    """The same, in bytes."""

    owner_span_records: int = 1_000
    """Records of the log, ruled upon or of presence, in one transaction of their partitions' owner. At it: the transaction is committed."""
    owner_span_bytes: int = 8_388_608
    """The same, in bytes of what is written."""
    quiet_channels: int = 1_000_000
    """Channels whose last record's position an owner of all partitions keeps in the state, about 400 bytes each, an equal share for each
    partition. Above it: the one that was quiet for longest is forgotten, and a client that comes back to it may be told 90003."""
    kept_bytes: int = 268_435_456
    """Last messages of channels of mappings with `keep_last` that a core holds, an equal share for each partition. Above it: the one that
    was quiet for longest is dropped, `rewind` gives nothing on its channel, and `keptDropped` in the status counts it."""
    rule_topics: int = 1_000
    """Topics that one rule writes to while its core runs. Above it: records for further topics are dropped and counted."""
    parked_topics: int = 100
    """Topics for which one rule waits on one partition because they are missing or refuse it. Above it: records for further ones are
    dropped and counted."""
    parked_held_bytes: int = 2_097_152
    """What an owner keeps for parked rules that have nearly caught up, for each partition, so that they can rejoin between two of its
    transactions. Above it: it is let go, and they catch up a little further first."""
    remote_held_bytes: int = 1_048_576
    """What an owner keeps for a rule into another cluster that is slower than the log, for each rule and partition. Above it: it is let go,
    and read from the log again later."""
    remote_unreported_records: int = 1_000
    """Records that one rule has sent to another cluster from one partition, and that were not yet acknowledged. At it: it sends nothing
    more until some are; a span of the log's owner that was begun is sent as a whole."""
    remote_queue_bytes: int = 67_108_864
    """The same for all rules into one cluster, in bytes. At it: they wait."""
    stopped_rules: int = 1_000
    """Rules of which a core remembers where they stopped on its partitions. Above it: those that stopped first are forgotten."""
    rule_batch_events: int = 1_000
    """Events in one record of a rule in batch mode. At it: the next record begins."""
    rule_batch_bytes: int = 524_288
    """The same, in bytes of its items; half of what a topic takes unless told otherwise. A larger event has a record to itself."""
    mapping_records: int = 2_000
    """Records of one mapping read and not yet durable in the log. At it: the mapping reads no further until some are."""
    mapping_bytes: int = 8_388_608
    """The same, in bytes of keys and values."""
    mapping_topics: int = 1_000
    """Topics that the pattern of one mapping finds. Above it: further ones, by name, are not read, and the log says so."""
    mapping_seeks: int = 100
    """Seeks of one mapping that move different topics or partitions and are remembered. Above it: the oldest is forgotten; a partition that
    nobody has run since then does not carry it out."""
    schemas: int = 1_000
    """Schemas of Schema Registry that a core remembers, for each format. Above it: the one that was not needed for longest is forgotten."""
    schema_timeout_s: float = 5.0
    """How long Schema Registry may take to answer. Beyond it: it is asked again a second later, and records that need the schema wait."""


class ListenerLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one listening socket takes on. Setting: `[listen.limits]` of edge.toml; a core keeps to the defaults."""

    max_head_bytes: int = 16_384
    """Largest request head. Above it: HTTP 431 and close."""
    head_deadline_s: float = 5.0
    """How long a connection may take to send its first request head. Beyond it: HTTP 408 and close."""
    handshake_deadline_s: float = 10.0
    """How long a TLS handshake may take. Beyond it: the connection is dropped and counted as `timeout`."""
    close_deadline_s: float = 5.0
    """How long a closed TLS connection may take to send what is left and be answered. Beyond it: it is aborted."""
    max_handshakes: int = 512
    """Handshakes under way at once. At it nothing is accepted; further connections wait in the kernel's queue."""
    handshake_yield_s: float = 5.0
    """Age from which, at `max_handshakes`, the oldest handshake is dropped (counted as `timeout`) for a connection that waits; not while a
    quarter of the places have changed hands within this time."""
    accepts_per_turn: int = 32
    """Connections accepted in one turn of the event loop, so that a storm of connects does not stop deliveries."""
    backlog: int = 4_096
    """Connections that the kernel keeps waiting to be accepted (capped by net.core.somaxconn). Above it: the kernel drops the SYN."""
    max_connections: int = 50_000
    """Open connections. Above it: accepted and reset at once, counted as `too_many_connections`."""
    max_http_connections: int = 2_000
    """Of these, connections that speak HTTP rather than WebSocket. Above it: HTTP 503 and close, or reset if HTTP/2 was agreed."""


class ProtocolLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both tiers refuse alike, whoever asks. No setting: an edge and a core that disagreed would refuse each other's work."""

    max_channel_name_bytes: int = 2_048
    """Longest channel name with its qualifiers, in UTF-8 bytes. Above it: 40010."""
    max_filter_chars: int = 1_024
    """Longest expression of a derived channel, in characters once decoded. Above it: 40010."""
    max_filter_tokens: int = 64
    """Names, values, operators and brackets of such an expression. Above it: 40010."""
    max_messages: int = 1_000
    """Messages of one publish. Above it: 40034, nothing is published."""
    max_message_id_bytes: int = 512
    """Longest message id supplied by a client, in UTF-8 bytes. Above it: 40031."""
    max_encoding_bytes: int = 512
    """Longest `encoding` of a message, in UTF-8 bytes (it does not count towards the message size). Above it: 40013."""
    max_extras_depth: int = 32
    """Deepest nesting within `extras`. Beyond it: 40032."""
    max_capability_resources: int = 1_000
    """Resources of one capability. Above it: 40000."""
    max_token_ttl_ms: int = 86_400_000
    """Longest life of a token, in milliseconds. Above it: 40003."""
    max_revocable_token_ttl_ms: int = 3_600_000
    """The same where the key allows its tokens to be revoked."""
    max_clock_difference_ms: int = 120_000
    """How far the timestamp of a TokenRequest may be from the core's clock, either way. Beyond it: 40104."""
    expiry_leeway_ms: int = 5_000
    """How long a token or grant still counts after its expiry, so that clocks of edges and cores need not agree to the millisecond."""
    capabilities_remembered: int = 512
    """Parsed capabilities kept per process, by their text; equal texts share one. At the bound the least recently used goes."""
    channels_remembered_per_capability: int = 256
    """Channels whose permitted operations a capability remembers. At the bound it forgets all of them and starts again."""


PROTOCOL = ProtocolLimits()
