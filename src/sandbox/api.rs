//! The one place that knows which lead API is played: everything else speaks to "the API".
//!
//! A further API is a file of its own (paths, reading, answering), a [`Profile`], and an arm in each function here.

use std::sync::Arc;

use http::{HeaderMap, Method};

use super::cognito::{self, Tokens};
use super::entry::{Effect, Endpoint, Key};
use super::leads::Leads;
use super::reply::Reply;
use super::settings::{Profile, Tuning};
use super::seven_targets;

/// The path that leads are posted to.
pub(super) fn leads_path(profile: Profile) -> &'static str {
    match profile {
        Profile::SevenTargets | Profile::SevenTargets2024 => seven_targets::PATH,
    }
}

/// The path that tokens are asked for at.
pub(super) fn token_path(profile: Profile) -> &'static str {
    match profile {
        Profile::SevenTargets | Profile::SevenTargets2024 => cognito::PATH,
    }
}

/// What a request is addressed to, `None` if to nothing that the API has.
pub(super) fn endpoint(profile: Profile, method: &Method, path: &str) -> Option<Endpoint> {
    match profile {
        Profile::SevenTargets | Profile::SevenTargets2024 => {
            if seven_targets::is_post(method, path) {
                Some(Endpoint::Leads)
            } else if cognito::is_token_request(method, path) {
                Some(Endpoint::Token)
            } else {
                None
            }
        }
    }
}

/// Whether a request carries a valid token.
pub(super) fn admits(profile: Profile, tokens: &Tokens, headers: &HeaderMap) -> bool {
    match profile {
        Profile::SevenTargets | Profile::SevenTargets2024 => tokens.admits(headers),
    }
}

/// A request that has been read and not yet answered.
#[derive(Debug)]
pub(super) enum Draft {
    /// For a token.
    Token,
    /// With a lead for 7targets.
    SevenTargets(Box<seven_targets::Draft>),
}

impl Draft {
    /// Reads a body, without any effect.
    pub(super) fn read(profile: Profile, endpoint: Endpoint, headers: &HeaderMap, body: &[u8]) -> Self {
        match (profile, endpoint) {
            (_, Endpoint::Token) => Self::Token,
            (Profile::SevenTargets | Profile::SevenTargets2024, Endpoint::Leads) => {
                Self::SevenTargets(Box::new(seven_targets::Draft::read(profile, headers, body)))
            }
        }
    }

    /// The email of the lead, trimmed and in lower case.
    pub(super) fn email(&self) -> Option<Arc<str>> {
        match self {
            Self::Token => None,
            Self::SevenTargets(draft) => draft.email.clone(),
        }
    }

    /// Does what was asked for, and answers.
    pub(super) fn process(&self, desk: &Desk<'_>) -> (Reply, Effect) {
        match self {
            Self::Token => {
                let (reply, issued) = desk.tokens.answer(desk.tuning, desk.headers, desk.body);
                (reply, if issued { Effect::Issued } else { Effect::Nothing })
            }
            Self::SevenTargets(draft) => draft.answer(desk.tuning, desk.headers, desk.token_ok, desk.key, desk.leads),
        }
    }
}

/// What a request is answered from.
#[derive(Debug)]
pub(super) struct Desk<'a> {
    pub(super) tuning: &'a Tuning,
    pub(super) tokens: &'a Tokens,
    pub(super) leads: &'a Leads,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
    pub(super) key: Option<&'a Key>,
    pub(super) token_ok: bool,
}
