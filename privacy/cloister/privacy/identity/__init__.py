"""Who is who in a consortium: Ed25519 identities under an offline certificate authority.

::

    ConsortiumAuthority   the offline CA: certifies keys (its own key is needed for nothing else)
    Consortium            what every member knows of it: its certificate, and which certificates it took back
    Identity              a member's own key and certificate: signs
    Member                another member, as its certificate says: checks signatures

A signature is always made for a purpose (`Purpose`): what was signed as one thing never counts as another.
"""

from cloister.privacy.identity.authority import ConsortiumAuthority
from cloister.privacy.identity.members import Consortium, Identity, Member, Purpose, Role

__all__ = ["Consortium", "ConsortiumAuthority", "Identity", "Member", "Purpose", "Role"]
