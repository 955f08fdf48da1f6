//! The leads that exist, whichever API took them: only what is needed to know a lead again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::entry::Key;
use super::spread::Spread;

/// The id of the first lead. Not 1, so that an id is not taken for a count.
const FIRST_ID: u64 = 100_001;

/// The leads of one sandbox.
#[derive(Debug, Default)]
pub(super) struct Leads {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    /// By whatever makes a lead unique at its API: at 7targets the email.
    ids: Spread<Arc<str>, u64>,
    /// What a key was answered, if keys are deduplicated.
    answers: HashMap<Key, Bytes>,
}

/// What became of a lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filed {
    /// It is new and has this id.
    New(u64),
    /// It has had this id before.
    Known(u64),
}

impl Leads {
    /// Files a lead under what makes it unique.
    pub(super) fn file(&self, identity: &Arc<str>) -> Filed {
        let mut book = self.lock();
        let next = FIRST_ID + book.ids.len() as u64;
        let id = *book.ids.get_or_insert_with(Arc::clone(identity), || next);
        if id == next { Filed::New(id) } else { Filed::Known(id) }
    }

    /// Files all of these or none, and returns their ids.
    ///
    /// # Errors
    /// The place of the first that is known, or that has come before in the same list.
    pub(super) fn file_all(&self, identities: &[Arc<str>]) -> Result<Vec<u64>, usize> {
        let mut book = self.lock();
        let mut listed = HashSet::new();
        let known = |identity: &Arc<str>| book.ids.get(identity).is_some() || !listed.insert(Arc::clone(identity));
        if let Some(place) = identities.iter().position(known) {
            return Err(place);
        }
        let file = |identity: &Arc<str>| {
            let next = FIRST_ID + book.ids.len() as u64;
            *book.ids.get_or_insert_with(Arc::clone(identity), || next)
        };
        Ok(identities.iter().map(file).collect())
    }

    /// What a key was answered.
    pub(super) fn answered(&self, key: &Key) -> Option<Bytes> {
        self.lock().answers.get(key).cloned()
    }

    /// Keeps what a key was answered.
    pub(super) fn remember(&self, key: Key, answer: Bytes) {
        self.lock().answers.insert(key, answer);
    }

    /// No lead exists any more.
    pub(super) fn forget(&self) {
        *self.lock() = Book::default();
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lead_keeps_its_id() {
        let leads = Leads::default();
        let (ann, bob) = (Arc::from("ann@x.io"), Arc::from("bob@x.io"));
        let Filed::New(id) = leads.file(&ann) else { panic!("the first lead is new") };
        assert_eq!(leads.file(&bob), Filed::New(id + 1));
        assert_eq!(leads.file(&ann), Filed::Known(id));
        leads.forget();
        assert!(matches!(leads.file(&ann), Filed::New(_)));
    }

    #[test]
    fn of_several_leads_either_all_are_filed_or_none() {
        let leads = Leads::default();
        let names = |names: &[&str]| names.iter().copied().map(Arc::from).collect::<Vec<_>>();
        assert_eq!(leads.file_all(&names(&["a", "b"])), Ok(vec![FIRST_ID, FIRST_ID + 1]));
        assert_eq!(leads.file_all(&names(&["c", "b"])), Err(1));
        assert_eq!(leads.file_all(&names(&["c", "d", "c"])), Err(2));
        assert_eq!(leads.file_all(&names(&["c"])), Ok(vec![FIRST_ID + 2]));
    }
}
