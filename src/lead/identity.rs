//! Which lead a message is about: an id that its producer can know beforehand, and that a redelivery finds again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The name space of all ids that leadpost derives (RFC 9562, section 6.6). Changing it would make every redelivered message
/// a new lead.
const NAMESPACE: Uuid = Uuid::from_u128(0x6c65_6164_706f_7374_8000_6964_656e_7469);

/// The id of a lead: primary key, dedupe key and `Idempotency-Key` in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeadId(pub Uuid);

impl LeadId {
    /// The id of another body that came under an id which is already delivered or under way.
    ///
    /// Derived from both, so that a redelivery of the second message finds the second lead.
    #[must_use]
    pub fn for_conflict(self, body: &[u8]) -> LeadId {
        derive(b"conflict", self.0.as_bytes(), body)
    }

    /// The id of a lead whose own id belongs to a lead of another destination in the same ledger.
    #[must_use]
    pub fn for_destination(self, destination: &str) -> LeadId {
        derive(b"destination", self.0.as_bytes(), destination.as_bytes())
    }

    /// The id that `leadpost publish` gives to a lead that brings none: the same for the same bytes.
    #[must_use]
    pub fn of_content(body: &[u8]) -> LeadId {
        derive(b"content", b"", body)
    }

    /// The id that `leadpost publish --id-field` gives to a lead whose own id is this text.
    #[must_use]
    pub fn of_field(text: &str) -> LeadId {
        derive(b"field", b"", text.as_bytes())
    }
}

impl fmt::Display for LeadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for LeadId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(LeadId)
    }
}

/// The id of the lead in a message: its `message_id` if that is a UUID, else a name-based UUID of the queue and the
/// `message_id`, else of the queue and the body's bytes.
///
/// An empty `message_id` counts as none.
#[must_use]
pub fn identify(queue: &str, message_id: Option<&str>, body: &[u8]) -> LeadId {
    match message_id.filter(|id| !id.is_empty()) {
        Some(id) => match Uuid::parse_str(id) {
            Ok(uuid) => LeadId(uuid),
            Err(_) => derive(b"message", queue.as_bytes(), id.as_bytes()),
        },
        None => derive(b"body", queue.as_bytes(), body),
    }
}

/// A name-based UUID (version 5) of three parts. Lengths go in front, so that no two different triples read the same.
pub(super) fn derive(kind: &[u8], scope: &[u8], name: &[u8]) -> LeadId {
    const SHORT: usize = 256;
    let lengths = [kind, scope].map(|part| (part.len() as u64).to_be_bytes());
    let parts = [&lengths[0], kind, &lengths[1], scope, name];
    let (mut short, mut long) = ([0; SHORT], Vec::new());
    let length = parts.iter().map(|part| part.len()).sum();
    let bytes = match short.get_mut(..length) {
        Some(bytes) => bytes,
        None => {
            long.resize(length, 0);
            &mut long[..]
        }
    };
    let mut rest = &mut bytes[..];
    for part in parts {
        let (place, after) = rest.split_at_mut(part.len());
        place.copy_from_slice(part);
        rest = after;
    }
    LeadId(Uuid::new_v5(&NAMESPACE, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_as_message_id_is_the_leads_id_however_it_is_written() {
        let plain = "3f8a1c1e-5b3f-4a36-9d53-0b7c6f0f2a10";
        let id = identify("leads", Some(plain), b"{}");
        assert_eq!(id.to_string(), plain);
        assert_eq!(identify("other", Some(&plain.to_uppercase()), b"[]"), id);
    }

    #[test]
    fn other_message_ids_are_told_apart_by_queue_and_text_and_not_by_body() {
        let id = identify("leads", Some("crm-1"), b"{}");
        assert_eq!(identify("leads", Some("crm-1"), b"{\"a\":1}"), id);
        assert_ne!(identify("leads", Some("crm-2"), b"{}"), id);
        assert_ne!(identify("leads2", Some("crm-1"), b"{}"), id);
    }

    #[test]
    fn without_message_id_the_body_decides() {
        let id = identify("leads", None, b"{}");
        assert_eq!(identify("leads", Some(""), b"{}"), id);
        assert_ne!(identify("leads", None, b"{ }"), id);
        assert_ne!(identify("leads", Some("{}"), b"{}"), id, "a message id never collides with a body");
    }

    #[test]
    fn scope_and_name_do_not_run_into_each_other() {
        assert_ne!(identify("a", Some("bc"), b""), identify("ab", Some("c"), b""));
    }

    #[test]
    fn derived_ids_are_part_of_the_contract_with_producers_and_never_change() {
        assert_eq!(identify("leads", Some("crm-1"), b"").to_string(), PINNED_MESSAGE);
        assert_eq!(identify("leads", None, b"{}").to_string(), PINNED_BODY);
    }

    const PINNED_MESSAGE: &str = "bd902268-9ad7-58b2-afd9-53290165defb";
    const PINNED_BODY: &str = "08c59b4f-c623-5790-9772-ede440121c52";
}
