//! A lead API: what differs between them, how a lead is posted, and what the answers mean.
//!
//! ```text
//!   lead + token ──post──> Exchange ──classify──> Outcome          classify is pure
//!   lead that may have been posted ──ask──> Exchange ──classify──> Outcome
//! ```

pub mod outcome;
mod post;
#[cfg(test)]
mod presets;
mod reconcile;
mod words;

pub use outcome::{Answers, Outcome};
pub use post::LeadApi;
pub use reconcile::Query;
