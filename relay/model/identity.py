"""Which clientId a connection or request ends up with. Source: Ably protocol docs, 7.7 and 4.6."""

from __future__ import annotations

from relay.model.errors import RelayError

WILDCARD = "*"
"""May act as any client, and is none itself."""


def identify(token_client_id: object, claimed: object, *, basic: bool) -> str | None:
    """None: anonymous; `*`: any; otherwise the identity.

    `token_client_id` is what the token says (ignored for basic auth), `claimed` what the client asks for (`clientId` parameter or
    X-Ably-ClientId); None is absent. Raises RelayError 40012 (malformed), 40102 (the token does not permit what is claimed).
    """
    wanted = None if claimed is None else _checked(claimed)
    if wanted == WILDCARD:
        raise RelayError(40012, "Invalid clientId: '*' cannot be claimed")
    if basic:
        return WILDCARD if wanted is None else wanted
    given = None if token_client_id is None else _checked(token_client_id)
    if wanted is None or wanted == given:
        return given
    if given == WILDCARD:
        return wanted
    raise RelayError(40102, "Invalid clientId for credentials")


def _checked(client_id: object) -> str:
    if not isinstance(client_id, str) or not client_id:
        raise RelayError(40012, "Invalid clientId: must be a non-empty string")
    if not client_id.isascii():
        try:
            client_id.encode()
        except UnicodeEncodeError:
            raise RelayError(40012, "Invalid clientId: not Unicode text") from None
    return client_id


def on_behalf(session_client_id: str | None, connection_client_id: str | None) -> str | None:
    """The identity of a REST publish that names another connection by its connectionKey. Raises RelayError 40006 if they conflict.

    The connection's identity prevails; a credential with an identity of its own speaks only for connections that have or may take it.
    """
    if session_client_id == WILDCARD:
        return connection_client_id if connection_client_id is not None else WILDCARD
    if connection_client_id in (session_client_id, WILDCARD):
        return session_client_id
    raise RelayError(40006, "Malformed message; invalid connectionId")
