//! The one place that knows which lead API is played: everything else speaks to "the API".
//!
//! A further API is a file of its own (paths, reading, answering), a [`Profile`], and an arm in each function here.

use std::sync::Arc;

use http::Method;
use http::request::Parts;

use super::cognito;
use super::entry::{Effect, Endpoint, Key};
use super::head::bearer;
use super::leads::Leads;
use super::reply::Reply;
use super::settings::{Profile, Tuning};
use super::seven_targets;
use super::tokens::Tokens;

/// What the API remembers from one request to the next.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) tokens: Tokens,
    pub(super) leads: Leads,
}

impl Memory {
    /// Ends everything that somebody has logged in for.
    pub(super) fn revoke_all(&self) {
        self.tokens.revoke_all();
    }

    /// No lead exists any more.
    pub(super) fn forget_leads(&self) {
        self.leads.forget();
    }
}

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

/// Whether a request is authenticated, as far as its head can tell.
pub(super) fn admits(tuning: &Tuning, memory: &Memory, head: &Parts) -> bool {
    match tuning.profile {
        Profile::SevenTargets | Profile::SevenTargets2024 => {
            bearer(&head.headers).is_some_and(|token| memory.tokens.admits(token))
        }
    }
}

/// A request that has been read and not yet answered.
#[derive(Debug)]
pub(super) enum Draft {
    /// For a token of Cognito.
    CognitoToken,
    /// With a lead for 7targets.
    SevenTargets(Box<seven_targets::Draft>),
    /// For nothing that the API has.
    Nothing,
}

impl Draft {
    /// Reads a body, without any effect.
    pub(super) fn read(profile: Profile, endpoint: Endpoint, head: &Parts, body: &[u8]) -> Self {
        use Endpoint::{Leads, Token};
        match (profile, endpoint) {
            (Profile::SevenTargets | Profile::SevenTargets2024, Token) => Self::CognitoToken,
            (Profile::SevenTargets | Profile::SevenTargets2024, Leads) => {
                Self::SevenTargets(Box::new(seven_targets::Draft::read(profile, &head.headers, body)))
            }
            _ => Self::Nothing,
        }
    }

    /// What the journal and the rules know the lead by.
    pub(super) fn email(&self) -> Option<Arc<str>> {
        match self {
            Self::SevenTargets(draft) => draft.email.clone(),
            Self::CognitoToken | Self::Nothing => None,
        }
    }

    /// Does what was asked for, and answers.
    pub(super) fn process(&self, desk: &Desk<'_>) -> (Reply, Effect) {
        match self {
            Self::CognitoToken => cognito::answer(desk),
            Self::SevenTargets(draft) => draft.answer(desk),
            Self::Nothing => (Reply::message(http::StatusCode::NOT_FOUND, "Not Found"), Effect::Nothing),
        }
    }
}

/// What a request is answered from.
#[derive(Debug)]
pub(super) struct Desk<'a> {
    pub(super) tuning: &'a Tuning,
    pub(super) memory: &'a Memory,
    pub(super) head: &'a Parts,
    pub(super) body: &'a [u8],
    pub(super) key: Option<&'a Key>,
    pub(super) token_ok: bool,
}

/// A request without a port, for the tests of each API.
#[cfg(test)]
pub(super) mod trial {
    use bytes::Bytes;
    use http::Request;
    use serde_json::Value;

    use super::super::reply::Payload;
    use super::*;

    /// What a request was told.
    #[derive(Debug)]
    pub(in super::super) struct Told {
        pub(in super::super) status: u16,
        pub(in super::super) reply: Reply,
        pub(in super::super) effect: Effect,
        pub(in super::super) email: Option<Arc<str>>,
    }

    impl Told {
        pub(in super::super) fn body(&self) -> &Bytes {
            let Payload::Whole(body) = &self.reply.body else { panic!("answers are small") };
            body
        }

        pub(in super::super) fn json(&self) -> Value {
            serde_json::from_slice(self.body()).unwrap()
        }
    }

    /// Takes a request the way that it has behind the port, without the faults on it.
    pub(in super::super) fn ask(tuning: &Tuning, memory: &Memory, request: Request<&str>) -> Told {
        let (head, body) = request.into_parts();
        let endpoint = endpoint(tuning.profile, &head.method, head.uri.path()).unwrap();
        let key = head.headers.get("idempotency-key").map(|key| Key::from(key.to_str().unwrap()));
        let token_ok = endpoint != Endpoint::Token && admits(tuning, memory, &head);
        let body = body.as_bytes();
        let draft = Draft::read(tuning.profile, endpoint, &head, body);
        let (reply, effect) = draft.process(&Desk { tuning, memory, head: &head, body, key: key.as_ref(), token_ok });
        Told { status: reply.status.as_u16(), reply, effect, email: draft.email() }
    }
}
