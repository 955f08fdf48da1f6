//! The token endpoint and the lead API: what was found, in words.

use std::time::Duration;

use super::report::{CONFIG, Check};
use super::{LIMIT, TRUST, clock, fix_of_tls};
use crate::auth::{AuthError, Login, Tokens};
use crate::config::{self, AuthKind, Settings, Tls, fill_in_url};
use crate::http::{ClientError, ClientSettings, Knock, client, knock};
use crate::reason::Reason;

const TOKEN: &str = "token";
const TOKEN_CLOCK: &str = "token.clock";
const REACH: &str = "api.reach";
const CLOCK: &str = "api.clock";

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(8);

/// How long the log-out may take.
const BYE: Duration = Duration::from_secs(2);

pub(super) async fn look(settings: &Settings) -> Vec<Check> {
    if !config::is_destination_sound(settings) {
        return [TOKEN, TOKEN_CLOCK, REACH, CLOCK].map(|id| Check::skipped(id, CONFIG)).into();
    }
    let (token, token_clock, api) = tokio::join!(token(settings), token_clock(settings), api(settings));
    [vec![token, token_clock], api].concat()
}

/// Whether there is something to log in at.
fn has_login(kind: AuthKind) -> bool {
    !matches!(kind, AuthKind::ApiKey | AuthKind::Bearer | AuthKind::None)
}

/// Logs in as a worker does, and out again.
async fn token(settings: &Settings) -> Check {
    let auth = &settings.destination.auth;
    if !has_login(auth.kind) {
        let kind = auth.kind.as_str();
        let why = format!(
            "there is no log-in (destination.auth.kind is {kind:?}); whether the API takes what goes along, only a post shows"
        );
        return Check::left_out(TOKEN, why);
    }
    let tokens = match Login::of(&settings.destination) {
        Ok(login) => Tokens::new(login),
        Err(error) => {
            return Check::failed(
                TOKEN,
                error.to_string(),
                "check destination.request.proxy, and this machine's root certificates",
            );
        }
    };
    let check = match tokio::time::timeout(LIMIT - BYE, tokens.get()).await {
        Ok(Ok(_)) => {
            let left = tokens.status().valid_for.unwrap_or_default();
            Check::ok(TOKEN, format!("got one, which can be used for {}", super::super::ago(left.as_secs_f64())))
        }
        Ok(Err(AuthError::Refused(reason))) => Check::failed(
            TOKEN,
            format!("the token endpoint refuses us: {}", reason.text),
            "check destination.auth: ids, secrets, scope and token_url; leadpost config show says where each comes from",
        ),
        Ok(Err(AuthError::Unavailable(reason, _))) => {
            let failed = not_answered(TOKEN, "the token endpoint", "destination.auth.token_url", &reason);
            Check { is_unreachable: is_unreachable(&reason), ..failed }
        }
        Err(_) => {
            let found = format!("the token endpoint did not answer within {:?}", LIMIT - BYE);
            Check::unreachable(TOKEN, found, "check destination.auth.token_url, and what stands between")
        }
    };
    // What is not answered in time ends by itself.
    drop(tokio::time::timeout(BYE, tokens.log_out()).await);
    check
}

/// What time it is at the token endpoint, by a request that asks for nothing.
async fn token_clock(settings: &Settings) -> Check {
    let auth = &settings.destination.auth;
    if !has_login(auth.kind) {
        return Check::left_out(TOKEN_CLOCK, "there is no log-in");
    }
    let unknown =
        |why: &str| Check::left_out(TOKEN_CLOCK, format!("the token endpoint does not say what time it is: {why}"));
    match ask(settings, &auth.token_url, (&auth.tls, "destination.auth")).await {
        Some((_, Ok(Ok(Knock { ahead_s: Some(ahead_s), .. })))) => {
            clock(TOKEN_CLOCK, "the token endpoint's clock", ahead_s)
        }
        Some((_, Ok(Ok(_)))) => unknown("its answer has no date"),
        Some((_, Ok(Err(reason)))) => unknown(&reason.text),
        Some((_, Err(error))) => unknown(&error.to_string()),
        None => Check::skipped(TOKEN_CLOCK, CONFIG),
    }
}

/// What is at this URL of the destination, by scheme, host and port, and what it answers. `None`: it is no URL.
async fn ask(
    settings: &Settings,
    url: &str,
    (tls, section): (&Tls, &str),
) -> Option<(String, Result<Result<Knock, Reason>, ClientError>)> {
    let request = &settings.destination.request;
    let url = fill_in_url(url, &config::url_values(&settings.destination)).ok()?.parse::<reqwest::Url>().ok()?;
    let timeout = REQUEST.min(Duration::from_millis(request.timeout_ms));
    let client = client(&ClientSettings {
        timeout,
        connect_timeout: timeout.min(Duration::from_millis(request.connect_timeout_ms)),
        idle_timeout: timeout,
        proxy: &request.proxy,
        tls,
        section,
    });
    // Without what else may stand in the URL, such as a key.
    let at = url.origin().ascii_serialization();
    Some(match client {
        Ok(client) => (at, Ok(knock(&client, &url, section).await)),
        Err(error) => (at, Err(error)),
    })
}

/// Whether something answers where leads are posted to, without posting one.
async fn api(settings: &Settings) -> Vec<Check> {
    let (at, answer) = match ask(
        settings,
        &settings.destination.request.url,
        (&settings.destination.request.tls, "destination.request"),
    )
    .await
    {
        Some((at, Ok(answer))) => (at, answer),
        Some((_, Err(error))) => {
            let fix = "check destination.request.proxy, and this machine's root certificates";
            return vec![Check::failed(REACH, error.to_string(), fix), Check::skipped(CLOCK, REACH)];
        }
        None => return [REACH, CLOCK].map(|id| Check::skipped(id, CONFIG)).into(),
    };
    match answer {
        Ok(answer) => vec![
            reached(&at, answer),
            match answer.ahead_s {
                Some(ahead_s) => clock(CLOCK, "the API's clock", ahead_s),
                None => Check::left_out(CLOCK, "the API does not say what time it is"),
            },
        ],
        Err(reason) => {
            let failed = not_answered(REACH, &at, "destination.request.url", &reason);
            let failed = Check { is_unreachable: is_unreachable(&reason), ..failed };
            vec![failed, Check::skipped(CLOCK, REACH)]
        }
    }
}

fn reached(at: &str, answer: Knock) -> Check {
    let status = answer.status;
    let found = format!("{at} answers ({status} to OPTIONS, which asks for nothing)");
    match status {
        300..400 => Check::warning(
            REACH,
            format!("{found}: a redirect, which is not followed"),
            "set destination.request.url to where it leads, if posts are answered so, too",
        ),
        407 => Check::failed(
            REACH,
            format!("{found}: the proxy wants a log-in"),
            "set destination.request.proxy to env, and HTTPS_PROXY to the proxy's URL with user and password",
        ),
        // Not to speak OPTIONS is nothing to be worried about.
        501 => Check::ok(REACH, found),
        500.. => Check::warning(
            REACH,
            format!("{found}: it is in trouble, or what stands before it is"),
            "ask the API's operator, or see its status page; leads wait meanwhile",
        ),
        _ => Check::ok(REACH, found),
    }
}

fn is_unreachable(reason: &Reason) -> bool {
    let is_away = ["connect_failed", "connect_timeout", crate::http::NO_ANSWER].contains(&reason.code.as_ref());
    is_away && fix_of_tls(&reason.text, "", "").is_none()
}

fn not_answered(id: &'static str, who: &str, key: &str, reason: &Reason) -> Check {
    let found = format!("{who}: {}", reason.text);
    let fix = if let Some(fix) = fix_of_tls(&reason.text, key, TRUST) {
        fix
    } else if is_unreachable(reason) {
        format!(
            "check {key}, destination.request.proxy, and what stands between: name resolution, firewalls; or wait until it is back"
        )
    } else {
        format!("check {key}; if it is right, the other side is in trouble: see its status page, or ask its operator")
    };
    Check::failed(id, found, fix)
}
