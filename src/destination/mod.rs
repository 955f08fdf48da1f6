//! A lead API: what differs between them, how a lead is posted, and what the answers mean.
//!
//! ```text
//!   lead + token ──post──> Exchange ──classify──> Outcome          classify is pure
//! ```

pub mod outcome;
mod post;

pub use outcome::{Outcome, classify};
pub use post::LeadApi;
