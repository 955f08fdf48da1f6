//! What a sandbox is started with, and what can be changed while it runs.
//!
//! Two halves, because they change at different times: [`SandboxSettings`] is fixed at the start, [`Tuning`] is read
//! anew by every request and can be replaced at any moment, from Rust and over HTTP.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::faults::check_status;
use super::plan::FaultPlan;

/// Everything a sandbox needs at its start. The default suits tests: a free port, all bodies kept, nothing bounded.
#[derive(Clone, Debug)]
pub struct SandboxSettings {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Decides which requests meet the faults with a rate, and how long a latency from a range is.
    pub seed: u64,
    /// Whether the journal keeps the bytes of each body. Without them it keeps a hash.
    pub keep_bodies: bool,
    /// How many requests the journal holds; beyond that the oldest go. The counts stay right.
    pub journal_limit: Option<usize>,
    /// With what the port speaks TLS; `None`: it does not.
    pub tls: Option<TlsFiles>,
    /// How the APIs behave.
    pub tuning: Tuning,
    /// The faults to begin with.
    pub faults: FaultPlan,
}

impl Default for SandboxSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            seed: 0,
            keep_bodies: true,
            journal_limit: None,
            tls: None,
            tuning: Tuning::default(),
            faults: FaultPlan::default(),
        }
    }
}

/// A certificate, with those that lead to its CA, and its key, as PEM (RFC 7468).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates, its own first.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// How the APIs behave. As JSON it is the document of `GET` and `PATCH /_sandbox/settings`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tuning {
    /// Which lead API is played.
    pub profile: Profile,
    /// The client id that the token endpoint knows.
    pub client_id: String,
    /// The secret of that client. Made up, hence no secret, as all that follow.
    pub client_secret: String,
    /// The scopes granted to that client, separated by spaces.
    pub scope: String,
    /// The user that SquadRun and Paya know.
    pub username: String,
    /// The password of that user.
    pub password: String,
    /// The domain that Paya's user logs in to.
    pub domain: String,
    /// The token that SquadIQ gives out on its dashboard: no request brings another.
    pub bearer_token: String,
    /// What Paya knows the client's maker by; every request to it carries this.
    pub developer_id: String,
    /// Paya's user, for who does not log in.
    pub user_id: String,
    /// The key of that user.
    pub user_api_key: String,
    /// The only location that Paya takes contacts for. 24 to 36 characters.
    pub location_id: String,
    /// How long a token lives: enforced to the millisecond. Announced in whole seconds, rounded down, or where the API
    /// announces minutes, in whole minutes: rounded down too, and never less than one.
    #[serde(rename = "token_lifetime_ms", with = "millis")]
    pub token_lifetime: Duration,
    /// When set, the lifetime that is announced instead of the true one, in seconds.
    pub announced_lifetime_s: Option<u64>,
    /// Characters of a token. Cognito's are JWTs of 800 to 1,000, those of the others are short.
    pub token_length: usize,
    /// How long the token endpoint takes.
    #[serde(rename = "token_delay_ms", with = "millis")]
    pub token_delay: Duration,
    /// When set, the token endpoint answers every request with this status.
    pub token_unavailable: Option<u16>,
    /// When set, the lead API answers every request with this status.
    pub leads_unavailable: Option<u16>,
    /// How long the lead API takes before it processes a request.
    #[serde(rename = "latency_ms", with = "millis")]
    pub latency: Duration,
    /// When longer than `latency`, each request takes a time between the two.
    #[serde(rename = "latency_max_ms", with = "millis")]
    pub latency_max: Duration,
    /// The shape of 7targets' own errors.
    pub errors: ErrorShape,
    /// What 7targets answers a second lead with the same email.
    pub duplicates: Duplicates,
    /// The state of a new lead at 7targets.
    pub state: String,
    /// The substate of a new lead at 7targets.
    pub sub_state: Option<String>,
    /// Whether 7targets answers a repeated `Idempotency-Key` as it did the first time. It documents no such thing.
    pub dedupe_by_key: bool,
    /// Most requests in work at the lead API at once; one more is answered 429.
    pub capacity: Option<u32>,
    /// So many requests are worked on at once; with n times as many, each takes n times as long.
    pub slow_above: Option<u32>,
    /// Most requests of the lead API per second; one more is answered 429. A burst of one second's worth passes.
    pub rate_limit_per_s: Option<u32>,
    /// Most authenticated requests of the lead API within any minute; one more is answered 429, without `Retry-After`.
    pub rate_limit_per_min: Option<u32>,
    /// The `Retry-After` of a 429 for want of capacity, in seconds; 0: none.
    pub retry_after_s: u32,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            profile: Profile::SevenTargets,
            client_id: "sandbox-client".to_owned(),
            client_secret: "sandbox-secret".to_owned(),
            scope: "leads/post".to_owned(),
            username: "sandbox-user".to_owned(),
            password: "sandbox-password".to_owned(),
            domain: "sandbox.example".to_owned(),
            bearer_token: "sandbox-bearer-token".to_owned(),
            developer_id: "sandbox-developer".to_owned(),
            user_id: "sandbox-user-id-0000000000".to_owned(),
            user_api_key: "sandbox-user-api-key".to_owned(),
            location_id: "sandbox-location-0000000001".to_owned(),
            token_lifetime: Duration::from_secs(3600),
            announced_lifetime_s: None,
            token_length: 900,
            token_delay: Duration::ZERO,
            token_unavailable: None,
            leads_unavailable: None,
            latency: Duration::ZERO,
            latency_max: Duration::ZERO,
            errors: ErrorShape::Message,
            duplicates: Duplicates::Conflict,
            state: "Cold".to_owned(),
            sub_state: Some("Followup_1".to_owned()),
            dedupe_by_key: false,
            capacity: None,
            slow_above: None,
            rate_limit_per_s: None,
            rate_limit_per_min: None,
            retry_after_s: 1,
        }
    }
}

impl Tuning {
    /// The settings of an API as it is in earnest: its lifetime of a token, its rate limit.
    ///
    /// Another profile in [`tune`](super::Sandbox::tune) or `PATCH` changes none of these by itself.
    pub fn of(profile: Profile) -> Self {
        let usual = Self { profile, ..Self::default() };
        let lifetime = Duration::from_secs;
        match profile {
            Profile::SevenTargets | Profile::SevenTargets2024 => usual,
            // Documented: the lifetime and the limit. The length is that of the library behind it.
            Profile::SquadRun => Self {
                scope: "read write".to_owned(),
                token_lifetime: lifetime(36_000),
                token_length: 30,
                rate_limit_per_min: Some(100),
                ..usual
            },
            Profile::SquadIq => Self { rate_limit_per_min: Some(100), ..usual },
            // Documented: the lifetime. No example of a token is published.
            Profile::Kaisa => Self { token_lifetime: lifetime(300), token_length: 40, ..usual },
            // Documented, the length by its examples.
            Profile::Paya => Self { token_lifetime: lifetime(900), token_length: 16, ..usual },
        }
    }

    /// The lifetime of a token as it is announced, in seconds.
    pub(super) fn announced_lifetime_s(&self) -> u64 {
        self.announced_lifetime_s.unwrap_or(self.token_lifetime.as_secs())
    }

    /// These settings with the members of `patch` put over them.
    ///
    /// # Errors
    /// Says which member is unknown, of the wrong type or out of range.
    pub fn patched(&self, patch: &serde_json::Map<String, serde_json::Value>) -> Result<Self, String> {
        let mut whole = serde_json::to_value(self).map_err(|error| error.to_string())?;
        if let Some(members) = whole.as_object_mut() {
            members.extend(patch.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        let tuning: Self = serde_json::from_value(whole).map_err(|error| error.to_string())?;
        tuning.check()?;
        Ok(tuning)
    }

    /// The rules that a type cannot hold.
    ///
    /// # Errors
    /// Says which setting is out of range.
    pub fn check(&self) -> Result<(), String> {
        for status in [self.token_unavailable, self.leads_unavailable].into_iter().flatten() {
            check_status(status)?;
        }
        if !(16..=8192).contains(&self.token_length) {
            return Err(format!("token_length is {}, it must be 16 to 8192", self.token_length));
        }
        if self.rate_limit_per_s == Some(0) {
            return Err("rate_limit_per_s is 0, use leads_unavailable to refuse everything".to_owned());
        }
        if self.slow_above == Some(0) {
            return Err("slow_above is 0, use leads_unavailable to refuse everything".to_owned());
        }
        if self.rate_limit_per_min == Some(0) {
            return Err("rate_limit_per_min is 0, use leads_unavailable to refuse everything".to_owned());
        }
        if !(24..=36).contains(&self.location_id.chars().count()) {
            return Err(format!("location_id is {}, it must have 24 to 36 characters", self.location_id));
        }
        Ok(())
    }
}

/// Which lead API a sandbox plays. One at a time: some of them share paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Profile {
    /// 7targets as of March 2022: assistantId
    #[default]
    #[serde(rename = "7targets")]
    #[value(name = "7targets")]
    SevenTargets,
    /// 7targets since 2024: assistantEmail and the header 7ts-user-identifier
    #[serde(rename = "7targets-2024")]
    #[value(name = "7targets-2024")]
    SevenTargets2024,
    /// SquadRun v1: password grant, refresh tokens that rotate
    #[serde(rename = "squadrun")]
    #[value(name = "squadrun")]
    SquadRun,
    /// SquadIQ v4: SquadRun's leads with a static token
    #[serde(rename = "squadiq")]
    #[value(name = "squadiq")]
    SquadIq,
    /// Kaisa, formerly Freespee: customers as forms, errors with status 200
    #[serde(rename = "kaisa")]
    #[value(name = "kaisa")]
    Kaisa,
    /// Paya Connect, formerly Zeamster: API keys, or sessions that live on while used (paya-session)
    #[serde(rename = "paya")]
    #[value(name = "paya", alias = "paya-session")]
    Paya,
}

/// How the lead API words an error. 7targets documents none; its own clients have read all three at one time or another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorShape {
    /// A bare JSON string.
    Text,
    /// `{"message": ".."}`, as Amazon API Gateway does.
    #[default]
    Message,
    /// `{"body": ".."}`.
    Body,
}

/// What a lead with a known email is answered. The status of 7targets is not published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duplicates {
    /// 409 and a message.
    #[default]
    Conflict,
    /// 400 and the same message.
    BadRequest,
    /// 201 and the id of the lead that exists.
    Existing,
}

/// Durations as whole milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(text: &str) -> Result<Tuning, String> {
        Tuning::default().patched(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn every_profile_has_settings_of_its_own_that_make_sense() {
        assert_eq!(Tuning::of(Profile::SevenTargets), Tuning::default());
        let of = |name: &str| {
            let profile: Profile = serde_json::from_value(name.into()).unwrap();
            let tuning = Tuning::of(profile);
            assert_eq!((tuning.profile, tuning.check()), (profile, Ok(())));
            (tuning.token_lifetime.as_secs(), tuning.rate_limit_per_min)
        };
        assert_eq!(of("7targets-2024"), (3600, None));
        assert_eq!(of("squadrun"), (36_000, Some(100)));
        assert_eq!(of("squadiq").1, Some(100));
        assert_eq!(of("kaisa"), (300, None));
        assert_eq!(of("paya"), (900, None));
    }

    #[test]
    fn patch_changes_the_named_members_only() {
        let tuning = patch(r#"{"latency_ms":100,"leads_unavailable":503,"profile":"7targets-2024"}"#).unwrap();
        let expected = Tuning {
            latency: Duration::from_millis(100),
            leads_unavailable: Some(503),
            profile: Profile::SevenTargets2024,
            ..Tuning::default()
        };
        assert_eq!(tuning, expected);
    }

    #[test]
    fn patch_with_null_switches_an_optional_setting_off() {
        let down = Tuning { leads_unavailable: Some(503), ..Tuning::default() };
        let up = down.patched(&serde_json::from_str(r#"{"leads_unavailable":null}"#).unwrap()).unwrap();
        assert_eq!(up, Tuning::default());
    }

    #[test]
    fn patch_names_what_is_wrong() {
        assert!(patch(r#"{"latency":100}"#).unwrap_err().contains("latency"));
        assert!(patch(r#"{"leads_unavailable":42}"#).unwrap_err().contains("42"));
        assert!(patch(r#"{"token_length":1}"#).unwrap_err().contains("token_length"));
        assert!(patch(r#"{"rate_limit_per_min":0}"#).unwrap_err().contains("rate_limit_per_min"));
        assert!(patch(r#"{"location_id":"short"}"#).unwrap_err().contains("location_id"));
    }
}
