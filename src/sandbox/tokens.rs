//! The tokens in circulation, whichever API gave them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The tokens that open something.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    live: Mutex<HashMap<Box<str>, Life>>,
}

#[derive(Clone, Copy, Debug)]
struct Life {
    full: Duration,
    end: Instant,
}

/// A token of this length. Letters and digits after `begin`: nothing to escape anywhere.
pub(super) fn make(begin: &str, length: usize) -> String {
    let mut token = String::with_capacity(length);
    token.push_str(begin);
    token.extend(std::iter::repeat_with(fastrand::alphanumeric).take(length.saturating_sub(begin.len())));
    token
}

impl Tokens {
    /// Puts a token into circulation.
    pub(super) fn issue(&self, token: &str, lifetime: Duration) {
        let now = Instant::now();
        let mut live = self.lock();
        // A client that asks for a token per lead must not fill the memory.
        if live.len().is_power_of_two() && live.len() >= 1024 {
            live.retain(|_, life| now < life.end);
        }
        live.insert(token.into(), Life { full: lifetime, end: now + lifetime });
    }

    /// Whether a token is valid now.
    pub(super) fn admits(&self, token: &str) -> bool {
        self.lock().get(token).is_some_and(|life| Instant::now() < life.end)
    }

    /// Gives a token that is still alive the whole of its life again.
    pub(super) fn renew(&self, token: &str) {
        let now = Instant::now();
        if let Some(life) = self.lock().get_mut(token).filter(|life| now < life.end) {
            life.end = now + life.full;
        }
    }

    /// Makes a token worthless. The flag says whether it was worth anything.
    pub(super) fn revoke(&self, token: &str) -> bool {
        self.lock().remove(token).is_some_and(|life| Instant::now() < life.end)
    }

    /// Makes all tokens worthless.
    pub(super) fn revoke_all(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Life>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_token_admits_until_its_lifetime_is_over_or_it_is_revoked() {
        let tokens = Tokens::default();
        for token in ["one", "other"] {
            tokens.issue(token, LONG);
        }
        tokens.issue("dead", Duration::ZERO);
        assert!(tokens.admits("one") && tokens.admits("other"));
        assert!(!tokens.admits("unknown") && !tokens.admits("dead"));
        assert_eq!([tokens.revoke("one"), tokens.revoke("one"), tokens.revoke("dead")], [true, false, false]);
        assert!(!tokens.admits("one") && tokens.admits("other"));
        tokens.revoke_all();
        assert!(!tokens.admits("other"));
    }

    #[test]
    fn a_renewed_token_lives_its_whole_life_again_and_a_dead_one_stays_dead() {
        let tokens = Tokens::default();
        tokens.issue("dead", Duration::ZERO);
        tokens.renew("dead");
        assert!(!tokens.admits("dead"));
        let life = Duration::from_millis(1000);
        tokens.issue("alive", life);
        let issued = Instant::now();
        std::thread::sleep(life / 2);
        tokens.renew("alive");
        std::thread::sleep((life + life / 4).saturating_sub(issued.elapsed()));
        assert!(tokens.admits("alive"), "it has not been renewed");
    }

    #[test]
    fn expired_tokens_do_not_pile_up() {
        let tokens = Tokens::default();
        for n in 0..10_000 {
            tokens.issue(&n.to_string(), Duration::ZERO);
        }
        assert!(tokens.lock().len() <= 1024);
    }

    #[test]
    fn a_token_has_the_length_that_was_asked_for() {
        assert_eq!(make("", 30).len(), 30);
        assert!(make("eyJ", 900).starts_with("eyJ"));
        assert_ne!(make("", 16), make("", 16));
    }
}
