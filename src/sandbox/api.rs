//! The one place that knows which lead API is played: everything else speaks to "the API".
//!
//! A further API is a file of its own (paths, reading, answering), a [`Profile`], and an arm in each function here.

use std::sync::Arc;

use http::request::Parts;
use http::{Method, StatusCode};

use super::entry::{Effect, Endpoint, Key};
use super::head::bearer;
use super::leads::Leads;
use super::oauth_toolkit::RefreshTokens;
use super::paya_contacts::Contacts;
use super::reply::Reply;
use super::settings::{Profile, Tuning};
use super::tokens::Tokens;
use super::{cognito, kaisa, oauth_toolkit, paya, paya_login, seven_targets, squad};

/// What the API remembers from one request to the next.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Access tokens, and the tokens of sessions.
    pub(super) tokens: Tokens,
    pub(super) refresh_tokens: RefreshTokens,
    pub(super) leads: Leads,
    /// Paya's leads: the only ones that can be asked for.
    pub(super) contacts: Contacts,
}

impl Memory {
    /// Ends everything that somebody has logged in for.
    pub(super) fn revoke_all(&self) {
        self.tokens.revoke_all();
        self.refresh_tokens.revoke_all();
    }

    /// No lead exists any more.
    pub(super) fn forget_leads(&self) {
        self.leads.forget();
        self.contacts.forget();
    }
}

/// The path that leads are posted to.
pub(super) fn leads_path(profile: Profile) -> &'static str {
    match profile {
        Profile::SevenTargets | Profile::SevenTargets2024 => seven_targets::PATH,
        Profile::SquadRun => squad::V1_PATH,
        Profile::SquadIq => squad::V4_PATH,
        Profile::Kaisa => kaisa::CUSTOMERS_PATH,
        Profile::Paya => paya::PATH,
    }
}

/// The path that tokens are asked for at, `None` if nobody gives any.
pub(super) fn token_path(profile: Profile) -> Option<&'static str> {
    match profile {
        Profile::SevenTargets | Profile::SevenTargets2024 => Some(cognito::PATH),
        Profile::SquadRun => Some(oauth_toolkit::TOKEN_PATH),
        Profile::SquadIq => None,
        Profile::Kaisa => Some(kaisa::TOKEN_PATH),
        Profile::Paya => Some(paya_login::PATH),
    }
}

/// What a request is addressed to, `None` if to nothing that the API has.
pub(super) fn endpoint(profile: Profile, method: &Method, path: &str) -> Option<Endpoint> {
    match profile {
        Profile::SevenTargets | Profile::SevenTargets2024 => seven_targets::endpoint(method, path),
        Profile::SquadRun | Profile::SquadIq => squad::endpoint(profile, method, path),
        Profile::Kaisa => kaisa::endpoint(method, path),
        Profile::Paya => paya::endpoint(method, path),
    }
}

/// Whether a request is authenticated, as far as its head can tell.
pub(super) fn admits(tuning: &Tuning, memory: &Memory, head: &Parts) -> bool {
    let bearer = bearer(&head.headers);
    match tuning.profile {
        Profile::SevenTargets | Profile::SevenTargets2024 | Profile::SquadRun | Profile::Kaisa => {
            bearer.is_some_and(|token| memory.tokens.admits(token))
        }
        Profile::SquadIq => bearer == Some(&tuning.bearer_token),
        Profile::Paya => paya_login::admits(tuning, memory, head),
    }
}

/// Whether a request is authenticated by its body: SquadRun's client revokes a token with its secret.
pub(super) fn admits_body(tuning: &Tuning, endpoint: Endpoint, head: &Parts, body: &[u8]) -> bool {
    (tuning.profile, endpoint) == (Profile::SquadRun, Endpoint::Logout)
        && oauth_toolkit::names_client(tuning, head, body)
}

/// The answer to one request too many within a minute.
pub(super) fn too_many(profile: Profile) -> Reply {
    match profile {
        Profile::SquadRun | Profile::SquadIq => squad::too_many(),
        _ => Reply::message(StatusCode::TOO_MANY_REQUESTS, "Too Many Requests"),
    }
}

/// A request that has been read and not yet answered.
#[derive(Debug)]
pub(super) enum Draft {
    CognitoToken,
    SevenTargets(Box<seven_targets::Draft>),
    ToolkitToken,
    ToolkitRevocation,
    Squad(squad::Draft),
    KaisaToken,
    KaisaPing,
    Kaisa(kaisa::Draft),
    PayaLogin,
    PayaLogout,
    PayaQuery,
    Paya(paya::Draft),
    /// For something that the API does not have.
    Nothing,
}

impl Draft {
    /// Reads a body, without any effect.
    pub(super) fn read(profile: Profile, endpoint: Endpoint, head: &Parts, body: &[u8]) -> Self {
        use Endpoint::{Leads, Logout, Query, Token};
        use Profile::{Kaisa, Paya, SevenTargets, SevenTargets2024, SquadIq, SquadRun};
        let headers = &head.headers;
        match (profile, endpoint) {
            (SevenTargets | SevenTargets2024, Leads) => {
                Self::SevenTargets(Box::new(seven_targets::Draft::read(profile, headers, body)))
            }
            (SevenTargets | SevenTargets2024, Token) => Self::CognitoToken,
            (SquadRun | SquadIq, Leads) => Self::Squad(squad::Draft::read(profile, head.uri.path(), headers, body)),
            (SquadRun, Token) => Self::ToolkitToken,
            (SquadRun, Logout) => Self::ToolkitRevocation,
            (Kaisa, Leads) => Self::Kaisa(kaisa::Draft::read(headers, body)),
            (Kaisa, Token) => Self::KaisaToken,
            (Kaisa, Query) => Self::KaisaPing,
            (Paya, Leads) => Self::Paya(paya::Draft::read(headers, body)),
            (Paya, Token) => Self::PayaLogin,
            (Paya, Query) => Self::PayaQuery,
            (Paya, Logout) => Self::PayaLogout,
            (SevenTargets | SevenTargets2024 | SquadRun | SquadIq | Kaisa, _) => Self::Nothing,
        }
    }

    /// What the journal and the rules know the lead by.
    pub(super) fn email(&self, head: &Parts) -> Option<Arc<str>> {
        match self {
            Self::SevenTargets(draft) => draft.email.clone(),
            Self::Squad(draft) => draft.email.clone(),
            Self::Kaisa(draft) => draft.email.clone(),
            Self::Paya(draft) => draft.email.clone(),
            Self::PayaQuery => paya::asked_for(head),
            _ => None,
        }
    }

    /// Does what was asked for, and answers.
    pub(super) fn process(&self, desk: &Desk<'_>) -> (Reply, Effect) {
        match self {
            Self::CognitoToken => cognito::answer(desk),
            Self::SevenTargets(draft) => draft.answer(desk),
            Self::ToolkitToken => oauth_toolkit::give(desk),
            Self::ToolkitRevocation => oauth_toolkit::revoke(desk),
            Self::Squad(draft) => draft.answer(desk),
            Self::KaisaToken => kaisa::give_token(desk),
            Self::KaisaPing => kaisa::ping(desk),
            Self::Kaisa(draft) => draft.answer(desk),
            Self::PayaLogin => paya_login::login(desk),
            Self::PayaLogout => paya_login::logout(desk),
            Self::PayaQuery => paya_login::slide(desk, paya::list(desk)),
            Self::Paya(draft) => paya_login::slide(desk, draft.answer(desk)),
            Self::Nothing => (Reply::message(StatusCode::NOT_FOUND, "Not Found"), Effect::Nothing),
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
        Told { status: reply.status.as_u16(), reply, effect, email: draft.email(&head) }
    }
}
