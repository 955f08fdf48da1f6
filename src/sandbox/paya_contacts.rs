//! The contacts that exist at Paya Connect. They are kept whole, because a client may ask for them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

use super::paya_fields::{FIELDS, UPDATE, wants_update};
use super::paya_login::now_s;
use super::spread::Spread;

/// The contacts that exist. One without a `contact_api_id` is not kept: nothing could find it again.
#[derive(Debug, Default)]
pub(super) struct Contacts {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    created: u64,
    /// By location and `contact_api_id`.
    known: Spread<Arc<str>, Map<String, Value>>,
}

/// What became of a contact.
#[derive(Debug)]
pub(super) enum Put {
    Created(Map<String, Value>),
    Updated(Map<String, Value>),
    Taken,
}

impl Contacts {
    /// No contact exists any more.
    pub(super) fn forget(&self) {
        *self.lock() = Book::default();
    }

    /// Creates a contact, or updates the one with its `contact_api_id` if it says so.
    pub(super) fn put(&self, wanted: &Map<String, Value>) -> Put {
        let mut book = self.lock();
        let identity = identity(wanted);
        if let Some(known) = identity.as_ref().and_then(|identity| book.known.get_mut(identity)) {
            if !wants_update(wanted) {
                return Put::Taken;
            }
            known.extend(
                wanted.iter().filter(|(name, _)| *name != UPDATE).map(|(name, value)| (name.clone(), value.clone())),
            );
            known.insert("modified_ts".to_owned(), now_s().into());
            return Put::Updated(known.clone());
        }
        book.created += 1;
        let contact = created(wanted, book.created);
        if let Some(identity) = identity {
            book.known.get_or_insert_with(identity, || contact.clone());
        }
        Put::Created(contact)
    }

    /// The contact with this id of the client's at this location.
    pub(super) fn find(&self, location_id: &str, contact_api_id: &str) -> Option<Map<String, Value>> {
        self.lock().known.get(&key(location_id, contact_api_id)).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(location_id: &str, contact_api_id: &str) -> Arc<str> {
    Arc::from(format!("{location_id}/{contact_api_id}"))
}

/// What makes a contact unique, `None` if nothing does.
fn identity(contact: &Map<String, Value>) -> Option<Arc<str>> {
    let text = |name: &str| contact.get(name)?.as_str().filter(|text| !text.is_empty());
    Some(key(text("location_id")?, text("contact_api_id")?))
}

/// A new contact, with every documented member.
fn created(wanted: &Map<String, Value>, number: u64) -> Map<String, Value> {
    let mut contact = Map::new();
    contact.insert("id".to_owned(), format!("11e8{number:020x}").into());
    for (name, _) in FIELDS {
        let unset = match name {
            "email_trx_receipt" => Value::Bool(false),
            "header_message_type" => 0.into(),
            _ => Value::Null,
        };
        contact.insert(name.to_owned(), wanted.get(name).cloned().unwrap_or(unset));
    }
    contact.insert("created_ts".to_owned(), now_s().into());
    contact.insert("modified_ts".to_owned(), Value::Null);
    contact
}
